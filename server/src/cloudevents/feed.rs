//! What the store has that was not sent yet.

use weir_runtime::{
    billing::{self, Place},
    store::{PAGE_LEN_MAX, Store, StoreError},
};

use super::event::Event;

/// Where the store keeps how far the log of changes was sent.
const CHANGES: &str = "events:changes";

/// How far this replica has come.
#[derive(Debug)]
pub(super) struct Feed {
    store: Store,
    replica: String,
    bills: Place,
    changes: i64,
    /// The same as it stands in the store.
    kept: (Place, i64),
}

/// What comes next.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) events: Vec<Event>,
    /// There is more at once.
    pub(super) more: bool,
    bills: Place,
    changes: i64,
}

impl Feed {
    /// Goes on where the last one was; the first one ever begins with this life of the replica, and with the log's end.
    pub(super) async fn open(store: Store, replica: &str, epoch: i64) -> Result<Self, StoreError> {
        let bills = store.meta(&place_key(replica)).await?.and_then(|text| {
            let (epoch, seq) = text.split_once(':')?;
            Some((epoch.parse().ok()?, seq.parse().ok()?))
        });
        let changes = store.meta(CHANGES).await?.and_then(|text| text.parse().ok());
        let (bills, changes) = match (bills, changes) {
            (Some(bills), Some(changes)) => (bills, changes),
            (bills, changes) => {
                let (bills, head) = (bills.unwrap_or((epoch, 0)), store.changes_head().await?);
                (bills, changes.unwrap_or(head))
            }
        };
        let mut feed = Feed { store, replica: replica.to_owned(), bills, changes, kept: ((i64::MIN, 0), i64::MIN) };
        // So that a restart before the first event begins here, too.
        feed.keep().await?;
        Ok(feed)
    }

    /// Reads on.
    pub(super) async fn next(&self) -> Result<Batch, StoreError> {
        let page = billing::settled(&self.store, &self.replica, self.bills).await?;
        let changes = self.store.audit(None, self.changes, PAGE_LEN_MAX).await?;
        let mut events: Vec<Event> = page.bills.iter().map(|bill| Event::settled(&self.replica, bill)).collect();
        events.extend(changes.iter().filter_map(Event::changed));
        Ok(Batch {
            events,
            more: page.more || changes.len() == PAGE_LEN_MAX as usize,
            bills: page.next.unwrap_or(self.bills),
            changes: changes.last().map_or(self.changes, |row| row.seq),
        })
    }

    /// All of a batch has arrived.
    pub(super) async fn sent(&mut self, batch: &Batch) -> Result<(), StoreError> {
        (self.bills, self.changes) = (batch.bills, batch.changes);
        // Rows that are no bills are passed over again after a restart, which costs less than a commit a second.
        if batch.events.is_empty() { Ok(()) } else { self.keep().await }
    }

    async fn keep(&mut self) -> Result<(), StoreError> {
        if self.kept == (self.bills, self.changes) {
            return Ok(());
        }
        let mut tx = self.store.write().await?;
        tx.set_meta(&place_key(&self.replica), &format!("{}:{}", self.bills.0, self.bills.1)).await?;
        // Several replicas send the same changes: whoever has come furthest counts.
        let known = tx.meta(CHANGES).await?.and_then(|text| text.parse().ok()).unwrap_or(i64::MIN);
        tx.set_meta(CHANGES, &self.changes.max(known).to_string()).await?;
        tx.commit().await?;
        self.kept = (self.bills, self.changes);
        Ok(())
    }
}

fn place_key(replica: &str) -> String {
    format!("events:bills:{replica}")
}
