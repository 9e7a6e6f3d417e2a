//! The writer's hold of an outbox.

use std::{ops::Deref, sync::Arc};

use crate::{
    error::{FailureKind, RequestFailure},
    outbox::Outbox,
};

/// An outbox that is written to. Dropped before the terminal event, as when the engine thread panics, it writes one: no reader waits for
/// a writer that is gone.
#[derive(Debug)]
pub(crate) struct Outlet {
    outbox: Arc<Outbox>,
    /// Somebody else writes the end.
    handed: bool,
}

impl Outlet {
    pub(crate) fn new(outbox: Arc<Outbox>) -> Self {
        Outlet { outbox, handed: false }
    }

    /// Leaves the end, and the duty to write one, to another hold.
    pub(crate) fn hand_over(&mut self) -> Outlet {
        Outlet { outbox: self.outbox.clone(), handed: std::mem::replace(&mut self.handed, true) }
    }
}

impl Deref for Outlet {
    type Target = Outbox;

    fn deref(&self) -> &Outbox {
        &self.outbox
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        if self.handed {
            return;
        }
        let message = "The engine gave up the request without a word".to_owned();
        self.outbox.close(Err(RequestFailure { message, kind: FailureKind::ExecutorLost }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        stream::{CancelOnDrop, StreamEvent, TokenStream},
        submission::Usage,
    };

    fn ends() -> (Outlet, TokenStream) {
        let outbox = Arc::new(Outbox::default());
        (Outlet::new(outbox.clone()), TokenStream::new(outbox, 0, CancelOnDrop::new(|| {})))
    }

    #[tokio::test]
    async fn a_reader_that_waits_for_a_writer_that_goes_is_told() {
        let (outlet, mut stream) = ends();
        let reading = tokio::spawn(async move { (stream.next().await, stream.next().await) });
        tokio::task::yield_now().await;
        drop(outlet);
        let (end, nothing) = reading.await.expect("no panic");
        assert!(matches!(end, Some(StreamEvent::Failed(_))) && nothing.is_none(), "{end:?}, {nothing:?}");
    }

    #[tokio::test]
    async fn a_writer_that_goes_after_the_ending_adds_nothing() {
        let (outlet, mut stream) = ends();
        outlet.close(Ok(Usage::default()));
        drop(outlet);
        assert_eq!(stream.next().await, Some(StreamEvent::Done(Usage::default())));
        assert_eq!(stream.next().await, None);
    }
}
