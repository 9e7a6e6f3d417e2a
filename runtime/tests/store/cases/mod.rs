//! What holds on both databases.

mod log;
mod operators;
mod requests;

use std::collections::{BTreeMap, BTreeSet};

use weir_runtime::store::{
    ANY, Actor, ActorKind, AuditFault, Begun, Delivery, DeliveryState, Dialect, Event, Idempotent, Limits, NewKey,
    NewTenant, Outcome, Price, Role, Status, Store, StoreError, TenantSettings, Value, WebhookSettings,
};

pub(crate) use self::{log::*, operators::*, requests::*};
use crate::fixture::Fixture;

const NOW: i64 = 1_800_000_000_000_000;

fn actor() -> Actor {
    Actor {
        credential: Some("wk_operator".into()),
        method: Some("key".into()),
        source: Some("127.0.0.1:9".into()),
        ..Actor::new(ActorKind::Operator, "olga")
    }
}

fn limits(text: &str) -> Limits {
    serde_json::from_str(text).unwrap()
}

fn tenant_of(id: &str) -> NewTenant {
    NewTenant { id: id.into(), settings: TenantSettings::named(id, "starter") }
}

fn key_of(tenant: &str, id: &str) -> NewKey {
    NewKey {
        id: id.into(),
        tenant: Some(tenant.into()),
        name: "first".into(),
        hash: [7; 32],
        role: Role::Member,
        scopes: BTreeSet::from(["chat".to_owned()]),
        models: None,
        expires_us: None,
    }
}

/// Makes tenants, each in a change of its own.
pub(crate) async fn with_tenants(store: &Store, ids: &[&str]) {
    for id in ids {
        let mut change = store.change(&actor(), NOW).await.unwrap();
        change.create_tenant(&tenant_of(id)).await.unwrap();
        change.commit().await.unwrap();
    }
}
