//! The element types of weight files, and what one block of each holds.
//!
//! The quantised formats are ggml's, as documented by its block layouts: blocks of 32 values with an f16 scale (and minimum),
//! or "K" superblocks of 256 with an f16 scale and small integer scales for each 16 or 32 values. Every one of them says
//! `value = d * (code - zero)` or `value = d * code + m`; [`Block`] is that form, without loss.

use half::f16;

/// The element type of a weight matrix, as it lies in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum WeightType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

impl WeightType {
    /// All of them.
    pub const ALL: [WeightType; 13] = [
        WeightType::F32,
        WeightType::F16,
        WeightType::BF16,
        WeightType::Q4_0,
        WeightType::Q4_1,
        WeightType::Q5_0,
        WeightType::Q5_1,
        WeightType::Q8_0,
        WeightType::Q2K,
        WeightType::Q3K,
        WeightType::Q4K,
        WeightType::Q5K,
        WeightType::Q6K,
    ];

    /// Values in one block; rows are whole numbers of blocks.
    pub fn block_len(self) -> usize {
        match self {
            WeightType::F32 | WeightType::F16 | WeightType::BF16 => 1,
            WeightType::Q4_0 | WeightType::Q4_1 | WeightType::Q5_0 | WeightType::Q5_1 | WeightType::Q8_0 => 32,
            _ => 256,
        }
    }

    /// Bytes of one block in the file.
    pub fn block_bytes(self) -> usize {
        match self {
            WeightType::F32 => 4,
            WeightType::F16 | WeightType::BF16 => 2,
            WeightType::Q4_0 => 18,
            WeightType::Q4_1 => 20,
            WeightType::Q5_0 => 22,
            WeightType::Q5_1 => 24,
            WeightType::Q8_0 => 34,
            WeightType::Q2K => 84,
            WeightType::Q3K => 110,
            WeightType::Q4K => 144,
            WeightType::Q5K => 176,
            WeightType::Q6K => 210,
        }
    }

    /// Bytes of a row of `k` values, or none if that is not a whole number of blocks (or does not fit an address).
    pub fn row_bytes(self, k: usize) -> Option<usize> {
        k.is_multiple_of(self.block_len()).then(|| (k / self.block_len()).checked_mul(self.block_bytes())).flatten()
    }
}

impl TryFrom<candle_core::quantized::GgmlDType> for WeightType {
    type Error = candle_core::quantized::GgmlDType;

    /// The same type by candle's name; gives the type back where there are no bodies for it (Q8_1, Q8K).
    fn try_from(dtype: candle_core::quantized::GgmlDType) -> Result<Self, Self::Error> {
        use candle_core::quantized::GgmlDType;
        Ok(match dtype {
            GgmlDType::F32 => WeightType::F32,
            GgmlDType::F16 => WeightType::F16,
            GgmlDType::BF16 => WeightType::BF16,
            GgmlDType::Q4_0 => WeightType::Q4_0,
            GgmlDType::Q4_1 => WeightType::Q4_1,
            GgmlDType::Q5_0 => WeightType::Q5_0,
            GgmlDType::Q5_1 => WeightType::Q5_1,
            GgmlDType::Q8_0 => WeightType::Q8_0,
            GgmlDType::Q2K => WeightType::Q2K,
            GgmlDType::Q3K => WeightType::Q3K,
            GgmlDType::Q4K => WeightType::Q4K,
            GgmlDType::Q5K => WeightType::Q5K,
            GgmlDType::Q6K => WeightType::Q6K,
            other => return Err(other),
        })
    }
}

/// One quantised block taken apart: codes as bytes, scales as they are stored. Which fields count depends on the type.
#[derive(Debug)]
pub(crate) struct Block {
    /// One code a value (two's complement for Q8_0 and Q6K).
    pub(crate) codes: [u8; 256],
    /// The block's f16 scale and minimum, as bits.
    pub(crate) d: u16,
    pub(crate) m: u16,
    /// K types: each group's integer scale and minimum.
    pub(crate) scales: [i8; 16],
    pub(crate) mins: [i8; 16],
}

impl Block {
    pub(crate) fn new() -> Block {
        Block { codes: [0; 256], d: 0, m: 0, scales: [0; 16], mins: [0; 16] }
    }

    /// Reads one block of a quantised type from its bytes.
    pub(crate) fn read(&mut self, dtype: WeightType, bytes: &[u8]) {
        debug_assert_eq!(bytes.len(), dtype.block_bytes());
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        match dtype {
            WeightType::F32 | WeightType::F16 | WeightType::BF16 => {
                unreachable!("float types have no blocks")
            }
            WeightType::Q4_0 => {
                self.d = u16_at(0);
                self.nibbles(&bytes[2..]);
            }
            WeightType::Q4_1 => {
                self.d = u16_at(0);
                self.m = u16_at(2);
                self.nibbles(&bytes[4..]);
            }
            WeightType::Q5_0 => {
                self.d = u16_at(0);
                self.nibbles(&bytes[6..]);
                self.fifth_bits(&bytes[2..6]);
            }
            WeightType::Q5_1 => {
                self.d = u16_at(0);
                self.m = u16_at(2);
                self.nibbles(&bytes[8..]);
                self.fifth_bits(&bytes[4..8]);
            }
            WeightType::Q8_0 => {
                self.d = u16_at(0);
                self.codes[..32].copy_from_slice(&bytes[2..34]);
            }
            WeightType::Q2K => {
                self.d = u16_at(80);
                self.m = u16_at(82);
                for (group, packed) in bytes[..16].iter().enumerate() {
                    self.scales[group] = (packed & 15) as i8;
                    self.mins[group] = (packed >> 4) as i8;
                }
                self.two_bits(&bytes[16..80]);
            }
            WeightType::Q3K => {
                self.d = u16_at(108);
                self.two_bits(&bytes[32..96]);
                for (at, code) in self.codes.iter_mut().enumerate() {
                    // Bit b of mask byte l is the high bit of value 32 b + l.
                    *code |= ((bytes[at % 32] >> (at / 32)) & 1) << 2;
                }
                let packed = &bytes[96..108];
                for group in 0..16 {
                    // Low four bits in bytes 0..8 (second half in the high nibbles), high two bits in bytes 8..12.
                    let low = (packed[group % 8] >> (4 * (group / 8))) & 15;
                    let high = (packed[8 + group % 4] >> (2 * (group / 4))) & 3;
                    self.scales[group] = (low | (high << 4)) as i8 - 32;
                }
            }
            WeightType::Q4K => {
                self.d = u16_at(0);
                self.m = u16_at(2);
                self.six_bit_scales(&bytes[4..16]);
                self.nibble_runs(&bytes[16..144]);
            }
            WeightType::Q5K => {
                self.d = u16_at(0);
                self.m = u16_at(2);
                self.six_bit_scales(&bytes[4..16]);
                self.nibble_runs(&bytes[48..176]);
                for (at, code) in self.codes.iter_mut().enumerate() {
                    *code |= ((bytes[16 + at % 32] >> (at / 32)) & 1) << 4;
                }
            }
            WeightType::Q6K => {
                self.d = u16_at(208);
                for (at, code) in self.codes.iter_mut().enumerate() {
                    // Halves of 128 values; in each, four runs of 32 share 64 low-nibble bytes and 32 bytes of high bits.
                    let (half, run, lane) = (at / 128, at % 128 / 32, at % 32);
                    let low = bytes[64 * half + 32 * (run % 2) + lane] >> (4 * (run / 2));
                    let high = bytes[128 + 32 * half + lane] >> (2 * run);
                    *code = ((low & 15) | ((high & 3) << 4)).wrapping_sub(32);
                }
                for (scale, byte) in self.scales.iter_mut().zip(&bytes[192..208]) {
                    *scale = *byte as i8;
                }
            }
        }
    }

    /// 16 bytes: low nibbles are values 0..16, high nibbles 16..32.
    fn nibbles(&mut self, bytes: &[u8]) {
        for (at, byte) in bytes[..16].iter().enumerate() {
            self.codes[at] = byte & 15;
            self.codes[at + 16] = byte >> 4;
        }
    }

    /// Bit j of the little-endian word is the fifth bit of value j.
    fn fifth_bits(&mut self, bytes: &[u8]) {
        for (at, code) in self.codes[..32].iter_mut().enumerate() {
            *code |= ((bytes[at / 8] >> (at % 8)) & 1) << 4;
        }
    }

    /// 64 bytes: halves of 128 values, each 32 bytes holding four runs of 32.
    fn two_bits(&mut self, bytes: &[u8]) {
        for (at, code) in self.codes.iter_mut().enumerate() {
            *code = (bytes[32 * (at / 128) + at % 32] >> (2 * (at % 128 / 32))) & 3;
        }
    }

    /// 128 bytes: runs of 64 values, each 32 bytes (low nibbles first).
    fn nibble_runs(&mut self, bytes: &[u8]) {
        for (at, code) in self.codes.iter_mut().enumerate() {
            *code = (bytes[32 * (at / 64) + at % 32] >> (4 * (at % 64 / 32))) & 15;
        }
    }

    /// Eight 6-bit scales and eight 6-bit minima in 12 bytes.
    fn six_bit_scales(&mut self, packed: &[u8]) {
        for group in 0..8 {
            let (scale, min) = if group < 4 {
                (packed[group] & 63, packed[group + 4] & 63)
            } else {
                (
                    (packed[group + 4] & 15) | ((packed[group - 4] >> 6) << 4),
                    (packed[group + 4] >> 4) | ((packed[group] >> 6) << 4),
                )
            };
            self.scales[group] = scale as i8;
            self.mins[group] = min as i8;
        }
    }
}

/// f16 bits as f32; exact.
#[inline(always)]
pub(crate) fn half_bits(bits: u16) -> f32 {
    f16::from_bits(bits).to_f32()
}
