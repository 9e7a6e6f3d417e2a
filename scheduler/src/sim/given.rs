//! Requests that are not drawn but given: a recorded load, played again.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::client::Client;
use super::scenario::Arrivals;
use super::world::{Happening, World};
use crate::admit::Admission;
use crate::ids::Nanos;

/// One request of a recorded load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// When it comes.
    pub at: Nanos,
    /// Its source in the scenario, which says whose it is and for which model; one with [`Arrivals::Given`].
    pub source: usize,
    /// What for.
    pub work: GivenWork,
    /// Its client goes away that long after it came, if it has not ended by then.
    pub patience: Option<Nanos>,
}

/// What a given request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GivenWork {
    /// Text.
    Generate {
        /// Prompt tokens.
        prompt_len: u32,
        /// Ids that each choice may draw.
        new_tokens_max: u32,
        /// Ids after which each choice ends.
        drawn: Vec<u32>,
        /// Its full blocks as runs of numbers (first, how many): equal numbers are equal text, after equal text. None keeps it out of
        /// the prefix cache.
        blocks: Arc<[(u64, u32)]>,
    },
    /// Vectors.
    Embed {
        /// Tokens of each item.
        lens: Vec<u32>,
    },
}

/// The number of block `n` of a given text.
pub(super) fn block_number(runs: &[(u64, u32)], mut n: u32) -> Option<u64> {
    for (first, len) in runs {
        if n < *len {
            return Some(first + u64::from(n));
        }
        n -= len;
    }
    None
}

impl World<'_> {
    /// Plans the given request `at` its time. They are in the order of their times, so one planned at a time is enough.
    pub(super) fn plan_given(&mut self, at: usize) {
        if let Some(given) = self.given.get(at) {
            debug_assert!(given.at >= self.now, "given requests are in order");
            self.plan(given.at.max(self.now), Happening::Given(at));
        }
    }

    /// A given request comes.
    pub(super) fn arrive_given(&mut self, at: usize) {
        self.plan_given(at + 1);
        if self.is_over() {
            return;
        }
        self.asked += 1;
        let given = &self.given[at];
        let source = &self.scenario.sources[given.source];
        debug_assert!(matches!(source.arrivals, Arrivals::Given));
        let (tenant, model, priority) = (source.tenant, source.model, source.priority);
        let place = self.places[&tenant];
        let choices: &[u32] = match &given.work {
            GivenWork::Generate { drawn, .. } => drawn,
            GivenWork::Embed { .. } => &[0],
        };
        let mut clients = Vec::with_capacity(choices.len());
        for drawn in choices {
            let mut client = self.client(given.source, source);
            client.mark = self.mark(place);
            match &given.work {
                GivenWork::Embed { lens } => {
                    client.lens.clone_from(lens);
                    client.prompt_len = lens.iter().sum();
                }
                GivenWork::Generate { prompt_len, new_tokens_max, blocks, .. } => {
                    client.lens.clear();
                    (client.prompt_len, client.most) = (*prompt_len, *new_tokens_max);
                    client.stop = (*drawn).clamp(1.min(*new_tokens_max), *new_tokens_max);
                    client.uses_cache = !blocks.is_empty();
                    client.text.given = Some(blocks.clone());
                }
            }
            client.cancel_at = given.patience.map(|patience| self.now + patience);
            self.diary(|diary, now| diary.came(now, &client, tenant, at));
            clients.push(client);
        }
        let admission = |client: &Client| Admission { tenant, model, priority, work: client.rest() };
        match self.scheduler.admit_group(self.now, clients.iter().map(admission).collect()) {
            Err(reject) => {
                self.outcome.tenants[place].rejected += 1;
                self.note(reject.retry_after.0);
            }
            Ok(ids) => {
                self.outcome.tenants[place].accepted += ids.len() as u64;
                for (id, mut client) in ids.into_iter().zip(clients) {
                    client.id = id;
                    if let Some(at) = client.cancel_at {
                        self.plan(at, Happening::Cancel(id));
                    }
                    self.note_wait(&client);
                    self.clients.insert(client);
                }
            }
        }
    }
}
