//! Requests asked for by their ids.

use tokio::sync::oneshot;
use weir_scheduler::TenantId;

use super::Engine;
use crate::{node::message::NodeMessage, why::Explanation};

impl Engine {
    /// Where the time of a tenant's request went, by the id in its headers or in its answer; of anybody's if no tenant is named.
    /// Nothing if the tenant has no such request, or had it so long ago that it is forgotten; and nothing if the engine has ended.
    pub async fn why(&self, tenant: Option<TenantId>, id: &str) -> Option<Explanation> {
        // One question at a time: an answer walks a tenant's queue on the thread that plans steps, and nobody's curiosity may keep
        // that thread from planning.
        let _turn = self.shared.questions.acquire().await.ok()?;
        let (told, answer) = oneshot::channel();
        self.shared.inbox.send(NodeMessage::Why { tenant, id: id.to_owned(), told }).ok()?;
        answer.await.ok().flatten()
    }
}
