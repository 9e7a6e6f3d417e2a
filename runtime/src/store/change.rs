//! A transaction that an actor makes, and the audit rows that say so.

use std::sync::Arc;

use super::{
    audit::{Actor, Event, Origin},
    error::StoreError,
    tx::Tx,
    value::args,
};

/// An audited change under way. What it did lasts from [`Change::commit`] on; dropping it undoes everything, the audit rows
/// among it.
///
/// Changes happen one at a time, from beginning to end: they are rare, and so none can wait for another in a circle.
#[derive(Debug)]
pub struct Change {
    tx: Tx,
    actor: Actor,
    origin: Arc<Origin>,
    at_us: i64,
}

impl Change {
    pub(super) async fn begin(mut tx: Tx, actor: Actor, origin: Arc<Origin>, at_us: i64) -> Result<Self, StoreError> {
        if tx.is_postgres() {
            tx.row("SELECT value FROM counters WHERE name = 'audit' FOR UPDATE", args![]).await?;
        }
        Ok(Change { tx, actor, origin, at_us })
    }

    /// The transaction, to read what this change sees. What is written through it directly is not audited.
    pub fn tx(&mut self) -> &mut Tx {
        &mut self.tx
    }

    /// When it takes place.
    pub fn at_us(&self) -> i64 {
        self.at_us
    }

    /// Who makes it.
    pub fn actor(&self) -> &Actor {
        &self.actor
    }

    /// Writes an audit row: what the operations do by themselves, and how anything else is put on record (a refusal, an export, a
    /// sign-in).
    pub async fn record(&mut self, event: Event<'_>) -> Result<(), StoreError> {
        super::audit::append(&mut self.tx, &self.actor, &self.origin, self.at_us, event).await
    }

    /// Makes it last.
    pub async fn commit(self) -> Result<(), StoreError> {
        self.tx.commit().await
    }
}
