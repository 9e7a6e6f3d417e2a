//! Requests as their clients know them: what each wants, how far it has come, and under which id the scheduler has it now.

use alloc::vec::Vec;

use super::memory::Text;
use super::scenario::{Arrivals, Ask, Source};
use super::world::{Happening, World};
use crate::BLOCK_LEN;
use crate::admit::{Admission, Work};
use crate::ids::{Nanos, RequestId};
use crate::why::Times;

/// A request of a client, from its acceptance to its one end. A lost device takes its id and not the request: it goes on under another.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) id: RequestId,
    /// Its place among all accepted requests.
    pub(super) number: u64,
    pub(super) source: usize,
    pub(super) text: Text,
    pub(super) came_at: Nanos,
    pub(super) cancel_at: Option<Nanos>,
    pub(super) uses_cache: bool,
    pub(super) prompt_len: u32,
    /// Ids after which the text ends, and the most that were asked for.
    pub(super) stop: u32,
    pub(super) most: u32,
    pub(super) drawn: u32,
    /// Tokens of each item of a list, and the items done before it was last taken up.
    pub(super) lens: Vec<u32>,
    pub(super) before: u32,
    /// Positions (or items) run, and planned, under the present id.
    pub(super) run: u32,
    pub(super) planned: u32,
    /// Positions computed under any id.
    pub(super) computed: u32,
    /// It has had rows since it last left a queue.
    pub(super) runs: bool,
    pub(super) waited: bool,
    /// The caller judged a stop or a failure: rows still in flight count for nothing.
    pub(super) over: bool,
    /// Of what it was charged under the present id, what is booked to devices that it has left.
    pub(super) booked: Nanos,
    /// Where its time went until its device was lost.
    pub(super) times: Times,
    /// Devices lost in a step of it; and whether the last of them makes it a suspect.
    pub(super) deaths: u32,
    pub(super) suspect: bool,
    /// A device was lost twice with it, the second time alone.
    pub(super) killer: bool,
    /// How things stood when it came; see [`super::waits`].
    pub(super) mark: super::waits::Mark,
}

impl Client {
    pub(super) fn is_list(&self) -> bool {
        !self.lens.is_empty()
    }

    /// Tokens that the client knows: the prompt and what was drawn.
    pub(super) fn known(&self) -> u32 {
        self.prompt_len + self.drawn
    }

    /// What is left to do.
    pub(super) fn rest(&self) -> Work {
        if self.is_list() {
            return Work::Embed { lens: self.lens[self.before as usize..].to_vec() };
        }
        let hashed = if self.uses_cache { self.known() / BLOCK_LEN } else { 0 };
        Work::Generate {
            prompt_len: self.known(),
            new_tokens_max: self.most - self.drawn,
            hashes: (0..hashed).map(|n| self.text.hash(n)).collect(),
        }
    }
}

/// The requests that the scheduler has, by the index in their ids.
#[derive(Debug, Default)]
pub(super) struct Clients {
    slots: Vec<Option<Client>>,
    len: usize,
}

impl Clients {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get(&self, id: RequestId) -> Option<&Client> {
        self.slots.get(id.index())?.as_ref().filter(|client| client.id == id)
    }

    pub(super) fn get_mut(&mut self, id: RequestId) -> Option<&mut Client> {
        self.slots.get_mut(id.index())?.as_mut().filter(|client| client.id == id)
    }

    pub(super) fn insert(&mut self, client: Client) {
        let at = client.id.index();
        if self.slots.len() <= at {
            self.slots.resize_with(at + 1, || None);
        }
        assert!(self.slots[at].is_none(), "ids are not given twice");
        self.slots[at] = Some(client);
        self.len += 1;
    }

    pub(super) fn remove(&mut self, id: RequestId) -> Option<Client> {
        self.get(id)?;
        self.len -= 1;
        self.slots[id.index()].take()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Client> {
        self.slots.iter().flatten()
    }
}

impl World<'_> {
    pub(super) fn arrive(&mut self, n: usize) {
        if self.is_over() {
            return;
        }
        let source = &self.scenario.sources[n];
        self.swap_draws(n);
        self.plan_next(n, source);
        let mut client = self.client(n, source);
        self.swap_draws(n);
        let (tenant, model, priority) = (source.tenant, source.model, source.priority);
        let place = self.places[&tenant];
        client.mark = self.mark(place);
        let number = self.asked as usize;
        self.asked += 1;
        self.diary(|diary, now| diary.came(now, &client, tenant, number));
        match self.scheduler.admit(self.now, Admission { tenant, model, priority, work: client.rest() }) {
            Err(reject) => {
                self.outcome.tenants[place].rejected += 1;
                self.note(reject.retry_after.0);
                if let Arrivals::Backlog(_) = source.arrivals {
                    let again = reject.retry_after.max(Nanos::from_millis(1));
                    self.plan(self.now + again, Happening::Arrival(n));
                }
            }
            Ok(id) => {
                self.outcome.tenants[place].accepted += 1;
                self.accepted += 1;
                client.id = id;
                if self.rng.per_mille(self.scenario.faults.cancel_per_mille) {
                    let at = self.now + Nanos(self.rng.exponential(200_000_000));
                    client.cancel_at = Some(at);
                    self.plan(at, Happening::Cancel(id));
                }
                self.note_wait(&client);
                self.clients.insert(client);
            }
        }
    }

    pub(super) fn client(&mut self, n: usize, source: &Source) -> Client {
        let own = self.rng.bits();
        self.numbers += 1;
        let mut client = Client {
            id: RequestId(0),
            number: self.numbers,
            source: n,
            text: Text { tenant: source.tenant.0, beginning: 0, shared_blocks: 0, own, given: None },
            came_at: self.now,
            cancel_at: None,
            uses_cache: false,
            prompt_len: 0,
            stop: 0,
            most: 0,
            drawn: 0,
            lens: Vec::new(),
            before: 0,
            run: 0,
            planned: 0,
            computed: 0,
            runs: false,
            waited: false,
            over: false,
            booked: Nanos::ZERO,
            times: Times::default(),
            deaths: 0,
            suspect: false,
            killer: false,
            mark: super::waits::Mark::default(),
        };
        match source.ask {
            Ask::Generate { prompt_len, drawn, shared_blocks, beginnings } => {
                client.prompt_len = self.rng.between(prompt_len.0, prompt_len.1);
                client.stop = self.rng.between(drawn.0, drawn.1);
                client.most = drawn.1;
                client.text.shared_blocks = shared_blocks.min(client.prompt_len / BLOCK_LEN);
                client.text.beginning = u64::from(self.rng.between(1, beginnings.max(1)));
                client.uses_cache = beginnings > 0;
            }
            Ask::Turns { .. } => self.turn(source, &mut client),
            Ask::Embed { items, len } => {
                let items = self.rng.between(items.0, items.1);
                client.lens = (0..items).map(|_| self.rng.between(len.0, len.1)).collect();
                client.prompt_len = client.lens.iter().sum();
            }
        }
        client
    }
}
