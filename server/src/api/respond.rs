//! From a stream of events to a response: one body, or server-sent events.
//!
//! The status line waits for the first event (at most [`SILENCE_MAX`]), so that a request which fails while it is queued
//! still gets a status of its own. What follows is written when the connection asks for it, which it does when its socket
//! has taken what it was given (see [`crate::http`]): text that a client does not take stays in the request's outbox, where
//! it is joined and bounded. When the client hangs up the body is dropped, and with it the stream, which cancels the
//! request.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use hyper::body::{Body as HttpBody, Frame};
use tokio::time::{Instant, Sleep, sleep_until, timeout, timeout_at};
use weir_runtime::StreamEvent;

use super::{App, choices::Choices};
use crate::{
    error::ApiError,
    identity::{Caller, Identity},
    openai::{
        answer::Answer,
        reply::Usage,
        stream::{Encoder, KEEP_ALIVE, Progress},
    },
};

/// A stream that is silent this long gets a comment.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Events are gathered into one write until they are this long; the last of them may go beyond it.
const FRAME_BYTES: usize = 4 << 10;

/// When a request has to be over, and what it is told then: after its time, or when who asks may not any more.
#[derive(Clone)]
pub(super) struct Deadline {
    at: Instant,
    allowed: Duration,
    who: Arc<(Arc<Identity>, Caller)>,
    /// How long what runs may go on once who asks may not any more.
    grace: Duration,
}

impl Deadline {
    /// As the server's bounds say, for a caller that was let in.
    pub(super) fn of(app: &App, caller: &Caller) -> Self {
        let allowed = app.limits.request_timeout;
        let who = Arc::new((app.identity.clone(), caller.clone()));
        Deadline { at: Instant::now() + allowed, allowed, who, grace: app.limits.revoked_time }
    }

    fn passed(&self) -> ApiError {
        ApiError::TimedOut(self.allowed.as_secs())
    }

    /// Waits until the caller may not any more, and has had its grace.
    async fn revoked(self) -> ApiError {
        let denied = self.who.0.revoked(&self.who.1).await;
        tokio::time::sleep(self.grace).await;
        tracing::info!(
            credential = &*self.who.1.credential,
            tenant = &*self.who.1.name,
            "cut what ran by a key that may not any more"
        );
        denied.into()
    }
}

/// Waits for a future, at most until the deadline.
pub(super) async fn within<T>(deadline: &Deadline, work: impl Future<Output = T>) -> Result<T, ApiError> {
    tokio::select! {
        // What is done is done.
        biased;
        done = timeout_at(deadline.at, work) => done.map_err(|_| deadline.passed()),
        error = deadline.clone().revoked() => Err(error),
    }
}

/// Gathers all events.
pub(super) async fn gather(
    mut choices: Choices,
    mut answer: Answer,
    deadline: Deadline,
) -> Result<(Answer, Usage), ApiError> {
    choices.be_patient();
    within(&deadline, async {
        loop {
            let event = choices.next().await.ok_or_else(broke_off)?;
            if let Some(usage) = answer.add(event)? {
                return Ok((answer, usage.into()));
            }
        }
    })
    .await?
}

/// Sends events as they come.
pub(super) async fn stream(mut choices: Choices, encoder: Encoder, deadline: Deadline) -> Result<Response, ApiError> {
    let first = match timeout(SILENCE_MAX, within(&deadline, choices.next())).await {
        Ok(event) => match event?.ok_or_else(broke_off)? {
            StreamEvent::Failed(failure) => return Err(failure.into()),
            event => Some(event),
        },
        Err(_) => None,
    };
    let mut response = Response::new(Body::new(Events::new(choices, first, encoder, deadline)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx gathers a response before it passes it on, unless told not to.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// The body of a streamed answer.
struct Events {
    choices: Choices,
    encoder: Encoder,
    deadline: Deadline,
    /// Written down, and not yet asked for.
    out: String,
    progress: Progress,
    /// When something was last said.
    spoke: Instant,
    /// Wakes the task for a comment or for the deadline. It is only set again when it fires, not with each event.
    alarm: Pin<Box<Sleep>>,
    /// Ends when who asks may not any more.
    revoked: Pin<Box<dyn Future<Output = ApiError> + Send>>,
}

impl Events {
    fn new(choices: Choices, first: Option<StreamEvent>, mut encoder: Encoder, deadline: Deadline) -> Self {
        let mut out = String::new();
        let progress = match first {
            Some(event) => encoder.encode(event, &mut out),
            None => {
                out.push_str(KEEP_ALIVE);
                Progress::Open
            }
        };
        let spoke = Instant::now();
        let alarm = Box::pin(sleep_until(deadline.at.min(spoke + SILENCE_MAX)));
        let revoked = Box::pin(deadline.clone().revoked());
        Events { choices, encoder, deadline, out, progress, spoke, alarm, revoked }
    }

    fn fail(&mut self, error: &ApiError) {
        Encoder::fail(error, &mut self.out);
        self.progress = Progress::Ended;
    }

    /// Writes down what there is, at most a frame of it.
    fn gather(&mut self, context: &mut Context<'_>) {
        if self.progress == Progress::Open && Instant::now() >= self.deadline.at {
            self.fail(&self.deadline.passed());
        }
        if self.progress == Progress::Open
            && let Poll::Ready(error) = self.revoked.as_mut().poll(context)
        {
            self.fail(&error);
        }
        while self.progress == Progress::Open && self.out.len() < FRAME_BYTES {
            match self.choices.poll_next(context) {
                Poll::Ready(Some(event)) => self.progress = self.encoder.encode(event, &mut self.out),
                Poll::Ready(None) => self.fail(&broke_off()),
                Poll::Pending => return,
            }
        }
    }

    /// Waits until the silence has been too long, and breaks it.
    fn poll_silence(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.alarm.as_mut().poll(context));
            let now = Instant::now();
            if now >= self.deadline.at {
                self.fail(&self.deadline.passed());
                return Poll::Ready(());
            }
            let silent = now >= self.spoke + SILENCE_MAX;
            if silent {
                self.out.push_str(KEEP_ALIVE);
                self.spoke = now;
            }
            self.alarm.as_mut().reset(self.deadline.at.min(self.spoke + SILENCE_MAX));
            if silent {
                return Poll::Ready(());
            }
        }
    }
}

impl HttpBody for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        this.gather(context);
        if this.out.is_empty() {
            if this.progress == Progress::Ended {
                return Poll::Ready(None);
            }
            ready!(this.poll_silence(context));
        }
        this.spoke = Instant::now();
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(std::mem::take(&mut this.out))))))
    }

    /// Lets the end of the body leave with its last event.
    fn is_end_stream(&self) -> bool {
        self.out.is_empty() && self.progress == Progress::Ended
    }
}

/// The engine promises one terminal event for each request; a stream without one is a defect, not an answer.
fn broke_off() -> ApiError {
    ApiError::Internal("The engine gave up the request without a word.".into())
}

/// A JSON body.
pub(super) fn json(value: &impl serde::Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(bytes) => ([(header::CONTENT_TYPE, "application/json")], bytes).into_response(),
        Err(_) => ApiError::Internal("The answer could not be written down.".into()).into_response(),
    }
}
