//! Writing down how a keyed request ended.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame};
use tokio::runtime::Handle;
use weir_runtime::store::Outcome;

use super::{Keyed, flights::Lead, usage_text};
use crate::api::limits::Meter;

/// Largest body that is kept. A longer one is not, and a repeat gets status and usage.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Times that writing is tried, and the pause between.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(200);

/// What there is to write when the answer is over.
#[derive(Debug)]
pub(super) struct Ending {
    keyed: Keyed,
    meter: Meter,
    status: u16,
}

impl Ending {
    pub(super) fn new(keyed: Keyed, meter: Meter, status: u16) -> Self {
        Ending { keyed, meter, status }
    }

    /// Whether the body is wanted.
    fn retains(&self) -> bool {
        self.keyed.retains
    }

    /// Writes it. A request that was refused before it began gives its key back. If the store does not take it, the key stays
    /// that of a request that came to no known end, and is not used again all the same.
    pub(super) async fn write(self, body: Option<&[u8]>) {
        let Keyed { store, tenant, key, bill, retains } = &self.keyed;
        let outcome = Outcome {
            status: self.status.into(),
            usage: self.meter.usage().map(|usage| usage_text(&usage)),
            body: body.filter(|body| *retains && body.len() <= BODY_BYTES_MAX).map(<[u8]>::to_vec),
        };
        for tries in 1..=TRIES {
            let written = match self.meter.has_begun() {
                true => store.idempotency_end(tenant, key, bill, &outcome).await.map(|_| ()),
                false => store.idempotency_cancel(tenant, key, bill).await,
            };
            match written {
                Ok(()) => return,
                Err(error) if tries == TRIES => tracing::warn!(%error, "how a keyed request ended is not written down"),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }
}

/// The body of a stream, whose end is written down when it has ended or its client has gone.
pub(super) struct Recorded {
    body: Body,
    /// What was sent, as far as it is kept.
    kept: Vec<u8>,
    /// Until the end.
    open: Option<(Ending, Lead)>,
}

impl Recorded {
    pub(super) fn new(body: Body, ending: Ending, lead: Lead) -> Self {
        Recorded { body, kept: Vec::new(), open: Some((ending, lead)) }
    }
}

impl HttpBody for Recorded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        if let (Some(Ok(frame)), Some((ending, _))) = (&frame, &this.open)
            && let Some(data) = frame.data_ref()
            && ending.retains()
            && this.kept.len() <= BODY_BYTES_MAX
        {
            // One byte too many says that there was more.
            let room = (BODY_BYTES_MAX + 1).saturating_sub(this.kept.len());
            this.kept.extend_from_slice(&data[..data.len().min(room)]);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        let (Some((ending, lead)), Ok(runtime)) = (self.open.take(), Handle::try_current()) else { return };
        let (kept, body) = (std::mem::take(&mut self.kept), std::mem::take(&mut self.body));
        // Ends the request first, where it has not ended: what it took is known to the meter then.
        drop(body);
        runtime.spawn(async move {
            ending.write(Some(&kept)).await;
            drop(lead);
        });
    }
}
