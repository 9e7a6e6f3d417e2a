//! What can go wrong between an id and a folder: one clear line each.

use std::path::{Path, PathBuf};

/// Why a model could not be had from the hub or its cache.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// An id, revision, file name or endpoint that cannot be one.
    #[error("{what} `{value}` is not valid: {reason}")]
    BadName {
        /// Which input it is.
        what: &'static str,
        /// As it was given.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Neither `HF_HOME` nor a home folder says where the cache is.
    #[error("there is no home folder to keep models in: set HF_HOME")]
    NoHome,
    /// The hub answered that there is no such repository, revision or file.
    #[error("{endpoint} has no {what}")]
    NotFound {
        /// The hub's address.
        endpoint: String,
        /// The repository, revision or file asked for.
        what: String,
    },
    /// 401 or 403. Without a token the hub answers so for what does not exist, too.
    #[error("{endpoint} refused {what} ({status}): {}", refusal_hint(*.token_sent))]
    Refused {
        /// The hub's address.
        endpoint: String,
        /// The repository, revision or file asked for.
        what: String,
        /// 401 or 403.
        status: u16,
        /// Whether a token went along.
        token_sent: bool,
    },
    /// No connection, or one that was cut more often than we try again. What has arrived is kept and continued.
    #[error("cannot reach {address}: {reason}")]
    Unreachable {
        /// The address, without its query.
        address: String,
        /// The network's own words.
        reason: String,
    },
    /// A status that means none of the above.
    #[error("{address} answered with status {status}")]
    Status {
        /// The address, without its query.
        address: String,
        /// The HTTP status.
        status: u16,
    },
    /// An answer that a hub does not give.
    #[error("{address} did not answer as a hub does: {reason}")]
    BadAnswer {
        /// The address, without its query.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A downloaded file is not what the hub announced. It has been deleted.
    #[error("{file} has the wrong sha256 and was deleted: expected {expected}, got {got}")]
    DigestMismatch {
        /// The file in the repository.
        file: String,
        /// The announced digest.
        expected: String,
        /// The digest of what arrived.
        got: String,
    },
    /// A downloaded file is longer than the hub announced. It has been deleted.
    #[error("{file} has the wrong size and was deleted: expected {expected} bytes, got {got} or more")]
    SizeMismatch {
        /// The file in the repository.
        file: String,
        /// The announced size in bytes.
        expected: u64,
        /// The bytes seen before giving up.
        got: u64,
    },
    /// `HF_HUB_OFFLINE` is set and the cache does not hold the model.
    #[error("HF_HUB_OFFLINE is set and {} has no {missing} of {repo}", .cache.display())]
    OfflineMissing {
        /// The repository's folder in the cache.
        cache: PathBuf,
        /// The repository and revision.
        repo: String,
        /// What is not there.
        missing: String,
    },
    /// The repository holds nothing that Weir can serve.
    #[error("{repo} has no usable files: {reason}")]
    NoUsableFiles {
        /// The repository and revision.
        repo: String,
        /// What is missing.
        reason: String,
    },
    /// The repository holds several GGUF files and none was named.
    #[error("{repo} has several .gguf files; name one as `ID:FILE`: {}", .files.join(", "))]
    SeveralGguf {
        /// The repository and revision.
        repo: String,
        /// The files to choose from.
        files: Vec<String>,
    },
    /// The cache on disk could not be read or written.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file or folder.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl HubError {
    /// For `map_err` on a file operation.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| HubError::Io { action, path, source }
    }

    /// Whether the hub, rather than the request, is at fault: then the cache may stand in.
    pub(super) fn is_outage(&self) -> bool {
        match self {
            HubError::Unreachable { .. } => true,
            HubError::Status { status, .. } => *status >= 500 || *status == 429,
            _ => false,
        }
    }
}

fn refusal_hint(token_sent: bool) -> &'static str {
    if token_sent {
        "the token (HF_TOKEN) has no access to it; ask for access on its page, or check its name"
    } else {
        "it is gated or private, or does not exist; set HF_TOKEN to a token with access, or check its name"
    }
}
