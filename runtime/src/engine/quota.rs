//! Quotas on the callers' side: requests are counted here, device time is ordered for the engine thread, and what is
//! told of windows is passed on.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::broadcast, task::JoinHandle};
use weir_scheduler::TenantId;

use super::{Engine, STOP_WAIT_MAX};
use crate::{
    accounts::Accounts,
    config::TenantSpec,
    error::SubmitError,
    node::{
        Ledger,
        desk::{Order, serve},
        message::NodeMessage,
    },
    quota::{PassedCount, QuotaNotice, QuotaWarning, Refusal, RequestCounts, Source, Ticket, Unit, now_us},
};

/// Where grants come from: the store's, of the epoch that the ledger has begun, or this process's memory.
pub(super) fn source(accounts: Option<&Accounts>, ledger: Option<&Ledger>) -> Source {
    match (accounts, ledger) {
        (Some(Accounts { store, replica, .. }), Some(ledger)) => Source::store(store.clone(), replica, ledger.epoch),
        _ => Source::memory(),
    }
}

/// What a client is told; how long it has to wait stands beside it.
const REQUESTS_SPENT: &str =
    "You have made as many requests as your quota allows. It begins anew at the time that Retry-After says.";
/// The same when nobody knows.
const REQUESTS_UNKNOWN: &str = "The server cannot say at present whether your quota allows this request";
/// How long that is to be waited for.
const RETRY_UNKNOWN: Duration = Duration::from_secs(10);

pub(super) struct Quotas {
    source: Source,
    counts: RequestCounts,
    /// Ends when the engine thread has, and all that it ordered is done.
    desk: Mutex<Option<JoinHandle<()>>>,
}

impl Quotas {
    pub(super) fn start(
        source: Source,
        tenants: &[TenantSpec],
        orders: flume::Receiver<Order>,
        inbox: flume::Sender<NodeMessage>,
    ) -> Quotas {
        let counts = RequestCounts::new(source.clone());
        let desk = tokio::spawn(serve(orders, source.clone(), inbox));
        let quotas = Quotas { source, counts, desk: Mutex::new(Some(desk)) };
        (1..).zip(tenants).for_each(|(number, spec)| quotas.put(TenantId(number), spec));
        quotas
    }

    pub(super) fn put(&self, tenant: TenantId, spec: &TenantSpec) {
        self.counts.put(tenant.0, &spec.name, spec.limits(Unit::Requests).unwrap_or_default());
    }

    /// Takes one request of a tenant's.
    pub(super) async fn take(&self, tenant: TenantId) -> Result<Option<Ticket>, SubmitError> {
        self.counts.take(tenant.0).await.map_err(|refusal| match refusal {
            Refusal::Spent { until_us } => {
                let left = u64::try_from(until_us.saturating_sub(now_us())).unwrap_or(0);
                let retry_after = Duration::from_micros(left);
                SubmitError::QuotaSpent { message: REQUESTS_SPENT.into(), retry_after }
            }
            Refusal::Unknown => {
                let message = REQUESTS_UNKNOWN.into();
                SubmitError::Busy { message, retry_after: RETRY_UNKNOWN, tenant_limit: false }
            }
        })
    }

    /// Gives back whatever is held, once the engine thread has ended. The ledger's epoch is still open then.
    pub(super) async fn end(&self) {
        let desk = self.desk.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(desk) = desk
            && tokio::time::timeout(STOP_WAIT_MAX, desk).await.is_err()
        {
            tracing::warn!("the store does not answer: grants of device time end by themselves");
        }
        self.counts.end().await;
    }
}

impl Engine {
    /// What is told from now on of windows that are nearly or wholly used.
    pub fn quota_notices(&self) -> broadcast::Receiver<QuotaNotice> {
        self.shared.quotas.source.notices().listen()
    }

    /// How many windows have passed a soft limit, or were spent, since the engine began.
    pub fn quota_windows_passed(&self) -> Vec<PassedCount> {
        self.shared.quotas.source.notices().passed()
    }

    /// The windows of a tenant that are past their soft limits.
    pub fn quota_warnings(&self, tenant: TenantId) -> Vec<QuotaWarning> {
        match self.tenant_name(tenant) {
            Some(name) => self.shared.quotas.source.notices().warnings(&name, now_us()),
            None => Vec::new(),
        }
    }
}
