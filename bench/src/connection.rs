//! One keep-alive connection to the server: a request goes out, its answer comes in piece by piece.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::error::RequestError;
use crate::http::{BodyDecoder, Head};
use crate::target::Target;

/// A request fails when no byte comes for this long. A server under load may queue a prompt for minutes.
const STALL_MAX: Duration = Duration::from_secs(600);
/// Connecting takes a handshake; more than this is no server.
const CONNECT_MAX: Duration = Duration::from_secs(10);
const READ_BYTES: usize = 16 << 10;

#[derive(Debug)]
pub(crate) struct Connection {
    target: Target,
    stream: Option<TcpStream>,
    /// Bytes read and not yet consumed: `buffer[start..]`.
    buffer: Vec<u8>,
    start: usize,
}

/// An answer whose head has been read. Unless read to its end, the connection is not used again.
pub(crate) struct Response<'a> {
    pub(crate) status: u16,
    keep_alive: bool,
    decoder: BodyDecoder,
    /// Taken from the connection; given back at the end of the body.
    stream: TcpStream,
    connection: &'a mut Connection,
}

impl Connection {
    pub(crate) fn new(target: Target) -> Connection {
        Connection { target, stream: None, buffer: Vec::new(), start: 0 }
    }

    /// Connects if there is no connection, so that a request's clock need not include it.
    pub(crate) async fn open(&mut self) -> Result<(), RequestError> {
        if self.stream.is_none() {
            let failed = |reason: String| RequestError::Connect { address: self.target.authority(), reason };
            let stream = timeout(CONNECT_MAX, TcpStream::connect((self.target.host.as_str(), self.target.port)))
                .await
                .map_err(|_| failed(format!("no answer for {} s", CONNECT_MAX.as_secs())))?
                .map_err(|e| failed(e.to_string()))?;
            stream.set_nodelay(true).map_err(|e| failed(e.to_string()))?;
            self.buffer.clear();
            self.start = 0;
            self.stream = Some(stream);
        }
        Ok(())
    }

    /// Sends a whole request and reads the head of its answer.
    ///
    /// A server may close an idle connection just as a request leaves; when not a byte of an answer came over a connection
    /// that was already there, the request is sent once more over a new one.
    pub(crate) async fn send(&mut self, request: &[u8]) -> Result<Response<'_>, RequestError> {
        let reused = self.stream.is_some();
        let (head, stream) = match self.exchange(request).await {
            Ok(done) => done,
            Err(Exchange::NoByte(_)) if reused => self.exchange(request).await.map_err(Exchange::into_error)?,
            Err(other) => return Err(other.into_error()),
        };
        let decoder = BodyDecoder::new(head.framing);
        Ok(Response { status: head.status, keep_alive: head.keep_alive, decoder, stream, connection: self })
    }

    async fn exchange(&mut self, request: &[u8]) -> Result<(Head, TcpStream), Exchange> {
        self.open().await.map_err(Exchange::Failed)?;
        // Out of `self` until the body has been read: a request that fails or is given up takes its connection with it.
        let mut stream = self.stream.take().expect("open() has just put it there");
        stream.write_all(request).await.map_err(|e| Exchange::NoByte(RequestError::Broken(e.to_string())))?;
        loop {
            match Head::parse(&self.buffer[self.start..]).map_err(Exchange::Failed)? {
                // 100 Continue and its like announce nothing to a client that has already sent everything.
                Some((head, len)) if head.status < 200 => self.start += len,
                Some((head, len)) => {
                    self.start += len;
                    return Ok((head, stream));
                }
                None => match self.read(&mut stream).await {
                    Ok(true) => {}
                    Ok(false) if self.pending() => {
                        return Err(Exchange::Failed(RequestError::Truncated("an answer's head")));
                    }
                    Ok(false) => return Err(Exchange::NoByte(RequestError::Truncated("a request"))),
                    Err(e @ RequestError::Stalled(_)) => return Err(Exchange::Failed(e)),
                    Err(e) if self.pending() => return Err(Exchange::Failed(e)),
                    Err(e) => return Err(Exchange::NoByte(e)),
                },
            }
        }
    }

    fn pending(&self) -> bool {
        self.start < self.buffer.len()
    }

    /// Appends what the server has sent; false at its end.
    async fn read(&mut self, stream: &mut TcpStream) -> Result<bool, RequestError> {
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        }
        self.buffer.reserve(READ_BYTES);
        match timeout(STALL_MAX, stream.read_buf(&mut self.buffer)).await {
            Err(_) => Err(RequestError::Stalled(STALL_MAX.as_secs())),
            Ok(Err(e)) => Err(RequestError::Broken(e.to_string())),
            Ok(Ok(count)) => Ok(count > 0),
        }
    }
}

/// How an exchange failed: whether it may be tried again.
enum Exchange {
    /// The server had not begun to answer.
    NoByte(RequestError),
    Failed(RequestError),
}

impl Exchange {
    fn into_error(self) -> RequestError {
        match self {
            Exchange::NoByte(e) | Exchange::Failed(e) => e,
        }
    }
}

impl Response<'_> {
    /// Appends the next piece of the body to `body`; false when the body had already ended.
    pub(crate) async fn read(&mut self, body: &mut Vec<u8>) -> Result<bool, RequestError> {
        let connection = &mut *self.connection;
        let before = body.len();
        loop {
            connection.start += self.decoder.decode(&connection.buffer[connection.start..], body)?;
            if body.len() > before {
                return Ok(true);
            }
            if self.decoder.is_done() {
                return Ok(false);
            }
            if !connection.read(&mut self.stream).await? {
                return if self.decoder.may_close() {
                    Ok(false)
                } else {
                    Err(RequestError::Truncated("an answer's body"))
                };
            }
        }
    }

    /// Reads the rest of the body, up to `bytes_max`.
    pub(crate) async fn read_all(mut self, body: &mut Vec<u8>, bytes_max: usize) -> Result<(), RequestError> {
        while self.read(body).await? {
            if body.len() > bytes_max {
                return Err(RequestError::Answer("its body is too long"));
            }
        }
        self.finish();
        Ok(())
    }

    /// Gives the connection back for the next request, if the body was read whole and the server keeps it open. Bytes after
    /// the body answer nothing that was asked: such a connection is dropped.
    pub(crate) fn finish(self) {
        if self.keep_alive && self.decoder.is_done() && !self.connection.pending() {
            self.connection.stream = Some(self.stream);
        }
    }
}
