//! The part of an address after the question mark, of routes that take some.

use std::collections::BTreeMap;

use axum::http::Uri;

use crate::error::{ApiError, excerpt};

/// Longest query that is read.
const BYTES_MAX: usize = 4096;

/// Names and their values, each once.
#[derive(Debug, Default)]
pub(super) struct Query(BTreeMap<String, String>);

impl Query {
    /// Reads it, and refuses names that are none of `known`, and names that come twice.
    pub(super) fn of(uri: &Uri, known: &[&str]) -> Result<Query, ApiError> {
        let text = uri.query().unwrap_or_default();
        let invalid = |param: &str, message: String| ApiError::param(excerpt(param), "invalid_value", message);
        if text.len() > BYTES_MAX {
            return Err(invalid("query", format!("The query is longer than {BYTES_MAX} bytes.")));
        }
        let mut found = BTreeMap::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (Some(name), Some(value)) = (decoded(name), decoded(value)) else {
                return Err(invalid("query", "The query is not text in percent-encoding.".into()));
            };
            if !known.contains(&name.as_str()) {
                let message = format!("Unknown parameter: '{}'.", excerpt(&name));
                return Err(ApiError::param(excerpt(&name), "unknown_parameter", message));
            }
            if found.insert(name.clone(), value).is_some() {
                return Err(invalid(&name, format!("'{name}' comes twice.")));
            }
        }
        Ok(Query(found))
    }

    /// A value, if it is there and not empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || bytes.next().and_then(|byte| char::from(byte).to_digit(16));
                (digit()? * 16 + digit()?) as u8
            }
            other => other,
        });
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Query, ApiError> {
        Query::of(&format!("/x?{text}").parse().expect("an address"), &["from", "to"])
    }

    #[test]
    fn names_and_values_are_read_once_each() {
        let query = read("from=2026-11-01&to=a%20b%2b+c").expect("a query");
        assert_eq!((query.get("from"), query.get("to")), (Some("2026-11-01"), Some("a b+ c")));
        assert_eq!(read("from=&to").expect("a query").get("to"), None);
        assert!(Query::of(&"/x".parse().expect("an address"), &[]).is_ok());
        for bad in ["form=1", "from=1&from=2", "from=%zz", "from=%f", "from=%ff", &"x".repeat(5000)] {
            assert_eq!(read(bad).expect_err(bad).status().as_u16(), 400, "{bad}");
        }
    }
}
