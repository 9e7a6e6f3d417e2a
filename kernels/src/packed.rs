//! Weight matrices in the order that the product reads them.
//!
//! A matrix `[n, k]` becomes panels of 16 outputs. Inside a panel the 16 outputs lie side by side, so one vector load gives
//! the same `k` of 16 outputs and no product ever sums across lanes:
//!
//! ```text
//! f32, f16, bf16   [k][16]
//! quantised        blocks of 32 (K types: 256) values of k:
//!   d   f16 [16]                       one scale an output
//!   m   f16 [16]                       types with a minimum
//!   per group of 32 or 16 values:
//!     scale i8 [16], min i8 [16]       K types
//!     codes u4: [group/8][16] u32      eight codes of an output in a word, first in the low bits
//!           or 8 bits: [group][16]
//! ```
//!
//! Nothing is lost: what a panel holds is what the file holds (five- and six-bit codes take eight). The value of a code is
//! `fma(code, d, m)` with d and m in f32: m is `-zero * d` where the type has a zero point, and for K types d and m are the
//! block's times the group's. All of those products are exact, so the one rounding is the same as that of the file format.

use crate::lines::Lines;
use crate::weight::{Block, half_bits};
use crate::{KernelError, Pool, WeightType};

/// Outputs in a panel: the lanes of every body.
pub(crate) const LANES: usize = 16;

/// How a panel's bytes read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    F32,
    F16,
    BF16,
    Quant(Quant),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quant {
    pub(crate) codes: Codes,
    pub(crate) min: Min,
    /// Values that share a scale: 32 or 16.
    pub(crate) group: usize,
    /// Values in a block: 32, or 256 with integer scales for each group.
    pub(crate) block: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codes {
    U4,
    U8,
    I8,
}

/// What is added to `d * code`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Min {
    /// `-zero * d`.
    Zero(f32),
    /// A stored minimum, added (32-blocks) or taken away (K types, as those are defined).
    Stored,
}

// The zero points are whole and finite.
impl Eq for Min {}

impl Quant {
    pub(crate) fn has_min(self) -> bool {
        self.min == Min::Stored
    }

    pub(crate) fn grouped(self) -> bool {
        self.block == 256
    }

    pub(crate) fn code_bytes(self) -> usize {
        match self.codes {
            Codes::U4 => self.group * LANES / 2,
            Codes::U8 | Codes::I8 => self.group * LANES,
        }
    }

    /// Bytes of one group: its integer scales, if any, and codes.
    pub(crate) fn group_bytes(self) -> usize {
        let scales = match (self.grouped(), self.has_min()) {
            (false, _) => 0,
            (true, false) => LANES,
            (true, true) => 2 * LANES,
        };
        scales + self.code_bytes()
    }

    /// Bytes of the f16 scales (and minima) that open a block.
    pub(crate) fn head_bytes(self) -> usize {
        if self.has_min() { 4 * LANES } else { 2 * LANES }
    }

    pub(crate) fn block_bytes(self) -> usize {
        self.head_bytes() + self.block / self.group * self.group_bytes()
    }
}

impl Format {
    fn of(dtype: WeightType) -> Format {
        let quant = |codes, min, group, block| Format::Quant(Quant { codes, min, group, block });
        match dtype {
            WeightType::F32 => Format::F32,
            WeightType::F16 => Format::F16,
            WeightType::BF16 => Format::BF16,
            WeightType::Q4_0 => quant(Codes::U4, Min::Zero(8.0), 32, 32),
            WeightType::Q4_1 => quant(Codes::U4, Min::Stored, 32, 32),
            WeightType::Q5_0 => quant(Codes::U8, Min::Zero(16.0), 32, 32),
            WeightType::Q5_1 => quant(Codes::U8, Min::Stored, 32, 32),
            WeightType::Q8_0 => quant(Codes::I8, Min::Zero(0.0), 32, 32),
            WeightType::Q2K => quant(Codes::U4, Min::Stored, 16, 256),
            WeightType::Q3K => quant(Codes::U4, Min::Zero(4.0), 16, 256),
            WeightType::Q4K => quant(Codes::U4, Min::Stored, 32, 256),
            WeightType::Q5K => quant(Codes::U8, Min::Stored, 32, 256),
            WeightType::Q6K => quant(Codes::I8, Min::Zero(0.0), 16, 256),
        }
    }

    /// Bytes of `k` values of a panel; `k` is a whole number of blocks.
    pub(crate) fn panel_bytes(self, k: usize) -> usize {
        match self {
            Format::F32 => k * LANES * 4,
            Format::F16 | Format::BF16 => k * LANES * 2,
            Format::Quant(quant) => k / quant.block * quant.block_bytes(),
        }
    }
}

/// One part of a matrix that is put together by rows: as it lies in a file, row-major and little-endian.
#[derive(Debug, Clone, Copy)]
pub struct PackedSource<'a> {
    /// Element type.
    pub dtype: WeightType,
    /// Rows (outputs).
    pub n: usize,
    /// Values in a row (inputs).
    pub k: usize,
    /// The file's bytes.
    pub bytes: &'a [u8],
}

/// A weight matrix `[n outputs, k inputs]`, packed once at load into the order that its product reads; see the head of this
/// file for the order. Takes about the bytes of the file (five- and six-bit types take eight bits a value).
#[derive(Debug)]
pub struct PackedMatrix {
    segments: Vec<Segment>,
    n: usize,
    k: usize,
}

/// Rows of one type: a matrix has one, or one for each part it was put together from.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) format: Format,
    /// First output of the matrix that this holds.
    pub(crate) first: usize,
    pub(crate) n: usize,
    pub(crate) panel_bytes: usize,
    pub(crate) data: Lines,
}

impl Segment {
    pub(crate) fn panels(&self) -> usize {
        self.n.div_ceil(LANES)
    }

    pub(crate) fn panel(&self, panel: usize) -> &[u8] {
        &self.data.bytes()[panel * self.panel_bytes..(panel + 1) * self.panel_bytes]
    }
}

impl PackedMatrix {
    /// Packs `[n, k]` values of `dtype`, row-major and little-endian as in a file. Work is shared over `pool`.
    ///
    /// # Errors
    /// If a row is not a whole number of the type's blocks or `bytes` has another length than type and shape imply.
    pub fn pack(dtype: WeightType, n: usize, k: usize, bytes: &[u8], pool: &Pool) -> Result<PackedMatrix, KernelError> {
        PackedMatrix::concat(&[PackedSource { dtype, n, k, bytes }], pool)
    }

    /// Packs several matrices of the same `k` into one by rows (q, k, v; gate, up). Types may differ.
    ///
    /// # Errors
    /// As [`PackedMatrix::pack`], and if there are no parts or they differ in `k`.
    pub fn concat(parts: &[PackedSource<'_>], pool: &Pool) -> Result<PackedMatrix, KernelError> {
        let k = parts.first().map_or(0, |part| part.k);
        if parts.is_empty() || parts.iter().any(|part| part.k != k) {
            return Err(KernelError::Shape {
                op: "pack",
                what: "parts",
                got: format!("{:?}", parts.iter().map(|part| (part.n, part.k)).collect::<Vec<_>>()),
                expected: "one or more matrices with rows of one length".into(),
            });
        }
        let mut matrix = PackedMatrix { segments: Vec::with_capacity(parts.len()), n: 0, k };
        for part in parts {
            let segment = pack_segment(part, matrix.n, pool)?;
            matrix.segments.push(segment);
            matrix.n += part.n;
        }
        Ok(matrix)
    }

    /// Outputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Bytes of memory that the packed form takes.
    pub fn bytes(&self) -> usize {
        self.segments.iter().map(|segment| segment.data.bytes().len()).sum()
    }

    pub(crate) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Writes row `row` in f32 to `out`, of length k: the plain reading of the packed form, and its specification.
    ///
    /// # Panics
    /// If `row` is not below n or `out` has another length than k.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.n && out.len() == self.k, "row {row} of [{}, {}]", self.n, self.k);
        let segment =
            self.segments.iter().rfind(|segment| segment.first <= row && segment.n > 0).expect("segments cover 0..n");
        let (panel, lane) = ((row - segment.first) / LANES, (row - segment.first) % LANES);
        let data = segment.panel(panel);
        let u16_at = |at: usize| u16::from_le_bytes([data[at], data[at + 1]]);
        match segment.format {
            Format::F32 => {
                for (at, value) in out.iter_mut().enumerate() {
                    let at = (at * LANES + lane) * 4;
                    *value = f32::from_le_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]]);
                }
            }
            Format::F16 => {
                for (at, value) in out.iter_mut().enumerate() {
                    *value = half_bits(u16_at((at * LANES + lane) * 2));
                }
            }
            Format::BF16 => {
                for (at, value) in out.iter_mut().enumerate() {
                    *value = f32::from_bits(u32::from(u16_at((at * LANES + lane) * 2)) << 16);
                }
            }
            Format::Quant(quant) => {
                for (block, values) in out.chunks_mut(quant.block).enumerate() {
                    let data = &data[block * quant.block_bytes()..];
                    quant.block_values(data, lane, values);
                }
            }
        }
    }
}

impl Quant {
    /// The values of one output (`lane`) in one packed block.
    fn block_values(self, data: &[u8], lane: usize, values: &mut [f32]) {
        let half_at = |at: usize| half_bits(u16::from_le_bytes([data[at], data[at + 1]]));
        let d_block = half_at(2 * lane);
        let m_block = if self.has_min() { half_at(2 * (LANES + lane)) } else { 0.0 };
        for (group, values) in values.chunks_mut(self.group).enumerate() {
            let data = &data[self.head_bytes() + group * self.group_bytes()..][..self.group_bytes()];
            let (mut d, mut m) = (d_block, m_block);
            if self.grouped() {
                d *= f32::from(data[lane] as i8);
                if self.has_min() {
                    m *= -f32::from(data[LANES + lane] as i8);
                }
            }
            if let Min::Zero(zero) = self.min {
                m = d * -zero;
            }
            let codes = &data[self.group_bytes() - self.code_bytes()..];
            for (at, value) in values.iter_mut().enumerate() {
                let code = match self.codes {
                    Codes::U4 => {
                        let byte = codes[at / 8 * 64 + lane * 4 + at % 8 / 2];
                        f32::from((byte >> (4 * (at % 2))) & 15)
                    }
                    Codes::U8 => f32::from(codes[at * LANES + lane]),
                    Codes::I8 => f32::from(codes[at * LANES + lane] as i8),
                };
                *value = code.mul_add(d, m);
            }
        }
    }

    /// Puts one output's block into its lane of a packed block.
    fn store_block(self, block: &Block, lane: usize, data: &mut [u8]) {
        data[2 * lane..][..2].copy_from_slice(&block.d.to_le_bytes());
        if self.has_min() {
            data[2 * (LANES + lane)..][..2].copy_from_slice(&block.m.to_le_bytes());
        }
        for group in 0..self.block / self.group {
            let data = &mut data[self.head_bytes() + group * self.group_bytes()..][..self.group_bytes()];
            if self.grouped() {
                data[lane] = block.scales[group] as u8;
                if self.has_min() {
                    data[LANES + lane] = block.mins[group] as u8;
                }
            }
            let codes = &mut data[self.group_bytes() - self.code_bytes()..];
            let values = &block.codes[group * self.group..][..self.group];
            match self.codes {
                Codes::U4 => {
                    for (word, eight) in values.as_chunks::<8>().0.iter().enumerate() {
                        for (byte, pair) in eight.as_chunks::<2>().0.iter().enumerate() {
                            codes[word * 64 + lane * 4 + byte] = pair[0] | (pair[1] << 4);
                        }
                    }
                }
                Codes::U8 | Codes::I8 => {
                    for (at, code) in values.iter().enumerate() {
                        codes[at * LANES + lane] = *code;
                    }
                }
            }
        }
    }
}

fn pack_segment(part: &PackedSource<'_>, first: usize, pool: &Pool) -> Result<Segment, KernelError> {
    let PackedSource { dtype, n, k, bytes } = *part;
    let block_error = KernelError::WeightBlock { dtype, block: dtype.block_len(), k };
    let row_bytes = dtype.row_bytes(k).ok_or(block_error)?;
    let expected = row_bytes.saturating_mul(n);
    if bytes.len() != expected {
        let got = bytes.len();
        return Err(KernelError::WeightLen { dtype, n, k, expected, got });
    }
    let format = Format::of(dtype);
    let panel_bytes = format.panel_bytes(k);
    let mut data = Lines::zeroed(n.div_ceil(LANES) * panel_bytes);
    if panel_bytes > 0 {
        data.for_each_part(panel_bytes, pool, |panel, packed| {
            let rows = panel * LANES..n.min((panel + 1) * LANES);
            pack_panel(dtype, format, &bytes[rows.start * row_bytes..rows.end * row_bytes], row_bytes, packed);
        });
    }
    Ok(Segment { format, first, n, panel_bytes, data })
}

/// Packs up to 16 rows into one panel; missing rows stay zero.
fn pack_panel(dtype: WeightType, format: Format, bytes: &[u8], row_bytes: usize, packed: &mut [u8]) {
    let mut block = Block::new();
    for (lane, row) in bytes.chunks(row_bytes).enumerate() {
        match format {
            Format::F32 => scatter::<4>(row, lane, packed),
            Format::F16 | Format::BF16 => scatter::<2>(row, lane, packed),
            Format::Quant(quant) => {
                let packed_blocks = packed.chunks_mut(quant.block_bytes());
                for (bytes, packed) in row.chunks(dtype.block_bytes()).zip(packed_blocks) {
                    block.read(dtype, bytes);
                    quant.store_block(&block, lane, packed);
                }
            }
        }
    }
}

fn scatter<const SIZE: usize>(row: &[u8], lane: usize, packed: &mut [u8]) {
    let places = packed.as_chunks_mut::<SIZE>().0;
    for (value, sixteen) in row.as_chunks::<SIZE>().0.iter().zip(places.chunks_mut(LANES)) {
        sixteen[lane] = *value;
    }
}
