//! Memory that kernels reach, memory that copies run from and to, and events.

use cudarc::driver::{CudaEvent, CudaSlice, CudaStream, DevicePtr, PinnedHostSlice, result, sys};

use super::failed;
use crate::KernelError;

/// Memory of the GPU, from the stream's pool; goes back to it, in the stream's order, when dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    // Held for its drop.
    _slice: CudaSlice<u8>,
    address: u64,
}

impl Buffer {
    /// `bytes` bytes of anything.
    pub(crate) fn new(stream: &std::sync::Arc<CudaStream>, bytes: usize) -> Result<Buffer, KernelError> {
        // SAFETY: kernels write what they read; nothing on the host looks inside.
        let slice = unsafe { stream.alloc::<u8>(bytes.max(1)) }.map_err(failed("allocate"))?;
        let address = slice.device_ptr(stream).0;
        Ok(Buffer { _slice: slice, address })
    }

    pub(crate) fn address(&self) -> u64 {
        self.address
    }
}

/// A point in a stream's work, with its time.
#[derive(Debug)]
pub struct Event(CudaEvent);

impl Event {
    pub(crate) fn record(stream: &CudaStream) -> Result<Event, KernelError> {
        stream.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).map(Event).map_err(failed("event"))
    }

    pub(crate) fn wait(&self) -> Result<(), KernelError> {
        self.0.synchronize().map_err(failed("event"))
    }

    pub(crate) fn nanos_until(&self, later: &Event) -> Result<u64, KernelError> {
        let millis = self.0.elapsed_ms(&later.0).map_err(failed("event"))?;
        Ok((f64::from(millis).max(0.0) * 1e6).round() as u64)
    }
}

/// Page-locked memory of the host: copies from and to it run beside the host, at the link's full rate.
#[derive(Debug)]
pub(super) struct Pinned {
    // Held for its drop.
    _slice: PinnedHostSlice<u8>,
    ptr: *mut u8,
    len: usize,
}

// SAFETY: the memory belongs to this value alone; threads take turns by `&mut`.
unsafe impl Send for Pinned {}

impl Pinned {
    /// For copies to the GPU (`reads` false: write-combined, which is slow to read) or from it.
    pub(super) fn new(stream: &CudaStream, len: usize, reads: bool) -> Result<Pinned, KernelError> {
        let flags = if reads { 0 } else { sys::CU_MEMHOSTALLOC_WRITECOMBINED };
        // SAFETY: it is filled before it is read: by the host before a copy to the GPU, by the copy before the host reads.
        let slice = unsafe { stream.context().alloc_pinned_with_flags::<u8>(len, flags) };
        let mut slice = slice.map_err(failed("pinned memory"))?;
        let ptr = slice.as_mut_ptr().map_err(failed("pinned memory"))?;
        Ok(Pinned { _slice: slice, ptr, len })
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `len` bytes from `ptr` are this value's. Whoever calls has waited for the copies that use them.
        unsafe { std::slice::from_raw_parts_mut(self.ptr, self.len) }
    }
}

/// Pinned memory that small uploads pass through: two halves, each written again only once the copies from it have ended.
#[derive(Debug)]
pub(super) struct Staging {
    pinned: Pinned,
    /// The half that is being filled, and how much of it is.
    half: usize,
    filled: usize,
    /// The last copy from each half.
    copied: [Option<Event>; 2],
    /// What copies from the GPU land in.
    landing: Pinned,
}

/// Bytes of each half: the words of a step of 256 rows with block tables of 128k positions are 4 MiB.
const HALF: usize = 8 << 20;
/// Bytes that one read back brings at most before it is cut into several.
const LANDING: usize = 4 << 20;

impl Staging {
    pub(super) fn new(stream: &CudaStream) -> Result<Staging, KernelError> {
        let (pinned, landing) = (Pinned::new(stream, 2 * HALF, false)?, Pinned::new(stream, LANDING, true)?);
        Ok(Staging { pinned, half: 0, filled: 0, copied: [None, None], landing })
    }

    /// Copies `bytes` to `address`, in the stream's order; the host may go on at once.
    pub(super) fn upload(&mut self, stream: &CudaStream, bytes: &[u8], address: u64) -> Result<(), KernelError> {
        const OP: &str = "upload";
        stream.context().bind_to_thread().map_err(failed(OP))?;
        for (at, part) in bytes.chunks(HALF).enumerate() {
            if self.filled + part.len() > HALF {
                // The other half is free once the copies of its last round have ended.
                self.copied[self.half] = Some(Event::record(stream)?);
                self.half = 1 - self.half;
                if let Some(copied) = self.copied[self.half].take() {
                    copied.wait()?;
                }
                self.filled = 0;
            }
            let from = self.half * HALF + self.filled;
            self.filled = (self.filled + part.len()).next_multiple_of(64);
            let staged = &mut self.pinned.bytes()[from..from + part.len()];
            staged.copy_from_slice(part);
            let to = address + (at * HALF) as u64;
            // SAFETY: the staged bytes stay as they are until an event after this copy has passed; `address` has room.
            unsafe { result::memcpy_htod_async(to, staged, stream.cu_stream()) }.map_err(failed(OP))?;
        }
        Ok(())
    }

    /// Copies from `address`, after everything in the stream before.
    pub(super) fn read(&mut self, stream: &CudaStream, address: u64, bytes: &mut [u8]) -> Result<(), KernelError> {
        const OP: &str = "read";
        stream.context().bind_to_thread().map_err(failed(OP))?;
        for (at, part) in bytes.chunks_mut(LANDING).enumerate() {
            let landed = &mut self.landing.bytes()[..part.len()];
            let from = address + (at * LANDING) as u64;
            // SAFETY: `landed` is not looked at before the copy has ended; `address` has as many bytes.
            unsafe { result::memcpy_dtoh_async(landed, from, stream.cu_stream()) }.map_err(failed(OP))?;
            stream.synchronize().map_err(failed(OP))?;
            part.copy_from_slice(landed);
        }
        Ok(())
    }
}
