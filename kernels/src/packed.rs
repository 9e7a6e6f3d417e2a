//! Weight matrices in the order that the product reads them.
//!
//! A matrix `[n, k]` becomes panels of 16 outputs. Inside a panel the 16 outputs lie side by side, so one vector load gives
//! the same `k` of 16 outputs and no product ever sums across lanes:
//!
//! ```text
//! f32, f16, bf16   [k][16]
//! quantised        heads, one for each block of 32 (K types: 256) values of k:
//!                    d   f16 [16]          one scale an output
//!                    m   f16 [16]          types with a minimum
//!                  K types, for each group of 32 or 16 values:
//!                    scale i8 [16], min i8 [16]
//!                  up to a whole cache line, and then the codes of each group:
//!                    4 bits: [group/8][16][4]   low half byte of value 4j + i, high half byte of value group/2 + 4j + i
//!                    8 bits: [group/4][16][4]   value 4j + i
//! ```
//!
//! Four neighbouring values of an output lie in a word: what the dot products of bytes take, in vectors (VNNI) and in tiles (AMX)
//! alike. Codes begin on a cache line and are read straight through; the heads of a panel come before them.
//!
//! Nothing is lost: what a panel holds is what the file holds (five- and six-bit codes take eight). The value of a code is
//! `fma(code - zero, d, m)` with d and m in f32; for K types these are the block's times the group's. All of those products are
//! exact, so the one rounding is the same as that of the file format. Types of more than four bits without a minimum are stored
//! with their zero taken away.

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
    /// Half bytes, 0..=15.
    U4,
    /// Bytes in two's complement.
    I8,
}

/// What makes a code a value, beside its scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Min {
    /// This is taken away from the code.
    Zero(i8),
    /// A stored minimum, added (32-blocks) or taken away (K types, as those are defined).
    Stored,
}

impl Quant {
    pub(crate) fn has_min(self) -> bool {
        self.min == Min::Stored
    }

    pub(crate) fn grouped(self) -> bool {
        self.block == 256
    }

    /// What is taken away from a stored code.
    pub(crate) fn zero(self) -> i8 {
        match self.min {
            Min::Zero(zero) => zero,
            Min::Stored => 0,
        }
    }

    /// Bytes of a group's codes.
    pub(crate) fn code_bytes(self) -> usize {
        match self.codes {
            Codes::U4 => self.group * LANES / 2,
            Codes::I8 => self.group * LANES,
        }
    }

    /// Bytes of a block's f16 scales (and minima).
    pub(crate) fn head_bytes(self) -> usize {
        if self.has_min() { 4 * LANES } else { 2 * LANES }
    }

    /// Bytes of a group's integer scales (and minima), if it has any.
    pub(crate) fn scale_bytes(self) -> usize {
        match (self.grouped(), self.has_min()) {
            (false, _) => 0,
            (true, false) => LANES,
            (true, true) => 2 * LANES,
        }
    }

    /// Where the integer scales of a panel of `k` values begin.
    pub(crate) fn scales_at(self, k: usize) -> usize {
        k / self.block * self.head_bytes()
    }

    /// Where its codes begin.
    pub(crate) fn codes_at(self, k: usize) -> usize {
        (self.scales_at(k) + k / self.group * self.scale_bytes()).next_multiple_of(64)
    }

    /// A group's scale and minimum of one output.
    fn scale(self, panel: &[u8], k: usize, group: usize, lane: usize) -> (f32, f32) {
        let half_at = |at: usize| half_bits(u16::from_le_bytes([panel[at], panel[at + 1]]));
        let head = group * self.group / self.block * self.head_bytes();
        let mut d = half_at(head + 2 * lane);
        let mut m = if self.has_min() { half_at(head + 2 * (LANES + lane)) } else { 0.0 };
        if self.grouped() {
            let scales = &panel[self.scales_at(k) + group * self.scale_bytes()..];
            d *= f32::from(scales[lane] as i8);
            if self.has_min() {
                m *= -f32::from(scales[LANES + lane] as i8);
            }
        }
        (d, m)
    }

    /// A group's codes of one output, their zero taken away.
    fn codes(self, panel: &[u8], k: usize, group: usize, lane: usize, codes: &mut [i8]) {
        let data = &panel[self.codes_at(k) + group * self.code_bytes()..][..self.code_bytes()];
        for (at, code) in codes.iter_mut().enumerate() {
            *code = match self.codes {
                Codes::U4 => {
                    let (high, at) = (at / (self.group / 2), at % (self.group / 2));
                    let byte = data[at / 4 * 64 + lane * 4 + at % 4];
                    ((byte >> (4 * high)) & 15) as i8 - self.zero()
                }
                Codes::I8 => data[at / 4 * 64 + lane * 4 + at % 4] as i8,
            };
        }
    }
}

impl Format {
    fn of(dtype: WeightType) -> Format {
        let quant = |codes, min, group, block| Format::Quant(Quant { codes, min, group, block });
        match dtype {
            WeightType::F32 => Format::F32,
            WeightType::F16 => Format::F16,
            WeightType::BF16 => Format::BF16,
            WeightType::Q4_0 => quant(Codes::U4, Min::Zero(8), 32, 32),
            WeightType::Q4_1 => quant(Codes::U4, Min::Stored, 32, 32),
            WeightType::Q5_0 => quant(Codes::I8, Min::Zero(0), 32, 32),
            WeightType::Q5_1 => quant(Codes::I8, Min::Stored, 32, 32),
            WeightType::Q8_0 => quant(Codes::I8, Min::Zero(0), 32, 32),
            WeightType::Q2K => quant(Codes::U4, Min::Stored, 16, 256),
            WeightType::Q3K => quant(Codes::U4, Min::Zero(4), 16, 256),
            WeightType::Q4K => quant(Codes::U4, Min::Stored, 32, 256),
            WeightType::Q5K => quant(Codes::I8, Min::Stored, 32, 256),
            WeightType::Q6K => quant(Codes::I8, Min::Zero(0), 16, 256),
        }
    }

    /// Bytes of `k` values of a panel; `k` is a whole number of blocks.
    pub(crate) fn panel_bytes(self, k: usize) -> usize {
        match self {
            Format::F32 => k * LANES * 4,
            Format::F16 | Format::BF16 => k * LANES * 2,
            Format::Quant(quant) => quant.codes_at(k) + k / quant.group * quant.code_bytes(),
        }
    }
}

/// A row of a quantised matrix as its product takes it: `value[i] = codes[i] * d + m` with the d and m of i's group.
#[derive(Debug, Clone, PartialEq)]
pub struct RowCodes {
    /// Values that share a scale: 32 or 16.
    pub group: usize,
    /// One code a value, zero points taken away.
    pub codes: Vec<i8>,
    /// One scale a group.
    pub d: Vec<f32>,
    /// One minimum a group, of types that have minima.
    pub m: Option<Vec<f32>>,
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

    /// The segment that holds a row, the row's panel and its lane there.
    fn find(&self, row: usize) -> (&Segment, &[u8], usize) {
        assert!(row < self.n, "row {row} of [{}, {}]", self.n, self.k);
        let segment =
            self.segments.iter().rfind(|segment| segment.first <= row && segment.n > 0).expect("segments cover 0..n");
        (segment, segment.panel((row - segment.first) / LANES), (row - segment.first) % LANES)
    }

    /// Row `row` taken apart, if it is of a quantised type.
    ///
    /// # Panics
    /// If `row` is not below n.
    pub fn row_codes(&self, row: usize) -> Option<RowCodes> {
        let (segment, panel, lane) = self.find(row);
        let Format::Quant(quant) = segment.format else { return None };
        let mut codes = vec![0; self.k];
        for (group, codes) in codes.chunks_mut(quant.group).enumerate() {
            quant.codes(panel, self.k, group, lane, codes);
        }
        let (d, m): (Vec<f32>, Vec<f32>) =
            (0..self.k / quant.group).map(|group| quant.scale(panel, self.k, group, lane)).unzip();
        Some(RowCodes { group: quant.group, codes, d, m: quant.has_min().then_some(m) })
    }

    /// Writes row `row` in f32 to `out`, of length k: the plain reading of the packed form, and its specification.
    ///
    /// # Panics
    /// If `row` is not below n or `out` has another length than k.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert!(out.len() == self.k, "room for row {row} of [{}, {}]", self.n, self.k);
        let (segment, data, lane) = self.find(row);
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
                for (group, values) in out.chunks_mut(quant.group).enumerate() {
                    let (mut codes, (d, m)) = ([0; 32], quant.scale(data, self.k, group, lane));
                    quant.codes(data, self.k, group, lane, &mut codes[..quant.group]);
                    for (value, code) in values.iter_mut().zip(codes) {
                        *value = f32::from(code).mul_add(d, m);
                    }
                }
            }
        }
    }
}

impl Quant {
    /// Puts one output's block into its lane of a panel of `k` values.
    fn store_block(self, block: &Block, k: usize, index: usize, lane: usize, panel: &mut [u8]) {
        let head = &mut panel[index * self.head_bytes()..][..self.head_bytes()];
        head[2 * lane..][..2].copy_from_slice(&block.d.to_le_bytes());
        if self.has_min() {
            head[2 * (LANES + lane)..][..2].copy_from_slice(&block.m.to_le_bytes());
        }
        let groups = self.block / self.group;
        for group in 0..groups {
            let place = index * groups + group;
            if self.grouped() {
                let scales = &mut panel[self.scales_at(k) + place * self.scale_bytes()..];
                scales[lane] = block.scales[group] as u8;
                if self.has_min() {
                    scales[LANES + lane] = block.mins[group] as u8;
                }
            }
            let data = &mut panel[self.codes_at(k) + place * self.code_bytes()..][..self.code_bytes()];
            let codes = &block.codes[group * self.group..][..self.group];
            match self.codes {
                Codes::U4 => {
                    let (low, high) = codes.split_at(self.group / 2);
                    for (at, (low, high)) in low.iter().zip(high).enumerate() {
                        data[at / 4 * 64 + lane * 4 + at % 4] = low | (high << 4);
                    }
                }
                Codes::I8 => {
                    for (at, code) in codes.iter().enumerate() {
                        data[at / 4 * 64 + lane * 4 + at % 4] = *code;
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
            pack_panel(dtype, format, k, &bytes[rows.start * row_bytes..rows.end * row_bytes], packed);
        });
    }
    Ok(Segment { format, first, n, panel_bytes, data })
}

/// Packs up to 16 rows of `k` values into one panel; missing rows stay zero.
fn pack_panel(dtype: WeightType, format: Format, k: usize, bytes: &[u8], packed: &mut [u8]) {
    let mut block = Block::new();
    let row_bytes = k / dtype.block_len() * dtype.block_bytes();
    for (lane, row) in bytes.chunks(row_bytes).enumerate() {
        match format {
            Format::F32 => scatter::<4>(row, lane, packed),
            Format::F16 | Format::BF16 => scatter::<2>(row, lane, packed),
            Format::Quant(quant) => {
                for (index, bytes) in row.chunks(dtype.block_bytes()).enumerate() {
                    block.read(dtype, bytes);
                    if dtype == WeightType::Q5_0 {
                        block.codes[..32].iter_mut().for_each(|code| *code = code.wrapping_sub(16));
                    }
                    quant.store_block(&block, k, index, lane, packed);
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
