//! What happened to a request, told to the caller.

use crate::ids::{DeviceId, Nanos, RequestId, TenantId};
use crate::why::Times;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum End {
    /// The caller judged a stop, the last item was embedded, or the longest allowed text was drawn.
    Finished,
    /// [`crate::Scheduler::cancel`] was called.
    Cancelled,
    /// A row of it was reported as [`crate::RowOutcome::Failed`].
    Failed,
    /// Its device went away.
    Lost,
    /// Its tenant's quota is spent, or no grant came in time.
    Quota,
    /// It waited, and limits that were changed meanwhile leave too few blocks for it: its tenant's ceiling, or floors of others.
    NeverFits,
}

/// One fact about one request, or one tenant's grant, in the order they came true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The request left the queue for the first time. A restart after a preemption is not announced.
    Started {
        /// Which request.
        request: RequestId,
        /// Prompt tokens found in the tenant's prefix cache, and so not computed.
        cached_tokens: u32,
    },
    /// The request lost its blocks and waits again; its known tokens will be computed anew, at the operator's cost.
    Preempted {
        /// Which request.
        request: RequestId,
    },
    /// A request that was charged here, lost its blocks and waits goes to another device: what it is charged from now on is for time of
    /// that one.
    Moved {
        /// Which request.
        request: RequestId,
        /// The device that it leaves.
        from: DeviceId,
        /// Device time attributed to the request so far, on all devices.
        charge: Nanos,
    },
    /// The request's one end. Its id is stale from here on.
    Settled {
        /// Which request.
        request: RequestId,
        /// Who pays.
        tenant: TenantId,
        /// How it ended.
        end: End,
        /// The device that it was on: what it was charged since it last moved is for time of this one.
        device: DeviceId,
        /// The bill: device time attributed to the request, without redo and overrun.
        charge: Nanos,
        /// Prompt tokens taken from the prefix cache at its first start.
        cached_tokens: u32,
        /// From admission to its first start, or to its end if it never started.
        queued: Nanos,
        /// Where its time from admission until now went; they add up to it.
        times: Times,
        /// How often it lost its blocks.
        preemptions: u32,
    },
    /// A metered tenant's grant runs low, or a row found too little. Said once until a grant comes or the present one ends.
    GrantLow {
        /// Whose.
        tenant: TenantId,
        /// What is left for rows to come.
        left: Nanos,
        /// What the row (or the request, at admission) that saw it is expected to take; zero where none was looked at.
        wanted: Nanos,
    },
    /// A part of a metered tenant's grant that nobody will spend. All that is told of an epoch and all that was spent of it add
    /// up to what was granted.
    GrantReturned {
        /// Whose.
        tenant: TenantId,
        /// Of which lease.
        epoch: u64,
        /// How much, never zero.
        amount: Nanos,
    },
}
