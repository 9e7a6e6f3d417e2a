//! The open loop: requests leave when they are due, whatever became of those before.
//!
//! A thread of its own keeps the time, because it sleeps to within some 60 us where tokio's timer has steps of 1 ms. Each
//! arrival takes a free connection, or opens one. Latencies count from the time an arrival was *due*, so that neither a slow
//! server nor a slow client can hide a wait by delaying the question; what the client itself was late is kept apart.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};

use crate::connection::Connection;
use crate::error::{BenchError, RequestError};
use crate::load::{Clock, Load, nanos_since};
use crate::sample::Attempt;
use crate::schedule::Due;

/// What came of a schedule.
#[derive(Debug)]
pub(crate) struct OpenRun {
    pub(crate) attempts: Vec<Attempt>,
    /// The most requests that were open at once.
    pub(crate) open_peak: u32,
    /// Arrivals that were not sent because `open_max` requests were open.
    pub(crate) unsent: u32,
}

/// Sends a schedule, and reads every answer to its end. At most `open_max` requests are open at once: an arrival above that
/// becomes a failed attempt without having been sent.
pub(crate) async fn drive(load: &Arc<Load>, schedule: &[Due], open_max: u32) -> Result<OpenRun, BenchError> {
    let began = Instant::now();
    send(load, schedule, keep_time(schedule, began), began, open_max).await
}

/// Sends the arrivals whose places in the schedule come out of `due`, until that ends.
pub(crate) async fn send(
    load: &Arc<Load>,
    schedule: &[Due],
    mut due: mpsc::Receiver<usize>,
    began: Instant,
    open_max: u32,
) -> Result<OpenRun, BenchError> {
    let mut run = OpenRun { attempts: Vec::with_capacity(schedule.len()), open_peak: 0, unsent: 0 };
    let mut idle: Vec<Connection> = Vec::new();
    let mut tasks: JoinSet<(Connection, Attempt)> = JoinSet::new();
    let ended = |result: Result<_, JoinError>| result.map_err(|e| BenchError::Task(e.to_string()));
    loop {
        // The answers that are in come first: their connections serve the arrivals.
        let index = tokio::select! {
            biased;
            Some(done) = tasks.join_next() => {
                let (link, attempt) = ended(done)?;
                idle.push(link);
                run.attempts.push(attempt);
                continue;
            }
            index = due.recv() => index,
        };
        let Some(index) = index else { break };
        let Due { at, ask } = schedule[index];
        if tasks.len() >= open_max as usize {
            run.unsent += 1;
            let outcome = Err(RequestError::Unsent(open_max));
            run.attempts.push(Attempt {
                connection: 0,
                tenant: ask.tenant,
                begin: at,
                end: nanos_since(began),
                late: 0,
                outcome,
            });
            continue;
        }
        // The connection used last is the one the server has had the least time to close.
        let mut link = idle.pop().unwrap_or_else(|| Connection::new(load.target.clone()));
        let load = load.clone();
        tasks.spawn(async move {
            let attempt = load.attempt(&mut link, 0, &ask, Clock::Due(at), began).await;
            (link, attempt)
        });
        run.open_peak = run.open_peak.max(tasks.len() as u32);
    }
    while let Some(done) = tasks.join_next().await {
        run.attempts.push(ended(done)?.1);
    }
    Ok(run)
}

/// Gives the place of each arrival when it is due. The channel holds at most the whole schedule.
fn keep_time(schedule: &[Due], began: Instant) -> mpsc::Receiver<usize> {
    let times: Vec<u64> = schedule.iter().map(|due| due.at).collect();
    let (sender, receiver) = mpsc::channel(times.len().max(1));
    std::thread::spawn(move || {
        for (index, at) in times.into_iter().enumerate() {
            if let Some(wait) = Duration::from_nanos(at).checked_sub(began.elapsed()) {
                std::thread::sleep(wait);
            }
            // Nobody listens any more: the run was given up.
            if sender.try_send(index).is_err() {
                return;
            }
        }
    });
    receiver
}
