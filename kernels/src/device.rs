//! Devices: where tensors lie and ops run, and how their time is read.
//!
//! A [`Device`] is the CPU with its pool, or one GPU with one stream on which everything runs in order. Code above this crate takes
//! a `Device` and does not ask which: tensors are made on [`Device::tensors`] in the type that [`Device::element`] names, ops take
//! the device, [`Event`]s mark points in its work. On the CPU an op has ended when its function returns, so an event is a look at
//! the clock; on a GPU it is a CUDA event, and the time between two is the device's own.

use std::time::Instant;

use candle_core::DType;

use crate::cuda::{self, Stream};
use crate::launch::Element;
use crate::{KernelError, Pool, WeightType};

/// Where tensors lie and ops run. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Device {
    pool: Pool,
    stream: Option<Stream>,
    tensors: candle_core::Device,
}

/// Where an emulated device gets its runners from.
#[cfg(not(feature = "cuda"))]
pub(crate) type RunnerSource = std::sync::Arc<dyn Fn() -> Box<dyn crate::launch::Runner> + Send + Sync>;

/// Memory of a device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// What could be allocated now.
    pub free: u64,
    /// All of it.
    pub total: u64,
}

/// One GPU, as the driver tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Its number among those that the process sees.
    pub ordinal: u32,
    /// Such as `NVIDIA H200`.
    pub name: String,
    /// Major and minor.
    pub compute_capability: (u32, u32),
    /// All of its memory.
    pub memory_bytes: u64,
}

impl Gpu {
    /// The GPUs that this process sees.
    ///
    /// # Errors
    /// If this build has no CUDA, or the driver does not answer.
    pub fn all() -> Result<Vec<Gpu>, KernelError> {
        cuda::gpus()
    }

    /// Whether this build's kernels run on it: machine code does within its major version, from its minor version on.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<(), KernelError> {
        let built: u32 = Gpu::compiled_for().trim_end_matches(char::is_alphabetic).parse().unwrap_or(0);
        let (major, minor) = self.compute_capability;
        if built / 10 == major && built % 10 <= minor {
            return Ok(());
        }
        let name = &self.name;
        let message =
            format!("{name} has compute capability {major}.{minor}; this build is for {}.{}", built / 10, built % 10);
        Err(KernelError::Device { op: "look for GPUs", message })
    }

    /// The compute capability that this build's kernels were compiled for, such as `90`; `none` without CUDA.
    pub fn compiled_for() -> &'static str {
        cuda::COMPUTE_CAP
    }
}

impl Device {
    /// The CPU, with the threads of `pool`.
    pub fn cpu(pool: Pool) -> Device {
        Device { pool, stream: None, tensors: candle_core::Device::Cpu }
    }

    /// A GPU, and the host's threads for what is done beside it. The calling thread becomes the one whose context it is.
    ///
    /// # Errors
    /// If this build has no CUDA, or there is no such device.
    pub fn cuda(ordinal: u32, pool: Pool) -> Result<Device, KernelError> {
        let stream = Stream::open(ordinal)?;
        let tensors = stream.tensors();
        Ok(Device { pool, stream: Some(stream), tensors })
    }

    /// Tensors on the host, each launch run by a runner from `runner`: for tests, which give it the emulation of CUDA's thread grid. What
    /// is called on it is what is called on a GPU, but for products, which are plain loops.
    #[cfg(not(feature = "cuda"))]
    #[doc(hidden)]
    pub fn emulated(runner: RunnerSource, pool: Pool) -> Device {
        Device { pool, stream: Some(Stream::on_host(runner)), tensors: candle_core::Device::Cpu }
    }

    /// The host's threads: of the ops themselves on the CPU, of what is done beside them on a GPU.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Whether it is a GPU.
    pub fn is_cuda(&self) -> bool {
        self.stream.is_some()
    }

    /// Where candle puts tensors that this device's ops take.
    pub fn tensors(&self) -> &candle_core::Device {
        &self.tensors
    }

    /// The type of activations (and of the KV tensor, on a GPU) for weights of this type: always f32 on the CPU, whose KV tensor is
    /// f16; on a GPU that of the weights, where they are floats, or else bf16.
    pub fn element(&self, weights: WeightType) -> Element {
        match (self.is_cuda(), weights) {
            (false, _) | (true, WeightType::F32) => Element::F32,
            (true, WeightType::F16) => Element::F16,
            (true, _) => Element::BF16,
        }
    }

    /// The type of a KV tensor beside activations of this type.
    pub fn kv_type(&self, element: Element) -> DType {
        if self.is_cuda() { element.dtype() } else { DType::F16 }
    }

    /// Marks the point that the device's work has come to.
    ///
    /// # Errors
    /// If the device is lost.
    pub fn event(&self) -> Result<Event, KernelError> {
        Ok(match &self.stream {
            None => Event::Cpu(Instant::now()),
            Some(stream) => Event::Cuda(stream.event()?),
        })
    }

    /// Waits until the device has done all it was given.
    ///
    /// # Errors
    /// What went wrong in that work, or that the device is lost.
    pub fn synchronize(&self) -> Result<(), KernelError> {
        self.stream.as_ref().map_or(Ok(()), Stream::synchronize)
    }

    /// The device's memory; nothing for the CPU, whose memory is not this crate's to know.
    ///
    /// # Errors
    /// If the device is lost.
    pub fn memory(&self) -> Result<Option<DeviceMemory>, KernelError> {
        self.stream.as_ref().map(Stream::memory).transpose()
    }

    /// Grows while the device is given work, or does it: for whoever watches whether it gets anywhere.
    pub fn progress(&self) -> u64 {
        let launches = self.stream.as_ref().map_or(0, Stream::launches);
        self.pool.runs().wrapping_add(launches)
    }

    pub(crate) fn stream(&self) -> Option<&Stream> {
        self.stream.as_ref()
    }

    /// As something that the checks of [`crate::parity`] can run launches on; nothing for the CPU, which runs none.
    pub fn runner(&self) -> Option<Box<dyn crate::launch::Runner>> {
        self.stream.as_ref().map(Stream::runner)
    }
}

impl From<Pool> for Device {
    fn from(pool: Pool) -> Device {
        Device::cpu(pool)
    }
}

impl Element {
    /// candle's name for it.
    pub fn dtype(self) -> DType {
        match self {
            Element::F32 => DType::F32,
            Element::F16 => DType::F16,
            Element::BF16 => DType::BF16,
        }
    }

    /// The element of a candle type, if kernels have it.
    pub fn of(dtype: DType) -> Option<Element> {
        Element::ALL.into_iter().find(|element| element.dtype() == dtype)
    }
}

/// A point in a device's work.
#[derive(Debug)]
pub enum Event {
    /// The CPU's: when it was marked.
    Cpu(Instant),
    /// A GPU's.
    Cuda(cuda::Event),
}

impl Event {
    /// Waits until the device has come to this point.
    ///
    /// # Errors
    /// What went wrong in the work before it.
    pub fn wait(&self) -> Result<(), KernelError> {
        match self {
            Event::Cpu(_) => Ok(()),
            Event::Cuda(event) => event.wait(),
        }
    }

    /// The device's time from `self` to `later`, in nanoseconds, once it has come there. CUDA measures with a resolution of about
    /// half a microsecond.
    ///
    /// # Errors
    /// If the device has not come to `later`, or the events are of two devices.
    pub fn nanos_until(&self, later: &Event) -> Result<u64, KernelError> {
        match (self, later) {
            (Event::Cpu(from), Event::Cpu(to)) => Ok(to.saturating_duration_since(*from).as_nanos() as u64),
            (Event::Cuda(from), Event::Cuda(to)) => from.nanos_until(to),
            _ => Err(KernelError::Device { op: "event", message: "the events are of two devices".into() }),
        }
    }
}
