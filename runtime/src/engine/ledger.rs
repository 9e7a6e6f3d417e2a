//! The life that an engine has in the ledger: begun before it starts, ended when it has ended.

use std::time::Duration;

use tokio::task::JoinHandle;

use crate::{
    accounts::Accounts,
    ledger::{self, Chain, LedgerError, Writer},
    node::{Ledger, unix_us},
    store::Store,
};

/// How long the end waits for the writer, once the engine thread has sent it everything.
const WRITER_WAIT_MAX: Duration = Duration::from_secs(5);

/// A life that goes on.
pub(super) struct Epoch {
    store: Store,
    number: i64,
    writer: JoinHandle<Result<Chain, LedgerError>>,
}

impl Epoch {
    /// Recovers what the replica's lives before this one left behind, begins one, and starts its writer.
    pub(super) async fn begin(accounts: &Accounts) -> Result<(Ledger, Epoch), LedgerError> {
        let store = accounts.store.clone();
        let (chain, _) = ledger::begin(&store, &accounts.replica, unix_us()).await?;
        let epoch = chain.epoch;
        let (writer, task) = Writer::start(store.clone(), chain, accounts.options.clone());
        Ok((Ledger { writer, epoch }, Epoch { store, number: epoch, writer: task }))
    }

    /// Its number.
    pub(super) fn number(&self) -> i64 {
        self.number
    }

    /// Ends it, if the engine thread has closed its chain. What is left undone the next start does.
    pub(super) async fn end(self) {
        let end = match tokio::time::timeout(WRITER_WAIT_MAX, self.writer).await {
            Ok(Ok(Ok(chain))) => ledger::end(&self.store, &chain, unix_us()).await.map_err(|error| error.to_string()),
            Ok(Ok(Err(error))) => Err(error.to_string()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the writer did not end in time".to_owned()),
        };
        if let Err(error) = end {
            tracing::error!(error, "the ledger was not closed: the next start recovers");
        }
    }
}
