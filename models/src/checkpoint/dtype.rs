//! Tensor storage types: what a file may declare, and what can be read.

use weir_kernels::WeightType;

/// Names of the readable types, for error messages.
pub(crate) const READABLE: &str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K";

/// Layout of a storage type: `block_len` elements take `block_bytes` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Storage {
    pub(crate) name: &'static str,
    pub(crate) block_len: u64,
    pub(crate) block_bytes: u64,
    /// What the kernels call it; `None` for a type that is known but not read.
    pub(crate) weight: Option<WeightType>,
}

const fn storage(name: &'static str, block_len: u64, block_bytes: u64, weight: Option<WeightType>) -> Storage {
    Storage { name, block_len, block_bytes, weight }
}

/// The type with number `id` in GGUF files, as the format's table numbers them. Types that are not read are listed with
/// their names, so that the error can say which one it met.
pub(crate) fn ggml(id: u32) -> Option<Storage> {
    use WeightType as W;
    Some(match id {
        0 => storage("F32", 1, 4, Some(W::F32)),
        1 => storage("F16", 1, 2, Some(W::F16)),
        2 => storage("Q4_0", 32, 18, Some(W::Q4_0)),
        3 => storage("Q4_1", 32, 20, Some(W::Q4_1)),
        6 => storage("Q5_0", 32, 22, Some(W::Q5_0)),
        7 => storage("Q5_1", 32, 24, Some(W::Q5_1)),
        8 => storage("Q8_0", 32, 34, Some(W::Q8_0)),
        9 => storage("Q8_1", 32, 36, None),
        10 => storage("Q2_K", 256, 84, Some(W::Q2K)),
        11 => storage("Q3_K", 256, 110, Some(W::Q3K)),
        12 => storage("Q4_K", 256, 144, Some(W::Q4K)),
        13 => storage("Q5_K", 256, 176, Some(W::Q5K)),
        14 => storage("Q6_K", 256, 210, Some(W::Q6K)),
        15 => storage("Q8_K", 256, 292, None),
        16 => storage("IQ2_XXS", 256, 66, None),
        17 => storage("IQ2_XS", 256, 74, None),
        18 => storage("IQ3_XXS", 256, 98, None),
        19 => storage("IQ1_S", 256, 50, None),
        20 => storage("IQ4_NL", 32, 18, None),
        21 => storage("IQ3_S", 256, 110, None),
        22 => storage("IQ2_S", 256, 82, None),
        23 => storage("IQ4_XS", 256, 136, None),
        24 => storage("I8", 1, 1, None),
        25 => storage("I16", 1, 2, None),
        26 => storage("I32", 1, 4, None),
        27 => storage("I64", 1, 8, None),
        28 => storage("F64", 1, 8, None),
        29 => storage("IQ1_M", 256, 56, None),
        30 => storage("BF16", 1, 2, Some(W::BF16)),
        34 => storage("TQ1_0", 256, 54, None),
        35 => storage("TQ2_0", 256, 66, None),
        39 => storage("MXFP4", 32, 17, None),
        _ => return None,
    })
}

/// The type a safetensors header calls `name`.
pub(crate) fn safetensors(name: &str) -> Option<Storage> {
    Some(match name {
        "F32" => storage("F32", 1, 4, Some(WeightType::F32)),
        "F16" => storage("F16", 1, 2, Some(WeightType::F16)),
        "BF16" => storage("BF16", 1, 2, Some(WeightType::BF16)),
        "F64" => storage("F64", 1, 8, None),
        "I64" => storage("I64", 1, 8, None),
        "U64" => storage("U64", 1, 8, None),
        "I32" => storage("I32", 1, 4, None),
        "U32" => storage("U32", 1, 4, None),
        "I16" => storage("I16", 1, 2, None),
        "U16" => storage("U16", 1, 2, None),
        "I8" => storage("I8", 1, 1, None),
        "U8" => storage("U8", 1, 1, None),
        "BOOL" => storage("BOOL", 1, 1, None),
        "F8_E4M3" => storage("F8_E4M3", 1, 1, None),
        "F8_E5M2" => storage("F8_E5M2", 1, 1, None),
        _ => return None,
    })
}

impl Storage {
    /// Bytes that a tensor of `shape` (row-major, last dimension contiguous) takes: `None` when a product overflows or the
    /// last dimension is not a whole number of blocks.
    pub(crate) fn bytes(&self, shape: &[u64]) -> Option<u64> {
        let row = shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(self.block_len) {
            return None;
        }
        let elements = shape.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim))?;
        (elements / self.block_len).checked_mul(self.block_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_checked() {
        let q4_1 = ggml(3).unwrap();
        assert_eq!(q4_1.bytes(&[576, 1536]), Some(576 * 1536 / 32 * 20));
        assert_eq!(q4_1.bytes(&[576, 33]), None, "a row is a whole number of blocks");
        assert_eq!(q4_1.bytes(&[u64::MAX, 64]), None, "the product overflows");
        assert_eq!(ggml(0).unwrap().bytes(&[]), Some(4), "a scalar is one element");
        assert!(ggml(4).is_none(), "type 4 was withdrawn");
    }
}
