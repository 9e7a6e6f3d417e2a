//! Where an engine writes what it charges.

use crate::{ledger::WriterOptions, store::Store};

/// The ledger of an engine: with it every request that ran is settled in the store, and its terminal event goes only
/// when the commit that holds its bill is on the disk.
#[derive(Debug, Clone)]
pub struct Accounts {
    /// Where the ledger lies.
    pub store: Store,
    /// Whose life it is: the next start under this name recovers what this one leaves behind, so no two engines that
    /// run at the same time may share it.
    pub replica: String,
    /// How the writer works.
    pub options: WriterOptions,
}
