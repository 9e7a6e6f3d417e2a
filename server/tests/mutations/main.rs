//! Mutated requests through the real router, to an engine with a fake model: none makes it panic, none is answered with a
//! 5xx, and each refusal has OpenAI's shape.

mod bodies;
mod extremes;
mod mutator;
mod pools;
mod proofs;
mod rig;
mod rng;
mod tree;
mod usage;
