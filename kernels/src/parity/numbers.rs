//! What the checks share: seeded numbers, rows of them where a runner reaches them, and how far results are off.

use half::{bf16, f16};

use super::Finding;
use crate::KernelError;
use crate::launch::{Element, RowsAt, Runner};

/// A small seeded generator, so that findings repeat.
pub(super) struct Seeded(u64);

impl Seeded {
    pub(super) fn new(seed: u64) -> Seeded {
        Seeded(seed.wrapping_mul(2).wrapping_add(1))
    }

    pub(super) fn word(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.word() as usize % bound
    }

    /// Between -1 and 1.
    pub(super) fn float(&mut self) -> f32 {
        self.word() as f32 / (1u32 << 30) as f32 - 1.0
    }

    pub(super) fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.float()).collect()
    }
}

/// The nearest number that the element type has.
pub(super) fn round(element: Element, x: f32) -> f32 {
    match element {
        Element::F32 => x,
        Element::F16 => f16::from_f32(x).to_f32(),
        Element::BF16 => bf16::from_f32(x).to_f32(),
    }
}

fn encode(element: Element, values: &[f32]) -> Vec<u8> {
    match element {
        Element::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Element::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        Element::BF16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
    }
}

fn decode(element: Element, bytes: &[u8]) -> Vec<f32> {
    match element {
        Element::F32 => bytes.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect(),
        Element::F16 => bytes.as_chunks::<2>().0.iter().map(|x| f16::from_le_bytes(*x).to_f32()).collect(),
        Element::BF16 => bytes.as_chunks::<2>().0.iter().map(|x| bf16::from_le_bytes(*x).to_f32()).collect(),
    }
}

/// Uploads f32 values.
pub(super) fn upload_floats(runner: &mut dyn Runner, values: &[f32]) -> Result<u64, KernelError> {
    runner.upload(&encode(Element::F32, values))
}

/// Uploads words.
pub(super) fn upload_words(runner: &mut dyn Runner, words: &[u32]) -> Result<u64, KernelError> {
    runner.upload(&words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>())
}

/// Where rows lie among wider ones: columns `first ..` of rows `stride` apart.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) first: usize,
    pub(super) stride: usize,
}

impl Place {
    /// Rows one after the other.
    pub(super) fn packed(rows: usize, cols: usize) -> Place {
        Place { rows, cols, first: 0, stride: cols }
    }

    /// The same rows without gaps, as columns of wider rows that begin on sixteen bytes, and as columns of rows that do not.
    pub(super) fn each(rows: usize, cols: usize) -> [Place; 3] {
        let wider = cols.next_multiple_of(8) + 24;
        [
            Place::packed(rows, cols),
            Place { rows, cols, first: 8, stride: wider },
            Place { rows, cols, first: 5, stride: cols + 6 },
        ]
    }
}

/// Rows of elements on a runner, and their values here.
pub(super) struct Rows {
    element: Element,
    place: Place,
    address: u64,
    values: Vec<f32>,
}

impl Rows {
    /// Of `value()`, rounded to the element type; what lies beside the rows too.
    pub(super) fn of(
        runner: &mut dyn Runner,
        element: Element,
        place: Place,
        mut value: impl FnMut() -> f32,
    ) -> Result<Rows, KernelError> {
        let values: Vec<f32> = (0..place.rows * place.stride).map(|_| round(element, value())).collect();
        Ok(Rows { element, place, address: runner.upload(&encode(element, &values))?, values })
    }

    /// Of numbers between -1 and 1.
    pub(super) fn seeded(
        runner: &mut dyn Runner,
        element: Element,
        place: Place,
        seeded: &mut Seeded,
    ) -> Result<Rows, KernelError> {
        Rows::of(runner, element, place, || seeded.float())
    }

    /// Of a number that no result is, so that what a kernel forgets to write shows.
    pub(super) fn unwritten(runner: &mut dyn Runner, element: Element, place: Place) -> Result<Rows, KernelError> {
        Rows::of(runner, element, place, || 30_000.0)
    }

    pub(super) fn at(&self) -> RowsAt {
        RowsAt {
            ptr: self.address + (self.place.first * self.element.bytes()) as u64,
            rows: self.place.rows as u32,
            cols: self.place.cols as u32,
            stride: self.place.stride as u32,
        }
    }

    /// A row as it was uploaded.
    pub(super) fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.place.stride + self.place.first..][..self.place.cols]
    }

    /// The rows as they are on the runner now.
    pub(super) fn read(&self, runner: &mut dyn Runner) -> Result<Vec<Vec<f32>>, KernelError> {
        let Place { rows, cols, first, stride } = self.place;
        let mut bytes = vec![0; self.values.len() * self.element.bytes()];
        runner.download(self.address, &mut bytes)?;
        let values = decode(self.element, &bytes);
        let outside = |at: usize| !(first..first + cols).contains(&(at % stride));
        if let Some(at) = (0..values.len()).find(|at| outside(*at) && values[*at] != self.values[*at]) {
            let message = format!("column {} beside columns {first}..{} was written", at % stride, first + cols);
            return Err(KernelError::Device { op: "parity", message });
        }
        Ok((0..rows).map(|row| values[row * stride + first..][..cols].to_vec()).collect())
    }
}

/// How far results were off, over many shapes.
pub(super) struct Tally {
    element: Element,
    compared: usize,
    worst: f64,
}

impl Tally {
    pub(super) fn new(element: Element) -> Tally {
        Tally { element, compared: 0, worst: 0.0 }
    }

    /// Compares a row with what it should be, rounded to the element type.
    pub(super) fn row(&mut self, got: &[f32], expected: impl IntoIterator<Item = f32>) {
        let expected: Vec<f32> = expected.into_iter().map(|x| round(self.element, x)).collect();
        self.compared += got.len();
        let largest = expected.iter().fold(0.0f64, |largest, x| largest.max(f64::from(x.abs())));
        let scale = if largest > 0.0 { largest } else { 1.0 };
        for (got, expected) in got.iter().zip(&expected) {
            let off = (f64::from(*got) - f64::from(*expected)).abs() / scale;
            // Not a number is as far off as can be.
            self.worst = if off <= self.worst {
                self.worst
            } else if off.is_nan() {
                f64::INFINITY
            } else {
                off
            };
        }
        if got.len() != expected.len() {
            self.worst = f64::INFINITY;
        }
    }

    /// Of a kernel that does the very operations of its CPU body.
    pub(super) fn exact(self, kernel: &str, shapes: &str) -> Finding {
        self.within(kernel, shapes, 0.0)
    }

    /// Of a kernel whose sums are in another order. Results that differ a little in f32 round to the same number of the element type
    /// or to one of two neighbours, which are 2^-10 (f16) or 2^-7 (bf16) of their magnitude apart at most.
    pub(super) fn rounded(self, kernel: &str, shapes: &str, f32_bound: f64) -> Finding {
        let bound = match self.element {
            Element::F32 => f32_bound,
            Element::F16 => 1.0 / 1024.0,
            Element::BF16 => 1.0 / 128.0,
        };
        self.within(kernel, shapes, bound)
    }

    fn within(self, kernel: &str, shapes: &str, bound: f64) -> Finding {
        let case = format!("{kernel}_{}: {shapes}", self.element.suffix());
        Finding { case, compared: self.compared, worst: self.worst, bound }
    }
}
