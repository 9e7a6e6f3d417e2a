//! Bodies in, errors out, as data; and streams byte for byte.

mod bodies;
mod streams;
