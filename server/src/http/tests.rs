use axum::routing::get;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Notify,
};
use tokio_rustls::{
    TlsConnector, client,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring::default_provider,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};

use super::*;
use crate::identity::CidrList;

struct Running {
    address: std::net::SocketAddr,
    phase: watch::Sender<Phase>,
    connections: Arc<Connections>,
    server: tokio::task::JoinHandle<()>,
}

async fn start(router: Router, connections_max: usize) -> Running {
    start_with(router, connections_max, None).await
}

async fn start_with(router: Router, connections_max: usize, tls: Option<Arc<Tls>>) -> Running {
    start_at("127.0.0.1:0", router, connections_max, tls, Peers::All).await
}

async fn start_at(at: &str, router: Router, connections_max: usize, tls: Option<Arc<Tls>>, peers: Peers) -> Running {
    let listener = TcpListener::bind(at).await.expect("a free port");
    let address = listener.local_addr().expect("address");
    let (phase, phases) = watch::channel(Phase::Serving);
    let connections = Connections::new(connections_max);
    let server = tokio::spawn(serve(listener, router, tls, peers, connections.clone(), phases));
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

/// An address of this machine that is not a loopback, if it has a network.
fn own_address() -> Option<IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    // Sends nothing: it only asks for the route.
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|address| !address.is_loopback())
}

#[tokio::test]
async fn where_only_proxies_may_connect_others_are_closed_unread() {
    let Some(own) = own_address() else { return };
    for (proxies, answered) in [(CidrList::default(), false), (own.to_string().parse().expect("ranges"), true)] {
        let mut running = start_at("0.0.0.0:0", hello(), 1, None, Peers::Proxies(proxies)).await;
        let port = running.address.port();
        running.address = (IpAddr::from([127, 0, 0, 1]), port).into();
        assert!(exchange(&running, REQUEST).await.ends_with("hello"), "this machine");
        running.address = (own, port).into();
        assert_eq!(exchange(&running, REQUEST).await.ends_with("hello"), answered, "{own}");
    }
}

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
    stall(None).await;
    stall(tls()).await;
}

async fn stall(tls: Option<Arc<Tls>>) {
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
    let (stream, peer) = listener.accept().await.expect("accepted");
    let (_phase, phases) = watch::channel(Phase::Serving);
    let router = Router::new().route("/", get(endless));
    let (request, peer, stall_max) = (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", Peer(peer.ip()), Duration::from_millis(50));
    match tls {
        None => {
            client.write_all(request).await.expect("sent");
            connection(stream, peer, router, phases, stall_max).await;
        }
        Some(tls) => {
            let (mut shaken, stream) = tokio::join!(shake(client), tls.acceptor().accept(stream));
            shaken.write_all(request).await.expect("sent");
            shaken.flush().await.expect("sent");
            connection(stream.expect("accepted"), peer, router, phases, stall_max).await;
            client = shaken.into_inner().0;
        }
    }
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

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/tls/");

fn tls() -> Option<Arc<Tls>> {
    let file = |name| format!("{FIXTURES}{name}").into();
    Some(Arc::new(Tls::open(file("one.pem"), file("one.key")).expect("a pair")))
}

async fn connect_tls(running: &Running) -> client::TlsStream<TcpStream> {
    shake(TcpStream::connect(running.address).await.expect("connects")).await
}

async fn shake(stream: TcpStream) -> client::TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(format!("{FIXTURES}one.pem")).expect("a certificate")).expect("a root");
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect("TLS")
}

#[tokio::test]
async fn requests_are_answered_over_tls_and_their_peer_is_known() {
    let peer = |request: axum::extract::Request| async move {
        request.extensions().get::<Peer>().map(|peer| peer.0.to_string()).unwrap_or_default()
    };
    let long = "x".repeat(3 << 20);
    let text = long.clone();
    let router = Router::new().route("/", get(peer)).route("/long", get(move || async move { text }));
    let running = start_with(router, 4, tls()).await;
    let mut stream = connect_tls(&running).await;
    let mut answer = String::new();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\nGET /long HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await
        .expect("sent");
    stream.read_to_string(&mut answer).await.expect("an orderly end");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("127.0.0.1"), "{answer:.300}");
    assert!(answer.ends_with(&long), "{} bytes", answer.len());
    // What cannot be read is answered in the same words as without TLS.
    let mut stream = connect_tls(&running).await;
    stream.write_all(b"GET\r\n\r\n").await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an orderly end");
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("invalid_http"), "{answer}");
}

#[tokio::test]
async fn whoever_speaks_no_tls_hears_no_http() {
    let running = start_with(hello(), 1, tls()).await;
    let answer = {
        let mut stream = TcpStream::connect(running.address).await.expect("connects");
        stream.write_all(REQUEST).await.expect("sent");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        answer
    };
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    // A handshake that is not finished keeps nobody from ending the server.
    let _silent = TcpStream::connect(running.address).await.expect("connects");
    running.phase.send(Phase::Closing).expect("the server listens");
    running.server.await.expect("the server ended");
    assert_eq!(running.connections.open(), 0);
}
