//! HTTP/1.1 answers, parsed without IO: the head, and the body in its three framings.
//!
//! Why our own: the client must add nothing to what it measures and shares two cores with the server, and it needs exactly
//! one thing of HTTP, a POST with an answer read piece by piece. It reads what RFC 9112 servers send; it is no general
//! client (no redirects, no compression, no trailers kept).

use crate::error::RequestError;

/// The longest head that is read.
pub(crate) const HEAD_BYTES_MAX: usize = 16 << 10;
/// The longest chunk-size line or trailer line.
const LINE_BYTES_MAX: usize = 4 << 10;

/// What a head says about the body and the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) status: u16,
    pub(crate) framing: Framing,
    /// Whether the server will take another request on this connection.
    pub(crate) keep_alive: bool,
}

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Length(u64),
    Chunked,
    /// The end of the connection is the end of the body.
    UntilClose,
}

impl Head {
    /// Parses the head at the start of `bytes`; `Some` with its length once it is complete.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Option<(Head, usize)>, RequestError> {
        let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else {
            return if bytes.len() > HEAD_BYTES_MAX {
                Err(RequestError::Http("its head is too long"))
            } else {
                Ok(None)
            };
        };
        let text = std::str::from_utf8(&bytes[..end]).map_err(|_| RequestError::Http("its head is not text"))?;
        let mut lines = text.split("\r\n");
        let (status, http11) = status_line(lines.next().unwrap_or_default())?;
        let mut head = Head { status, framing: Framing::UntilClose, keep_alive: http11 };
        let mut length = None;
        let mut chunked = false;
        for line in lines {
            let (name, value) = line.split_once(':').ok_or(RequestError::Http("a header has no colon"))?;
            let value = value.trim_matches([' ', '\t']);
            if name.eq_ignore_ascii_case("content-length") {
                let parsed = value.parse::<u64>().map_err(|_| RequestError::Http("Content-Length is not a number"))?;
                if length.is_some_and(|known| known != parsed) {
                    return Err(RequestError::Http("two different Content-Length headers"));
                }
                length = Some(parsed);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                if !value.eq_ignore_ascii_case("chunked") {
                    return Err(RequestError::Http("a Transfer-Encoding other than chunked"));
                }
                chunked = true;
            } else if name.eq_ignore_ascii_case("content-encoding") && !value.eq_ignore_ascii_case("identity") {
                return Err(RequestError::Http("a Content-Encoding that was not asked for"));
            } else if name.eq_ignore_ascii_case("connection") {
                for option in value.split(',').map(str::trim) {
                    if option.eq_ignore_ascii_case("close") {
                        head.keep_alive = false;
                    } else if option.eq_ignore_ascii_case("keep-alive") {
                        head.keep_alive = true;
                    }
                }
            }
        }
        // RFC 9112 section 6.3: no body for these statuses; Transfer-Encoding overrides Content-Length.
        head.framing = match (status, chunked, length) {
            (100..=199 | 204 | 304, _, _) => Framing::Length(0),
            (_, true, _) => Framing::Chunked,
            (_, false, Some(length)) => Framing::Length(length),
            (_, false, None) => Framing::UntilClose,
        };
        if head.framing == Framing::UntilClose {
            head.keep_alive = false;
        }
        Ok(Some((head, end + 4)))
    }
}

/// The status, and whether the version is 1.1.
fn status_line(line: &str) -> Result<(u16, bool), RequestError> {
    let bad = RequestError::Http("its status line is not HTTP/1.1");
    let mut words = line.splitn(3, ' ');
    let http11 = match words.next() {
        Some("HTTP/1.1") => true,
        Some("HTTP/1.0") => false,
        _ => return Err(bad),
    };
    match words.next() {
        Some(code) if code.len() == 3 && code.bytes().all(|b| b.is_ascii_digit()) => {
            Ok((code.parse().map_err(|_| bad)?, http11))
        }
        _ => Err(bad),
    }
}

/// Takes the framing off a body, fed in any pieces.
#[derive(Debug)]
pub(crate) struct BodyDecoder {
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// That many bytes of a body of known length remain.
    Length(u64),
    UntilClose,
    /// Inside a chunk-size line: the size so far, hex digits seen, bytes of the line seen.
    Size {
        size: u64,
        digits: usize,
        seen: usize,
        extension: bool,
    },
    /// The CR of a size line was seen.
    SizeLf(u64),
    Data(u64),
    DataCr,
    DataLf,
    /// Inside the trailer section; how many bytes of the current line were seen, a CR not counted.
    Trailer(usize),
    TrailerLf(usize),
    Done,
}

const SIZE: State = State::Size { size: 0, digits: 0, seen: 0, extension: false };

impl BodyDecoder {
    pub(crate) fn new(framing: Framing) -> BodyDecoder {
        let state = match framing {
            Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => SIZE,
            Framing::UntilClose => State::UntilClose,
        };
        BodyDecoder { state }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether the end of the connection, here, is a proper end of the body.
    pub(crate) fn may_close(&self) -> bool {
        matches!(self.state, State::Done | State::UntilClose)
    }

    /// Appends the body bytes in `input` to `body`; returns how many bytes of `input` belonged to this body, framing
    /// included. Less than all only when the body has ended.
    pub(crate) fn decode(&mut self, input: &[u8], body: &mut Vec<u8>) -> Result<usize, RequestError> {
        let mut at = 0;
        while at < input.len() {
            match self.state {
                State::Done => break,
                State::UntilClose => {
                    body.extend_from_slice(&input[at..]);
                    at = input.len();
                }
                State::Length(left) | State::Data(left) => {
                    let take = usize::try_from(left).unwrap_or(usize::MAX).min(input.len() - at);
                    body.extend_from_slice(&input[at..at + take]);
                    at += take;
                    let left = left - take as u64;
                    self.state = match self.state {
                        State::Length(_) if left == 0 => State::Done,
                        State::Length(_) => State::Length(left),
                        _ if left == 0 => State::DataCr,
                        _ => State::Data(left),
                    };
                }
                state => {
                    self.state = framing_byte(state, input[at])?;
                    at += 1;
                }
            }
        }
        Ok(at)
    }
}

/// One byte of chunked framing.
fn framing_byte(state: State, byte: u8) -> Result<State, RequestError> {
    Ok(match (state, byte) {
        (State::Size { size, digits, .. }, b'\r') if digits > 0 => State::SizeLf(size),
        (State::Size { seen, .. }, _) if seen >= LINE_BYTES_MAX => {
            return Err(RequestError::Http("a chunk-size line is too long"));
        }
        (State::Size { size, digits, seen, extension: true }, _) => {
            State::Size { size, digits, seen: seen + 1, extension: true }
        }
        (State::Size { size, digits, seen, .. }, b';' | b' ' | b'\t') if digits > 0 => {
            State::Size { size, digits, seen: seen + 1, extension: true }
        }
        (State::Size { size, digits, seen, .. }, _) => {
            let digit = (byte as char).to_digit(16).ok_or(RequestError::Http("a chunk size is not a number"))?;
            if digits == 15 {
                return Err(RequestError::Http("a chunk size is too large"));
            }
            State::Size { size: size << 4 | u64::from(digit), digits: digits + 1, seen: seen + 1, extension: false }
        }
        (State::SizeLf(0), b'\n') => State::Trailer(0),
        (State::SizeLf(size), b'\n') => State::Data(size),
        (State::DataCr, b'\r') => State::DataLf,
        (State::DataLf, b'\n') => SIZE,
        (State::Trailer(seen), b'\r') => State::TrailerLf(seen),
        (State::Trailer(seen), _) if seen >= LINE_BYTES_MAX => return Err(RequestError::Http("a trailer is too long")),
        (State::Trailer(seen), _) => State::Trailer(seen + 1),
        (State::TrailerLf(0), b'\n') => State::Done,
        (State::TrailerLf(_), b'\n') => State::Trailer(0),
        _ => return Err(RequestError::Http("a chunk does not end where it should")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Result<(Head, usize), RequestError> {
        Ok(Head::parse(text.as_bytes())?.expect("a complete head"))
    }

    #[test]
    fn heads_say_status_framing_and_keep_alive() {
        let cases = [
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 200, Framing::Chunked, true),
            ("HTTP/1.1 200\r\ncontent-length:5\r\n\r\n", 200, Framing::Length(5), true),
            (
                "HTTP/1.1 429 Too Many\r\nContent-Length: 5 \r\nConnection: close\r\n\r\n",
                429,
                Framing::Length(5),
                false,
            ),
            ("HTTP/1.1 200 OK\r\nServer: x\r\n\r\n", 200, Framing::UntilClose, false),
            ("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n", 200, Framing::Length(1), false),
            ("HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: Keep-Alive\r\n\r\n", 200, Framing::Length(1), true),
            ("HTTP/1.1 204 No Content\r\n\r\n", 204, Framing::Length(0), true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: Chunked\r\n\r\n", 200, Framing::Chunked, true),
        ];
        for (text, status, framing, keep_alive) in cases {
            assert_eq!(head(text), Ok((Head { status, framing, keep_alive }, text.len())), "{text}");
        }
    }

    #[test]
    fn an_incomplete_head_asks_for_more_at_every_split() {
        let text = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n";
        for split in 0..text.len() {
            assert_eq!(Head::parse(&text[..split]), Ok(None), "{split}");
        }
        let (_, len) = Head::parse(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc").unwrap().unwrap();
        assert_eq!(len, text.len());
    }

    #[test]
    fn heads_this_client_cannot_read_are_refused() {
        for text in [
            "HTTP/2 200\r\n\r\n",
            "SSH-2.0-OpenSSH\r\n\r\n",
            "HTTP/1.1 20x OK\r\n\r\n",
            "HTTP/1.1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n",
        ] {
            assert!(head(text).is_err(), "{text:?}");
        }
        assert!(Head::parse(&[b'a'; HEAD_BYTES_MAX + 1]).is_err());
        assert!(Head::parse(b"HTTP/1.1 200 OK\r\nX: \xff\r\n\r\n").is_err());
    }

    const CHUNKED: &[u8] =
        b"5\r\nhello\r\n1;name=\"v\"\r\n,\r\n00A \r\n 0\r\n\r\nworl\r\n1\r\nd\r\n0\r\nTrailer: x\r\n\r\n";
    const CHUNKED_BODY: &[u8] = b"hello, 0\r\n\r\nworld";

    /// Feeds `pieces`, then bytes of a next answer; gives the body and checks that those bytes were left alone.
    fn decode(framing: Framing, pieces: &[&[u8]]) -> Result<(Vec<u8>, bool), RequestError> {
        let mut decoder = BodyDecoder::new(framing);
        let mut body = Vec::new();
        for piece in pieces {
            assert_eq!(decoder.decode(piece, &mut body)?, piece.len());
        }
        if decoder.is_done() {
            assert_eq!(decoder.decode(b"HTTP", &mut body)?, 0);
        }
        Ok((body, decoder.is_done()))
    }

    #[test]
    fn chunks_join_at_every_split() {
        for i in 0..=CHUNKED.len() {
            for j in i..=CHUNKED.len() {
                let got = decode(Framing::Chunked, &[&CHUNKED[..i], &CHUNKED[i..j], &CHUNKED[j..]]);
                assert_eq!(got, Ok((CHUNKED_BODY.to_vec(), true)), "{i} {j}");
            }
        }
        let bytes: Vec<&[u8]> = CHUNKED.chunks(1).collect();
        assert_eq!(decode(Framing::Chunked, &bytes), Ok((CHUNKED_BODY.to_vec(), true)));
    }

    #[test]
    fn a_truncated_body_is_never_done() {
        for end in 0..CHUNKED.len() {
            let mut decoder = BodyDecoder::new(Framing::Chunked);
            decoder.decode(&CHUNKED[..end], &mut Vec::new()).unwrap();
            assert!(!decoder.is_done() && !decoder.may_close(), "{end}");
        }
        let mut decoder = BodyDecoder::new(Framing::Length(4));
        decoder.decode(b"abc", &mut Vec::new()).unwrap();
        assert!(!decoder.may_close());
    }

    #[test]
    fn lengths_and_closes_end_where_they_say() {
        let mut decoder = BodyDecoder::new(Framing::Length(3));
        let mut body = Vec::new();
        assert_eq!(decoder.decode(b"abcHTTP", &mut body), Ok(3));
        assert!(decoder.is_done() && body == b"abc");
        assert!(BodyDecoder::new(Framing::Length(0)).is_done());
        let mut decoder = BodyDecoder::new(Framing::UntilClose);
        assert_eq!(decoder.decode(b"abc", &mut body), Ok(3));
        assert!(!decoder.is_done() && decoder.may_close());
    }

    #[test]
    fn broken_chunks_are_refused() {
        let long = [b'1'; LINE_BYTES_MAX + 16];
        let extension = [b"1;".as_slice(), &[b'x'; LINE_BYTES_MAX + 16]].concat();
        let trailer = [b"0\r\n".as_slice(), &[b'x'; LINE_BYTES_MAX + 16]].concat();
        for bytes in [
            b"\r\n".as_slice(),
            b";x\r\n",
            b"g\r\n",
            b"-1\r\n",
            b"1\nx",
            b"1\r\nxy",
            b"1\r\nx\n",
            b"1\r\nx\rz",
            b"0\r\n\rx",
            b"ffffffffffffffff\r\n",
            &long,
            &extension,
            &trailer,
        ] {
            assert!(
                BodyDecoder::new(Framing::Chunked).decode(bytes, &mut Vec::new()).is_err(),
                "{:?}",
                &bytes[..bytes.len().min(20)]
            );
        }
    }
}
