//! What stands for CUDA in builds without it: a stream whose kernels somebody else runs.
//!
//! Nobody has one but tests. Its tensors lie on the host; each launch goes to a [`Runner`] (the emulation of the thread grid in
//! `tests/emulation`) with copies of the memory that its parameters point into, which are copied back afterwards. Products, which
//! cuBLAS computes on a GPU, are plain loops. So models run through the very dispatch, plans, launches and kernels that a GPU runs.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};
use std::time::Instant;

use candle_core::{CpuStorage, Storage, Tensor};

use crate::device::{DeviceMemory, Gpu, RunnerSource};
use crate::launch::{Arg, Element, Launch, RowsAt, Runner};
use crate::matrix::{PackedSources, rows_of};
use crate::operands::Operands;
use crate::{Device, KernelError, PackedMatrix, Pool};

/// A stream on the host; nobody has one outside tests.
#[derive(Clone)]
pub(crate) struct Stream(Arc<Host>);

struct Host {
    runner: RunnerSource,
    /// Where memory that kernels may be pointed at begins, and how many bytes it has.
    memory: Memory,
    launches: AtomicU64,
}

type Memory = Arc<Mutex<BTreeMap<u64, u64>>>;

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stream(on the host)")
    }
}

/// A point in a stream's work.
#[derive(Debug)]
pub struct Event(Instant);

/// Memory that kernels reach.
pub(crate) struct Buffer {
    bytes: Box<[u64]>,
    memory: Memory,
}

/// A weight matrix for such a stream: its rows in the activations' type.
#[derive(Debug)]
pub(crate) struct CudaMatrix {
    rows: Buffer,
    element: Element,
    n: usize,
    k: usize,
}

/// What our kernels were compiled for: nothing, in this build.
pub(crate) const COMPUTE_CAP: &str = "none";

/// The GPUs that this build can use: it has no CUDA.
pub(crate) fn gpus() -> Result<Vec<Gpu>, KernelError> {
    Err(KernelError::Device { op: "look for GPUs", message: "this build has no CUDA".into() })
}

impl Event {
    pub(crate) fn wait(&self) -> Result<(), KernelError> {
        Ok(())
    }

    pub(crate) fn nanos_until(&self, later: &Event) -> Result<u64, KernelError> {
        Ok(later.0.saturating_duration_since(self.0).as_nanos() as u64)
    }
}

impl Buffer {
    fn new(bytes: usize, memory: &Memory) -> Buffer {
        let buffer = Buffer { bytes: vec![0; bytes.div_ceil(8).max(1)].into(), memory: memory.clone() };
        know(memory, buffer.address(), 8 * buffer.bytes.len() as u64);
        buffer
    }

    fn filled(from: &[u8], memory: &Memory) -> Buffer {
        let mut buffer = Buffer::new(from.len(), memory);
        for (word, bytes) in buffer.bytes.iter_mut().zip(from.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_ne_bytes(whole);
        }
        buffer
    }

    pub(crate) fn address(&self) -> u64 {
        self.bytes.as_ptr() as u64
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", 8 * self.bytes.len())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.address());
    }
}

/// Enters memory that kernels may be pointed at; what was there before is gone.
fn know(memory: &Memory, start: u64, bytes: u64) {
    let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
    memory.retain(|other, len| other + *len <= start || start + bytes <= *other);
    memory.insert(start, bytes);
}

impl CudaMatrix {
    pub(crate) fn n(&self) -> usize {
        self.n
    }

    pub(crate) fn k(&self) -> usize {
        self.k
    }
}

impl Stream {
    pub(crate) fn open(_: u32) -> Result<Stream, KernelError> {
        Err(KernelError::Device { op: "open", message: "this build has no CUDA".into() })
    }

    /// A stream whose launches go to runners from `runner`, a new one for each.
    pub(crate) fn on_host(runner: RunnerSource) -> Stream {
        Stream(Arc::new(Host { runner, memory: Memory::default(), launches: AtomicU64::new(0) }))
    }

    pub(crate) fn tensors(&self) -> candle_core::Device {
        candle_core::Device::Cpu
    }

    pub(crate) fn event(&self) -> Result<Event, KernelError> {
        Ok(Event(Instant::now()))
    }

    pub(crate) fn synchronize(&self) -> Result<(), KernelError> {
        Ok(())
    }

    pub(crate) fn memory(&self) -> Result<DeviceMemory, KernelError> {
        Ok(DeviceMemory { free: 1 << 40, total: 1 << 40 })
    }

    pub(crate) fn launches(&self) -> u64 {
        self.0.launches.load(Ordering::Relaxed)
    }

    pub(crate) fn runner(&self) -> Box<dyn Runner> {
        (self.0.runner)()
    }

    pub(crate) fn address(&self, op: &'static str, tensor: &Tensor) -> Result<u64, KernelError> {
        let (storage, _) = tensor.storage_and_layout();
        let (start, bytes) = match &*storage {
            Storage::Cpu(CpuStorage::F32(values)) => (values.as_ptr() as u64, size_of_val(&values[..])),
            Storage::Cpu(CpuStorage::F16(values)) => (values.as_ptr() as u64, size_of_val(&values[..])),
            Storage::Cpu(CpuStorage::BF16(values)) => (values.as_ptr() as u64, size_of_val(&values[..])),
            _ => return Err(KernelError::Device { op, message: "a tensor is of a type that no kernel takes".into() }),
        };
        know(&self.0.memory, start, bytes as u64);
        Ok(start)
    }

    pub(crate) fn upload(&self, words: &[u32]) -> Result<Buffer, KernelError> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        Ok(Buffer::filled(&bytes, &self.0.memory))
    }

    pub(crate) fn buffer(&self, bytes: usize) -> Result<Buffer, KernelError> {
        Ok(Buffer::new(bytes, &self.0.memory))
    }

    pub(crate) fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), KernelError> {
        let (start, len) = self.range(address)?;
        if address + bytes.len() as u64 > start + len {
            return Err(KernelError::Device { op: "read", message: "past the end".into() });
        }
        bytes.copy_from_slice(slice(address, bytes.len()));
        Ok(())
    }

    /// The memory that an address lies in.
    fn range(&self, address: u64) -> Result<(u64, u64), KernelError> {
        let memory = self.0.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let found = memory.range(..=address).next_back().filter(|(start, len)| address < *start + (**len).max(1));
        let unknown = || KernelError::Device { op: "launch", message: format!("nothing lies at {address:#x}") };
        found.map(|(start, len)| (*start, *len)).ok_or_else(unknown)
    }

    pub(crate) fn launch(&self, launch: &Launch) -> Result<(), KernelError> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        self.0.launches.fetch_add(1, Ordering::Relaxed);
        let mut runner = self.runner();
        // Where each memory begins, how long it is, and where the runner has its copy.
        let mut copies: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        let mut moved = launch.clone();
        for arg in &mut moved.args {
            let Arg::Ptr(address) = arg else { continue };
            if *address == 0 {
                continue;
            }
            let (start, len) = self.range(*address)?;
            if let std::collections::btree_map::Entry::Vacant(place) = copies.entry(start) {
                place.insert((len, runner.upload(slice(start, len as usize))?));
            }
            *address = copies[&start].1 + (*address - start);
        }
        runner.launch(&moved)?;
        for (start, (len, copy)) in copies {
            let mut bytes = vec![0; len as usize];
            runner.download(copy, &mut bytes)?;
            write(start, &bytes);
        }
        Ok(())
    }

    pub(crate) fn matrix(&self, parts: PackedSources<'_>, element: Element) -> Result<CudaMatrix, KernelError> {
        let device = Device::cpu(Pool::new(1));
        let packed = PackedMatrix::concat(parts, device.pool())?;
        let rows = Buffer::filled(&rows_of(&packed, element, &device), &self.0.memory);
        Ok(CudaMatrix { rows, element, n: packed.n(), k: packed.k() })
    }

    pub(crate) fn matmul(&self, out: &Tensor, x: &Tensor, w: &CudaMatrix) -> Result<(), KernelError> {
        let (out_on, x_on) = (Operands::of("matmul", out, self)?, Operands::of("matmul", x, self)?);
        let (to, from) = (out_on.rows("out", out)?, x_on.rows("x", x)?);
        let weights = w.element.read(slice(w.rows.address(), w.n * w.k * w.element.bytes()));
        for row in 0..from.rows as usize {
            let at = |rows: RowsAt, element: Element| rows.ptr + (row * rows.stride as usize * element.bytes()) as u64;
            let x = x_on.element.read(slice(at(from, x_on.element), w.k * x_on.element.bytes()));
            let products: Vec<f32> = weights
                .chunks_exact(w.k.max(1))
                .map(|w| x.iter().zip(w).fold(0.0f32, |sum, (x, w)| x.mul_add(*w, sum)))
                .collect();
            let mut bytes = vec![0; w.n * out_on.element.bytes()];
            out_on.element.write(&products, &mut bytes);
            write(at(to, out_on.element), &bytes);
        }
        Ok(())
    }

    pub(crate) fn table(&self, table: &CudaMatrix, _: Element) -> Result<RowsAt, KernelError> {
        let (rows, cols) = (table.n as u32, table.k as u32);
        Ok(RowsAt { ptr: table.rows.address(), rows, cols, stride: cols })
    }
}

/// Bytes at an address that was looked up.
fn slice<'a>(address: u64, len: usize) -> &'a [u8] {
    // SAFETY: the address is in memory of a tensor or buffer that the caller holds, and so are the bytes behind it.
    unsafe { std::slice::from_raw_parts(address as *const u8, len) }
}

/// Writes bytes to an address that was looked up.
fn write(address: u64, bytes: &[u8]) {
    // SAFETY: as in `slice`; nobody reads the memory meanwhile, for ops of one stream follow each other.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
}
