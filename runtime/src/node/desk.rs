//! Between the engine thread and its grants: what the thread orders is done here, and what comes of it is told to its inbox. The thread
//! waits for none of it.

use std::sync::Arc;

use tokio::{sync::Semaphore, task::JoinSet};
use weir_scheduler::{Nanos, TenantId};

use super::message::NodeMessage;
use crate::quota::{Ask, Limits, ReportOf, Reported, Source, Taken, Unit, Want};

/// Orders under way at once: as many as the store has connections for, and some that wait for one.
const ORDERS_MAX: usize = 8;

/// What the engine thread wants done. There is one ask for each tenant, and one list of reports, at a time.
#[derive(Debug, Clone)]
pub(crate) enum Order {
    /// Take a grant.
    Ask { tenant: TenantId, name: Arc<str>, limits: Limits, want: Want, sent: Nanos, at_us: i64 },
    /// Say what of grants is spent.
    Report { reports: Vec<ReportOf>, sent: Nanos },
    /// The same, for the last time, so that it is worth some patience.
    ReportLast { reports: Vec<ReportOf> },
}

/// What came of an order. Nothing, where the store did not answer.
#[derive(Debug)]
pub(crate) enum Told {
    Taken { tenant: TenantId, ask: Ask, sent: Nanos, taken: Option<Taken> },
    Reported { sent: Nanos, reports: Vec<ReportOf>, reported: Option<Vec<Reported>> },
}

/// Does what is ordered until nobody can order any more.
pub(crate) async fn serve(orders: flume::Receiver<Order>, source: Source, inbox: flume::Sender<NodeMessage>) {
    let (places, mut under_way) = (Arc::new(Semaphore::new(ORDERS_MAX)), JoinSet::new());
    while let Ok(order) = orders.recv_async().await {
        let (source, inbox) = (source.clone(), inbox.clone());
        let Ok(place) = places.clone().acquire_owned().await else { break };
        under_way.spawn(async move {
            if let Some(told) = done(&source, order).await {
                // The engine thread has ended: then nobody is left to use it, and it ends by itself.
                let _ = inbox.send(NodeMessage::Lease(Box::new(told)));
            }
            drop(place);
        });
        while under_way.try_join_next().is_some() {}
    }
    while under_way.join_next().await.is_some() {}
}

/// Does one thing.
pub(super) async fn done(source: &Source, order: Order) -> Option<Told> {
    match order {
        Order::Ask { tenant, name, limits, want, sent, at_us } => {
            let ask = source.ask(&name, Unit::DeviceNs, want, at_us);
            let taken = source.take(&ask, &limits).await;
            Some(Told::Taken { tenant, ask, sent, taken })
        }
        Order::Report { reports, sent } => {
            let reported = source.report(&reports).await;
            Some(Told::Reported { sent, reports, reported })
        }
        Order::ReportLast { reports } => {
            source.report_last(&reports).await;
            None
        }
    }
}
