//! Launches of `sample.cu`: an id for each row of logits, the one that [`crate::sample::draw`] draws.

use super::rows::place;
use super::{Arg, Element, Launch, RowsAt};
use crate::sample::{Draw, Rule};

const MODULE: &str = "sample";
/// Ids that one block looks at, as in `sample.cu`.
const TILE: u32 = 4096;
const TILE_THREADS: u32 = 256;
const PICK_THREADS: u32 = 512;
/// Bytes of a tile's best id and its logit.
const BEST_BYTES: usize = 8;

/// What stands for the id of a row whose logits are not all finite.
pub const NO_ID: u32 = u32::MAX;

/// Words of one row's parameters.
pub const ROW_WORDS: usize = 8;

/// What is to be done with one row of logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SampleRow {
    /// Draw an id from it. Unless the temperature is 0, its logits become weights.
    Draw(Draw),
    /// Leave it and its id alone.
    Skip,
}

impl SampleRow {
    /// The parameters as the kernels read them: temperature (below 0: skip), top-k, the share of top-p in units of
    /// 2^-53 (low word first), the floor of weights, ids drawn before, seed (low word first).
    pub fn words(&self) -> [u32; ROW_WORDS] {
        let SampleRow::Draw(draw) = self else { return [(-1.0f32).to_bits(), 0, 0, 0, 0, 0, 0, 0] };
        let rule = Rule::of(draw);
        let halves = |word: u64| (word as u32, (word >> 32) as u32);
        let ((share, share_high), (seed, seed_high)) = (halves(rule.share), halves(rule.seed));
        [rule.temperature.to_bits(), rule.top_k, share, share_high, rule.floor.to_bits(), rule.drawn, seed, seed_high]
    }
}

/// Bytes of the memory that the launches keep the tiles' best ids in.
pub fn bests_bytes(rows: u32, vocab: u32) -> usize {
    rows as usize * vocab.div_ceil(TILE) as usize * BEST_BYTES
}

/// Draws an id from each row of `logits`, f32 `[rows, vocabulary]`, into `ids` (u32); [`NO_ID`] where a logit is not
/// finite. There is at least one row, and the vocabulary is smaller than 2^23.
///
/// `params` holds each row's [`SampleRow::words`], on a multiple of 8 bytes, and `bests` is memory of [`bests_bytes`]
/// to work in. The launches follow each other; where no row has a temperature above 0, the middle one may be left out.
pub fn sample(logits: RowsAt, params: u64, bests: u64, ids: u64) -> [Launch; 3] {
    let tiles = logits.cols.div_ceil(TILE);
    let common = [&place(logits)[..], &[Arg::U32(logits.cols), Arg::Ptr(params), Arg::Ptr(bests)]].concat();
    let launch = |kernel, grid, threads, more: &[Arg]| Launch {
        module: MODULE,
        kernel,
        element: Element::F32,
        grid,
        block: [threads, 1, 1],
        shared_bytes: 0,
        args: [&common[..], more].concat(),
    };
    [
        launch("sample_scan", [tiles, logits.rows, 1], TILE_THREADS, &[]),
        launch("sample_weigh", [tiles, logits.rows, 1], TILE_THREADS, &[]),
        launch("sample_pick", [logits.rows, 1, 1], PICK_THREADS, &[Arg::U32(tiles), Arg::Ptr(ids)]),
    ]
}
