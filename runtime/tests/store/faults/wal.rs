//! A bit of SQLite's log, as a killed server leaves it, is another.

use super::{
    chance::Chance,
    flips::{Left, killed, start},
    proofs::{place, size},
};

/// The header of a frame, and its page.
const FRAME: usize = 24 + 4096;

/// Where the last two commits begin in a log.
fn last_commits(log: &[u8]) -> usize {
    let frames = log[32..].chunks_exact(FRAME);
    let ours = frames.take_while(|frame| frame[8..16] == log[16..24]);
    let ends = ours.enumerate().filter(|(_, frame)| frame[4..8] != [0; 4]).map(|(number, _)| number + 1);
    let ends: Vec<usize> = ends.collect();
    assert!(ends.len() > 4, "{ends:?}");
    32 + ends[ends.len() - 3] * FRAME
}

mod proofs {
    use super::*;

    /// What a killed server leaves in SQLite's log is not silently left out, either: but for the last commits, which look like
    /// one that was not finished.
    #[tokio::test]
    async fn a_flipped_byte_of_the_log_is_named_by_the_next_start() {
        let Left { file, log } = killed().await;
        let folder = place();
        let path = folder.path().join("weir.db");
        let url = format!("sqlite:{}", path.display());
        let beside = path.with_file_name("weir.db-wal");
        let last = last_commits(&log);
        let mut chance = Chance::new(4);
        let (mut before, mut named, mut unread, mut last_ones) = (None, 0, 0, 0);
        let flips = size(60, 2_000);
        for flip in 0..=flips {
            let mut changed = log.clone();
            // The header has few bytes, and all of them matter.
            let at = if chance.once_in(8) { chance.index(32) } else { chance.index(log.len()) };
            // The first is left as it is.
            changed[at] ^= if flip == 0 { 0 } else { 1 << chance.below(8) };
            std::fs::write(&path, &file).unwrap();
            std::fs::write(&beside, &changed).unwrap();
            match (start(&url).await, &before) {
                (Ok(books), None) => before = Some(books),
                (Ok(books), Some(before)) if books == *before => unread += 1,
                (Ok(_), Some(_)) if at >= last => last_ones += 1,
                (Ok(_), _) => panic!("byte {at} was changed, commits were left out, and nobody noticed"),
                (Err(why), Some(_)) if why.contains("weir.db-wal") => named += 1,
                (Err(why), _) => panic!("byte {at}: {why}"),
            }
        }
        println!("figure=2.log_flips value={flips} named={named} unread={unread} in_last_commits={last_ones}");
        assert!(named > 0);
    }
}
