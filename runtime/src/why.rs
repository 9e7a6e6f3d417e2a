//! Why a request waited, as told to whoever asks for it by the id that its client knows.

use std::{sync::Arc, time::Duration};

use weir_scheduler::{Cause, TenantId, Times};

/// How a request stands, or how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestState {
    /// A part of it waits for its first row, or for its next after it lost its blocks or its device.
    Waiting,
    /// All of it that has not ended gets rows.
    Running,
    /// Answered in full.
    Finished,
    /// Its client went away.
    Cancelled,
    /// Not answered in full.
    Failed,
}

impl RequestState {
    /// Its name, in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            RequestState::Waiting => "waiting",
            RequestState::Running => "running",
            RequestState::Finished => "finished",
            RequestState::Cancelled => "cancelled",
            RequestState::Failed => "failed",
        }
    }
}

/// A waiting request's place in line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// In its tenant's line; the first is 1.
    pub position: u32,
    /// Tenants whose turn comes first. For operators only: it tells of others.
    pub tenants_ahead: u32,
    /// Time until it is expected to start.
    pub expected_start: Duration,
}

/// Where a request's time went.
///
/// A request of several choices or prompts is as fast as the slowest of them: state, place and times are that one's. What was
/// charged and how often blocks were lost is added up over all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// Who pays.
    pub tenant: TenantId,
    /// The model's served name.
    pub model: String,
    /// When it came, in Unix seconds.
    pub created: u64,
    /// How it stands.
    pub state: RequestState,
    /// What its time goes into at present; nothing once it has ended.
    pub cause: Option<Cause>,
    /// While it waits in a queue.
    pub place: Option<Place>,
    /// Its time since the engine thread took it, until it ended or until now. Time without a device counts as placement.
    pub times: Times,
    /// Choices, and prompts or lists of inputs, that it is made of.
    pub parts: u32,
    /// Device time charged so far, in nanoseconds.
    pub device_nanos: u64,
    /// How often it lost its blocks.
    pub preemptions: u32,
    /// Tokens found in the tenant's prefix cache.
    pub cached_tokens: u32,
}

/// The ids under which a client can ask for a request, and who it was.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    /// The one in the headers. Its client may have chosen it, and may choose it again: the latest counts.
    pub(crate) request: String,
    /// The one in the body of the answer, which is the server's and unique.
    pub(crate) answer: Option<String>,
    /// The visible part of the credential; empty where nobody said.
    pub(crate) key: Arc<str>,
    /// What its bill is to be called, if that is its caller's to say.
    pub(crate) bill: Option<Arc<str>>,
}
