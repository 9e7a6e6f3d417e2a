//! The closed loop: each connection sends its next request when its last one has ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use tokio::task::JoinSet;

use crate::config::REQUESTS_MAX;
use crate::connection::Connection;
use crate::error::BenchError;
use crate::load::{Clock, Load};
use crate::sample::Attempt;
use crate::schedule::{Asks, Extent, connection_tenants};

/// Hands out the requests of a level, so that connections share them as they come free.
#[derive(Debug)]
struct Tickets {
    issued: AtomicU32,
    total: u32,
    until: Option<Instant>,
    /// Failures since the last success, over all connections.
    failed_in_row: AtomicU32,
    failed_in_row_max: u32,
}

impl Tickets {
    fn new(extent: Extent, connections: u32, began: Instant) -> Tickets {
        let (total, until) = match extent {
            Extent::Requests(total) => (total, None),
            Extent::Time(time) => (REQUESTS_MAX, Some(began + time)),
        };
        // A server that refuses everything refuses fast: a level must not become a flood of refusals.
        Tickets {
            issued: AtomicU32::new(0),
            total,
            until,
            failed_in_row: AtomicU32::new(0),
            failed_in_row_max: 4 * connections + 12,
        }
    }

    fn next(&self) -> Option<u32> {
        if self.until.is_some_and(|until| Instant::now() >= until)
            || self.failed_in_row.load(Ordering::Relaxed) >= self.failed_in_row_max
        {
            return None;
        }
        self.issued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < self.total).then_some(n + 1)).ok()
    }

    fn ended(&self, success: bool) {
        if success {
            self.failed_in_row.store(0, Ordering::Relaxed);
        } else {
            self.failed_in_row.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Runs one closed loop to its end, drain included.
pub(crate) async fn drive(
    load: &Arc<Load>,
    asks: Asks,
    connections: u32,
    extent: Extent,
) -> Result<Vec<Attempt>, BenchError> {
    let began = Instant::now();
    let tickets = Arc::new(Tickets::new(extent, connections, began));
    let mut tasks = JoinSet::new();
    for (connection, tenant) in (0..connections).zip(connection_tenants(&load.tenants, connections)) {
        let (load, tickets) = (load.clone(), tickets.clone());
        tasks.spawn(async move {
            let mut link = Connection::new(load.target.clone());
            let mut attempts = Vec::new();
            while let Some(ticket) = tickets.next() {
                let ask = asks.ask(ticket, tenant);
                let attempt = load.attempt(&mut link, connection, &ask, Clock::Sent, began).await;
                tickets.ended(attempt.outcome.is_ok());
                attempts.push(attempt);
            }
            attempts
        });
    }
    let mut attempts = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        attempts.append(&mut ended.map_err(|e| BenchError::Task(e.to_string()))?);
    }
    Ok(attempts)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn tickets_are_handed_out_once_and_end() {
        let tickets = Tickets::new(Extent::Requests(3), 2, Instant::now());
        let drawn: Vec<_> = (0..5).map(|_| tickets.next()).collect();
        assert_eq!(drawn, [Some(0), Some(1), Some(2), None, None]);
    }

    #[test]
    fn a_level_out_of_time_hands_out_none() {
        assert_eq!(Tickets::new(Extent::Time(Duration::ZERO), 1, Instant::now()).next(), None);
    }

    #[test]
    fn failures_in_a_row_end_a_level_and_a_success_forgives() {
        let tickets = Tickets::new(Extent::Requests(1000), 1, Instant::now());
        (0..15).for_each(|_| tickets.ended(false));
        assert!(tickets.next().is_some());
        tickets.ended(true);
        (0..15).for_each(|_| tickets.ended(false));
        assert!(tickets.next().is_some());
        tickets.ended(false);
        assert_eq!(tickets.next(), None);
    }
}
