//! Causal attention over the paged KV tensor.
//!
//! A task takes one sequence, one KV head and up to a few tiles of its *queries* (a token's head each; the heads that share the KV
//! head lie side by side, so grouped queries share every load). It walks the sequence's blocks with a running maximum:
//!
//! ```text
//! scores[r][32] = q[r] . keys        the product tile, keys being stored [head_dim][32]
//! max' = max(max, scores)            keep = e^(max - max')
//! p[r][32] = e^(scores - max')       sum = sum * keep + p
//! acc[r][d] = acc * keep + p . values, position after position
//! out = acc / sum
//! ```
//!
//! Blocks are counted from position zero of the sequence, so the order of operations for one query depends on its position (and
//! window) alone, not on how its prompt was cut into chunks. Positions that a query must not see are never multiplied: what lies
//! there may be another request's leavings. With one tile of few queries (decoding) the tile reads f16 as it lies; more queries
//! share one conversion to f32 of each block.

use std::cell::RefCell;

use candle_core::{CpuStorage, InplaceOp3, Layout, Tensor};

use crate::kv::{BLOCK_LEN, KvView};
use crate::lanes::{self, Lanes, per_isa};
use crate::launch::attention::AttentionShape;
use crate::lines::Lines;
use crate::math::{self, Real, exp_real};
use crate::operands::{AttentionBatch, Operands};
use crate::packed::LANES;
use crate::tile::{self, HALF_ROWS_MAX, Steps, Target};
use crate::view::{Rows, RowsMut, RowsRef, floats, floats_mut, halves, in_range, shape};
use crate::{Device, KernelError, Pool};

/// Row tiles in one task at most: they share each block's conversion to f32.
const TILES_PER_TASK_MAX: usize = 4;

thread_local! {
    /// A thread's queries, scores, accumulators and converted block.
    static SCRATCH: RefCell<Lines> = RefCell::default();
}

/// One sequence's part of a step.
#[derive(Debug, Clone, Copy)]
pub struct AttentionRow<'a> {
    /// Index of its first query in the batch.
    pub first_token: u32,
    /// Queries it has.
    pub tokens: u32,
    /// Positions before its first query.
    pub context: u32,
    /// Its block table: at least enough blocks for context + tokens positions.
    pub blocks: &'a [u32],
}

struct PagedAttention<'a> {
    out: Rows,
    q: Rows,
    kv: KvView,
    layer: usize,
    rows: &'a [AttentionRow<'a>],
    heads: usize,
    scale: f32,
    window: Option<u32>,
    pool: &'a Pool,
}

/// Queries `first .. first + count` (token by token, `group` heads each) of one row and KV head.
#[derive(Debug, Clone, Copy)]
struct Task {
    row: usize,
    kv_head: usize,
    first: usize,
    count: usize,
}

/// What every task of one call shares.
struct Job<'a> {
    op: &'a PagedAttention<'a>,
    q: RowsRef<'a, f32>,
    kv: &'a [half::f16],
    out: *mut f32,
    out_stride: usize,
    group: usize,
}

// SAFETY: tasks read shared slices and write disjoint heads of `out`, which outlives the region.
unsafe impl Sync for Job<'_> {}

impl InplaceOp3 for PagedAttention<'_> {
    fn name(&self) -> &'static str {
        "paged_attention"
    }

    fn cpu_fwd(
        &self,
        out: &mut CpuStorage,
        _: &Layout,
        q: &CpuStorage,
        _: &Layout,
        kv: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<()> {
        let out: RowsMut<'_, f32> = self.out.of_slice_mut(floats_mut(out)?);
        let job = Job {
            op: self,
            q: self.q.of_slice(floats(q)?),
            kv: halves(kv)?,
            out: out.data.as_mut_ptr(),
            out_stride: out.view.stride,
            group: self.heads / self.kv.kv_heads,
        };
        let tasks = self.tasks(job.group);
        self.pool.run(tasks.len(), |task| {
            SCRATCH.with_borrow_mut(|scratch| attend(self.pool.isa(), &job, tasks[task], scratch));
        });
        Ok(())
    }
}

impl PagedAttention<'_> {
    /// Cuts the batch into tasks, those with the longest context of each row first.
    fn tasks(&self, group: usize) -> Vec<Task> {
        let queries: usize = self.rows.iter().map(|row| row.tokens as usize * group).sum();
        let tiles = queries * self.kv.kv_heads / lanes::limits(self.pool.isa()).rows;
        let tiles_per_task = (tiles / (4 * self.pool.threads())).clamp(1, TILES_PER_TASK_MAX);
        let per_task = tiles_per_task * lanes::limits(self.pool.isa()).rows;
        let mut tasks = Vec::with_capacity(queries.div_ceil(per_task) * self.kv.kv_heads);
        for (row, part) in self.rows.iter().enumerate() {
            let queries = part.tokens as usize * group;
            for piece in (0..queries.div_ceil(per_task)).rev() {
                let first = piece * per_task;
                let count = per_task.min(queries - first);
                tasks.extend((0..self.kv.kv_heads).map(|kv_head| Task { row, kv_head, first, count }));
            }
        }
        tasks
    }
}

per_isa! {
    fn attend(job: &Job<'_>, task: Task, scratch: &mut Lines) = attend_body
}

/// What the walk over the blocks keeps for each query of a task.
struct Walk<'a> {
    /// Tile after tile, `[head_dim][rows of the tile]`, scaled.
    q: &'a mut [f32],
    /// `[queries][head_dim]`
    acc: &'a mut [f32],
    /// One tile's scores, then weights: `[rows][32]`.
    weights: &'a mut [f32],
    /// One block in f32: keys `[head_dim][32]`, then values `[32][head_dim]`.
    block: &'a mut [f32],
    max: &'a mut [f32],
    sum: &'a mut [f32],
}

impl<'a> Walk<'a> {
    fn new(scratch: &'a mut Lines, queries: usize, dim: usize, rows: usize) -> Walk<'a> {
        let sizes = [queries * dim, queries * dim, rows * BLOCK_LEN, 2 * dim * BLOCK_LEN, queries, queries];
        let all = scratch.floats(sizes.iter().sum());
        let (q, all) = all.split_at_mut(sizes[0]);
        let (acc, all) = all.split_at_mut(sizes[1]);
        let (weights, all) = all.split_at_mut(sizes[2]);
        let (block, all) = all.split_at_mut(sizes[3]);
        let (max, sum) = all.split_at_mut(queries);
        acc.fill(0.0);
        max.fill(f32::NEG_INFINITY);
        sum.fill(0.0);
        Walk { q, acc, weights, block, max, sum }
    }
}

/// The keys and values of one block, as the tile reads them.
#[derive(Clone, Copy)]
enum BlockKv {
    /// In the KV tensor.
    Half { keys: *const u16, values: *const u16 },
    /// Converted.
    Float { keys: *const f32, values: *const f32 },
}

#[inline(always)]
fn attend_body<V: Lanes>(job: &Job<'_>, task: Task, scratch: &mut Lines) {
    let (op, group) = (job.op, job.group);
    let dim = op.kv.head_dim;
    let part = &op.rows[task.row];
    let token = |query: usize| (task.first + query) / group;
    let column = |query: usize| (task.kv_head * group + (task.first + query) % group) * dim;
    // The positions that a query sees, past the last one.
    let end = |query: usize| part.context as usize + token(query) + 1;
    let start = |query: usize| op.window.map_or(0, |window| end(query).saturating_sub(window as usize));
    let tiles = task.count.div_ceil(V::ROWS);
    let tile_start = |tile: usize| tile * task.count / tiles;
    let walk = Walk::new(scratch, task.count, dim, V::ROWS);
    for tile in 0..tiles {
        let queries = tile_start(tile)..tile_start(tile + 1);
        let packed = &mut walk.q[queries.start * dim..queries.end * dim];
        for (r, query) in queries.clone().enumerate() {
            let q = &job.q.row(part.first_token as usize + token(query))[column(query)..][..dim];
            for (place, q) in packed[r..].iter_mut().step_by(queries.len()).zip(q) {
                *place = q * op.scale;
            }
        }
    }
    let half = tiles == 1 && task.count <= HALF_ROWS_MAX;
    for block in start(0) / BLOCK_LEN..end(task.count - 1).div_ceil(BLOCK_LEN) {
        let base = block * BLOCK_LEN;
        let index = part.blocks[block] as usize;
        let keys = &job.kv[op.kv.keys(index, op.layer, task.kv_head)..][..dim * BLOCK_LEN];
        let values = &job.kv[op.kv.values(index, op.layer, task.kv_head)..][..dim * BLOCK_LEN];
        let kv = if half {
            BlockKv::Half { keys: keys.as_ptr().cast(), values: values.as_ptr().cast() }
        } else {
            let (to_keys, to_values) = walk.block.split_at_mut(dim * BLOCK_LEN);
            convert::<V>(keys, to_keys);
            convert::<V>(values, to_values);
            BlockKv::Float { keys: to_keys.as_ptr(), values: to_values.as_ptr() }
        };
        for tile in 0..tiles {
            let queries = tile_start(tile)..tile_start(tile + 1);
            // Of this block, what each query of the tile sees.
            let seen = |query: usize| {
                let first = start(query).saturating_sub(base).min(BLOCK_LEN);
                (first, end(query).saturating_sub(base).min(BLOCK_LEN).max(first))
            };
            if queries.clone().all(|query| seen(query).0 == seen(query).1) {
                continue;
            }
            let rows = queries.len();
            // SAFETY: the packed queries are `[dim][rows]`, keys `[dim][32]`, and the weights have room for the tile.
            unsafe {
                let q = walk.q.as_ptr().add(queries.start * dim);
                scores::<V>(rows, dim, q, kv, walk.weights.as_mut_ptr());
            }
            // What all queries see; the rest is taken row by row around it.
            let (mut common_first, mut common_end, mut whole) = (0, BLOCK_LEN, true);
            for (r, query) in queries.clone().enumerate() {
                let (first, end) = seen(query);
                whole &= first < end;
                common_first = common_first.max(first);
                common_end = common_end.min(end);
                if first < end {
                    let weights = &mut walk.weights[r * BLOCK_LEN..][..BLOCK_LEN];
                    let acc = &mut walk.acc[query * dim..][..dim];
                    soften::<V>(weights, first..end, &mut walk.max[query], &mut walk.sum[query], acc);
                }
            }
            if !whole || common_end < common_first {
                (common_first, common_end) = (BLOCK_LEN, BLOCK_LEN);
            }
            let weights = walk.weights.as_ptr();
            let acc = walk.acc.as_mut_ptr();
            // SAFETY: ranges lie in the block; weights and accumulators have these rows.
            unsafe {
                for (r, query) in queries.clone().enumerate() {
                    let (first, end) = seen(query);
                    let until = end.min(common_first);
                    if first < until {
                        blend::<V>(1, dim, weights.add(r * BLOCK_LEN), kv, first..until, acc.add(query * dim));
                    }
                }
                if common_first < common_end {
                    let acc = acc.add(queries.start * dim);
                    blend::<V>(rows, dim, weights, kv, common_first..common_end, acc);
                }
                for (r, query) in queries.clone().enumerate() {
                    let (first, end) = seen(query);
                    let from = first.max(common_end);
                    if from < end {
                        blend::<V>(1, dim, weights.add(r * BLOCK_LEN), kv, from..end, acc.add(query * dim));
                    }
                }
            }
        }
    }
    for query in 0..task.count {
        let inverse = 1.0 / walk.sum[query];
        let offset = (part.first_token as usize + token(query)) * job.out_stride + column(query);
        // SAFETY: the head lies in `out`, and no other task has it.
        let out = unsafe { std::slice::from_raw_parts_mut(job.out.add(offset), dim) };
        for (out, acc) in out.iter_mut().zip(&walk.acc[query * dim..][..dim]) {
            *out = acc * inverse;
        }
    }
}

/// f16 to f32; the length is a multiple of 16.
#[inline(always)]
fn convert<V: Lanes>(from: &[half::f16], to: &mut [f32]) {
    for (from, to) in from.as_chunks::<LANES>().0.iter().zip(to.as_chunks_mut::<LANES>().0) {
        // SAFETY: both are 16 long.
        unsafe { V::load_f16(from.as_ptr().cast()).store(to.as_mut_ptr()) };
    }
}

/// `out[rows][32] = q . keys`.
///
/// # Safety
/// q is `[dim][rows]`, keys are `[dim][32]`, out has room.
#[inline(always)]
unsafe fn scores<V: Lanes>(rows: usize, dim: usize, q: *const f32, kv: BlockKv, out: *mut f32) {
    let panels = if rows * 2 <= V::ACCUMULATORS { 2 } else { 1 };
    for panel in (0..2).step_by(panels) {
        // SAFETY: the caller's promise.
        unsafe {
            let target = Target { out: out.add(panel * LANES), stride: BLOCK_LEN };
            let steps = Steps { k: dim, x: q, w: (), row: BLOCK_LEN, panel: LANES, resume: false };
            match kv {
                BlockKv::Half { keys, .. } => {
                    tile::run_half::<V, 0>(rows, panels, steps.over(keys.add(panel * LANES)), target);
                }
                BlockKv::Float { keys, .. } => {
                    tile::run_narrow::<V, 0>(rows, panels, steps.over(keys.add(panel * LANES)), target);
                }
            }
        }
    }
}

/// Scores of one query to weights: what it does not see becomes zero, maximum and sum move on, the accumulators follow.
#[inline(always)]
fn soften<V: Lanes>(weights: &mut [f32], seen: std::ops::Range<usize>, max: &mut f32, sum: &mut f32, acc: &mut [f32]) {
    weights[..seen.start].fill(f32::NEG_INFINITY);
    weights[seen.end..].fill(f32::NEG_INFINITY);
    let weights = weights.as_mut_ptr();
    // SAFETY: a block has 32 weights.
    unsafe {
        let (low, high) = (V::load(weights), V::load(weights.add(LANES)));
        let max_new = Real::max(low.max(high).reduce_max(), *max);
        let keep = math::exp(*max - max_new);
        let low = exp_real(low.sub(V::splat(max_new)));
        let high = exp_real(high.sub(V::splat(max_new)));
        low.store(weights);
        high.store(weights.add(LANES));
        *sum = sum.mul_add(keep, low.add(high).reduce());
        *max = max_new;
        if keep != 1.0 {
            for acc in acc.as_chunks_mut::<LANES>().0 {
                V::load(acc.as_ptr()).mul(V::splat(keep)).store(acc.as_mut_ptr());
            }
        }
    }
}

/// `acc[rows][dim] += weights[rows][32] . values`, over some positions of the block.
///
/// # Safety
/// weights are `[rows][32]`, values `[32][dim]`, acc `[rows][dim]`.
#[inline(always)]
unsafe fn blend<V: Lanes>(
    rows: usize,
    dim: usize,
    weights: *const f32,
    kv: BlockKv,
    positions: std::ops::Range<usize>,
    acc: *mut f32,
) {
    let widest = if rows * 2 <= V::ACCUMULATORS { 2 } else { 1 };
    let mut column = 0;
    while column < dim {
        let panels = if dim - column >= widest * LANES { widest } else { 1 };
        // SAFETY: the caller's promise; dim is a multiple of 16.
        unsafe {
            let target = Target { out: acc.add(column), stride: dim };
            let offset = positions.start * dim + column;
            let steps = Steps {
                k: positions.len(),
                x: weights.add(positions.start),
                w: (),
                row: dim,
                panel: LANES,
                resume: true,
            };
            match kv {
                BlockKv::Half { values, .. } => {
                    tile::run_half::<V, BLOCK_LEN>(rows, panels, steps.over(values.add(offset)), target);
                }
                BlockKv::Float { values, .. } => {
                    tile::run_narrow::<V, BLOCK_LEN>(rows, panels, steps.over(values.add(offset)), target);
                }
            }
        }
        column += panels * LANES;
    }
}

/// `out[m, heads * head_dim]`: each query of each row attends to the positions of its sequence up to its own (the last `window`
/// of them, if given), whose keys and values must have been written. `q` may be a column range of fused rows. Query heads
/// `g * heads / kv_heads ..` share KV head g. Rows of `out` that no [`AttentionRow`] names are left alone.
///
/// # Errors
/// If the shapes do not fit, rows overlap, or a block table is too short or names blocks that do not exist.
#[allow(clippy::too_many_arguments)]
pub fn paged_attention(
    out: &Tensor,
    q: &Tensor,
    kv: &Tensor,
    layer: usize,
    batch: &AttentionBatch<'_>,
    heads: usize,
    scale: f32,
    window: Option<u32>,
    device: &Device,
) -> Result<(), KernelError> {
    const OP: &str = "paged_attention";
    let view = KvView::of_type(OP, kv, layer, kv.dtype())?;
    if view.kv_heads == 0 || !heads.is_multiple_of(view.kv_heads) {
        let expected = format!("a multiple of {} kv heads", view.kv_heads);
        return Err(shape(OP, "heads", heads.to_string(), &expected));
    }
    if window == Some(0) {
        return Err(shape(OP, "window", "0".into(), "at least 1"));
    }
    let tokens = Rows::of_type(OP, "out", out, out.dtype())?.rows;
    // What a GPU was told of has been checked with the first layer.
    if !batch.is_planned() {
        check_rows(batch.rows(), view, tokens)?;
    }
    let width = heads * view.head_dim;
    if let Some(stream) = device.stream() {
        let on = Operands::of(OP, out, stream)?;
        let (out, q) = (on.expect("out", out, tokens, width)?, on.expect("q", q, tokens, width)?);
        let kv = on.kv(kv, layer)?;
        let shape = AttentionShape {
            heads: heads as u32,
            kv_heads: kv.kv_heads,
            head_dim: kv.head_dim,
            window,
            element: on.element,
        };
        let launches = batch.launches(shape, stream, out, q, kv, layer as u32, scale)?;
        return launches.iter().try_for_each(|launch| on.launch(launch));
    }
    let (view, rows, pool) = (KvView::of(OP, kv, layer)?, batch.rows(), device.pool());
    let op = PagedAttention {
        out: Rows::expect(OP, "out", out, tokens, heads * view.head_dim)?,
        q: Rows::expect(OP, "q", q, tokens, heads * view.head_dim)?,
        kv: view,
        layer,
        rows,
        heads,
        scale,
        window,
        pool,
    };
    Ok(out.inplace_op3(q, kv, &op)?)
}

/// Refuses rows that overlap or whose block tables are too short or name blocks that do not exist.
fn check_rows(rows: &[AttentionRow<'_>], view: KvView, tokens: usize) -> Result<(), KernelError> {
    const OP: &str = "paged_attention";
    let mut next = 0;
    for row in rows {
        if (row.first_token as usize) < next {
            let got = format!("starting at {} after one that ends at {next}", row.first_token);
            return Err(shape(OP, "rows", got, "in order, without overlap"));
        }
        next = row.first_token as usize + row.tokens as usize;
        let positions = row.context as usize + row.tokens as usize;
        if row.blocks.len() < positions.div_ceil(BLOCK_LEN) {
            let got = format!("of {} blocks", row.blocks.len());
            return Err(shape(OP, "block table", got, &format!("blocks for {positions} positions")));
        }
        for block in row.blocks {
            in_range(OP, "block", *block as usize, view.blocks)?;
        }
    }
    if next > tokens {
        return Err(shape(OP, "rows", format!("up to token {next}"), &format!("within {tokens} tokens")));
    }
    Ok(())
}
