//! What the shim wrote down: the calls that changed files below a folder, in order.

use std::path::Path;

/// One call, after it has returned.
#[derive(Debug)]
pub(super) struct Call {
    /// Below the folder; empty is the folder itself.
    pub(super) name: String,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    /// A file that was not there.
    Made,
    Written {
        offset: usize,
        data: Vec<u8>,
    },
    /// Its length from now on.
    Cut(usize),
    /// By its number in this process.
    SyncBegun(usize),
    Synced(usize),
    Removed,
    /// A folder that was not there.
    Folder,
}

/// Reads a log.
pub(super) fn read(path: &Path) -> Vec<Call> {
    let bytes = std::fs::read(path).unwrap();
    let (mut rest, mut calls) = (bytes.as_slice(), Vec::new());
    let mut take = |len: usize| {
        let (taken, left) = rest.split_at_checked(len)?;
        rest = left;
        Some(taken)
    };
    while let Some(head) = take(32) {
        let word = |at: usize| u64::from_ne_bytes(head[8 * at..8 * at + 8].try_into().unwrap()) as usize;
        // A process that ends in the midst of an entry has made no call after it.
        let (Some(name), Some(data)) = (take(word(1)), take(word(3))) else { break };
        let what = match word(0) {
            1 => What::Made,
            2 => What::Written { offset: word(2), data: data.to_vec() },
            3 => What::Cut(word(2)),
            4 => What::SyncBegun(word(2)),
            5 => What::Synced(word(2)),
            6 => What::Removed,
            7 => What::Folder,
            other => panic!("the shim has no kind {other}"),
        };
        calls.push(Call { name: String::from_utf8(name.to_vec()).unwrap(), what });
    }
    calls
}
