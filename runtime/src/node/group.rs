//! One request of a client while it runs: `n` choices, or a list of inputs to embed, and the one ending it gets.

use std::time::Instant;

use weir_scheduler::{RequestId, TenantId};

use super::{
    books::Bill,
    message::{EmbedReply, GroupId},
    record::Recorded,
    why::Tally,
};
use crate::{
    error::{FailureKind, LEDGER_UNAVAILABLE, RequestFailure},
    outlet::Outlet,
    submission::Usage,
};

/// What tells a reader that its answer is complete.
pub(crate) enum Ending {
    Text(Outlet, Usage),
    Vectors(EmbedReply, Vec<Vec<f32>>, Usage),
    /// Nobody reads.
    Nobody,
}

impl Ending {
    /// Tells it, if its bill is written; or else that it counts for nothing.
    pub(crate) fn tell(self, written: bool) {
        let end = |usage| match written {
            true => Ok(usage),
            false => {
                let message = LEDGER_UNAVAILABLE.to_owned();
                Err(RequestFailure { message, kind: FailureKind::LedgerUnavailable })
            }
        };
        match self {
            Ending::Text(outlet, usage) => outlet.close(end(usage)),
            Ending::Vectors(reply, vectors, usage) => {
                // A caller that went away has dropped its end, which is a cancel.
                let _ = reply.send(end(usage).map(|usage| (vectors, usage)));
            }
            Ending::Nobody => {}
        }
    }
}

/// Where a request's output goes.
pub(crate) enum Output {
    /// Text, to a reader.
    Text(Outlet),
    /// Vectors, all at once.
    Vectors { inputs: Vec<Vec<u32>>, vectors: Vec<Vec<f32>>, reply: Option<EmbedReply> },
    /// Nowhere: the operator's own canary.
    Canary { inputs: Vec<Vec<u32>> },
}

/// A request in progress.
pub(crate) struct Group {
    pub(crate) id: GroupId,
    pub(crate) tenant: TenantId,
    pub(crate) model: usize,
    pub(crate) priority: u8,
    pub(crate) output: Output,
    /// The scheduler's requests, one for each choice.
    pub(crate) requests: Vec<RequestId>,
    /// Those not settled yet.
    pub(crate) open: usize,
    pub(crate) usage: Usage,
    /// Its reader was told of a failure; what still settles is only counted.
    pub(crate) failed: bool,
    pub(crate) cancelled: bool,
    /// A choice of it, or the list, has left the queue once.
    pub(crate) started: bool,
    /// Choices that its tenant's quota ended.
    pub(crate) cut: Vec<u32>,
    pub(crate) submitted: Instant,
    pub(crate) first_token: Option<Instant>,
    pub(crate) tally: Tally,
    pub(super) recorded: Recorded,
    pub(crate) bill: Bill,
}

impl Group {
    /// What ends the request with its answer complete, once; it is nobody's business here any more.
    pub(crate) fn ending(&mut self) -> Ending {
        match &mut self.output {
            Output::Text(outlet) => Ending::Text(outlet.hand_over(), self.usage),
            Output::Vectors { vectors, reply, .. } => match reply.take() {
                Some(reply) => Ending::Vectors(reply, std::mem::take(vectors), self.usage),
                None => Ending::Nobody,
            },
            Output::Canary { .. } => Ending::Nobody,
        }
    }

    /// A word for how it ended.
    pub(crate) fn why_ended(&self) -> &'static str {
        match (self.failed, self.cancelled, self.cut.is_empty()) {
            (true, _, true) => "failed",
            (_, _, false) => "quota",
            (false, true, true) => "cancelled",
            (false, false, true) => "finished",
        }
    }

    /// Ends the request with a failure at once; its choices are still to be cancelled. True if that is a request's
    /// failure to be counted: its first, and not a canary's.
    pub(crate) fn fail(&mut self, kind: FailureKind, message: &str) -> bool {
        if std::mem::replace(&mut self.failed, true) {
            return false;
        }
        let failure = RequestFailure { message: message.to_owned(), kind };
        match &mut self.output {
            Output::Text(outlet) => outlet.close(Err(failure)),
            Output::Vectors { reply, .. } => {
                if let Some(reply) = reply.take() {
                    let _ = reply.send(Err(failure));
                }
            }
            Output::Canary { .. } => {}
        }
        // Nobody asked for a canary, so nobody's request has failed.
        !self.is_canary()
    }

    pub(crate) fn is_canary(&self) -> bool {
        matches!(self.output, Output::Canary { .. })
    }

    /// Whether somebody still waits for its answer.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.cancelled && !self.failed && !self.is_canary()
    }

    /// The inputs that have no vector yet, if it is a list to embed.
    pub(crate) fn unembedded(&self) -> Option<Vec<u32>> {
        let Output::Vectors { vectors, .. } = &self.output else { return None };
        Some((0u32..).zip(vectors).filter(|(_, vector)| vector.is_empty()).map(|(item, _)| item).collect())
    }

    /// The ids of one input to embed.
    pub(crate) fn input(&self, item: u32) -> Option<&Vec<u32>> {
        match &self.output {
            Output::Vectors { inputs, .. } | Output::Canary { inputs } => inputs.get(item as usize),
            Output::Text(_) => None,
        }
    }
}
