//! What is told of quotas, as events.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use weir_runtime::{
    quota::{Passed, QuotaNotice},
    store::Store,
};

use super::{EventKind, Webhooks};

impl Webhooks {
    /// Sends what it hears of quotas, for as long as there is an engine.
    pub(crate) async fn tell_of_quotas(self: Arc<Self>, store: Store, mut notices: Receiver<QuotaNotice>) {
        loop {
            match notices.recv().await {
                Ok(notice) => {
                    let (kind, data) = event(&notice);
                    if let Err(error) = self.notify(&store, kind, &notice.tenant, data, notice.at_us).await {
                        tracing::warn!(%error, tenant = notice.tenant, event = kind.word(), "an event was not sent");
                    }
                }
                Err(RecvError::Lagged(missed)) => tracing::warn!(missed, "events of quotas were not sent"),
                Err(RecvError::Closed) => return,
            }
        }
    }
}

/// A window that is spent in shadow mode is told as one that is spent: `refuses` says whether anything comes of it.
pub(crate) fn event(notice: &QuotaNotice) -> (EventKind, Value) {
    let (kind, percent) = match notice.passed {
        Passed::Soft(percent) => (EventKind::SoftLimit, percent),
        Passed::Spent | Passed::Shadow => (EventKind::HardLimit, 100),
    };
    let data = json!({
        "unit": notice.unit.name(),
        "period": notice.period.name(),
        "begins_us": notice.begins_us,
        "until_us": notice.until_us,
        "percent": percent,
        "refuses": notice.passed == Passed::Spent,
    });
    (kind, data)
}

#[cfg(test)]
mod tests {
    use weir_runtime::quota::{Period, Unit};

    use super::*;

    #[test]
    fn an_event_names_its_window() {
        let told = |passed| {
            event(&QuotaNotice {
                tenant: "acme".into(),
                unit: Unit::DeviceNs,
                period: Period::Month,
                begins_us: 1,
                until_us: 2,
                passed,
                at_us: 3,
            })
        };
        let data = |percent, refuses| json!({"unit": "device_ns", "period": "month", "begins_us": 1, "until_us": 2, "percent": percent, "refuses": refuses});
        assert_eq!(told(Passed::Soft(80)), (EventKind::SoftLimit, data(80, false)));
        assert_eq!(told(Passed::Spent), (EventKind::HardLimit, data(100, true)));
        assert_eq!(told(Passed::Shadow), (EventKind::HardLimit, data(100, false)));
    }
}
