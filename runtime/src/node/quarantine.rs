//! Requests that have brought an executor down while they ran alone: kept out for an hour, by digest.

use std::time::{Duration, Instant};

use weir_scheduler::TenantId;

/// How long a request is kept out.
pub(crate) const QUARANTINE_TIME: Duration = Duration::from_secs(3600);
/// Requests kept out at once; the oldest gives way, which costs two more executors should it come back.
pub(crate) const QUARANTINE_LEN_MAX: usize = 1024;

/// A keyed digest of a request's tenant, model and prompt. What it asks for beyond these is left out: it would be too easy to
/// change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint([u8; 32]);

/// The requests kept out.
#[derive(Debug)]
pub(crate) struct Quarantine {
    key: [u8; 32],
    /// In the order in which they came, and so in which they leave.
    entries: Vec<(Fingerprint, Instant)>,
}

impl Quarantine {
    pub(crate) fn new(key: [u8; 32]) -> Self {
        Quarantine { key, entries: Vec::new() }
    }

    /// The fingerprint of a prompt, or of a list of inputs.
    pub(crate) fn fingerprint<'a>(
        &self,
        tenant: TenantId,
        model: usize,
        inputs: impl Iterator<Item = &'a [u32]>,
    ) -> Fingerprint {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&tenant.0.to_le_bytes());
        hasher.update(&(model as u64).to_le_bytes());
        for input in inputs {
            hasher.update(&(input.len() as u64).to_le_bytes());
            input.iter().for_each(|id| {
                hasher.update(&id.to_le_bytes());
            });
        }
        Fingerprint(*hasher.finalize().as_bytes())
    }

    /// Keeps a request out from now on.
    pub(crate) fn add(&mut self, now: Instant, fingerprint: Fingerprint) {
        self.forget(now);
        if self.entries.len() == QUARANTINE_LEN_MAX {
            self.entries.remove(0);
        }
        self.entries.push((fingerprint, now));
    }

    /// Nobody is kept out, so nobody's fingerprint is worth taking.
    pub(crate) fn is_empty(&mut self, now: Instant) -> bool {
        self.forget(now);
        self.entries.is_empty()
    }

    pub(crate) fn holds(&self, fingerprint: Fingerprint) -> bool {
        self.entries.iter().any(|(entry, _)| *entry == fingerprint)
    }

    fn forget(&mut self, now: Instant) {
        let over = self.entries.partition_point(|(_, since)| now.saturating_duration_since(*since) >= QUARANTINE_TIME);
        self.entries.drain(..over);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(quarantine: &Quarantine, tenant: u32, ids: &[u32]) -> Fingerprint {
        quarantine.fingerprint(TenantId(tenant), 0, std::iter::once(ids))
    }

    #[test]
    fn a_request_is_kept_out_for_an_hour_and_only_its_tenants() {
        let begin = Instant::now();
        let mut quarantine = Quarantine::new([1; 32]);
        quarantine.add(begin, print(&quarantine, 1, &[1, 2]));
        assert!(quarantine.holds(print(&quarantine, 1, &[1, 2])));
        assert!(!quarantine.holds(print(&quarantine, 2, &[1, 2])), "what one tenant sent says nothing to another");
        assert!(!quarantine.holds(print(&quarantine, 1, &[1, 3])));
        assert!(!quarantine.is_empty(begin + QUARANTINE_TIME - Duration::from_secs(1)));
        assert!(quarantine.is_empty(begin + QUARANTINE_TIME));
    }

    #[test]
    fn the_oldest_gives_way() {
        let begin = Instant::now();
        let mut quarantine = Quarantine::new([1; 32]);
        for id in 0..=QUARANTINE_LEN_MAX as u32 {
            quarantine.add(begin, print(&quarantine, 1, &[id]));
        }
        assert!(!quarantine.holds(print(&quarantine, 1, &[0])) && quarantine.holds(print(&quarantine, 1, &[1])));
    }
}
