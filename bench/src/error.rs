//! What can go wrong with a whole run ([`BenchError`]) and with one request of it ([`RequestError`]).

use std::path::PathBuf;

/// Why a run could not be made, or not finished.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A setting that no run can be made with.
    #[error("{field}: {reason}")]
    Config {
        /// The field of `LoadConfig`.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing answers at the address.
    #[error("no server answers at {url}: {source}")]
    Unreachable {
        /// The address as configured.
        url: String,
        /// What the attempt ended with.
        source: RequestError,
    },
    /// The server answers, but refuses the key or the request for its models.
    #[error("the server at {url} refused to list its models to `{tenant}`: {source}")]
    Refused {
        /// The address as configured.
        url: String,
        /// Whose key was refused.
        tenant: String,
        /// The refusal.
        source: RequestError,
    },
    /// The server does not serve the model.
    #[error("the server has no model `{model}`; it has: {served}")]
    UnknownModel {
        /// The model asked for.
        model: String,
        /// The models it lists, separated by commas.
        served: String,
    },
    /// No request of a warm-up succeeded, so a measurement would say nothing.
    #[error("every warm-up request failed at {level}: {source}")]
    WarmUp {
        /// The level that was being warmed up.
        level: String,
        /// The first failure.
        source: RequestError,
    },
    /// A trace that no load can be made of.
    #[error("{}{}: {reason}", path.display(), line.map(|line| format!(", line {line}")).unwrap_or_default())]
    Trace {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1; None if it is about the file.
        line: Option<usize>,
        /// What is wrong with it.
        reason: String,
    },
    /// The report could not be written to its sink.
    #[error("cannot write the report: {0}")]
    Output(#[from] std::io::Error),
    /// A file of results could not be written.
    #[error("cannot write {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A task of the load generator itself panicked: a bug here.
    #[error("a connection's task ended abnormally: {0}")]
    Task(String),
}

/// How one request failed. Equal texts are counted together in the report.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// No connection.
    #[error("cannot connect to {address}: {reason}")]
    Connect {
        /// Host and port.
        address: String,
        /// What the system said.
        reason: String,
    },
    /// The connection broke in the middle.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// The server ended the connection before its answer was complete.
    #[error("the server closed the connection in the middle of {0}")]
    Truncated(&'static str),
    /// An open loop had as many requests open as it may.
    #[error("not sent: {0} requests were open, the most that may be")]
    Unsent(u32),
    /// No byte came for too long.
    #[error("no byte came for {0} s")]
    Stalled(u64),
    /// The bytes are not HTTP/1.1 as this client knows it.
    #[error("not an HTTP answer this client can read: {0}")]
    Http(&'static str),
    /// A status other than 200.
    #[error("status {status}{}: {message}", code.as_deref().map(|code| format!(" ({code})")).unwrap_or_default())]
    Status {
        /// The HTTP status.
        status: u16,
        /// The error's code, if it carries one.
        code: Option<String>,
        /// The error's message, or the start of the body.
        message: String,
    },
    /// An error event inside a stream that began with 200.
    #[error("the stream failed: {0}")]
    Stream(String),
    /// The stream is not a well-formed completion.
    #[error("the answer is not as it should be: {0}")]
    Answer(&'static str),
    /// The body is not the JSON it should be.
    #[error("the answer is not the JSON it should be: {0}")]
    Json(String),
}
