//! A lane's waiting requests: a binary heap by rank whose entries know their place, so that a cancelled request leaves at once
//! and in O(log n). `std`'s heap cannot remove from the middle; an ordered map allocates a node per entry.

use alloc::vec::Vec;

use crate::request::{NONE, Rank, Requests};
use crate::why::Cause;

#[derive(Clone, Debug, Default)]
pub(crate) struct Queue {
    heap: Vec<(Rank, u32)>,
}

impl Queue {
    pub(crate) fn len(&self) -> u32 {
        self.heap.len() as u32
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    /// Makes room for so many requests.
    pub(crate) fn reserve(&mut self, len: usize) {
        self.heap.reserve(len.saturating_sub(self.heap.len()));
    }

    /// The request that goes next.
    pub(crate) fn head(&self) -> Option<(Rank, u32)> {
        self.heap.first().copied()
    }

    pub(crate) fn push(&mut self, requests: &mut Requests, slot: u32) {
        debug_assert_eq!(requests.get(slot).queue_pos, NONE);
        let first = self.head();
        self.heap.push((requests.get(slot).rank, slot));
        self.rise(requests, self.heap.len() - 1);
        requests.wait(slot, Cause::Queue);
        self.note_first(requests, first);
    }

    pub(crate) fn remove(&mut self, requests: &mut Requests, slot: u32) {
        let pos = requests.get(slot).queue_pos as usize;
        debug_assert_eq!(self.heap[pos].1, slot);
        let first = self.head();
        requests.get_mut(slot).queue_pos = NONE;
        let last = self.heap.pop().expect("a queued request is in the heap");
        if pos == self.heap.len() {
            return;
        }
        self.heap[pos] = last;
        self.sink(requests, pos);
        self.rise(requests, requests.get(last.1).queue_pos as usize);
        self.note_first(requests, first);
    }

    /// Only the first of a queue waits for something else than the others of the queue.
    fn note_first(&self, requests: &mut Requests, before: Option<(Rank, u32)>) {
        if before == self.head() {
            return;
        }
        if let Some((_, slot)) = before.filter(|(_, slot)| requests.get(*slot).queue_pos != NONE) {
            requests.wait(slot, Cause::Queue);
        }
        if let Some((_, slot)) = self.head() {
            requests.wait(slot, Cause::Share);
        }
    }

    /// The queued slots in heap order.
    pub(crate) fn slots(&self) -> impl Iterator<Item = u32> {
        self.heap.iter().map(|&(_, slot)| slot)
    }

    fn rise(&mut self, requests: &mut Requests, mut pos: usize) {
        let entry = self.heap[pos];
        while pos > 0 {
            let parent = (pos - 1) / 2;
            if self.heap[parent].0 <= entry.0 {
                break;
            }
            self.place(requests, pos, self.heap[parent]);
            pos = parent;
        }
        self.place(requests, pos, entry);
    }

    fn sink(&mut self, requests: &mut Requests, mut pos: usize) {
        let entry = self.heap[pos];
        loop {
            let mut child = 2 * pos + 1;
            if child >= self.heap.len() {
                break;
            }
            if child + 1 < self.heap.len() && self.heap[child + 1].0 < self.heap[child].0 {
                child += 1;
            }
            if entry.0 <= self.heap[child].0 {
                break;
            }
            self.place(requests, pos, self.heap[child]);
            pos = child;
        }
        self.place(requests, pos, entry);
    }

    fn place(&mut self, requests: &mut Requests, pos: usize, entry: (Rank, u32)) {
        self.heap[pos] = entry;
        requests.get_mut(entry.1).queue_pos = pos as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_leave_by_rank_also_after_removals() {
        let mut requests = Requests::default();
        let mut queue = Queue::default();
        let mut ranks = Vec::new();
        for n in 0..200u64 {
            let slot = requests.claim();
            let rank = (n * 7919 % 83, n);
            requests.get_mut(slot).rank = rank;
            queue.push(&mut requests, slot);
            ranks.push((rank, slot));
        }
        for n in (0..200).step_by(3) {
            queue.remove(&mut requests, ranks[n].1);
        }
        let mut expected: Vec<_> =
            ranks.into_iter().enumerate().filter(|(n, _)| n % 3 != 0).map(|(_, entry)| entry).collect();
        expected.sort();
        let mut seen = Vec::new();
        while let Some((rank, slot)) = queue.head() {
            queue.remove(&mut requests, slot);
            seen.push((rank, slot));
        }
        assert_eq!(seen, expected);
    }
}
