//! What the engine thread is told.

use tokio::sync::oneshot;
use weir_scheduler::{BlockHash, ModelId, Nanos, Tenant, TenantId};

use super::{NodeModel, desk::Told, sequence::SequenceSpec};
use crate::{
    codec::hash::BlockChain,
    config::TenantSpec,
    devices::{DeviceError, DeviceStatus},
    error::{AddModelError, RequestFailure, SubmitError},
    executor::{link::LinkEvent, wire::LoadModel},
    outbox::Outbox,
    submission::Usage,
    why::{Explanation, Names},
};
use std::{sync::Arc, time::Duration};

/// One message to the engine thread.
pub(crate) enum NodeMessage {
    /// A request, already checked and encoded.
    Submit(Box<Submit>),
    /// Nobody reads a request any more.
    Cancel(GroupId),
    /// An executor said something or is gone.
    Link { device: usize, epoch: u64, event: LinkEvent },
    /// Load one more model.
    AddModel(Box<AddModel>),
    /// What came of an order for device time.
    Lease(Box<Told>),
    /// A tenant has another plan, or is new.
    PutTenant(Box<PutTenant>),
    /// Say how the devices are.
    Devices(oneshot::Sender<Vec<DeviceStatus>>),
    /// Take a device out, or back in.
    Device(Box<DeviceOrder>),
    /// Say where a request's time went; of anybody's if no tenant is named.
    Why { tenant: Option<TenantId>, id: String, told: oneshot::Sender<Option<Explanation>> },
    /// Bring the gauges up to date, then answer.
    Observe(oneshot::Sender<()>),
    /// Admit nothing more; answer when the last request has ended.
    Drain(oneshot::Sender<()>),
    /// End every request, the trace and the thread; answer when nothing of them is left to do.
    Stop(oneshot::Sender<()>),
}

/// A model to load beside those that are served.
pub(crate) struct AddModel {
    pub(crate) model: NodeModel,
    pub(crate) load: LoadModel,
    /// Answered once: the id it got, or why it got none.
    pub(crate) done: oneshot::Sender<Result<ModelId, AddModelError>>,
}

/// A tenant's plan, from now on.
pub(crate) struct PutTenant {
    pub(crate) number: TenantId,
    pub(crate) spec: Arc<TenantSpec>,
    /// The same, as far as the scheduler acts on it.
    pub(crate) plan: Tenant,
    /// Answered when it holds.
    pub(crate) done: oneshot::Sender<()>,
}

/// An operator's word about one device.
pub(crate) struct DeviceOrder {
    pub(crate) device: String,
    pub(crate) what: DeviceChange,
    /// Answered once: how the device is now, or why nothing was done.
    pub(crate) done: oneshot::Sender<Result<DeviceStatus, DeviceError>>,
}

/// What is to become of a device.
#[derive(Debug, Clone, Copy)]
pub(crate) enum DeviceChange {
    /// It takes no newcomers, and is stopped when it is empty or that time is over; `force`: also if it is the last.
    Drain { time: Option<Duration>, force: bool },
    /// It takes part again.
    Resume,
}

/// Names a request inside the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct GroupId(pub(crate) u64);

/// A request for the engine thread.
pub(crate) struct Submit {
    pub(crate) group: GroupId,
    pub(crate) tenant: TenantId,
    pub(crate) model: ModelId,
    pub(crate) work: SubmitWork,
    pub(crate) priority: u8,
    pub(crate) names: Names,
    /// When it was put off at the door, if it was.
    pub(crate) came: Option<Nanos>,
    /// Answered once: accepted or not.
    pub(crate) accepted: oneshot::Sender<Result<(), SubmitError>>,
}

/// Where the vectors of a request go, in the order of its inputs, with what they took.
pub(crate) type EmbedReply = oneshot::Sender<Result<(Vec<Vec<f32>>, Usage), RequestFailure>>;

/// What a request wants.
pub(crate) enum SubmitWork {
    Generate {
        choices: Vec<SequenceSpec>,
        prompt: Arc<[u32]>,
        /// Names of the prompt's full blocks, and the chain that goes on from them.
        hashes: Vec<BlockHash>,
        chain: BlockChain,
        outbox: Arc<Outbox>,
    },
    Embed {
        inputs: Vec<Vec<u32>>,
        reply: EmbedReply,
    },
}
