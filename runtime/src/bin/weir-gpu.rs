//! The executor on CUDA.
fn main() {}
