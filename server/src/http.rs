//! Connections: accepting them, bounding them, and ending them.
//!
//! hyper is driven directly, because `axum::serve` sets no timer and then no header timeout fires. Only HTTP/1.1 is
//! spoken; a proxy in front may speak what it likes.
//!
//! What a connection may cost, besides what the request itself holds: 8 KiB to read into, 8 KiB for heads, one frame of
//! the answer that the socket has not taken, and the socket's own buffers in the kernel ([`SEND_BUFFER_BYTES`]). TLS adds
//! what that frame became, and some 20 KiB of its own.

mod wire;

use std::{
    io,
    net::IpAddr,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    http::{HeaderValue, StatusCode, header},
};
use hyper::{
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use socket2::SockRef;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use self::wire::{Pace, Paced, Socket, Wire};
use crate::{
    api::Seat,
    error::ApiError,
    identity::{Peers, Tls},
};

/// A request's head must be there after this time; an idle connection is closed after it, too.
const HEADER_TIME_MAX: Duration = Duration::from_secs(10);
/// A client that has not shaken hands by then is not going to.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);
/// The read buffer of a connection, and so the largest head of a request, give or take one read (hyper's default is about
/// 400 kB).
const HEADER_BYTES_MAX: usize = 32 << 10;
/// Header lines of a request.
const HEADER_LINES_MAX: usize = 100;
/// A client that takes nothing for this long, though there is something for it, has gone.
const STALL_MAX: Duration = Duration::from_secs(30);
/// What the kernel keeps for a client that does not read; it doubles this for its own bookkeeping. Left to itself it would
/// keep up to 4 MiB for each.
const SEND_BUFFER_BYTES: usize = 64 << 10;
/// Connections that the kernel completes before they are accepted; beyond it clients have to knock again, which they do
/// after a second. tokio's own is 1,024; the system may allow less (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;
/// How long accepting pauses when the system has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Closing a socket that has unread bytes resets the connection, and a reset may take the answer away from a client that
/// was still sending. So what is still sent is thrown away for a while.
const LINGER_TIME_MAX: Duration = Duration::from_secs(2);
/// The same in bytes: twice the largest body by default.
const LINGER_BYTES_MAX: usize = 8 << 20;
/// Connections over the cap that are told so with patience; more are told in haste.
const TURNED_AWAY_MAX: usize = 64;
/// What a connection over the cap is told.
static FULL: LazyLock<String> = LazyLock::new(|| {
    let wait = Duration::from_secs(1);
    written(&ApiError::Overloaded { message: "Too many connections are open.".into(), retry_after: wait })
});

/// How far the server is on its way down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Not at all.
    Serving,
    /// Connections are still accepted, so that clients and probes hear why they are refused; each is closed after its
    /// answer.
    Draining,
    /// Nothing is accepted, and connections are closed as soon as they have nothing to do.
    Closing,
}

/// The other end of the connection that a request came over; in its extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub IpAddr);

/// The open connections of one listener.
#[derive(Debug)]
pub struct Connections {
    max: usize,
    open: AtomicUsize,
}

/// One of them, until it is dropped.
struct Open(Arc<Connections>);

impl Connections {
    /// Of a listener that may have `max` open at once.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Connections { max, open: AtomicUsize::new(0) })
    }

    /// How many there may be.
    pub fn max(&self) -> usize {
        self.max
    }

    /// How many there are.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    fn enter(self: &Arc<Self>) -> Option<Open> {
        let open = Open(self.clone());
        (self.open.fetch_add(1, Ordering::Relaxed) < self.max).then_some(open)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves a router to some peers, over TLS where there is a certificate, until the last phase; then lets open connections finish what they are at, and returns when the last
/// is closed. Never ends because of an error of one connection, or of accepting one.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    tls: Option<Arc<Tls>>,
    peers: Peers,
    connections: Arc<Connections>,
    mut phase: watch::Receiver<Phase>,
) {
    // Accepted sockets inherit it.
    if let Err(error) = SockRef::from(&listener).set_send_buffer_size(SEND_BUFFER_BYTES) {
        tracing::warn!(%error, "slow readers may take more of the kernel's memory: cannot bound a socket's buffer");
    }
    // Listening again only changes the length of the queue.
    if let Err(error) = SockRef::from(&listener).listen(BACKLOG) {
        tracing::warn!(%error, "cannot lengthen the queue of connections to be accepted");
    }
    let turned_away = Arc::new(Semaphore::new(TURNED_AWAY_MAX));
    let mut tasks = JoinSet::new();
    let (mut failing, mut told) = (false, false);
    loop {
        let accepted = tokio::select! {
            biased;
            () = reached(&mut phase, Phase::Closing) => break,
            Some(_) = tasks.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok((stream, peer)) => (stream, Peer(peer.ip())),
            Err(error) if of_one_connection(&error) => continue,
            Err(error) => {
                // Once for each time that it goes on for a while, not ten times a second.
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "cannot accept connections; trying again");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if std::mem::take(&mut failing) {
            tracing::info!("accepting connections again");
        }
        if !peers.include(peer.0) {
            // Closed before it sends a key, or as soon after as can be; nothing of it is read. Said once: it may be many.
            if !std::mem::replace(&mut told, true) {
                tracing::warn!(address = %peer.0, "closed a connection that is from no trusted proxy, as others will be");
            }
            continue;
        }
        match connections.enter() {
            Some(open) => {
                let (router, phase) = (router.clone(), phase.clone());
                match &tls {
                    None => tasks.spawn(async move {
                        connection(stream, peer, router, phase, STALL_MAX).await;
                        drop(open);
                    }),
                    Some(tls) => {
                        let acceptor = tls.acceptor();
                        tasks.spawn(async move {
                            if let Some(stream) = shake_hands(acceptor, stream, phase.clone()).await {
                                connection(stream, peer, router, phase, STALL_MAX).await;
                            }
                            drop(open);
                        })
                    }
                };
            }
            // A handshake would cost more than the request that was not taken.
            None if tls.is_some() => {}
            None => {
                // The socket's buffer is empty, so this takes it at once.
                let _ = stream.try_write(FULL.as_bytes());
                if let Ok(place) = turned_away.clone().try_acquire_owned() {
                    tasks.spawn(async move {
                        linger(stream).await;
                        drop(place);
                    });
                }
            }
        }
    }
    drop(listener);
    while tasks.join_next().await.is_some() {}
}

/// TLS over a connection, in time or not at all.
async fn shake_hands(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    mut phase: watch::Receiver<Phase>,
) -> Option<TlsStream<TcpStream>> {
    let handshake = timeout(HANDSHAKE_TIME_MAX, acceptor.accept(stream));
    tokio::select! {
        shaken = handshake => match shaken {
            Ok(Ok(stream)) => Some(stream),
            Ok(Err(error)) => {
                tracing::debug!(%error, "no TLS");
                None
            }
            Err(_) => None,
        },
        () = reached(&mut phase, Phase::Closing) => None,
    }
}

async fn connection(
    mut stream: impl Socket,
    peer: Peer,
    router: Router,
    mut phase: watch::Receiver<Phase>,
    stall_max: Duration,
) {
    // A stream's events are small and must not wait for each other.
    let _ = stream.tcp().set_nodelay(true);
    let pace = Arc::new(Pace::default());
    let seat = Seat::default();
    let ended = {
        let (router, now) = (TowerToHyperService::new(router), phase.clone());
        let service = service_fn(|mut request: hyper::Request<hyper::body::Incoming>| {
            pace.asked();
            request.extensions_mut().insert(peer);
            request.extensions_mut().insert(seat.clone());
            let answer = router.call(request);
            let (pace, now) = (pace.clone(), now.clone());
            async move {
                let mut response = answer.await?;
                if *now.borrow() >= Phase::Draining {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, std::convert::Infallible>(response.map(|body| Paced::new(body, pace)))
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIME_MAX)
            .max_buf_size(HEADER_BYTES_MAX)
            .max_headers(HEADER_LINES_MAX)
            .serve_connection(TokioIo::new(Wire::new(&mut stream, pace.clone(), stall_max)), service);
        tokio::pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => ended,
            () = reached(&mut phase, Phase::Closing) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
        match refusal(&error, &pace) {
            Some(refusal) => {
                let said = async {
                    stream.write_all(written(&refusal).as_bytes()).await?;
                    stream.flush().await
                };
                let _ = timeout(stall_max, said).await;
            }
            // Closed in order, the kernel would keep what it has for such a client, for minutes.
            None if pace.stalled() => {
                let _ = SockRef::from(stream.tcp()).set_linger(Some(Duration::ZERO));
                return;
            }
            // Cut off, by one side or the other.
            None if !error.is_timeout() => return,
            None => {}
        }
    }
    linger(stream).await;
}

/// What a client is told whose first request could not be read. Later ones are answered by hyper, in fewer words.
fn refusal(error: &hyper::Error, pace: &Pace) -> Option<ApiError> {
    if !pace.nothing_said() {
        return None;
    }
    if error.is_parse_too_large() {
        return Some(ApiError::HeadTooLarge(HEADER_BYTES_MAX));
    }
    // A connection on which nothing was ever asked is closed without a word.
    (error.is_timeout() && pace.heard())
        .then_some(ApiError::HeadTooSlow)
        .or(error.is_parse().then_some(ApiError::HeadUnreadable))
}

/// An error as the bytes of a response, for where there is no request to respond to.
fn written(error: &ApiError) -> String {
    let (status, body) = (error.status(), error.body());
    let reason = status.canonical_reason().unwrap_or_default();
    let retry = if status == StatusCode::SERVICE_UNAVAILABLE { "retry-after: 1\r\n" } else { "" };
    format!(
        "HTTP/1.1 {} {reason}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{retry}connection: close\r\n\r\n{body}",
        status.as_u16(),
        body.len()
    )
}

/// Says that nothing more will come, and waits until the peer has heard it.
async fn linger(mut stream: impl Socket) {
    let drained = async {
        if stream.shutdown().await.is_err() {
            return;
        }
        let (stream, mut left) = (stream.tcp(), LINGER_BYTES_MAX);
        while left > 0 && stream.readable().await.is_ok() {
            match discard(stream) {
                Ok(0) => return,
                Ok(count) => left = left.saturating_sub(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    };
    let _ = timeout(LINGER_TIME_MAX, drained).await;
}

/// Reads and forgets. Not async, so that the connection's task does not have room for this buffer all its life.
fn discard(stream: &TcpStream) -> io::Result<usize> {
    stream.try_read(&mut [0; 4 << 10])
}

/// Waits for a phase, which is also reached when nobody is left to say so.
async fn reached(phase: &mut watch::Receiver<Phase>, wanted: Phase) {
    let _ = phase.wait_for(|phase| *phase >= wanted).await;
}

/// Errors that are about the connection that was being accepted, not about accepting.
fn of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted, WouldBlock};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted | WouldBlock)
}

#[cfg(test)]
mod tests;
