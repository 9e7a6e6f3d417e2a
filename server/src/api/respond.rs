//! From a stream of events to a response: one body, or server-sent events.
//!
//! The status line waits for the first event (at most [`SILENCE_MAX`]), so that a request which fails while it is queued
//! still gets a status of its own. After it, a task of its own moves events into a small channel of frames; when the
//! client hangs up the channel closes, the task ends, and the dropped stream cancels the request.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use futures_core::Stream;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};
use weir_runtime::StreamEvent;

use super::choices::Choices;
use crate::{
    error::ApiError,
    openai::{
        answer::Answer,
        reply::Usage,
        stream::{Encoder, KEEP_ALIVE, Progress},
    },
};

/// A stream that is silent this long gets a comment.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// A client that takes nothing for this long has gone.
const STALL_MAX: Duration = Duration::from_secs(30);
/// Frames between the writing task and the connection.
const FRAMES_MAX: usize = 8;

/// When a request has to be over, and what it is told then.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    at: Instant,
    allowed: Duration,
}

impl Deadline {
    pub(super) fn after(allowed: Duration) -> Self {
        Deadline { at: Instant::now() + allowed, allowed }
    }

    fn passed(&self) -> ApiError {
        ApiError::TimedOut(self.allowed.as_secs())
    }
}

/// Waits for a future, at most until the deadline.
pub(super) async fn within<T>(deadline: Deadline, work: impl Future<Output = T>) -> Result<T, ApiError> {
    timeout_at(deadline.at, work).await.map_err(|_| deadline.passed())
}

/// Gathers all events.
pub(super) async fn gather(
    mut choices: Choices,
    mut answer: Answer,
    deadline: Deadline,
) -> Result<(Answer, Usage), ApiError> {
    loop {
        let event = within(deadline, choices.next()).await?.ok_or_else(broke_off)?;
        if let Some(usage) = answer.add(event)? {
            return Ok((answer, usage.into()));
        }
    }
}

/// Sends events as they come.
pub(super) async fn stream(mut choices: Choices, encoder: Encoder, deadline: Deadline) -> Result<Response, ApiError> {
    let first = match timeout(SILENCE_MAX, within(deadline, choices.next())).await {
        Ok(event) => match event?.ok_or_else(broke_off)? {
            StreamEvent::Failed(failure) => return Err(failure.into()),
            event => Some(event),
        },
        Err(_) => None,
    };
    let (sender, receiver) = mpsc::channel(FRAMES_MAX);
    tokio::spawn(write(choices, first, encoder, deadline, sender));
    let mut response = Response::new(Body::from_stream(Frames::new(receiver)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx gathers a response before it passes it on, unless told not to.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

async fn write(
    mut choices: Choices,
    first: Option<StreamEvent>,
    mut encoder: Encoder,
    deadline: Deadline,
    sender: mpsc::Sender<Bytes>,
) {
    let mut out = String::new();
    let mut progress = match first {
        Some(event) => encoder.encode(event, &mut out),
        None => {
            out.push_str(KEEP_ALIVE);
            Progress::Open
        }
    };
    loop {
        let frame = Bytes::from(std::mem::take(&mut out));
        if !frame.is_empty() && !matches!(timeout(STALL_MAX, sender.send(frame)).await, Ok(Ok(()))) {
            return;
        }
        if progress == Progress::Ended {
            return;
        }
        let next = async {
            tokio::select! {
                biased;
                () = sender.closed() => None,
                event = timeout(SILENCE_MAX, within(deadline, choices.next())) => Some(event),
            }
        };
        progress = match next.await {
            None => return,
            Some(Err(_)) => {
                out.push_str(KEEP_ALIVE);
                Progress::Open
            }
            Some(Ok(Ok(Some(event)))) => encoder.encode(event, &mut out),
            Some(Ok(Ok(None))) => fail(&broke_off(), &mut out),
            Some(Ok(Err(error))) => fail(&error, &mut out),
        };
    }
}

fn fail(error: &ApiError, out: &mut String) -> Progress {
    Encoder::fail(error, out);
    Progress::Ended
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

/// A channel of frames as a body.
pub(super) struct Frames {
    receiver: mpsc::Receiver<Bytes>,
}

impl Frames {
    pub(super) fn new(receiver: mpsc::Receiver<Bytes>) -> Self {
        Frames { receiver }
    }
}

impl Stream for Frames {
    type Item = Result<Bytes, std::convert::Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.receiver.poll_recv(context).map(|frame| frame.map(Ok))
    }
}
