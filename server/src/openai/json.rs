//! Strict JSON: what comes in is one object, nested at most [`DEPTH_MAX`] deep, with no key twice and nothing after it.
//!
//! `serde_json` by itself keeps the last of two equal keys, which lets a filter in front of us and ourselves read two
//! different requests out of one body.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::error::{ApiError, excerpt};

/// How deep arrays and objects may nest, the outermost object included.
pub(crate) const DEPTH_MAX: usize = 32;

/// Parses a body.
pub(crate) fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>, ApiError> {
    let refuse = |why: String| ApiError::Invalid {
        message: format!("The request body is not valid: {why}."),
        param: None,
        code: "invalid_json",
    };
    let mut source = serde_json::Deserializer::from_slice(bytes);
    let value = Strict { depth: DEPTH_MAX }
        .deserialize(&mut source)
        .and_then(|value| source.end().map(|()| value))
        .map_err(|error| refuse(error.to_string()))?;
    match value {
        Value::Object(map) => Ok(map),
        _ => Err(refuse("it must be a JSON object".into())),
    }
}

/// Reads one value, counting down the levels that are left.
struct Strict {
    depth: usize,
}

impl Strict {
    fn inner<E: Error>(&self) -> Result<usize, E> {
        self.depth.checked_sub(1).ok_or_else(|| E::custom(format_args!("nested more than {DEPTH_MAX} deep")))
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<Value, D::Error> {
        source.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let depth = self.inner()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Strict { depth })? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let depth = self.inner()?;
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom(format_args!("the key `{}` comes twice", excerpt(&key))));
            }
            let value = entries.next_value_seed(Strict { depth })?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(body: &[u8]) -> String {
        parse_object(body).expect_err("refused").to_string()
    }

    #[test]
    fn plain_objects_pass() {
        let map = parse_object(br#" {"a":[1,-2,0.5,true,null,"x"],"b":{"c":{}}} "#).expect("valid");
        assert_eq!(Value::Object(map), serde_json::json!({"a": [1, -2, 0.5, true, null, "x"], "b": {"c": {}}}));
    }

    #[test]
    fn depth_is_bounded_exactly() {
        let nested = |levels: usize| {
            let inner = levels - 1;
            format!("{{\"a\":{}{}}}", "[".repeat(inner), "]".repeat(inner)).into_bytes()
        };
        assert!(parse_object(&nested(DEPTH_MAX)).is_ok());
        assert!(refusal(&nested(DEPTH_MAX + 1)).contains("deep"));
        assert!(refusal(&nested(100_000)).contains("deep"));
    }

    #[test]
    fn malformed_bodies_are_refused() {
        let cases: [&[u8]; 16] = [
            b"",
            b"{",
            b"[]",
            b"null",
            b"1",
            b"\"x\"",
            b"{} {}",
            b"{}x",
            b"{\"a\":1,}",
            b"{\"a\":NaN}",
            b"{\"a\":Infinity}",
            b"{\"a\":1e999}",
            b"{\"a\":01}",
            b"{\"a\":\"\xff\"}",
            b"{\"a\":\"\\ud800\"}",
            b"{'a':1}",
        ];
        for body in cases {
            let error = parse_object(body).expect_err("refused");
            assert_eq!(error.code(), "invalid_json", "{}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn no_key_comes_twice_at_any_level() {
        assert!(refusal(br#"{"n":1,"n":2}"#).contains("`n` comes twice"));
        assert!(refusal(br#"{"a":[{"b":1,"b":1}]}"#).contains("`b` comes twice"));
        assert!(refusal(br#"{"a":1,"\u0061":1}"#).contains("`a` comes twice"));
    }
}
