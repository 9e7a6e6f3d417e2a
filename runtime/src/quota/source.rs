//! Where grants come from and go back to: the store, or this process's memory where nothing is to outlive it.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    grants::{Ask, Grants, Reported, Taken},
    limit::{Limits, Unit, Want},
    notice::Notices,
    store::{self, ReportOf},
};
use crate::store::{Store, StoreError};

/// How long a grant lives that nobody extends.
pub(crate) const LIFE: Duration = Duration::from_secs(5);
/// By which two replicas' clocks may differ. A grant is used for so much less than it lives, and closed by others so much later.
pub(crate) const SKEW: Duration = Duration::from_secs(1);
/// How long the store is waited for before it counts as out of reach.
const PATIENCE: Duration = Duration::from_secs(2);
/// Pauses between tries.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// Ids of one epoch, at 1,000 a second those of 34 years. There are eight million epochs.
const IDS: i64 = 1 << 40;
/// How long this process's memory keeps closed grants, in which a late report still finds its own.
const REMEMBERED_US: i64 = 3_600_000_000;
/// It looks for what to forget once in so many asks.
const FORGETS_EVERY: i64 = 1_024;

/// Asks for grants and reports of them, for one life of one replica. Clones are the same source.
#[derive(Debug, Clone)]
pub struct Source(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    kind: Kind,
    replica: String,
    epoch: i64,
    /// The last id that was made. Ids hold the epoch, which is nobody else's, so no two grants have the same.
    last: AtomicI64,
    notices: Notices,
}

#[derive(Debug)]
enum Kind {
    Memory(Mutex<Grants>),
    Store(Store),
}

impl Source {
    /// Windows that are forgotten with the process.
    pub fn memory() -> Source {
        Source::new(Kind::Memory(Mutex::new(Grants::new(micros(SKEW)))), "memory", 0)
    }

    /// The store's, for an epoch of this replica that has begun and not ended.
    pub fn store(store: Store, replica: &str, epoch: i64) -> Source {
        Source::new(Kind::Store(store), replica, epoch)
    }

    fn new(kind: Kind, replica: &str, epoch: i64) -> Source {
        let first = epoch.checked_mul(IDS).expect("fewer epochs than eight million");
        let last = AtomicI64::new(first);
        Source(Arc::new(Inner { kind, replica: replica.to_owned(), epoch, last, notices: Notices::default() }))
    }

    /// The windows in memory.
    #[cfg(test)]
    pub(crate) fn in_memory<T>(&self, read: impl FnOnce(&Grants) -> T) -> Option<T> {
        match &self.0.kind {
            Kind::Memory(grants) => Some(read(&grants.lock().unwrap_or_else(PoisonError::into_inner))),
            Kind::Store(_) => None,
        }
    }

    /// What is told of windows that are nearly or wholly used.
    pub fn notices(&self) -> &Notices {
        &self.0.notices
    }

    /// A new ask, of this moment by the machine's clock.
    pub fn ask(&self, tenant: &str, unit: Unit, want: Want, at_us: i64) -> Ask {
        Ask {
            id: self.0.last.fetch_add(1, Ordering::Relaxed) + 1,
            tenant: tenant.to_owned(),
            unit,
            replica: self.0.replica.clone(),
            epoch: self.0.epoch,
            want,
            at_us,
            expires_us: at_us + micros(LIFE),
        }
    }

    /// Takes a grant. Nothing, if the store cannot be reached for as long as the grant would be of use: then nobody knows whether it was
    /// made, and it ends by itself.
    pub async fn take(&self, ask: &Ask, limits: &Limits) -> Option<Taken> {
        let taken = match &self.0.kind {
            Kind::Memory(grants) => {
                let mut grants = grants.lock().unwrap_or_else(PoisonError::into_inner);
                if ask.id % FORGETS_EVERY == 0 {
                    grants.forget(ask.at_us - REMEMBERED_US, ask.at_us);
                }
                grants.take(ask, limits)
            }
            Kind::Store(store) => tokio::time::timeout(LIFE - SKEW, taken(store, ask, limits)).await.ok().flatten()?,
        };
        if let Taken::Answer(answer) = &taken {
            self.0.notices.hear(ask, limits, answer);
        }
        Some(taken)
    }

    /// Reports, once: totals, so that the next report says what this one did not get across. Nothing if the store cannot be reached.
    pub async fn report(&self, reports: &[ReportOf]) -> Option<Vec<Reported>> {
        let reported = match &self.0.kind {
            Kind::Memory(grants) => {
                let mut grants = grants.lock().unwrap_or_else(PoisonError::into_inner);
                let one = |report: &ReportOf| match report.closes {
                    true => grants.give_back(report.id, report.spent),
                    false => grants.extend(report.id, report.spent, report.expires_us),
                };
                reports.iter().map(one).collect()
            }
            Kind::Store(store) => match tokio::time::timeout(PATIENCE, store::report(store, reports)).await {
                Ok(Ok(reported)) => reported,
                Ok(Err(error)) => return none(&error),
                Err(_) => return None,
            },
        };
        // Only a clock outside the bound, or a store that was out of reach for longer than a grant lives, makes any.
        let late: i64 = reports.iter().zip(&reported).map(|(_, reported): (_, &Reported)| reported.late).sum();
        if late > 0 {
            tracing::warn!(late, "spent of grants that had ended: it is the operator's");
        }
        Some(reported)
    }

    /// The same, for as long as grants live: for the last word of a replica.
    pub async fn report_last(&self, reports: &[ReportOf]) {
        let deadline = tokio::time::Instant::now() + LIFE;
        let mut pause = PAUSE.0;
        while !reports.is_empty() && self.report(reports).await.is_none() && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }
}

/// Asks until there is an answer; nothing if the store refuses for good. It is the same ask, and so the same grant, however often it
/// is sent.
async fn taken(store: &Store, ask: &Ask, limits: &Limits) -> Option<Taken> {
    let mut pause = PAUSE.0;
    loop {
        match tokio::time::timeout(PATIENCE, store::take(store, ask, limits, micros(SKEW))).await {
            Ok(Ok(done)) => return Some(done),
            Ok(Err(error @ (StoreError::Unavailable(_) | StoreError::Retry(_) | StoreError::CommitUnknown(_)))) => {
                tracing::debug!(%error, "a grant waits for the store")
            }
            Ok(Err(error)) => return none(&error),
            Err(_) => {}
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

fn none<T>(error: &StoreError) -> Option<T> {
    tracing::warn!(%error, "the store keeps no grants");
    None
}

/// Microseconds, as the store has them.
pub(crate) fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

/// This machine's clock, in microseconds since 1970; a clock before that is at its beginning.
pub(crate) fn now_us() -> i64 {
    micros(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::Answer;

    #[tokio::test]
    async fn ids_are_of_their_epoch_and_a_source_in_memory_grants_and_takes_back() {
        let source = Source::memory();
        let limits = Limits { amounts: [Some(10), None, None], ..Limits::default() };
        let first = source.ask("acme", Unit::Requests, Want::of(10), 1_000);
        let second = source.clone().ask("acme", Unit::Requests, Want::of(10), 1_000);
        assert_eq!((first.id, second.id, first.epoch), (1, 2, 0));
        let Some(Taken::Answer(Answer::Granted { amount: 10, .. })) = source.take(&first, &limits).await else {
            panic!("there is room for ten")
        };
        assert!(matches!(source.take(&second, &limits).await, Some(Taken::Answer(Answer::Spent { .. }))));
        let back = ReportOf { id: 1, spent: 4, expires_us: 0, closes: true };
        source.report(&[back]).await.expect("memory");
        let third = source.ask("acme", Unit::Requests, Want::of(10), 1_000);
        let Some(Taken::Answer(Answer::Granted { amount: 6, .. })) = source.take(&third, &limits).await else {
            panic!("six came back")
        };
    }
}
