//! A connection's socket, as hyper sees it: what it writes is paced and timed, and what it would say of its own accord
//! can be said better.
//!
//! * **Pace.** hyper asks a body for frames until its own buffer is full, which would be 32 KiB for each slow reader.
//!   [`Paced`] gives it the next frame when the socket has taken the one before ([`Pace`]), so a connection holds one frame.
//! * **Stall.** hyper has no limit on how long a write may take: a client that takes nothing at all for `stall_max` is
//!   cut off, whether it reads a stream or a body. (Through TLS: that does not take what one frame became.)
//! * **Silence before the first request.** When it cannot read a head, hyper answers without a body. Until a request was
//!   understood nothing is written, and the caller says what happened in the API's own words.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};
use tokio_rustls::server::TlsStream;

/// What the parts of one connection know of each other. All of them run in the connection's task, so the lock is free.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// A request was understood.
    asked: bool,
    /// A byte of a request came.
    heard: bool,
    /// The socket has not taken all of the last frame.
    unsent: bool,
    /// Who waits for it to do so.
    body: Option<Waker>,
    /// It took nothing for too long.
    stalled: bool,
}

impl Pace {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request was understood: from now on hyper may write.
    pub(super) fn asked(&self) {
        self.lock().asked = true;
    }

    /// Whether anybody is still waiting for a first word from this side.
    pub(super) fn nothing_said(&self) -> bool {
        !self.lock().asked
    }

    /// Whether the client was given up because it reads nothing.
    pub(super) fn stalled(&self) -> bool {
        self.lock().stalled
    }

    /// Whether anything came.
    pub(super) fn heard(&self) -> bool {
        self.lock().heard
    }
}

/// What a connection is made of: TCP, or TLS over it.
pub(super) trait Socket: AsyncRead + AsyncWrite + Unpin {
    /// The connection beneath.
    fn tcp(&self) -> &TcpStream;
}

impl Socket for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Socket for TlsStream<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0
    }
}

/// The socket.
pub(super) struct Wire<'a, S> {
    stream: &'a mut S,
    pace: Arc<Pace>,
    stall_max: Duration,
    /// Runs while the socket takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<'a, S: Socket> Wire<'a, S> {
    pub(super) fn new(stream: &'a mut S, pace: Arc<Pace>, stall_max: Duration) -> Self {
        Wire { stream, pace, stall_max, stalled: None }
    }

    /// Runs the clock of a write that did not end.
    fn timed<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stall_max = self.stall_max;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(stall_max)));
        stalled.as_mut().poll(context).map(|()| {
            self.pace.lock().stalled = true;
            Err(io::ErrorKind::TimedOut.into())
        })
    }
}

impl<S: Socket> AsyncRead for Wire<'_, S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut *this.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            this.pace.lock().heard = true;
        }
        read
    }
}

impl<S: Socket> AsyncWrite for Wire<'_, S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.pace.nothing_said() {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = Pin::new(&mut *this.stream).poll_write(context, bytes);
        this.timed(context, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.pace.nothing_said() {
            return Poll::Ready(Ok(parts.iter().map(|part| part.len()).sum()));
        }
        let written = Pin::new(&mut *this.stream).poll_write_vectored(context, parts);
        this.timed(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper flushes when its own buffer is empty: the socket has taken everything, once TLS has passed on what it holds.
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.pace.nothing_said() {
            let flushed = Pin::new(&mut *this.stream).poll_flush(context);
            ready!(this.timed(context, flushed))?;
        }
        let mut state = this.pace.lock();
        state.unsent = false;
        let body = state.body.take();
        drop(state);
        if let Some(body) = body {
            body.wake();
        }
        Poll::Ready(Ok(()))
    }

    /// The socket is closed by its owner, who may have something to say.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A body that hands out a frame when the one before was sent.
pub(super) struct Paced {
    body: Body,
    pace: Arc<Pace>,
}

impl Paced {
    pub(super) fn new(body: Body, pace: Arc<Pace>) -> Self {
        Paced { body, pace }
    }
}

impl HttpBody for Paced {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        let mut state = this.pace.lock();
        if state.unsent {
            state.body = Some(context.waker().clone());
            return Poll::Pending;
        }
        drop(state);
        let polled = Pin::new(&mut this.body).poll_frame(context);
        if matches!(&polled, Poll::Ready(Some(Ok(_)))) {
            this.pace.lock().unsent = true;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
