//! What every request gets and every answer carries, errors included: the id, taken from the client or made here; and the
//! word that the connection ends, where a body was left unread.

use std::{sync::Arc, time::Instant};

use axum::{
    body::HttpBody,
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, header},
    middleware::Next,
    response::Response,
};

use crate::{
    error::{BodyUnread, excerpt},
    identity::Caller,
    keys::random_id,
};

static HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// Longest id a client may choose.
const BYTES_MAX: usize = 128;

/// The id, for the engine and the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(pub Arc<str>);

/// Gives the request its id, and writes one line about it when its status is known.
pub(super) async fn tag(request: Request, next: Next) -> Response {
    tagged(request, |request| next.run(request)).await
}

/// The same around any work.
pub(super) async fn tagged<W: Future<Output = Response>>(
    mut request: Request,
    work: impl FnOnce(Request) -> W,
) -> Response {
    let id: Arc<str> = accepted(request.headers()).unwrap_or_else(|| format!("req-{}", random_id())).into();
    request.extensions_mut().insert(RequestId(id.clone()));
    let (method, path) = (request.method().clone(), excerpt(request.uri().path()));
    let has_body = !request.body().is_end_stream();
    let begin = Instant::now();
    let mut response = work(request).await;
    if has_body && response.extensions().get::<BodyUnread>().is_some() {
        // hyper closes where it finds more of the body than it has at hand, without a word: a client that believes the
        // connection open loses its next request.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(HEADER.clone(), value);
    }
    let tenant = response.extensions().get::<Caller>().map(|c| c.name.clone());
    tracing::debug!(
        target: "weir::access",
        request_id = &*id,
        tenant = tenant.as_deref(),
        %method,
        path,
        status = response.status().as_u16(),
        micros = begin.elapsed().as_micros() as u64,
        "answered"
    );
    response
}

/// The client's own id, if it is one: visible ASCII and not too long. Anything else is replaced rather than refused, since
/// ids are put in by proxies that the client does not know of.
fn accepted(headers: &HeaderMap) -> Option<String> {
    let mut values = headers.get_all(&HEADER).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let bytes = value.as_bytes();
    let fine = !bytes.is_empty() && bytes.len() <= BYTES_MAX && bytes.iter().all(u8::is_ascii_graphic);
    fine.then(|| String::from_utf8_lossy(bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_short_visible_ids_are_taken_over() {
        let read = |values: &[&[u8]]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(&HEADER, HeaderValue::from_bytes(value).expect("header"));
            }
            accepted(&headers)
        };
        assert_eq!(read(&[b"abc-123"]).as_deref(), Some("abc-123"));
        assert_eq!(read(&[&[b'x'; BYTES_MAX]]).map(|id| id.len()), Some(BYTES_MAX));
        let bad: [&[&[u8]]; 6] = [&[], &[b""], &[b"a b"], &[b"\xc3\xa9"], &[&[b'x'; BYTES_MAX + 1]], &[b"a", b"b"]];
        for values in bad {
            assert_eq!(read(values), None, "{values:?}");
        }
    }
}
