//! One tenant's requests for a model on a device: those that wait, those that run, and whose turn it is among them.

use alloc::vec::Vec;
use core::mem::offset_of;

use crate::ids::StepId;
use crate::queue::Queue;
use crate::request::{NONE, Rank, Requests};
use crate::why::Cause;

/// One tenant's requests for the model.
///
/// What a step asks of a lane is in its first cache line: steps ask hundreds of lanes, few of which run more than one request.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(crate) struct Lane {
    pub(crate) waiting: Queue,
    /// The last step in which it got a row; see [`crate::standing`].
    pub(crate) reached: StepId,
    /// The last step for which it was asked; what follows is of that step.
    pub(crate) asked: StepId,
    /// While a step is planned: the next running request to look at.
    pub(crate) cursor: u32,
    /// While a step is planned: the tenant's own limits let no more of its requests start.
    pub(crate) capped: bool,
    /// While a step is planned: the lane wanted more than it got.
    pub(crate) short: bool,
    /// What planning told the first of the waiting ones to wait for, if it was the last to tell it anything: telling it the same again is
    /// a look at a request that nobody looked at lately.
    told: Option<Cause>,
    /// Whether its [`Turns`] say something, and on which side of their beginning the cursor is. They are kept apart, for a lane is a cache
    /// line, and few have any.
    lap: Lap,
    /// Of the running ones the first, if there is one, and how many there are.
    first: u32,
    runs: u32,
    /// Running requests by rank.
    pub(crate) running: Vec<u32>,
}

/// Where a lane's cursor is in its round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Lap {
    /// It goes from the first to the last: there are no turns.
    #[default]
    Plain,
    /// From the rank with which the step began to the last.
    Begun,
    /// It came to the end and goes on from the first, or began there.
    Wrapped,
}

const _: () = assert!(offset_of!(Lane, running) <= 64);

/// Whose turn it is in a lane where ITL targets leave time for some of its texts only; see [`crate::budget`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Turns {
    /// While a step is planned: the rank with which it begins; after the last comes the first.
    first: Option<Rank>,
    /// The first that found too little time left in the last step: the next begins with it.
    passed: Option<Rank>,
}

impl Default for Lane {
    fn default() -> Lane {
        Lane {
            waiting: Queue::default(),
            reached: StepId(0),
            asked: StepId(0),
            cursor: 0,
            capped: false,
            short: false,
            told: None,
            lap: Lap::Plain,
            first: NONE,
            runs: 0,
            running: Vec::new(),
        }
    }
}

impl Lane {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        !self.runs() && self.waiting.is_empty()
    }

    /// Whether requests of it run.
    #[inline]
    pub(crate) fn runs(&self) -> bool {
        self.runs > 0
    }

    /// Room for so many requests, waiting or running: steps move them about and should not have to allocate.
    pub(crate) fn reserve(&mut self, live: u32) {
        self.waiting.reserve(live as usize);
        self.running.reserve((live as usize).saturating_sub(self.running.len()));
    }

    /// Begins to ask it for rows of a step. It may be asked again for the same one, if the first try gave no row at all.
    pub(crate) fn ask(&mut self, requests: &Requests, turns: &mut Turns, step: StepId) {
        let again = core::mem::replace(&mut self.asked, step) == step;
        (self.cursor, self.capped, self.short) = (0, false, false);
        if self.lap == Lap::Plain {
            return;
        }
        if !again {
            turns.first = turns.passed.take();
        }
        self.lap = Lap::Plain;
        if let Some(first) = turns.first {
            self.lap = Lap::Begun;
            self.cursor = self.running.partition_point(|slot| requests.get(*slot).rank < first) as u32;
        }
    }

    /// The running request at the cursor; behind the last comes the first, if the step did not begin with it.
    #[inline]
    pub(crate) fn at_cursor(&mut self, requests: &Requests, turns: &Turns) -> Option<u32> {
        match (self.lap, self.cursor) {
            (Lap::Plain, 0) => (self.runs > 0).then_some(self.first),
            (Lap::Plain, at) if at >= self.runs => None,
            _ => self.at_cursor_of_many(requests, turns),
        }
    }

    /// The same where there are no turns, and whether it is the last.
    #[inline]
    pub(crate) fn at_plain_cursor(&self) -> Option<(u32, bool)> {
        if self.lap != Lap::Plain || self.cursor >= self.runs {
            return None;
        }
        let slot = if self.cursor == 0 { self.first } else { self.running[self.cursor as usize] };
        Some((slot, self.cursor + 1 == self.runs))
    }

    fn at_cursor_of_many(&mut self, requests: &Requests, turns: &Turns) -> Option<u32> {
        loop {
            match (self.running.get(self.cursor as usize), self.lap) {
                (None, Lap::Begun) => (self.cursor, self.lap) = (0, Lap::Wrapped),
                (Some(&slot), Lap::Wrapped) => {
                    return self.is_before(turns, requests.get(slot).rank).then_some(slot);
                }
                (slot, _) => return slot.copied(),
            }
        }
    }

    /// Whether the rank is before the one with which the step began; or the step began with the first.
    fn is_before(&self, turns: &Turns, rank: Rank) -> bool {
        self.lap == Lap::Plain || turns.first.is_none_or(|first| rank < first)
    }

    /// Whether one of these ranks has its turn before the other.
    pub(crate) fn goes_before(&self, turns: &Turns, one: Rank, other: Rank) -> bool {
        (self.is_before(turns, one), one) < (self.is_before(turns, other), other)
    }

    /// One of this rank found too little time left in the step.
    pub(crate) fn pass_over(&mut self, turns: &mut Turns, rank: Rank) {
        if self.lap == Lap::Plain {
            self.lap = Lap::Wrapped;
        }
        turns.passed.get_or_insert(rank);
    }

    /// A request waits from now on.
    pub(crate) fn push_waiting(&mut self, requests: &mut Requests, slot: u32) {
        self.told = None;
        self.waiting.push(requests, slot);
    }

    pub(crate) fn remove_waiting(&mut self, requests: &mut Requests, slot: u32) {
        self.told = None;
        self.waiting.remove(requests, slot);
    }

    /// The first of the waiting ones, if there is one, waits for this.
    #[inline]
    pub(crate) fn tell_first(&mut self, requests: &mut Requests, cause: Cause) {
        if self.told != Some(cause)
            && let Some((_, slot)) = self.waiting.head()
        {
            requests.wait(slot, cause);
            self.told = Some(cause);
        }
    }

    /// Whether the first of the waiting ones may start: its tenant may start one, and the step is open for one. If not, it is told what it
    /// waits for, which is memory from when somebody did not start for want of it.
    #[inline]
    pub(crate) fn first_may_start(
        &mut self,
        requests: &mut Requests,
        may_start: bool,
        no_room: bool,
        open: bool,
    ) -> bool {
        let cause = match may_start {
            false => Cause::Queue,
            true if no_room => Cause::Memory,
            true => Cause::Share,
        };
        self.tell_first(requests, cause);
        self.short |= may_start && !open;
        may_start && open
    }

    /// What is noted of the running ones is so, and the first of the waiting ones waits for what it was told last, unless it waits for the
    /// blocks it lost.
    pub(crate) fn check(&self, requests: &Requests) {
        let first = self.running.first().copied().unwrap_or(NONE);
        assert_eq!((self.first, self.runs as usize), (first, self.running.len()));
        assert!(self.running.is_sorted_by_key(|slot| requests.get(*slot).rank));
        if let (Some(cause), Some((_, slot))) = (self.told, self.waiting.head()) {
            let is = requests.get(slot).watch.cause();
            assert!(is == cause || is == Cause::Preemption, "{slot} was told {cause:?} and waits for {is:?}");
        }
    }

    /// Its requests were told something by others.
    pub(crate) fn forget_told(&mut self) {
        self.told = None;
    }

    /// Enters a running request at its rank. Before the cursor, a sequence is passed over, for it gets its row from whoever enters
    /// it; a list may want more rows.
    pub(crate) fn insert_running(&mut self, requests: &Requests, slot: u32) {
        let rank = requests.get(slot).rank;
        let at = self.running.partition_point(|other| requests.get(*other).rank < rank);
        self.running.insert(at, slot);
        self.note_running();
        if at < self.cursor as usize {
            self.cursor = match requests.get(slot).is_list {
                false => self.cursor + 1,
                true => at as u32,
            };
        }
    }

    pub(crate) fn remove_running(&mut self, requests: &Requests, slot: u32) {
        let rank: Rank = requests.get(slot).rank;
        let at = self.running.partition_point(|other| requests.get(*other).rank < rank);
        debug_assert_eq!(self.running[at], slot);
        self.running.remove(at);
        self.note_running();
        if at < self.cursor as usize {
            self.cursor -= 1;
        }
    }

    fn note_running(&mut self) {
        self.first = self.running.first().copied().unwrap_or(NONE);
        self.runs = self.running.len() as u32;
    }
}
