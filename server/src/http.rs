//! Connections: accepting them, bounding them, and ending them.
//!
//! hyper is driven directly, because `axum::serve` sets no timer and then no header timeout fires. Only HTTP/1.1 is
//! spoken; a proxy in front may speak what it likes.
//!
//! What a connection may cost, besides what the request itself holds: 8 KiB to read into, 8 KiB for heads, one frame of
//! the answer that the socket has not taken, and the socket's own buffers in the kernel ([`SEND_BUFFER_BYTES`]).

mod wire;

use std::{
    io,
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

use self::wire::{Pace, Paced, Wire};
use crate::error::ApiError;

/// A request's head must be there after this time; an idle connection is closed after it, too.
const HEADER_TIME_MAX: Duration = Duration::from_secs(10);
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

/// Serves a router until the last phase; then lets open connections finish what they are at, and returns when the last
/// is closed. Never ends because of an error of one connection, or of accepting one.
pub async fn serve(
    listener: TcpListener,
    router: Router,
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
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = reached(&mut phase, Phase::Closing) => break,
            Some(_) = tasks.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
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
        match connections.enter() {
            Some(open) => {
                let (router, phase) = (router.clone(), phase.clone());
                tasks.spawn(async move {
                    connection(stream, router, phase, STALL_MAX).await;
                    drop(open);
                });
            }
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

async fn connection(mut stream: TcpStream, router: Router, mut phase: watch::Receiver<Phase>, stall_max: Duration) {
    // A stream's events are small and must not wait for each other.
    let _ = stream.set_nodelay(true);
    let pace = Arc::new(Pace::default());
    let ended = {
        let (router, now) = (TowerToHyperService::new(router), phase.clone());
        let service = service_fn(|request| {
            pace.asked();
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
                let _ = timeout(stall_max, stream.write_all(written(&refusal).as_bytes())).await;
            }
            // Closed in order, the kernel would keep what it has for such a client, for minutes.
            None if pace.stalled() => {
                let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
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
async fn linger(mut stream: TcpStream) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let drained = async {
        let mut left = LINGER_BYTES_MAX;
        while left > 0 && stream.readable().await.is_ok() {
            match discard(&stream) {
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
mod tests {
    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        sync::Notify,
    };

    use super::*;

    struct Running {
        address: std::net::SocketAddr,
        phase: watch::Sender<Phase>,
        connections: Arc<Connections>,
        server: tokio::task::JoinHandle<()>,
    }

    async fn start(router: Router, connections_max: usize) -> Running {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("address");
        let (phase, phases) = watch::channel(Phase::Serving);
        let connections = Connections::new(connections_max);
        let server = tokio::spawn(serve(listener, router, connections.clone(), phases));
        Running { address, phase, connections, server }
    }

    async fn exchange(running: &Running, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(running.address).await.expect("connects");
        // What is refused early is closed early: the rest of the request may not be taken.
        let _ = stream.write_all(request).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).expect("UTF-8")
    }

    fn hello() -> Router {
        Router::new().route("/", get(|| async { "hello" }))
    }

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

    #[tokio::test]
    async fn requests_are_answered_within_the_cap_only() {
        let open = start(hello(), 1).await;
        let answer = exchange(&open, REQUEST).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"), "{answer}");
        let full = start(hello(), 0).await;
        let mut stream = TcpStream::connect(full.address).await.expect("connects");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer without a request");
        let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
        assert!(head.starts_with("HTTP/1.1 503") && head.contains(&format!("content-length: {}\r\n", body.len())));
        assert!(body.contains("\"overloaded\""));
    }

    #[tokio::test]
    async fn heads_are_bounded() {
        let running = start(hello(), 4).await;
        let fits = format!("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\na: {}\r\n\r\n", "x".repeat(16 << 10));
        assert!(exchange(&running, fits.as_bytes()).await.starts_with("HTTP/1.1 200"));
        let large = format!("GET / HTTP/1.1\r\nhost: x\r\na: {}\r\n\r\n", "x".repeat(4 * HEADER_BYTES_MAX));
        assert!(!exchange(&running, large.as_bytes()).await.starts_with("HTTP/1.1 200"));
        let many = format!("GET / HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(HEADER_LINES_MAX + 1));
        assert!(!exchange(&running, many.as_bytes()).await.starts_with("HTTP/1.1 200"));
        // Two lengths are how requests are smuggled past a proxy.
        let two = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx";
        assert!(exchange(&running, two).await.starts_with("HTTP/1.1 400"));
    }

    #[tokio::test]
    async fn an_open_request_is_finished_and_an_idle_connection_closed() {
        let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (tell, wait) = (begun.clone(), go.clone());
        let slow = move || async move {
            tell.notify_one();
            wait.notified().await;
            "late"
        };
        let running = start(Router::new().route("/", get(slow)), 4).await;
        let mut idle = TcpStream::connect(running.address).await.expect("connects");
        let mut busy = TcpStream::connect(running.address).await.expect("connects");
        busy.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
        begun.notified().await;
        running.phase.send(Phase::Closing).expect("the server listens");
        go.notify_one();
        let mut answer = String::new();
        busy.read_to_string(&mut answer).await.expect("an answer, then the end");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("late"), "{answer}");
        let mut nothing = Vec::new();
        assert_eq!(idle.read_to_end(&mut nothing).await.expect("closed"), 0);
        drop((idle, busy));
        running.server.await.expect("the server ended");
        assert_eq!(running.connections.open(), 0);
    }

    #[tokio::test]
    async fn heads_that_cannot_be_read_are_answered_like_any_other_mistake() {
        let running = start(hello(), 4).await;
        let large = format!("GET / HTTP/1.1\r\nhost: x\r\na: {}\r\n\r\n", "x".repeat(4 * HEADER_BYTES_MAX));
        let many = format!("GET / HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(HEADER_LINES_MAX + 1));
        let cases = [
            (large.as_bytes(), 431, "request_header_too_large"),
            (many.as_bytes(), 431, "request_header_too_large"),
            (b"GET\r\n\r\n", 400, "invalid_http"),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "invalid_http"),
            (b"GET / HTTP/1.1\r\nhost x\r\n\r\n", 400, "invalid_http"),
            (b"GET / HTTP/9.9\r\nhost: x\r\n\r\n", 400, "invalid_http"),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "invalid_http"),
        ];
        for (request, status, code) in cases {
            let answer = exchange(&running, request).await;
            let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
            assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
            let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
            assert_eq!(body["error"]["code"], code);
        }
        // Whoever leaves without a word, or in the middle of one, is told nothing.
        for silent in [&b""[..], b"GET / HT"] {
            let mut stream = TcpStream::connect(running.address).await.expect("connects");
            stream.write_all(silent).await.expect("sent");
            stream.shutdown().await.expect("half closed");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("closed");
            assert_eq!(answer, "");
        }
    }

    #[tokio::test]
    async fn an_answer_reaches_a_client_that_is_still_sending() {
        let running = start(hello(), 0).await;
        let body = vec![b'x'; 1 << 20];
        for _ in 0..20 {
            let mut stream = TcpStream::connect(running.address).await.expect("connects");
            let _ = stream.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1048576\r\n\r\n").await;
            let _ = stream.write_all(&body).await;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("not reset");
            assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        }
    }

    #[tokio::test]
    async fn a_draining_server_answers_and_closes() {
        let running = start(hello(), 4).await;
        running.phase.send(Phase::Draining).expect("the server listens");
        let answer = exchange(&running, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");
    }

    #[tokio::test]
    async fn a_body_is_asked_for_no_faster_than_the_client_reads_and_a_stall_ends_it() {
        let (given, counted) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (tell, count) = (given.clone(), counted.clone());
        const FRAME: usize = 4 << 10;
        let endless = move || {
            let frames = Endless { given: tell.clone(), dropped: count.clone() };
            async move { axum::body::Body::from_stream(frames) }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        SockRef::from(&listener).set_send_buffer_size(SEND_BUFFER_BYTES).expect("bounded");
        let mut client = TcpStream::connect(listener.local_addr().expect("address")).await.expect("connects");
        SockRef::from(&client).set_recv_buffer_size(4 << 10).expect("bounded");
        let (stream, _) = listener.accept().await.expect("accepted");
        let (_phase, phases) = watch::channel(Phase::Serving);
        let router = Router::new().route("/", get(endless));
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
        connection(stream, router, phases, Duration::from_millis(50)).await;
        let sockets = 2 * SEND_BUFFER_BYTES + (256 << 10);
        let given = given.load(Ordering::Relaxed) * FRAME;
        assert!(given > 0 && given <= sockets, "{given} bytes were asked for");
        assert_eq!(counted.load(Ordering::Relaxed), 1, "the body was not dropped");
        // And what the kernel had for the client is gone, too: it reads no more than was in its own buffer, and no end.
        let mut received = Vec::new();
        let end = client.read_to_end(&mut received).await.expect_err("reset");
        assert_eq!(end.kind(), io::ErrorKind::ConnectionReset);

        struct Endless {
            given: Arc<AtomicUsize>,
            dropped: Arc<AtomicUsize>,
        }

        impl futures_core::Stream for Endless {
            type Item = Result<Vec<u8>, std::convert::Infallible>;

            fn poll_next(
                self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Option<Self::Item>> {
                self.given.fetch_add(1, Ordering::Relaxed);
                std::task::Poll::Ready(Some(Ok(vec![b'x'; FRAME])))
            }
        }

        impl Drop for Endless {
            fn drop(&mut self) {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}
