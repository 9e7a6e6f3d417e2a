//! Server-sent events, parsed without IO: bytes in, the data of each event out.
//!
//! Of the format (WHATWG HTML, section 9.2.6) the `data` field matters here; comments keep a stream alive, and `event`,
//! `id` and `retry` mean nothing to a completion. Lines may end in LF, CR LF or CR.

use crate::error::RequestError;

/// The most bytes of one event, and of one line.
const EVENT_BYTES_MAX: usize = 1 << 20;

#[derive(Debug, Default)]
pub(crate) struct SseParser {
    line: Vec<u8>,
    /// The data lines of the event so far, joined by LF.
    data: Vec<u8>,
    has_data: bool,
    /// The last byte was a CR: a following LF belongs to it.
    after_cr: bool,
    begun: bool,
}

impl SseParser {
    /// Takes the next bytes of the stream and calls `event` with the data of each event that they complete.
    pub(crate) fn push(
        &mut self,
        bytes: &[u8],
        mut event: impl FnMut(&[u8]) -> Result<(), RequestError>,
    ) -> Result<(), RequestError> {
        for &byte in bytes {
            let ends_cr_lf = std::mem::replace(&mut self.after_cr, byte == b'\r') && byte == b'\n';
            if ends_cr_lf {
                continue;
            }
            if byte == b'\n' || byte == b'\r' {
                self.end_line(&mut event)?;
            } else if self.line.len() >= EVENT_BYTES_MAX {
                return Err(RequestError::Answer("a line of the stream is too long"));
            } else {
                self.line.push(byte);
            }
        }
        Ok(())
    }

    fn end_line(&mut self, event: &mut impl FnMut(&[u8]) -> Result<(), RequestError>) -> Result<(), RequestError> {
        let mut line = self.line.as_slice();
        if !std::mem::replace(&mut self.begun, true) {
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        if line.is_empty() {
            if std::mem::take(&mut self.has_data) {
                event(&self.data)?;
                self.data.clear();
            }
        } else if let Some(value) = data_value(line) {
            if self.data.len() + value.len() >= EVENT_BYTES_MAX {
                return Err(RequestError::Answer("an event of the stream is too long"));
            }
            if std::mem::replace(&mut self.has_data, true) {
                self.data.push(b'\n');
            }
            self.data.extend_from_slice(value);
        }
        self.line.clear();
        Ok(())
    }
}

/// The value of a `data` line: one space after the colon does not belong to it.
fn data_value(line: &[u8]) -> Option<&[u8]> {
    match line.strip_prefix(b"data")? {
        [] => Some(&[]),
        [b':', b' ', value @ ..] | [b':', value @ ..] => Some(value),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(pieces: &[&[u8]]) -> Vec<String> {
        let mut parser = SseParser::default();
        let mut found = Vec::new();
        for piece in pieces {
            parser
                .push(piece, |data| {
                    found.push(String::from_utf8(data.to_vec()).unwrap());
                    Ok(())
                })
                .unwrap();
        }
        found
    }

    const STREAM: &[u8] = "\u{feff}: hello\n\ndata: {\"a\":1}\n\nevent: x\ndata:two\r\ndata:  lines é\r\n\r\n:\rdata\rdata: \r\rdatum: no\n\nid: 3\n\ndata: [DONE]\n\ndata: cut".as_bytes();

    #[test]
    fn events_are_found_at_every_split() {
        let want = ["{\"a\":1}", "two\n lines é", "\n", "[DONE]"];
        for i in 0..=STREAM.len() {
            for j in i..=STREAM.len() {
                assert_eq!(events(&[&STREAM[..i], &STREAM[i..j], &STREAM[j..]]), want, "{i} {j}");
            }
        }
        assert_eq!(events(&STREAM.chunks(1).collect::<Vec<_>>()), want);
    }

    #[test]
    fn an_event_without_its_blank_line_is_not_dispatched() {
        assert_eq!(events(&[b"data: x\n"]), [""; 0]);
    }

    #[test]
    fn endless_lines_and_events_are_refused() {
        let line = vec![b'x'; EVENT_BYTES_MAX + 1];
        assert!(SseParser::default().push(&line, |_| Ok(())).is_err());
        let lines = [b"data: ".as_slice(), &[b'x'; 1000], b"\n"].concat().repeat(1100);
        assert!(SseParser::default().push(&lines, |_| Ok(())).is_err());
    }

    #[test]
    fn an_error_from_the_caller_ends_the_push() {
        let got = SseParser::default().push(b"data: x\n\n", |_| Err(RequestError::Answer("x")));
        assert_eq!(got, Err(RequestError::Answer("x")));
    }
}
