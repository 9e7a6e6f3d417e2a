//! One GPU's stream: launches, copies, and what they cost.

use std::{
    ffi::c_void,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use candle_core::{CudaDevice, Storage, Tensor, cuda_backend::CudaStorageSlice};
use cudarc::driver::{CudaContext, CudaStream, DevicePtr, result, sys};

use super::{Buffer, CudaMatrix, Event, failed, memory::Staging, modules::Modules, product};
use crate::KernelError;
use crate::device::{DeviceMemory, Gpu};
use crate::launch::{Arg, Element, Launch, RowsAt, Runner};
use crate::matrix::PackedSources;

/// A GPU's stream, shared by whoever holds it.
#[derive(Debug, Clone)]
pub(crate) struct Stream(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    device: CudaDevice,
    stream: Arc<CudaStream>,
    modules: Modules,
    staging: Mutex<Staging>,
    launches: AtomicU64,
}

impl Stream {
    pub(crate) fn open(ordinal: u32) -> Result<Stream, KernelError> {
        const OP: &str = "open";
        let missing = || KernelError::Device { op: OP, message: format!("there is no GPU {ordinal}") };
        gpus()?.into_iter().find(|gpu| gpu.ordinal == ordinal).ok_or_else(missing)?.check()?;
        let device = CudaDevice::new_with_stream(ordinal as usize)?;
        // SAFETY: all work of this device is in one stream, so no tensor is used or freed out of order.
        unsafe { device.disable_event_tracking() };
        let stream = device.cuda_stream();
        keep_freed_memory(&stream).map_err(failed(OP))?;
        let staging = Mutex::new(Staging::new(&stream)?);
        let (modules, launches) = (Modules::default(), AtomicU64::new(0));
        // A kernel that cannot be loaded is found here, not in somebody's step.
        modules.load_all(stream.context())?;
        Ok(Stream(Arc::new(Inner { device, stream, modules, staging, launches })))
    }

    pub(crate) fn tensors(&self) -> candle_core::Device {
        candle_core::Device::Cuda(self.0.device.clone())
    }

    pub(super) fn device(&self) -> &CudaDevice {
        &self.0.device
    }

    pub(crate) fn event(&self) -> Result<Event, KernelError> {
        Event::record(&self.0.stream)
    }

    pub(crate) fn synchronize(&self) -> Result<(), KernelError> {
        self.0.stream.synchronize().map_err(failed("synchronize"))
    }

    /// What could be allocated, all memory that the stream's pool keeps given back first; waits for the stream.
    pub(crate) fn memory(&self) -> Result<DeviceMemory, KernelError> {
        self.synchronize()?;
        trim_pool(&self.0.stream).map_err(failed("memory"))?;
        let (free, total) = self.0.stream.context().mem_get_info().map_err(failed("memory"))?;
        Ok(DeviceMemory { free: free as u64, total: total as u64 })
    }

    pub(crate) fn launches(&self) -> u64 {
        self.0.launches.load(Ordering::Relaxed)
    }

    pub(crate) fn runner(&self) -> Box<dyn Runner> {
        Box::new(StreamRunner { stream: self.clone(), buffers: Vec::new() })
    }

    /// Address of the first element of a tensor's storage.
    pub(crate) fn address(&self, op: &'static str, tensor: &Tensor) -> Result<u64, KernelError> {
        let (storage, _) = tensor.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else {
            return Err(KernelError::Device { op, message: "a tensor is not on the GPU".into() });
        };
        let stream = &self.0.stream;
        Ok(match &storage.slice {
            CudaStorageSlice::F32(slice) => slice.device_ptr(stream).0,
            CudaStorageSlice::F16(slice) => slice.device_ptr(stream).0,
            CudaStorageSlice::BF16(slice) => slice.device_ptr(stream).0,
            CudaStorageSlice::U32(slice) => slice.device_ptr(stream).0,
            _ => return Err(KernelError::Device { op, message: "a tensor is of a type that no kernel takes".into() }),
        })
    }

    /// Numbers where kernels read them.
    pub(crate) fn upload(&self, words: &[u32]) -> Result<Buffer, KernelError> {
        let buffer = self.buffer(4 * words.len())?;
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.write(buffer.address(), &bytes)?;
        Ok(buffer)
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), KernelError> {
        let mut staging = self.0.staging.lock().unwrap_or_else(PoisonError::into_inner);
        staging.upload(&self.0.stream, bytes, address)
    }

    /// Memory of the GPU.
    pub(crate) fn buffer(&self, bytes: usize) -> Result<Buffer, KernelError> {
        Buffer::new(&self.0.stream, bytes)
    }

    /// Copies back what the work so far has left at `address`.
    pub(crate) fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), KernelError> {
        let mut staging = self.0.staging.lock().unwrap_or_else(PoisonError::into_inner);
        staging.read(&self.0.stream, address, bytes)
    }

    pub(crate) fn launch(&self, launch: &Launch) -> Result<(), KernelError> {
        const OP: &str = "launch";
        if launch.grid.contains(&0) {
            return Ok(());
        }
        let context = self.0.stream.context();
        let function = self.0.modules.function(context, launch)?;
        // Each parameter in eight bytes of its own, little-endian, so that four-byte ones begin where theirs begin.
        let mut values: Vec<u64> = launch
            .args
            .iter()
            .map(|arg| match *arg {
                Arg::Ptr(value) | Arg::U64(value) => value,
                Arg::U32(value) => u64::from(value),
                Arg::F32(value) => u64::from(value.to_bits()),
            })
            .collect();
        let mut params: Vec<*mut c_void> = values.iter_mut().map(|value| std::ptr::from_mut(value).cast()).collect();
        context.bind_to_thread().map_err(failed(OP))?;
        let [grid, block] = [launch.grid, launch.block].map(|[x, y, z]| (x, y, z));
        // SAFETY: the parameters are those that the launch's function in `crate::launch` lays out for this kernel; the addresses
        // among them were checked against their tensors' shapes by the op.
        unsafe {
            result::launch_kernel(
                function.cu_function(),
                grid,
                block,
                launch.shared_bytes,
                self.0.stream.cu_stream(),
                &mut params,
            )
        }
        .map_err(|error| KernelError::Device { op: OP, message: format!("{}: {error}", launch.name()) })?;
        self.0.launches.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn matrix(&self, parts: PackedSources<'_>, element: Element) -> Result<CudaMatrix, KernelError> {
        CudaMatrix::load(parts, element, self)
    }

    /// `out = x w^T`; shapes were checked.
    pub(crate) fn matmul(&self, out: &Tensor, x: &Tensor, w: &CudaMatrix) -> Result<(), KernelError> {
        self.0.launches.fetch_add(1, Ordering::Relaxed);
        product::run(self, out, x, w)
    }

    /// The rows of a matrix that was loaded as a table.
    pub(crate) fn table(&self, table: &CudaMatrix, element: Element) -> Result<RowsAt, KernelError> {
        table.rows(self, element)
    }
}

/// The GPUs that this process sees.
pub(crate) fn gpus() -> Result<Vec<Gpu>, KernelError> {
    const OP: &str = "look for GPUs";
    let count = CudaContext::device_count().map_err(failed(OP))?;
    (0..count)
        .map(|ordinal| {
            let device = result::device::get(ordinal)?;
            let attribute = |attribute| {
                // SAFETY: `device` is one that the driver has just named.
                unsafe { result::device::get_attribute(device, attribute) }
            };
            let major = attribute(sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
            let minor = attribute(sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
            // SAFETY: as above.
            let memory_bytes = unsafe { result::device::total_mem(device) }? as u64;
            let name = result::device::get_name(device)?;
            Ok(Gpu { ordinal: ordinal as u32, name, compute_capability: (major as u32, minor as u32), memory_bytes })
        })
        .collect::<Result<_, cudarc::driver::DriverError>>()
        .map_err(failed(OP))
}

/// Gives what the pool keeps and nobody uses back to the driver.
fn trim_pool(stream: &CudaStream) -> Result<(), cudarc::driver::DriverError> {
    let context = stream.context();
    context.bind_to_thread()?;
    let mut pool = std::ptr::null_mut();
    // SAFETY: the pool is written to a local of its type, and is one that the driver has just named.
    unsafe {
        sys::cuDeviceGetDefaultMemPool(&mut pool, context.cu_device()).result()?;
        sys::cuMemPoolTrimTo(pool, 0).result()
    }
}

/// Keeps freed memory in the stream's pool: otherwise each wait would give it back to the driver, and each step take it anew.
fn keep_freed_memory(stream: &CudaStream) -> Result<(), cudarc::driver::DriverError> {
    let context = stream.context();
    context.bind_to_thread()?;
    let mut pool = std::ptr::null_mut();
    let mut threshold = u64::MAX;
    let attribute = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: both calls write to or read from the locals they are given, of the types that CUDA's reference names.
    unsafe {
        sys::cuDeviceGetDefaultMemPool(&mut pool, context.cu_device()).result()?;
        sys::cuMemPoolSetAttribute(pool, attribute, std::ptr::from_mut(&mut threshold).cast()).result()
    }
}

/// The checks' view of a stream.
struct StreamRunner {
    stream: Stream,
    buffers: Vec<Buffer>,
}

impl Runner for StreamRunner {
    fn upload(&mut self, bytes: &[u8]) -> Result<u64, KernelError> {
        let buffer = self.stream.buffer(bytes.len())?;
        self.stream.write(buffer.address(), bytes)?;
        let address = buffer.address();
        self.buffers.push(buffer);
        Ok(address)
    }

    fn download(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), KernelError> {
        self.stream.read(address, bytes)
    }

    fn launch(&mut self, launch: &Launch) -> Result<(), KernelError> {
        self.stream.launch(launch)
    }
}
