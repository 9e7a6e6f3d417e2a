//! OpenAI's headers that tell a client how much of its limits is left.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::bucket::Level;

/// The names of one limit's three headers: of the limit, of what remains, and of when it is whole again.
pub(super) type Names = [HeaderName; 3];

/// Of requests.
pub(super) const REQUESTS: Names = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];
/// Of tokens.
pub(super) const TOKENS: Names = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];

/// Puts a limit's three headers into an answer.
pub(super) fn write(headers: &mut HeaderMap, names: Names, level: Level) {
    let [limit, remaining, reset] = names;
    headers.insert(limit, HeaderValue::from(level.limit));
    headers.insert(remaining, HeaderValue::from(level.remaining));
    if let Ok(value) = HeaderValue::from_str(&duration(level.reset)) {
        headers.insert(reset, value);
    }
}

/// A time as OpenAI writes it: `0s`, `17ms`, `1s`, `1.2s`, `6m0s`, `1h0m3.45s`; rounded up to milliseconds.
pub(super) fn duration(time: Duration) -> String {
    let millis = time.as_micros().div_ceil(1000);
    let (seconds, of_second) = (millis / 1000, millis % 1000);
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    if seconds == 0 && of_second > 0 {
        return format!("{of_second}ms");
    }
    let mut shown = match of_second {
        0 => format!("{}", seconds % 60),
        _ => format!("{}.{of_second:03}", seconds % 60).trim_end_matches('0').to_owned(),
    };
    shown.push('s');
    match (hours, minutes) {
        (0, 0) => shown,
        (0, minutes) => format!("{minutes}m{shown}"),
        (hours, minutes) => format!("{hours}h{minutes}m{shown}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_clients_know_them() {
        for (micros, shown) in [
            (0, "0s"),
            (1, "1ms"),
            (17_000, "17ms"),
            (17_001, "18ms"),
            (999_001, "1s"),
            (1_000_000, "1s"),
            (1_200_000, "1.2s"),
            (8_640_000, "8.64s"),
            (59_999_000, "59.999s"),
            (60_000_000, "1m0s"),
            (432_000_000, "7m12s"),
            (3_600_000_000, "1h0m0s"),
            (3_603_450_000, "1h0m3.45s"),
        ] {
            assert_eq!(duration(Duration::from_micros(micros)), shown);
        }
    }
}
