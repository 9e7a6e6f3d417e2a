//! What stands for CUDA in builds without it: a stream that nobody can have.

use candle_core::Tensor;

use crate::KernelError;
use crate::device::{DeviceMemory, Gpu};
use crate::launch::{Element, Launch, RowsAt, Runner};
use crate::matrix::PackedSources;

/// A GPU's stream: there is none in this build.
#[derive(Debug, Clone)]
pub(crate) enum Stream {}

/// A point in a stream's work: there is none in this build.
#[derive(Debug)]
pub enum Event {}

/// Memory that kernels reach: there is none in this build.
#[derive(Debug)]
pub(crate) enum Buffer {}

/// A weight matrix on a GPU: there is none in this build.
#[derive(Debug)]
pub(crate) enum CudaMatrix {}

/// What our kernels were compiled for: nothing, in this build.
pub(crate) const COMPUTE_CAP: &str = "none";

/// The GPUs that this build can use: it has no CUDA.
pub(crate) fn gpus() -> Result<Vec<Gpu>, KernelError> {
    Err(KernelError::Device { op: "look for GPUs", message: "this build has no CUDA".into() })
}

impl Event {
    pub(crate) fn wait(&self) -> Result<(), KernelError> {
        match *self {}
    }

    pub(crate) fn nanos_until(&self, _: &Event) -> Result<u64, KernelError> {
        match *self {}
    }
}

impl Buffer {
    pub(crate) fn address(&self) -> u64 {
        match *self {}
    }
}

impl CudaMatrix {
    pub(crate) fn n(&self) -> usize {
        match *self {}
    }

    pub(crate) fn k(&self) -> usize {
        match *self {}
    }
}

impl Stream {
    pub(crate) fn open(_: u32) -> Result<Stream, KernelError> {
        Err(KernelError::Device { op: "open", message: "this build has no CUDA".into() })
    }

    pub(crate) fn tensors(&self) -> candle_core::Device {
        match *self {}
    }

    pub(crate) fn event(&self) -> Result<Event, KernelError> {
        match *self {}
    }

    pub(crate) fn synchronize(&self) -> Result<(), KernelError> {
        match *self {}
    }

    pub(crate) fn memory(&self) -> Result<DeviceMemory, KernelError> {
        match *self {}
    }

    pub(crate) fn launches(&self) -> u64 {
        match *self {}
    }

    pub(crate) fn runner(&self) -> Box<dyn Runner> {
        match *self {}
    }

    pub(crate) fn address(&self, _: &'static str, _: &Tensor) -> Result<u64, KernelError> {
        match *self {}
    }

    pub(crate) fn upload(&self, _: &[u32]) -> Result<Buffer, KernelError> {
        match *self {}
    }

    pub(crate) fn buffer(&self, _: usize) -> Result<Buffer, KernelError> {
        match *self {}
    }

    pub(crate) fn read(&self, _: u64, _: &mut [u8]) -> Result<(), KernelError> {
        match *self {}
    }

    pub(crate) fn launch(&self, _: &Launch) -> Result<(), KernelError> {
        match *self {}
    }

    pub(crate) fn matrix(&self, _: PackedSources<'_>, _: Element) -> Result<CudaMatrix, KernelError> {
        match *self {}
    }

    pub(crate) fn matmul(&self, _: &Tensor, _: &Tensor, _: &CudaMatrix) -> Result<(), KernelError> {
        match *self {}
    }

    pub(crate) fn table(&self, _: &CudaMatrix, _: Element) -> Result<RowsAt, KernelError> {
        match *self {}
    }
}
