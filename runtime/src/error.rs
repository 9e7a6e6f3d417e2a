//! What can go wrong, told apart by what happened to the caller. HTTP statuses are the server's business.

use std::{path::PathBuf, time::Duration};

use crate::{inspect::ModelRefusal, ledger::LedgerError};

/// The engine could not be started, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A `[NAME=]MODEL` that means nothing.
    #[error("model `{spec}`: {message}")]
    ModelSpec {
        /// The text as given.
        spec: String,
        /// What is wrong with it.
        message: String,
    },
    /// Two models of one name.
    #[error("two models are named `{0}`; write NAME=MODEL to tell them apart")]
    DuplicateModel(String),
    /// A model that cannot be read or run.
    #[error("model `{name}` ({path}): {message}")]
    Model {
        /// Its served name.
        name: String,
        /// Where it was looked for.
        path: PathBuf,
        /// Why not.
        message: String,
    },
    /// A model that could not be downloaded.
    #[error("model `{name}`: {message}")]
    Hub {
        /// Its served name.
        name: String,
        /// Why not.
        message: String,
    },
    /// The executor did not start or did not speak the protocol.
    #[error("executor: {0}")]
    Executor(String),
    /// The configuration contradicts itself.
    #[error("{0}")]
    Config(String),
    /// The ledger cannot be gone on with: a row was changed, or the store does not answer.
    #[error("the ledger: {0}")]
    Ledger(#[from] LedgerError),
}

/// A model that was not added to those that are served. Nothing of it stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddModelError {
    /// The name cannot be one.
    #[error("`{0}` cannot be a model name: use letters, digits and -_./:@")]
    Name(String),
    /// The name is in use.
    #[error("a model named `{0}` is served already")]
    Taken(String),
    /// There are as many models as an engine serves.
    #[error("the engine serves as many models as it can")]
    Full,
    /// Another model is being added.
    #[error("another model is being loaded; try again when it is done")]
    Busy,
    /// The model is at fault.
    #[error(transparent)]
    Refused(#[from] ModelRefusal),
    /// Loading it takes more memory than is left.
    #[error("loading it takes {needed} bytes, the machine has {available} left")]
    NoMemory {
        /// Bytes that it takes.
        needed: u64,
        /// Bytes there are.
        available: u64,
    },
    /// The executor is not running, or ended meanwhile.
    #[error("the executor is not available at present")]
    ExecutorDown,
    /// The server is going down.
    #[error("the server is shutting down")]
    Draining,
    /// Neither the model's fault nor the caller's.
    #[error("the model could not be looked at: {0}")]
    Failed(String),
}

/// A submission that was not accepted. Nothing was charged.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SubmitError {
    /// Something about the request is wrong.
    #[error("{message}")]
    Invalid {
        /// For the client.
        message: String,
        /// The field.
        param: Option<&'static str>,
        /// A machine-readable word.
        code: Option<&'static str>,
    },
    /// No such model.
    #[error("The model `{model}` does not exist")]
    UnknownModel {
        /// As asked for.
        model: String,
    },
    /// The model exists but does something else.
    #[error("The model `{model}` {message}")]
    WrongKind {
        /// As asked for.
        model: String,
        /// What it does not do.
        message: &'static str,
    },
    /// Prompt and wanted tokens do not fit.
    #[error("{message}")]
    ContextTooLong {
        /// For the client.
        message: String,
        /// The field to shorten.
        param: &'static str,
    },
    /// Too much is waiting.
    #[error("{message}")]
    Busy {
        /// For the client.
        message: String,
        /// When to come back, from the measured drain rate.
        retry_after: Duration,
        /// The tenant's own limit, or the node's.
        tenant_limit: bool,
    },
    /// The tenant's quota of device time is spent.
    #[error("{message}")]
    QuotaSpent {
        /// For the client.
        message: String,
        /// When its next window begins.
        retry_after: Duration,
    },
    /// The first token is not expected within the plan's target.
    #[error("{message}")]
    TargetUnmet {
        /// For the client.
        message: String,
        /// When it would be.
        retry_after: Duration,
    },
    /// What it would cost could not be written down, so it is not begun.
    #[error("{LEDGER_UNAVAILABLE}")]
    LedgerUnavailable,
    /// The server is going down.
    #[error("The server is shutting down")]
    Draining,
    /// Not the caller's fault.
    #[error("{message}")]
    Internal {
        /// For the client; details are in the log.
        message: String,
    },
}

/// An accepted request that could not be finished.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RequestFailure {
    /// For the client.
    pub message: String,
    /// Why.
    pub kind: FailureKind,
}

/// Why an accepted request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The executor died or lost the device.
    ExecutorLost,
    /// It has brought executors down, and is not run again.
    Quarantined,
    /// The model produced something that is not a number.
    BadOutput,
    /// The reader left too much unread.
    SlowReader,
    /// Its tenant's quota was spent before it was begun, or, of a list to embed, before it was done.
    QuotaSpent {
        /// When the next window begins.
        retry_after: Duration,
    },
    /// It waited while its plan was changed, and is too large for it now.
    NeverFits,
    /// What it cost could not be written down, so its answer does not count as given.
    LedgerUnavailable,
    /// The server is going down.
    Draining,
}

/// What a client is told whose request cannot be charged for.
pub(crate) const LEDGER_UNAVAILABLE: &str =
    "The server cannot write its accounts at present, so requests are not served";

/// Why the node is not ready.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// No step has completed yet.
    #[error("no step has completed yet")]
    NoStep,
    /// The last step is too long ago.
    #[error("the last step completed {0} s ago")]
    Stale(u64),
    /// An executor is gone and not back.
    #[error("the executor is down: {0}")]
    ExecutorDown(String),
    /// Charges cannot be written.
    #[error("the ledger cannot be written")]
    LedgerUnavailable,
    /// Drain has begun.
    #[error("the server is draining")]
    Draining,
}
