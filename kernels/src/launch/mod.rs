//! Launches: what a CUDA kernel is started with, worked out on any machine.
//!
//! Each kernel of `kernels/cuda` has a function here that turns an op's arguments into a [`Launch`]: its grid, its shared memory and
//! its parameters in order. Nothing here needs a GPU, so the same launch runs on the device and in the tests' emulation of its thread
//! grid; [`Runner`] is what both are to the checks in [`crate::parity`].

pub mod attention;
pub mod elementwise;
pub mod kv;
pub mod norm;
pub mod pooling;
pub mod rope;
mod rows;
pub mod sample;
pub mod segment;

use crate::KernelError;
use crate::view::shape;

/// One start of one kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch {
    /// The file in `kernels/cuda`, without its ending.
    pub module: &'static str,
    /// The kernel's name, without the element type that ends it, such as `rms_norm`.
    pub kernel: &'static str,
    /// The element type it works on: its name is `kernel` + `_` + this.
    pub element: Element,
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y and z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u32,
    /// Its parameters, in order.
    pub args: Vec<Arg>,
}

impl Launch {
    /// The kernel's name in its module.
    pub fn name(&self) -> String {
        format!("{}_{}", self.kernel, self.element.suffix())
    }
}

/// One parameter of a kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arg {
    /// An address where the kernel reads or writes (`T*`, 8 bytes); 0 is a null pointer.
    Ptr(u64),
    /// `uint32_t`
    U32(u32),
    /// `uint64_t`
    U64(u64),
    /// `float`
    F32(f32),
}

/// What a kernel's activations are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Element {
    F32,
    F16,
    BF16,
}

impl Element {
    /// All of them.
    pub const ALL: [Element; 3] = [Element::F32, Element::F16, Element::BF16];

    /// How kernels' names end.
    pub fn suffix(self) -> &'static str {
        match self {
            Element::F32 => "f32",
            Element::F16 => "f16",
            Element::BF16 => "bf16",
        }
    }

    /// The same type as weights in a file are named.
    pub fn weights(self) -> crate::WeightType {
        match self {
            Element::F32 => crate::WeightType::F32,
            Element::F16 => crate::WeightType::F16,
            Element::BF16 => crate::WeightType::BF16,
        }
    }

    /// Writes values, rounded to nearest even, as the type's bytes.
    ///
    /// # Panics
    /// If `bytes` has not exactly the room.
    pub fn write(self, values: &[f32], bytes: &mut [u8]) {
        assert_eq!(bytes.len(), values.len() * self.bytes(), "room for {} values", values.len());
        for (value, bytes) in values.iter().zip(bytes.chunks_exact_mut(self.bytes())) {
            match self {
                Element::F32 => bytes.copy_from_slice(&value.to_le_bytes()),
                Element::F16 => bytes.copy_from_slice(&half::f16::from_f32(*value).to_le_bytes()),
                Element::BF16 => bytes.copy_from_slice(&half::bf16::from_f32(*value).to_le_bytes()),
            }
        }
    }

    /// Reads values from the type's bytes.
    pub fn read(self, bytes: &[u8]) -> Vec<f32> {
        let values = bytes.chunks_exact(self.bytes());
        match self {
            Element::F32 => values.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Element::F16 => values.map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Element::BF16 => values.map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        }
    }

    /// Bytes of one.
    pub fn bytes(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::F16 | Element::BF16 => 2,
        }
    }
}

/// Rows of elements where a kernel reaches them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowsAt {
    /// Address of the first element of the first row.
    pub ptr: u64,
    /// How many rows.
    pub rows: u32,
    /// Elements of a row, without gaps.
    pub cols: u32,
    /// Elements from one row's beginning to the next one's.
    pub stride: u32,
}

impl RowsAt {
    /// Whether every row begins at a multiple of 16 bytes, so that kernels may read it in pieces of that size.
    pub fn wide(&self, element: Element) -> bool {
        let bytes = element.bytes() as u64;
        self.ptr.is_multiple_of(16) && (u64::from(self.stride) * bytes).is_multiple_of(16)
    }
}

/// The paged KV tensor where a kernel reaches it: `[blocks, layers, 2, kv_heads, 32, head_dim]` without gaps, of the activations'
/// element type. On CUDA keys lie as values do, `[32][head_dim]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct KvAt {
    /// Address of the first element.
    pub ptr: u64,
    pub blocks: u32,
    pub layers: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
}

/// Something that runs launches: a GPU's stream, or an emulation of the thread grid on the host.
pub trait Runner {
    /// Copies bytes to where kernels can reach them, aligned to 256, and returns the address. They stay until the runner goes.
    ///
    /// # Errors
    /// If there is no memory.
    fn upload(&mut self, bytes: &[u8]) -> Result<u64, KernelError>;

    /// Copies bytes back, once every launch before has ended.
    ///
    /// # Errors
    /// If a launch failed.
    fn download(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), KernelError>;

    /// Runs a kernel, after those launched before.
    ///
    /// # Errors
    /// If there is no such kernel or it cannot be started so.
    fn launch(&mut self, launch: &Launch) -> Result<(), KernelError>;
}

/// Threads of a block that takes a tile of queries, as tile.cuh has it.
const TILE_THREADS: u32 = 128;

/// Which of a tile kernel's instances takes heads of this many elements, and how many it has room for.
fn tile_kernel(head_dim: u32, names: [&'static str; 3]) -> (&'static str, u32) {
    match head_dim {
        0..=64 => (names[0], 64),
        65..=128 => (names[1], 128),
        _ => (names[2], 256),
    }
}

/// The shared memory of a tile kernel, as tile.cuh lays it out.
fn tile_shared_bytes(head_dim: u32, columns: u32, element: Element) -> u32 {
    match element {
        // Queries, keys and values, weights.
        Element::F32 => 4 * (16 * head_dim + 2 * 32 * (head_dim + 4) + 16 * 32),
        // Queries, keys and values with 16 bytes between rows; then scores in f32.
        Element::F16 | Element::BF16 => 2 * (64 + 2 * 32) * (columns + 8) + 4 * 64 * 36,
    }
}

/// The heads that the attention kernels take.
fn head_dim_fits(op: &'static str, head_dim: u32) -> Result<(), KernelError> {
    if head_dim == 0 || head_dim > 256 || !head_dim.is_multiple_of(16) {
        return Err(shape(op, "head_dim", head_dim.to_string(), "a multiple of 16, at most 256"));
    }
    Ok(())
}
