//! The closed loop: each connection sends its next request when its last one has ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::config::{REQUESTS_MAX, Target};
use crate::connection::Connection;
use crate::error::{BenchError, RequestError};
use crate::prompts::Prompts;
use crate::sample::{Attempt, Sample};
use crate::sse::SseParser;
use crate::wire;

/// The longest answer that is read whole: an error, a list of models, 32 vectors.
const BODY_BYTES_MAX: usize = 64 << 20;

/// What each request of a level is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    Completion { output_tokens: u32 },
    Embedding { inputs: u32 },
}

/// The requests of a run: everything but how many, and over how many connections.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) target: Target,
    pub(crate) key: String,
    pub(crate) model: String,
    pub(crate) prompts: Prompts,
    pub(crate) work: Work,
}

/// How long a level goes on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Extent {
    Requests(u32),
    /// New requests begin for this long.
    Time(Duration),
}

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

/// Runs one closed loop to its end, drain included. Prompts are numbered from `first_prompt`.
pub(crate) async fn drive(
    load: &Arc<Load>,
    connections: u32,
    extent: Extent,
    first_prompt: u64,
) -> Result<Vec<Attempt>, BenchError> {
    let began = Instant::now();
    let tickets = Arc::new(Tickets::new(extent, connections, began));
    let mut tasks = JoinSet::new();
    for connection in 0..connections {
        let (load, tickets) = (load.clone(), tickets.clone());
        tasks.spawn(async move { keep_busy(&load, &tickets, connection, first_prompt, began).await });
    }
    let mut attempts = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        attempts.append(&mut ended.map_err(|e| BenchError::Task(e.to_string()))?);
    }
    Ok(attempts)
}

async fn keep_busy(load: &Load, tickets: &Tickets, connection: u32, first_prompt: u64, began: Instant) -> Vec<Attempt> {
    let mut link = Connection::new(load.target.clone());
    let mut attempts = Vec::new();
    while let Some(ticket) = tickets.next() {
        let prompt = first_prompt + u64::from(ticket) * u64::from(load.prompts_per_request());
        let outcome = load.ask(&mut link, connection, prompt, began).await;
        tickets.ended(outcome.is_ok());
        attempts.push(Attempt { connection, end: nanos_since(began), outcome });
    }
    attempts
}

fn nanos_since(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_nanos()).expect("a level lasts less than 584 years")
}

impl Load {
    /// How many prompts one request takes.
    pub(crate) fn prompts_per_request(&self) -> u32 {
        match self.work {
            Work::Completion { .. } => 1,
            Work::Embedding { inputs } => inputs,
        }
    }

    /// Sends the request whose prompts begin at number `prompt`, and reads its answer. The clock starts when the bytes are ready and a connection is
    /// there: drawing, encoding and dialling are the client's own time.
    async fn ask(
        &self,
        link: &mut Connection,
        connection: u32,
        prompt: u64,
        began: Instant,
    ) -> Result<Sample, RequestError> {
        let bytes = self.request(prompt);
        link.open().await?;
        let begin = nanos_since(began);
        let mut response = link.send(&bytes).await?;
        let mut body = Vec::new();
        if response.status != 200 {
            let status = response.status;
            response.read_all(&mut body, BODY_BYTES_MAX).await?;
            return Err(wire::refusal(status, &body));
        }
        match self.work {
            Work::Completion { .. } => {
                let mut reader = wire::CompletionReader::default();
                let mut events = SseParser::default();
                while response.read(&mut body).await? {
                    let now = nanos_since(began);
                    events.push(&body, |data| reader.event(data, now))?;
                    body.clear();
                }
                response.finish();
                reader.finish(connection, begin, nanos_since(began))
            }
            Work::Embedding { inputs } => {
                response.read_all(&mut body, BODY_BYTES_MAX).await?;
                wire::embedding_sample(&body, inputs, connection, begin, nanos_since(began))
            }
        }
    }

    fn request(&self, prompt: u64) -> Vec<u8> {
        match self.work {
            Work::Completion { output_tokens } => {
                let prompt = self.prompts.draw(prompt);
                wire::completion_request(&self.target, &self.key, &self.model, &prompt, output_tokens)
            }
            Work::Embedding { inputs } => {
                let inputs: Vec<_> = (0..u64::from(inputs)).map(|i| self.prompts.draw(prompt + i)).collect();
                wire::embedding_request(&self.target, &self.key, &self.model, &inputs)
            }
        }
    }

    /// The names of the models that the server lists.
    pub(crate) async fn models(&self) -> Result<Vec<String>, RequestError> {
        let mut link = Connection::new(self.target.clone());
        let response = link.send(&wire::models_request(&self.target, &self.key)).await?;
        let status = response.status;
        let mut body = Vec::new();
        response.read_all(&mut body, BODY_BYTES_MAX).await?;
        if status == 200 { wire::model_names(&body) } else { Err(wire::refusal(status, &body)) }
    }
}

#[cfg(test)]
mod tests {
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
