//! Attention over the paged KV tensor: the plan of a step, and its launches.
//!
//! A plan is made once a step and serves every layer. Rows of few tokens are *decoded*: each token's positions are cut into splits,
//! which blocks of threads take one each, and a second kernel merges those of a token that has several. The other rows are cut into
//! tiles of queries, each of which one block walks through its sequence. Everything the kernels look up (block tables, splits, tiles)
//! is one run of words, uploaded in one copy.
//!
//! The length of a split depends on the number of positions its query sees and on nothing else in the step, and tiles are cut from
//! each row by itself: so a row's bits do not depend on its company.

use super::{Arg, Element, KvAt, Launch, RowsAt, head_dim_fits, tile_kernel};
use crate::KernelError;
use crate::attention::AttentionRow;
use crate::kv::BLOCK_LEN;
use crate::view::{in_range, shape};

const OP: &str = "paged_attention";

/// A row of this many tokens or fewer is decoded, token by token: a tile of a few queries would walk a long context alone.
pub const DECODE_TOKENS_MAX: u32 = 8;

/// Positions in a split, unless that made more than [`SPLITS_MAX`].
pub const SPLIT_LEN: u32 = 256;

/// Splits of a query at most (one more where its window begins inside one): splits double in length until they are this few, which
/// bounds the workspace.
pub const SPLITS_MAX: u32 = 32;

/// What a split's place says when its query has no other.
const DIRECT: u32 = u32::MAX;

/// The attention of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: u32,
    /// KV heads, of which the query heads are a multiple.
    pub kv_heads: u32,
    /// Elements of a head: a multiple of 16, at most 256.
    pub head_dim: u32,
    /// Positions a query sees at most, itself among them.
    pub window: Option<u32>,
    /// What activations and the KV tensor are made of.
    pub element: Element,
}

/// Part of the words: where it begins, and how many items it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    start: usize,
    items: u32,
}

impl Part {
    fn append(words: &mut Vec<u32>, items: &[u32], words_per_item: usize) -> Part {
        let start = words.len();
        words.extend(items);
        Part { start, items: (items.len() / words_per_item) as u32 }
    }

    fn at(self, words: u64) -> u64 {
        words + 4 * self.start as u64
    }
}

/// The attention of one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttentionPlan {
    shape: AttentionShape,
    words: Vec<u32>,
    decode: Part,
    merge: Part,
    prefill: Part,
    /// Places in the workspace.
    slots: u32,
    /// One past the last token and the last block that any row names.
    tokens: u32,
    blocks: u32,
}

impl AttentionPlan {
    /// Plans the attention of `rows`, which are in order and do not overlap.
    ///
    /// # Errors
    /// If the shape cannot be, rows overlap, or a block table is too short.
    pub fn new(rows: &[AttentionRow<'_>], model: AttentionShape) -> Result<AttentionPlan, KernelError> {
        check_shape(model)?;
        let mut words = Vec::new();
        let (mut decode, mut merge, mut tiles) = (Vec::new(), Vec::new(), Vec::new());
        let (mut slots, mut tokens, mut blocks) = (0, 0, 0);
        let group = model.heads / model.kv_heads;
        let per_tile = queries_per_tile(model.element);
        for row in rows {
            check_row(row, tokens)?;
            tokens = row.first_token + row.tokens;
            blocks = row.blocks.iter().fold(blocks, |most, block| most.max(block.saturating_add(1)));
            let table = words.len() as u32;
            words.extend(&row.blocks[..((row.context + row.tokens) as usize).div_ceil(BLOCK_LEN)]);
            if row.tokens <= DECODE_TOKENS_MAX {
                for token in 0..row.tokens {
                    let splits = splits_of(row.context + token + 1, model.window);
                    let alone = splits.len() == 1;
                    let query = row.first_token + token;
                    if !alone {
                        merge.extend([query, slots, splits.len() as u32]);
                    }
                    for (first, end) in splits {
                        decode.extend([query, table, first, end, if alone { DIRECT } else { slots }]);
                        slots += u32::from(!alone);
                    }
                }
            } else {
                let queries = row.tokens * group;
                // The last tile walks furthest, so it begins first.
                for tile in (0..queries.div_ceil(per_tile)).rev() {
                    let first = tile * per_tile;
                    tiles.extend([row.first_token, row.context, table, first, per_tile.min(queries - first)]);
                }
            }
        }
        let decode = Part::append(&mut words, &decode, 5);
        let merge = Part::append(&mut words, &merge, 3);
        let prefill = Part::append(&mut words, &tiles, 5);
        Ok(AttentionPlan { shape: model, words, decode, merge, prefill, slots, tokens, blocks })
    }

    /// What the kernels look up: to be uploaded in one copy, at a multiple of 4 bytes.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Bytes of f32 workspace that [`AttentionPlan::launches`] needs; nothing need be in it. 0 where no query has several splits.
    pub fn workspace_bytes(&self) -> usize {
        // acc, then maximum and sum: [slots][heads][head_dim + 2] f32
        4 * self.slots as usize * self.shape.heads as usize * (self.shape.head_dim as usize + 2)
    }

    /// One layer's attention: `out` and `q` are `[tokens, heads * head_dim]` (a column range of fused rows, as a rule), `words` is where
    /// the plan's words lie and `workspace` where its workspace. Up to three launches, in order. Rows of `out` that no row of the plan
    /// names are left alone.
    ///
    /// # Errors
    /// If tensors do not have the plan's shape, or the plan names rows or blocks that they do not have.
    #[allow(clippy::too_many_arguments)]
    pub fn launches(
        &self,
        out: RowsAt,
        q: RowsAt,
        kv: KvAt,
        layer: u32,
        scale: f32,
        words: u64,
        workspace: u64,
    ) -> Result<Vec<Launch>, KernelError> {
        let AttentionShape { heads, kv_heads, head_dim, window, element } = self.shape;
        for (what, rows) in [("out", out), ("q", q)] {
            if rows.cols != heads * head_dim || rows.rows < self.tokens {
                let expected = format!("[{} or more, {}]", self.tokens, heads * head_dim);
                return Err(shape(OP, what, format!("[{}, {}]", rows.rows, rows.cols), &expected));
            }
        }
        if (kv.kv_heads, kv.head_dim) != (kv_heads, head_dim) {
            let got = format!("of {} heads of {}", kv.kv_heads, kv.head_dim);
            return Err(shape(OP, "kv", got, &format!("{kv_heads} heads of {head_dim}")));
        }
        in_range(OP, "layer", layer as usize, kv.layers as usize)?;
        if self.blocks > kv.blocks {
            in_range(OP, "block", self.blocks as usize - 1, kv.blocks as usize)?;
        }
        let group = heads / kv_heads;
        let wide_block = head_dim.next_multiple_of(32);
        let ends = [Arg::U32(out.stride), Arg::U32(q.stride), Arg::U32(heads), Arg::U32(kv_heads), Arg::U32(head_dim)];
        let mut launches = Vec::with_capacity(3);
        if self.decode.items > 0 {
            let (kernel, heads_at_once) = match group {
                0..=4 => ("decode4", 4),
                5..=8 => ("decode8", 8),
                _ => ("decode16", 16),
            };
            let pointers = [out.ptr, q.ptr, kv.ptr, workspace, self.decode.at(words), words].map(Arg::Ptr);
            let rest = [Arg::U32(kv.layers), Arg::U32(layer), Arg::U32(self.slots), Arg::F32(scale)];
            launches.push(Launch {
                module: "attention",
                kernel,
                element,
                grid: [self.decode.items, kv_heads * group.div_ceil(heads_at_once), 1],
                block: [wide_block, 1, 1],
                shared_bytes: decode_shared_bytes(head_dim, heads_at_once, element),
                args: [&pointers[..], &ends, &rest].concat(),
            });
        }
        if self.merge.items > 0 {
            let pointers = [out.ptr, workspace, self.merge.at(words)].map(Arg::Ptr);
            let rest = [Arg::U32(out.stride), Arg::U32(heads), Arg::U32(head_dim), Arg::U32(self.slots)];
            launches.push(Launch {
                module: "attention",
                kernel: "merge",
                element,
                grid: [self.merge.items, heads, 1],
                block: [wide_block, 1, 1],
                shared_bytes: 0,
                args: [&pointers[..], &rest].concat(),
            });
        }
        if self.prefill.items > 0 {
            let pointers = [out.ptr, q.ptr, kv.ptr, self.prefill.at(words), words].map(Arg::Ptr);
            let window = Arg::U32(window.unwrap_or(0));
            let rest = [Arg::U32(kv.layers), Arg::U32(layer), window, Arg::F32(scale)];
            let (kernel, columns) = tile_kernel(head_dim, ["prefill64", "prefill128", "prefill256"]);
            launches.push(Launch {
                module: "prefill",
                kernel,
                element,
                grid: [self.prefill.items, kv_heads, 1],
                block: [super::TILE_THREADS, 1, 1],
                shared_bytes: super::tile_shared_bytes(head_dim, columns, element),
                args: [&pointers[..], &ends, &rest].concat(),
            });
        }
        Ok(launches)
    }
}

/// Queries of a tile at most.
pub(crate) fn queries_per_tile(element: Element) -> u32 {
    match element {
        Element::F32 => 16,
        Element::F16 | Element::BF16 => 64,
    }
}

/// The positions first .. end of each split of a query that sees the last `window` of `positions`.
fn splits_of(positions: u32, window: Option<u32>) -> Vec<(u32, u32)> {
    let seen = window.map_or(positions, |window| positions.min(window));
    let mut len = SPLIT_LEN;
    while seen.div_ceil(len) > SPLITS_MAX {
        len *= 2;
    }
    let start = positions - seen;
    (start / len..positions.div_ceil(len))
        .map(|split| (start.max(split * len), positions.min((split + 1) * len)))
        .collect()
}

/// As attention.cu lays it out: queries and weights, three numbers a head, keys with 16 bytes between rows, values.
fn decode_shared_bytes(head_dim: u32, heads: u32, element: Element) -> u32 {
    4 * (heads * head_dim + 32 * heads + 3 * heads) + 32 * (16 + 2 * head_dim * element.bytes() as u32)
}

fn check_shape(model: AttentionShape) -> Result<(), KernelError> {
    let AttentionShape { heads, kv_heads, head_dim, window, .. } = model;
    head_dim_fits(OP, head_dim)?;
    if kv_heads == 0 || heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(shape(OP, "heads", heads.to_string(), &format!("a multiple of {kv_heads} kv heads")));
    }
    if window == Some(0) {
        return Err(shape(OP, "window", "0".into(), "at least 1"));
    }
    Ok(())
}

fn check_row(row: &AttentionRow<'_>, next: u32) -> Result<(), KernelError> {
    if row.first_token < next {
        let got = format!("starting at {} after one that ends at {next}", row.first_token);
        return Err(shape(OP, "rows", got, "in order, without overlap"));
    }
    let positions = row.context as usize + row.tokens as usize;
    if row.blocks.len() < positions.div_ceil(BLOCK_LEN) {
        let got = format!("of {} blocks", row.blocks.len());
        return Err(shape(OP, "block table", got, &format!("blocks for {positions} positions")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    const MODEL: AttentionShape =
        AttentionShape { heads: 14, kv_heads: 2, head_dim: 64, window: None, element: Element::BF16 };

    fn rows<'a>(lens: &[(u32, u32)], blocks: &'a [u32]) -> Vec<AttentionRow<'a>> {
        let mut first_token = 0;
        let mut rows = Vec::new();
        for (context, tokens) in lens {
            rows.push(AttentionRow { first_token, tokens: *tokens, context: *context, blocks });
            first_token += tokens;
        }
        rows
    }

    proptest! {
        #[test]
        fn splits_cover_what_is_seen_once(positions in 1u32..200_000, window in proptest::option::of(1u32..200_000)) {
            let splits = splits_of(positions, window);
            prop_assert!(splits.len() as u32 <= SPLITS_MAX + 1);
            let mut next = positions.saturating_sub(window.unwrap_or(positions));
            for (first, end) in splits {
                prop_assert_eq!(first, next);
                prop_assert!(first < end);
                next = end;
            }
            prop_assert_eq!(next, positions);
        }

        #[test]
        fn every_query_is_planned_once(
            lens in proptest::collection::vec((0u32..3000, 1u32..200), 1..12),
            window in proptest::option::of(1u32..2000),
        ) {
            let blocks: Vec<u32> = (0..100).rev().collect();
            let rows = rows(&lens, &blocks);
            let plan = AttentionPlan::new(&rows, AttentionShape { window, ..MODEL }).unwrap();
            let group = MODEL.heads / MODEL.kv_heads;
            let tokens: u32 = lens.iter().map(|(_, tokens)| tokens).sum();
            // [token][head of the group]: positions that somebody takes for it.
            let mut seen = vec![0u32; (tokens * group) as usize];
            let items = |part: Part, len: usize| plan.words[part.start..][..part.items as usize * len].chunks(len);
            let (mut slots, mut direct) = (Vec::new(), 0);
            for item in items(plan.decode, 5) {
                for head in 0..group {
                    seen[(item[0] * group + head) as usize] += item[3] - item[2];
                }
                if item[4] == DIRECT { direct += 1 } else { slots.push(item[4]) }
            }
            prop_assert_eq!(&slots, &(0..plan.slots).collect::<Vec<_>>());
            let merged: u32 = items(plan.merge, 3).map(|item| item[2]).sum();
            prop_assert_eq!(merged, plan.slots);
            let decoded: u32 = lens.iter().filter(|l| l.1 <= DECODE_TOKENS_MAX).map(|l| l.1).sum();
            prop_assert_eq!(direct + plan.merge.items, decoded);
            for tile in items(plan.prefill, 5) {
                prop_assert!(tile[4] > 0 && tile[4] <= queries_per_tile(MODEL.element));
                for query in tile[3]..tile[3] + tile[4] {
                    let positions = tile[1] + query / group + 1;
                    seen[(tile[0] * group + query) as usize] += positions.min(window.unwrap_or(positions));
                }
            }
            let mut expected = Vec::new();
            for row in &rows {
                for token in 0..row.tokens {
                    let positions = row.context + token + 1;
                    expected.extend(vec![positions.min(window.unwrap_or(positions)); group as usize]);
                }
            }
            prop_assert_eq!(seen, expected);
        }
    }

    #[test]
    fn the_length_of_splits_does_not_depend_on_company() {
        let blocks: Vec<u32> = (0..4096).collect();
        let alone = AttentionPlan::new(&rows(&[(70_000, 1)], &blocks), MODEL).unwrap();
        let together = AttentionPlan::new(&rows(&[(100, 1), (70_000, 1), (0, 64)], &blocks), MODEL).unwrap();
        let ranges = |plan: &AttentionPlan, skip: usize| -> Vec<u32> {
            plan.words[plan.decode.start..][..5 * plan.decode.items as usize]
                .chunks(5)
                .skip(skip)
                .flat_map(|item| [item[2], item[3]])
                .collect()
        };
        assert_eq!(ranges(&alone, 0), ranges(&together, 1));
        assert_eq!(alone.workspace_bytes(), together.workspace_bytes());
        assert_eq!(alone.workspace_bytes(), 4 * 18 * 14 * 66);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let blocks = [0, 1];
        let plan = |lens: &[(u32, u32)], model| AttentionPlan::new(&rows(lens, &blocks), model);
        assert!(plan(&[(60, 5)], MODEL).is_err());
        assert!(plan(&[(60, 4)], AttentionShape { kv_heads: 4, ..MODEL }).is_err());
        assert!(plan(&[(60, 4)], AttentionShape { head_dim: 272, ..MODEL }).is_err());
        assert!(plan(&[(60, 4)], AttentionShape { head_dim: 40, ..MODEL }).is_err());
        assert!(plan(&[(60, 4)], AttentionShape { window: Some(0), ..MODEL }).is_err());
        let good = plan(&[(60, 4)], MODEL).unwrap();
        let rows = RowsAt { ptr: 0, rows: 4, cols: 14 * 64, stride: 14 * 64 };
        let kv = KvAt { ptr: 0, blocks: 2, layers: 3, kv_heads: 2, head_dim: 64 };
        assert_eq!(good.launches(rows, rows, kv, 2, 1.0, 0, 0).unwrap().len(), 1);
        assert!(good.launches(rows, rows, kv, 3, 1.0, 0, 0).is_err());
        assert!(good.launches(rows, rows, KvAt { blocks: 1, ..kv }, 2, 1.0, 0, 0).is_err());
        assert!(good.launches(RowsAt { rows: 3, ..rows }, rows, kv, 2, 1.0, 0, 0).is_err());
    }
}
