//! One event, in the JSON form of CloudEvents 1.0 (its whole content is one JSON object: "structured mode").

use serde_json::{Value, json};
use weir_runtime::{
    billing::Settled,
    quota::{QuotaNotice, date},
    store::AuditRow,
};

use crate::webhooks::quota_event;

/// An event.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Event {
    /// Together with the source the same for the same thing, however often it is sent.
    id: String,
    /// Which server tells it.
    source: String,
    /// What has happened.
    kind: &'static str,
    at_us: i64,
    tenant: Option<String>,
    data: Value,
}

impl Event {
    /// A request was billed.
    pub(super) fn settled(replica: &str, bill: &Settled) -> Self {
        let (epoch, seq) = bill.place;
        Event {
            id: format!("bill-{epoch}-{seq}"),
            source: source(replica),
            kind: "weir.usage.settled",
            at_us: bill.at_us,
            tenant: Some(bill.tenant.clone()),
            data: json!({
                "request": bill.request, "model": bill.model, "key": bill.key, "device_ns": bill.device_ns,
                "prompt_tokens": bill.prompt_tokens, "completion_tokens": bill.completion_tokens,
            }),
        }
    }

    /// A window of a quota has passed a limit: what webhooks are sent.
    pub(super) fn quota(replica: &str, notice: &QuotaNotice) -> Self {
        let (kind, data) = quota_event(notice);
        let kind = match kind {
            crate::webhooks::EventKind::SoftLimit => "weir.quota.soft_limit",
            _ => "weir.quota.hard_limit",
        };
        let (unit, period) = (notice.unit.name(), notice.period.name());
        let passed = notice.passed.word();
        Event {
            id: format!("quota-{}-{unit}-{period}-{}-{passed}", notice.tenant, notice.begins_us),
            source: source(replica),
            kind,
            at_us: notice.at_us,
            tenant: Some(notice.tenant.clone()),
            data,
        }
    }

    /// Somebody changed a tenant, a key or a plan. Every replica tells of it, as the same event of the store.
    pub(super) fn changed(row: &AuditRow) -> Option<Self> {
        let kind = match row.target_kind.as_str() {
            "tenant" => "weir.tenant.changed",
            "key" => "weir.key.changed",
            "plan" => "weir.plan.changed",
            _ => return None,
        };
        Some(Event {
            id: format!("change-{}", row.seq),
            source: "/weir/store".into(),
            kind,
            at_us: row.at_us,
            tenant: row.tenant.clone(),
            data: json!({"action": row.action, "target": row.target, "reason": row.reason}),
        })
    }

    /// Where it is published.
    pub(super) fn subject(&self) -> String {
        self.kind.to_owned()
    }

    /// As it is sent.
    pub(super) fn json(&self) -> String {
        let mut event = json!({
            "specversion": "1.0",
            "id": self.id,
            "source": self.source,
            "type": self.kind,
            "time": time(self.at_us),
            "datacontenttype": "application/json",
            "data": self.data,
        });
        if let (Some(tenant), Some(event)) = (&self.tenant, event.as_object_mut()) {
            event.insert("subject".into(), tenant.as_str().into());
        }
        event.to_string()
    }
}

fn source(replica: &str) -> String {
    format!("/weir/{replica}")
}

/// RFC 3339, in UTC.
fn time(at_us: i64) -> String {
    const DAY_US: i64 = 86_400_000_000;
    let (date, of_day) = (date(at_us.div_euclid(DAY_US)), at_us.rem_euclid(DAY_US));
    let (second, micros) = (of_day / 1_000_000, of_day % 1_000_000);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{:04}-{:02}-{:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z", date.year, date.month, date.day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_cloud_event() {
        let bill = Settled {
            place: (3, 14),
            at_us: 1_709_210_096_000_007,
            tenant: "acme".into(),
            request: "req-1".into(),
            model: "m".into(),
            key: "wk_x".into(),
            device_ns: 5,
            prompt_tokens: 2,
            completion_tokens: 3,
        };
        let event = Event::settled("one", &bill);
        assert_eq!(event.subject(), "weir.usage.settled");
        let expected = json!({
            "specversion": "1.0", "id": "bill-3-14", "source": "/weir/one", "type": "weir.usage.settled",
            "time": "2024-02-29T12:34:56.000007Z", "subject": "acme", "datacontenttype": "application/json",
            "data": {"request": "req-1", "model": "m", "key": "wk_x", "device_ns": 5, "prompt_tokens": 2,
                     "completion_tokens": 3},
        });
        assert_eq!(serde_json::from_str::<Value>(&event.json()).expect("JSON"), expected);
    }
}
