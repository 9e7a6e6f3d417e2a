//! The kernels of `attention.cu` and `prefill.cu` against [`spec::attention`].
//!
//! The KV tensor holds NaN wherever nothing was written, its blocks are dealt out in an odd order, and rows of one step have contexts
//! of many lengths: so what a query must not see shows when it is seen.

use super::numbers::{Place, Rows, Seeded, round, upload_words};
use super::{Check, Finding};
use crate::attention::AttentionRow;
use crate::launch::attention::{AttentionPlan, AttentionShape};
use crate::launch::{Element, KvAt, Runner};
use crate::{KernelError, spec};

pub(super) fn checks() -> Vec<Check> {
    vec![
        ("attention_decode", decode),
        ("attention_prefill", prefill),
        ("attention_mixed", mixed),
        ("attention_company", a_row_does_not_notice_its_company),
    ]
}

/// How far results are off, at worst.
#[derive(Debug, Default)]
pub(super) struct Worst {
    compared: usize,
    worst: f64,
}

impl Worst {
    /// Compares a row with what it should be.
    pub(super) fn row(&mut self, got: &[f32], expected: &[f32]) {
        self.compared += got.len();
        let largest = expected.iter().fold(0.0f64, |largest, x| largest.max(f64::from(x.abs())));
        for (got, expected) in got.iter().zip(expected) {
            let off = (f64::from(*got) - f64::from(*expected)).abs() / largest;
            // Not a number is as far off as can be.
            self.worst = if off.is_nan() { f64::INFINITY } else { self.worst.max(off) };
        }
    }

    /// In f32 both sides round some hundred sums of some hundred terms, in other orders: about 1e-6 each, 2e-5 with room. With f16
    /// and bf16 each weight and each result is rounded once, by up to 2^-11 (f16) or 2^-9 (bf16) of itself, and a result is smaller
    /// than the values it weighs, as those cancel: four such roundings of the largest value are the bound in f16, five in bf16.
    pub(super) fn finding(self, element: Element, kernel: &str, shapes: &str) -> Finding {
        let bound = match element {
            Element::F32 => 2e-5,
            Element::F16 => 4e-3,
            Element::BF16 => 2e-2,
        };
        let case = format!("{kernel}_{}: {shapes}", element.suffix());
        Finding { case, compared: self.compared, worst: self.worst, bound }
    }
}

/// One step: heads, KV heads, head_dim, window, and context and tokens of each row.
struct Case {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    window: Option<u32>,
    rows: &'static [(u32, u32)],
}

const fn case(heads: usize, kv_heads: usize, dim: usize, window: Option<u32>, rows: &'static [(u32, u32)]) -> Case {
    Case { heads, kv_heads, dim, window, rows }
}

/// Sequences whose keys and values lie in a KV tensor of a runner, and one query for each of their tokens in the step.
struct Step<'a> {
    case: &'a Case,
    element: Element,
    /// [block][layer][2][kv_head][32] rows of dim
    kv: Rows,
    blocks: usize,
    tables: Vec<Vec<u32>>,
    q: Rows,
    scale: f32,
}

const LAYERS: usize = 2;
const LAYER: usize = 1;

impl<'a> Step<'a> {
    fn new(runner: &mut dyn Runner, element: Element, case: &'a Case) -> Result<Step<'a>, KernelError> {
        let mut seeded = Seeded::new((case.heads * case.dim) as u64);
        let lens: Vec<usize> = case.rows.iter().map(|(context, tokens)| (context + tokens) as usize).collect();
        let blocks = lens.iter().map(|len| len.div_ceil(32)).sum::<usize>() + 2;
        let mut free: Vec<u32> = (0..blocks as u32).collect();
        let mut tables = Vec::new();
        let mut written = vec![0; blocks];
        for len in &lens {
            let table: Vec<u32> = (0..len.div_ceil(32)).map(|_| free.swap_remove(seeded.below(free.len()))).collect();
            for (at, block) in table.iter().enumerate() {
                written[*block as usize] = (len - at * 32).min(32);
            }
            tables.push(table);
        }
        let tile = 32 * case.dim;
        let mut at = 0;
        let value = || {
            let (block, layer, position) = (
                at / (LAYERS * 2 * case.kv_heads * tile),
                at / (2 * case.kv_heads * tile) % LAYERS,
                at / case.dim % 32,
            );
            at += 1;
            if layer == LAYER && position < written[block] { seeded.float() } else { f32::NAN }
        };
        let kv = Rows::of(runner, element, Place::packed(blocks * LAYERS * 2 * case.kv_heads * 32, case.dim), value)?;
        let tokens = case.rows.iter().map(|(_, tokens)| *tokens as usize).sum();
        // Queries are columns of wider rows, keys and values of the step beside them.
        let width = case.heads * case.dim;
        let beside = if case.kv_heads == 1 { 1 } else { case.dim };
        let place = Place { rows: tokens, cols: width, first: beside, stride: width + 2 * beside };
        let q = Rows::seeded(runner, element, place, &mut Seeded::new(7))?;
        let scale = 2.0 / (case.dim as f32).sqrt();
        Ok(Step { case, element, kv, blocks, tables, q, scale })
    }

    /// Runs the step's rows `which`, and gives the output of all its tokens.
    fn run(&self, runner: &mut dyn Runner, which: impl Fn(usize) -> bool) -> Result<Vec<Vec<f32>>, KernelError> {
        let Case { heads, kv_heads, dim, window, .. } = *self.case;
        let mut first_token = 0;
        let mut rows = Vec::new();
        for (at, (context, tokens)) in self.case.rows.iter().enumerate() {
            if which(at) {
                rows.push(AttentionRow { first_token, tokens: *tokens, context: *context, blocks: &self.tables[at] });
            }
            first_token += tokens;
        }
        let shape = AttentionShape {
            heads: heads as u32,
            kv_heads: kv_heads as u32,
            head_dim: dim as u32,
            window,
            element: self.element,
        };
        let plan = AttentionPlan::new(&rows, shape)?;
        let words = upload_words(runner, plan.words())?;
        let workspace = runner.upload(&vec![0xff; plan.workspace_bytes()])?;
        let width = heads * dim;
        // Rows that begin at multiples of 16 bytes, and rows that do not.
        let beside = if kv_heads == 1 { 3 } else { 8 };
        let place = Place { rows: first_token as usize, cols: width, first: beside, stride: width + 2 * beside };
        let out = Rows::unwritten(runner, self.element, place)?;
        let kv = KvAt {
            ptr: self.kv.at().ptr,
            blocks: self.blocks as u32,
            layers: LAYERS as u32,
            kv_heads: kv_heads as u32,
            head_dim: dim as u32,
        };
        for launch in plan.launches(out.at(), self.q.at(), kv, LAYER as u32, self.scale, words, workspace)? {
            runner.launch(&launch)?;
        }
        out.read(runner)
    }

    /// What one token's row should be.
    fn expected(&self, sequence: usize, position: usize, q: &[f32]) -> Vec<f32> {
        let Case { heads, kv_heads, dim, window, .. } = *self.case;
        let first = window.map_or(0, |window| (position + 1).saturating_sub(window as usize));
        let mut out = vec![0.0; heads * dim];
        for (head, out) in out.chunks_mut(dim).enumerate() {
            let kv_head = head / (heads / kv_heads);
            let row = |p: usize, of_values: usize| {
                let block = self.tables[sequence][p / 32] as usize;
                self.kv.row((((block * LAYERS + LAYER) * 2 + of_values) * kv_heads + kv_head) * 32 + p % 32)
            };
            let q = &q[head * dim..][..dim];
            spec::attention(out, q, first, position, self.scale, |p, d| row(p, 0)[d], |p, d| row(p, 1)[d]);
        }
        out
    }
}

/// Runs cases in every element type and compares every row.
fn over(runner: &mut dyn Runner, kernel: &str, shapes: &str, cases: &[Case]) -> Result<Vec<Finding>, KernelError> {
    let mut findings = Vec::new();
    for element in Element::ALL {
        let mut worst = Worst::default();
        for case in cases {
            let step = Step::new(runner, element, case)?;
            let got = step.run(runner, |_| true)?;
            let mut row = 0;
            for (sequence, (context, tokens)) in case.rows.iter().enumerate() {
                for token in 0..*tokens {
                    let expected = step.expected(sequence, (context + token) as usize, step.q.row(row));
                    worst.row(&got[row], &expected);
                    row += 1;
                }
            }
        }
        findings.push(worst.finding(element, kernel, shapes));
    }
    Ok(findings)
}

const EDGES: &[(u32, u32)] = &[(0, 1), (1, 1), (30, 1), (31, 1), (32, 1), (33, 1), (254, 1), (255, 1), (256, 1)];

fn decode(runner: &mut dyn Runner) -> Result<Vec<Finding>, KernelError> {
    let cases = [
        case(2, 2, 16, None, EDGES),
        case(6, 2, 48, None, EDGES),
        case(4, 1, 64, None, EDGES),
        case(7, 1, 64, None, &[(700, 1), (40, 3)]),
        case(16, 1, 32, None, &[(300, 1)]),
        case(20, 1, 16, None, &[(40, 1)]),
        case(8, 2, 128, None, &[(100, 1), (513, 1)]),
        case(2, 1, 256, None, &[(290, 1), (64, 1)]),
        case(4, 2, 32, Some(100), &[(50, 1), (99, 1), (100, 1), (101, 1), (640, 1)]),
        case(2, 1, 16, Some(1), &[(0, 1), (31, 1), (32, 1)]),
        // So long that splits grow.
        case(1, 1, 16, None, &[(9_000, 1), (17_000, 1)]),
    ];
    over(runner, "attention_decode", "groups of 1 to 20, heads of 16 to 256, contexts to 17,000, windows", &cases)
}

fn prefill(runner: &mut dyn Runner) -> Result<Vec<Finding>, KernelError> {
    let cases = [
        case(2, 2, 16, None, &[(0, 9), (0, 32), (0, 33)]),
        case(3, 1, 48, None, &[(0, 70), (31, 20)]),
        case(4, 1, 64, None, &[(0, 16), (33, 40)]),
        case(7, 1, 64, None, &[(255, 12)]),
        case(4, 2, 80, None, &[(5, 18)]),
        case(4, 1, 128, None, &[(1_001, 17), (0, 20)]),
        case(2, 1, 144, None, &[(20, 33)]),
        case(2, 1, 256, None, &[(40, 35)]),
        case(4, 2, 32, Some(33), &[(0, 70), (63, 20)]),
        case(2, 2, 16, Some(1), &[(0, 40)]),
    ];
    over(runner, "attention_prefill", "groups of 1 to 7, heads of 16 to 256, contexts to 1,001, windows", &cases)
}

fn mixed(runner: &mut dyn Runner) -> Result<Vec<Finding>, KernelError> {
    let cases = [
        case(4, 2, 64, None, &[(300, 1), (0, 40), (10, 1), (64, 9), (31, 8), (600, 1)]),
        case(4, 1, 32, Some(48), &[(300, 1), (0, 65), (10, 2), (64, 9)]),
    ];
    over(runner, "attention_mixed", "decode and prefill rows of one step", &cases)
}

/// Each row by itself has the same bits as in the step.
fn a_row_does_not_notice_its_company(runner: &mut dyn Runner) -> Result<Vec<Finding>, KernelError> {
    let case = case(4, 2, 32, None, &[(300, 1), (0, 40), (31, 1), (90, 20), (520, 2)]);
    let mut findings = Vec::new();
    for element in Element::ALL {
        let step = Step::new(runner, element, &case)?;
        let together = step.run(runner, |_| true)?;
        let untouched = round(element, 30_000.0);
        let (mut compared, mut worst, mut first) = (0, 0.0, 0);
        for (at, (_, tokens)) in case.rows.iter().enumerate() {
            let alone = step.run(runner, |row| row == at)?;
            let own = first..first + *tokens as usize;
            first = own.end;
            for (token, (alone, together)) in alone.iter().zip(&together).enumerate() {
                compared += alone.len();
                // Rows that the plan does not name are left alone.
                let same = |(a, b): (&f32, &f32)| {
                    a.to_bits() == if own.contains(&token) { b.to_bits() } else { untouched.to_bits() }
                };
                if !alone.iter().zip(together).all(same) {
                    worst = f64::INFINITY;
                }
            }
        }
        let case = format!("attention_{}: each row alone and in a step of five, bit for bit", element.suffix());
        findings.push(Finding { case, compared, worst, bound: 0.0 });
    }
    Ok(findings)
}
