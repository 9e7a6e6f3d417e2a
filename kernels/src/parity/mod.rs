//! The checks of CUDA kernels against their CPU bodies, for anything that runs launches: the tests give them an emulation of the
//! thread grid on the host, `weir-gpu probe kernels` gives them the device.

mod attention;
mod elementwise;
mod kv;
mod norm;
mod numbers;
mod pooling;
mod rope;
mod sample;
mod segment;

use crate::KernelError;
use crate::launch::Runner;

/// What one check found.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// The kernel with its element type, and the shapes it was tried on.
    pub case: String,
    /// Elements compared.
    pub compared: usize,
    /// The largest difference, relative to the largest magnitude of the row (or segment) it is in; 0 where ids are compared and agree.
    pub worst: f64,
    /// What it may be.
    pub bound: f64,
}

impl Finding {
    /// Whether the kernel did what its CPU body does.
    pub fn holds(&self) -> bool {
        // Not a number is larger than any bound.
        self.worst <= self.bound
    }
}

/// One check: a name, and what it does.
pub type Check = (&'static str, fn(&mut dyn Runner) -> Result<Vec<Finding>, KernelError>);

/// Every check there is.
pub fn checks() -> Vec<Check> {
    [
        norm::checks(),
        rope::checks(),
        elementwise::checks(),
        pooling::checks(),
        sample::checks(),
        kv::checks(),
        attention::checks(),
        segment::checks(),
    ]
    .concat()
}
