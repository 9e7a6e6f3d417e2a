//! Reading a body within bounds: bytes, time and rate.

use std::{pin::Pin, time::Duration};

use axum::{
    body::{Body, BodyDataStream},
    http::{HeaderMap, header},
};
use futures_core::Stream;
use tokio::time::{Instant, timeout_at};

use crate::error::ApiError;

/// A body may trickle this long before its rate counts.
const GRACE: Duration = Duration::from_secs(5);
/// Bytes a body must bring for each second after that.
const BYTES_PER_SECOND_MIN: u64 = 8 << 10;
/// No body takes longer.
const TIME_MAX: Duration = Duration::from_secs(60);

/// Collects a body.
pub(super) async fn read(headers: &HeaderMap, body: Body, bytes_max: usize) -> Result<Vec<u8>, ApiError> {
    let encodings = headers.get_all(header::CONTENT_ENCODING).iter();
    if encodings.into_iter().any(|value| !value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity")) {
        return Err(ApiError::Encoded);
    }
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    if announced.is_some_and(|length: u64| length > bytes_max as u64) {
        return Err(ApiError::BodyTooLarge(bytes_max));
    }
    collect(body, bytes_max, time_allowed).await
}

/// Collects at most `bytes_max`, each part before the time that the bytes so far are allowed.
async fn collect(body: Body, bytes_max: usize, allowed: impl Fn(usize) -> Duration) -> Result<Vec<u8>, ApiError> {
    let begin = Instant::now();
    let mut stream = body.into_data_stream();
    // What was announced need not come: the buffer grows with what does.
    let mut bytes = Vec::new();
    loop {
        let deadline = begin + allowed(bytes.len());
        let data = match timeout_at(deadline, next(&mut stream)).await {
            Err(_) => return Err(ApiError::BodyTooSlow),
            Ok(None) => return Ok(bytes),
            Ok(Some(Err(_))) => {
                return Err(ApiError::Invalid {
                    message: "The request body broke off.".into(),
                    param: None,
                    code: "invalid_body",
                });
            }
            Ok(Some(Ok(data))) => data,
        };
        if data.len() > bytes_max - bytes.len() {
            return Err(ApiError::BodyTooLarge(bytes_max));
        }
        bytes.extend_from_slice(&data);
    }
}

/// How long after its start a body with so many bytes may still go on.
fn time_allowed(bytes: usize) -> Duration {
    let earned = Duration::from_millis(bytes as u64 * 1000 / BYTES_PER_SECOND_MIN);
    (GRACE + earned).min(TIME_MAX)
}

async fn next(stream: &mut BodyDataStream) -> Option<Result<axum::body::Bytes, axum::Error>> {
    std::future::poll_fn(|context| Pin::new(&mut *stream).poll_next(context)).await
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        task::{Context, Poll},
    };

    use super::*;

    /// A beginning, and then silence.
    struct Broken(Option<axum::body::Bytes>);

    impl Stream for Broken {
        type Item = Result<axum::body::Bytes, Infallible>;

        fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
            self.0.take().map_or(Poll::Pending, |begin| Poll::Ready(Some(Ok(begin))))
        }
    }

    #[test]
    fn slow_bodies_earn_time_by_bytes() {
        let seconds = |bytes| time_allowed(bytes).as_secs();
        assert_eq!((seconds(0), seconds(8 << 10), seconds(80 << 10), seconds(4 << 20)), (5, 6, 15, 60));
    }

    #[tokio::test]
    async fn a_body_that_never_comes_is_given_up() {
        let body = Body::from_stream(Broken(Some(axum::body::Bytes::from_static(b"{"))));
        assert_eq!(collect(body, 100, |_| Duration::ZERO).await, Err(ApiError::BodyTooSlow));
    }

    #[tokio::test]
    async fn bytes_are_bounded_whether_announced_or_not() {
        let cases = [(10, Ok(10)), (11, Err(ApiError::BodyTooLarge(10)))];
        for (length, expected) in cases {
            let body = vec![b'x'; length];
            let silent = read(&HeaderMap::new(), Body::from(body.clone()), 10).await;
            assert_eq!(silent.map(|b| b.len()), expected);
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_LENGTH, length.into());
            let announced = read(&headers, Body::from(body), 10).await;
            assert_eq!(announced.map(|b| b.len()), expected);
        }
    }

    #[tokio::test]
    async fn encoded_bodies_are_refused() {
        for (encoding, fine) in [("gzip", false), ("br", false), ("identity, gzip", false), ("Identity", true)] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_ENCODING, encoding.parse().expect("header"));
            assert_eq!(read(&headers, Body::from("{}"), 10).await.is_ok(), fine, "{encoding}");
        }
    }
}
