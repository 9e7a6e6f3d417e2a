//! As much of NATS' core protocol as it takes to publish: INFO, CONNECT, PUB or HPUB, PING and PONG, each a line, and a payload behind
//! the two that carry one (<https://docs.nats.io/reference/reference-protocols/nats-protocol>).
//!
//! No TLS: a server that asks for it is refused in words. NATS' own leaf node or a proxy beside this server speaks TLS to others.

use std::{fmt, str::FromStr, time::Duration};

use serde::Deserialize;
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};

/// Longest that anything of one exchange may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest line that is read; INFO is the only one that is long.
const LINE_BYTES_MAX: u64 = 64 << 10;
const PORT: u16 = 4222;
/// What tells a receiver that the payload is an event in structured mode (CloudEvents' binding to NATS).
const HEADERS: &str = "NATS/1.0\r\ncontent-type: application/cloudevents+json; charset=utf-8\r\n\r\n";

/// Where a NATS server is: `nats://[USER:PASSWORD@|TOKEN@]HOST[:PORT]`.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    host: String,
    port: u16,
    credential: Credential,
}

#[derive(Clone, PartialEq, Eq)]
enum Credential {
    None,
    Token(String),
    User { name: String, password: String },
}

impl FromStr for Address {
    type Err = NatsError;

    fn from_str(text: &str) -> Result<Self, NatsError> {
        // Nothing of the text is repeated: it may hold a password.
        let invalid = || NatsError::Address;
        let rest = text.trim().strip_prefix("nats://").ok_or_else(invalid)?.trim_end_matches('/');
        let (credential, place) = match rest.rsplit_once('@') {
            None => (Credential::None, rest),
            Some((said, place)) => match said.split_once(':') {
                None => (Credential::Token(said.to_owned()), place),
                Some((name, password)) => {
                    (Credential::User { name: name.to_owned(), password: password.to_owned() }, place)
                }
            },
        };
        let (host, port) = match place.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')) {
            None => (place, PORT),
            Some((host, port)) => (host, port.parse().map_err(|_| invalid())?),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let plain = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:".contains(c));
        match plain {
            true => Ok(Address { host: host.to_owned(), port, credential }),
            false => Err(invalid()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nats://{}:{}", self.host, self.port)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({self})")
    }
}

/// Why a connection cannot be used, or cannot be any more.
#[derive(Debug, thiserror::Error)]
pub enum NatsError {
    /// It is no address.
    #[error("the address of NATS must read nats://[USER:PASSWORD@]HOST[:PORT]")]
    Address,
    /// The network.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// Nothing came.
    #[error("no answer within {} s", PATIENCE.as_secs())]
    Silent,
    /// The server wants TLS.
    #[error("it wants TLS, which is not spoken here: put a leaf node or a proxy beside this server")]
    Tls,
    /// It speaks otherwise than NATS does.
    #[error("it does not speak NATS: {0}")]
    Protocol(String),
    /// What it says of an error.
    #[error("it refuses: {0}")]
    Refused(String),
}

/// What a server says of itself, as far as it matters here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Info {
    headers: bool,
    tls_required: bool,
    max_payload: Option<usize>,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Nats {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    info: Info,
}

impl Nats {
    /// Connects, and waits until the server has taken the credential.
    pub(super) async fn connect(address: &Address) -> Result<Self, NatsError> {
        let stream = within(async { Ok(TcpStream::connect((address.host.as_str(), address.port)).await?) }).await?;
        stream.set_nodelay(true)?;
        let (reader, writer) = stream.into_split();
        let mut nats = Nats { reader: BufReader::new(reader), writer, info: Info::default() };
        let line = nats.line().await?;
        let info = line.strip_prefix("INFO ").ok_or_else(|| NatsError::Protocol(excerpt(&line)))?;
        nats.info = serde_json::from_str(info).map_err(|error| NatsError::Protocol(error.to_string()))?;
        if nats.info.tls_required {
            return Err(NatsError::Tls);
        }
        let mut connect = json!({
            "verbose": false, "pedantic": false, "tls_required": false, "name": "weir", "lang": "rust",
            "version": env!("CARGO_PKG_VERSION"), "protocol": 1, "headers": true, "no_responders": true,
        });
        match (&address.credential, connect.as_object_mut()) {
            (Credential::Token(token), Some(said)) => drop(said.insert("auth_token".into(), token.as_str().into())),
            (Credential::User { name, password }, Some(said)) => {
                said.insert("user".into(), name.as_str().into());
                said.insert("pass".into(), password.as_str().into());
            }
            _ => {}
        }
        nats.write(format!("CONNECT {connect}\r\n").as_bytes()).await?;
        nats.flush().await?;
        Ok(nats)
    }

    /// Sends a message. That it has arrived is known after [`Nats::flush`].
    pub(super) async fn publish(&mut self, subject: &str, payload: &[u8]) -> Result<(), NatsError> {
        let headers = if self.info.headers { HEADERS } else { "" };
        let bytes = headers.len() + payload.len();
        if self.info.max_payload.is_some_and(|most| bytes > most) {
            // Sending it would cost the connection, again and again.
            tracing::warn!(subject, bytes, "an event is longer than the NATS server takes");
            return Ok(());
        }
        let head = match self.info.headers {
            true => format!("HPUB {subject} {} {bytes}\r\n{HEADERS}", HEADERS.len()),
            false => format!("PUB {subject} {bytes}\r\n"),
        };
        self.write(&[head.as_bytes(), payload, b"\r\n"].concat()).await
    }

    /// Waits until the server has come to everything that was sent.
    pub(super) async fn flush(&mut self) -> Result<(), NatsError> {
        self.write(b"PING\r\n").await?;
        loop {
            match self.line().await?.as_str() {
                "PONG" => return Ok(()),
                "PING" => self.write(b"PONG\r\n").await?,
                line if line.starts_with("-ERR") => {
                    return Err(NatsError::Refused(excerpt(line["-ERR".len()..].trim())));
                }
                // It may tell of others in its cluster at any time.
                line if line == "+OK" || line.starts_with("INFO ") => {}
                line => return Err(NatsError::Protocol(excerpt(line))),
            }
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), NatsError> {
        within(async { Ok(self.writer.write_all(bytes).await?) }).await
    }

    /// One line, without its end.
    async fn line(&mut self) -> Result<String, NatsError> {
        let mut line = Vec::new();
        let mut bounded = (&mut self.reader).take(LINE_BYTES_MAX);
        within(async { Ok(bounded.read_until(b'\n', &mut line).await?) }).await?;
        if line.pop() != Some(b'\n') {
            let error = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the connection was closed");
            return Err(if line.len() as u64 >= LINE_BYTES_MAX - 1 {
                NatsError::Protocol("a line is too long".into())
            } else {
                error.into()
            });
        }
        let text = String::from_utf8(line).map_err(|_| NatsError::Protocol("not text".into()))?;
        Ok(text.trim_end_matches('\r').to_owned())
    }
}

async fn within<T>(work: impl Future<Output = Result<T, NatsError>>) -> Result<T, NatsError> {
    timeout(PATIENCE, work).await.unwrap_or(Err(NatsError::Silent))
}

fn excerpt(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_show_no_secret() {
        for (text, shown) in [
            ("nats://127.0.0.1", "nats://127.0.0.1:4222"),
            ("nats://bus.example:4333/", "nats://bus.example:4333"),
            ("nats://secret@bus:1", "nats://bus:1"),
            ("nats://user:p@ss@bus", "nats://bus:4222"),
            ("nats://[::1]:5", "nats://::1:5"),
            ("nats://[::1]", "nats://::1:4222"),
        ] {
            let address: Address = text.parse().expect(text);
            assert_eq!((address.to_string().as_str(), format!("{address:?}")), (shown, format!("Address({shown})")));
        }
        let Credential::User { name, password } = "nats://u:p@ss@bus".parse::<Address>().expect("one").credential
        else {
            panic!("a user")
        };
        assert_eq!((name.as_str(), password.as_str()), ("u", "p@ss"));
        for bad in ["", "bus", "tls://bus", "nats://", "nats://bus:port", "nats://a b", "nats://bus:99999"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
