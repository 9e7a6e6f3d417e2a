//! Faults below the store: a disk that loses power, a server that is stopped at once, a byte that is another.
//!
//! *The disk.* A real store, an engine and a writer work in a process whose writes, syncs, truncations and removals are written down
//! in order ([`record`], `shim.c`), with what clients were told among them. From that log come the disks that a loss of power may leave
//! behind ([`disk`]): everything that was synced, and of the rest some, torn and out of order. Each is opened by the store,
//! recovered and held against what was told until then ([`check`]).
//!
//! *The server.* PostgreSQL is stopped in its immediate mode under the same load, and what was told is held against its rows
//! ([`stops`]).
//!
//! *Bits.* One of the ledger's pages ([`flips`]) or of SQLite's log ([`wal`]) is another, and the start names it and refuses.

mod chance;
mod check;
mod disk;
mod engine;
mod flips;
mod log;
mod proofs;
mod record;
mod stops;
mod told;
mod wal;
mod writer;
