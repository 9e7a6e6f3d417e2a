//! Connections: accepting them, bounding them, and ending them.
//!
//! hyper is driven directly, because `axum::serve` sets no timer and then no header timeout fires. Only HTTP/1.1 is
//! spoken; a proxy in front may speak what it likes.

use std::{
    io,
    sync::{Arc, LazyLock},
    time::Duration,
};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
};

use crate::error::ApiError;

/// A request's head must be there after this time; an idle connection is closed after it, too.
const HEADER_TIME_MAX: Duration = Duration::from_secs(10);
/// The read buffer of a connection, and so the largest head of a request, give or take one read (hyper's default is about
/// 400 kB).
const HEADER_BYTES_MAX: usize = 32 << 10;
/// Header lines of a request.
const HEADER_LINES_MAX: usize = 100;
/// How long accepting pauses when the system has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What a connection over the cap is told.
static FULL: LazyLock<String> = LazyLock::new(|| {
    let wait = Duration::from_secs(1);
    let body = ApiError::Overloaded { message: "Too many connections are open.".into(), retry_after: wait }.body();
    format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: {}\r\nretry-after: 1\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    )
});

/// Serves a router until `stop` turns true; then lets open connections finish what they are at, and returns when the last
/// is closed. Never ends because of an error of one connection, or of accepting one.
pub async fn serve(listener: TcpListener, router: Router, connections_max: usize, mut stop: watch::Receiver<bool>) {
    let permits = Arc::new(Semaphore::new(connections_max));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = told(&mut stop) => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                if !of_one_connection(&error) {
                    tracing::warn!(%error, "cannot accept connections; trying again");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                continue;
            }
        };
        let Ok(permit) = permits.clone().try_acquire_owned() else {
            // The socket's buffer is empty, so this takes it at once; whoever does not read it is closed all the same.
            let _ = stream.try_write(FULL.as_bytes());
            continue;
        };
        let (router, stop) = (router.clone(), stop.clone());
        connections.spawn(async move {
            connection(stream, router, stop).await;
            drop(permit);
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(stream: TcpStream, router: Router, mut stop: watch::Receiver<bool>) {
    // A stream's events are small and must not wait for each other.
    let _ = stream.set_nodelay(true);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME_MAX)
        .max_buf_size(HEADER_BYTES_MAX)
        .max_headers(HEADER_LINES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = told(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

/// Waits until it is time to stop, which it also is when nobody is left to say so.
async fn told(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
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
        stop: watch::Sender<bool>,
        server: tokio::task::JoinHandle<()>,
    }

    async fn start(router: Router, connections_max: usize) -> Running {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("address");
        let (stop, stopped) = watch::channel(false);
        let server = tokio::spawn(serve(listener, router, connections_max, stopped));
        Running { address, stop, server }
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
        running.stop.send(true).expect("the server listens");
        go.notify_one();
        let mut answer = String::new();
        busy.read_to_string(&mut answer).await.expect("an answer, then the end");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("late"), "{answer}");
        let mut nothing = Vec::new();
        assert_eq!(idle.read_to_end(&mut nothing).await.expect("closed"), 0);
        running.server.await.expect("the server ended");
    }
}
