//! How often each address came with a credential that is nobody's.
//!
//! Guessing 256 bits is hopeless at any rate; what a flood of guesses costs is time, above all that of signatures, and
//! lines in the log. So each address may fail [`BURST`] times at once and then [`PER_SECOND`] times a second. Beyond
//! it, failures read 429, and its tokens' signatures are not looked at; an API key that is known still opens, because
//! it costs next to nothing to find and because others may share the address.
//!
//! The table has a fixed size and no lock: a slot is one word, holding whose it is and when its debt is paid (the
//! "generic cell rate algorithm"). Where two addresses meet in a slot, the one with debt keeps it. A flood from more
//! addresses than there are slots makes it forget debts, never grow.

use std::{
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Failures that an address may have at once.
pub const BURST: u64 = 60;
/// And then in each second.
pub const PER_SECOND: u64 = 2;
/// Slots: 128 KiB.
const SLOTS: usize = 16 << 10;
/// What one failure costs.
const COST_MILLIS: u64 = 1000 / PER_SECOND;
/// The low bits of a slot are milliseconds since the start, enough for 34 years; the others say whose it is.
const TIME_BITS: u32 = 40;
const TIME: u64 = (1 << TIME_BITS) - 1;

/// The table.
#[derive(Debug)]
pub struct Failures {
    slots: Box<[AtomicU64]>,
    /// Random: nobody can aim at another address's slot.
    hasher: RandomState,
    begin: Instant,
}

impl Failures {
    /// Empty.
    pub fn new(begin: Instant) -> Self {
        let slots = (0..SLOTS).map(|_| AtomicU64::new(0)).collect();
        Failures { slots, hasher: RandomState::new(), begin }
    }

    /// How long an address has to wait until it may fail again; `None` when it may now.
    pub fn wait(&self, address: IpAddr, now: Instant) -> Option<Duration> {
        let (slot, mark) = self.slot(address)?;
        let held = slot.load(Ordering::Relaxed);
        let debt = if held & !TIME == mark { held & TIME } else { 0 };
        let free_at = debt.saturating_sub((BURST - 1) * COST_MILLIS);
        free_at.checked_sub(self.millis(now)).filter(|wait| *wait > 0).map(Duration::from_millis)
    }

    /// Counts one.
    pub fn count(&self, address: IpAddr, now: Instant) {
        let Some((slot, mark)) = self.slot(address) else { return };
        let now = self.millis(now);
        let _ = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
            let paid = held & TIME;
            match held & !TIME == mark {
                // Debts end: who fails all day long waits as long as who failed a minute.
                true => Some(mark | (paid.max(now) + COST_MILLIS).min(now + BURST * COST_MILLIS)),
                false if paid > now => None,
                false => Some(mark | (now + COST_MILLIS)),
            }
        });
    }

    /// Where an address is counted. Programs on this machine are not: they are trusted with more than this, or they are
    /// a proxy that nobody declared, and limiting it would be limiting everyone.
    fn slot(&self, address: IpAddr) -> Option<(&AtomicU64, u64)> {
        let address = match address.to_canonical() {
            address if address.is_loopback() => return None,
            // Whoever has one address in IPv6 has the 2^64 beside it.
            IpAddr::V6(six) => IpAddr::V6((six.to_bits() & !u128::from(u64::MAX)).into()),
            four => four,
        };
        let hash = self.hasher.hash_one(address);
        Some((&self.slots[hash as usize % SLOTS], hash & !TIME))
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.begin).as_millis()).map_or(TIME / 2, |ms| ms.min(TIME / 2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("address")
    }

    #[test]
    fn an_address_fails_in_bursts_and_then_at_its_rate() {
        let begin = Instant::now();
        let failures = Failures::new(begin);
        let (one, other) = (address("192.0.2.1"), address("198.51.100.1"));
        let after = |millis| begin + Duration::from_millis(millis);
        for _ in 0..BURST {
            assert_eq!(failures.wait(one, after(0)), None);
            failures.count(one, after(0));
        }
        assert_eq!(failures.wait(one, after(0)), Some(Duration::from_millis(COST_MILLIS)));
        assert_eq!(failures.wait(one, after(COST_MILLIS - 1)), Some(Duration::from_millis(1)));
        assert_eq!(failures.wait(one, after(COST_MILLIS)), None);
        assert_eq!(failures.wait(other, after(0)), None);
        // Failing on does not make the wait longer than a burst is.
        for _ in 0..1000 {
            failures.count(one, after(0));
        }
        assert_eq!(failures.wait(one, after(0)), Some(Duration::from_millis(COST_MILLIS)));
        assert_eq!(failures.wait(one, after(BURST * COST_MILLIS)), None);
    }

    #[test]
    fn neighbours_in_ipv6_are_one_and_mapped_addresses_are_ipv4() {
        let begin = Instant::now();
        let failures = Failures::new(begin);
        for at in 0..BURST {
            failures.count(address(&format!("2001:db8::{at:x}:1")), begin);
            failures.count(address("::ffff:192.0.2.1"), begin);
        }
        assert!(failures.wait(address("2001:db8::ffff"), begin).is_some());
        assert_eq!(failures.wait(address("2001:db8:0:1::1"), begin), None);
        assert!(failures.wait(address("192.0.2.1"), begin).is_some());
    }

    #[test]
    fn this_machine_is_not_counted() {
        let begin = Instant::now();
        let failures = Failures::new(begin);
        for local in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
            (0..2 * BURST).for_each(|_| failures.count(address(local), begin));
            assert_eq!(failures.wait(address(local), begin), None, "{local}");
        }
    }

    #[test]
    fn a_flood_from_everywhere_forgets_no_debt_that_it_meets() {
        let begin = Instant::now();
        let failures = Failures::new(begin);
        let one = address("192.0.2.1");
        (0..BURST).for_each(|_| failures.count(one, begin));
        for at in 0..100_000_u32 {
            failures.count(IpAddr::V4((0x0b00_0000 + at).into()), begin);
        }
        assert!(failures.wait(one, begin).is_some());
        assert_eq!(failures.slots.len(), SLOTS);
    }
}
