//! Strict JSON: what comes in is one object, nested at most [`DEPTH_MAX`] deep, with no key twice and nothing after it.
//!
//! `serde_json` by itself keeps the last of two equal keys, which lets a filter in front of us and ourselves read two
//! different requests out of one body.
//!
//! A tree takes far more memory than its text: `0,` is 2 bytes and 32 in a list, `{"a":0},` is 8 and some 700 in a map. So
//! values and keys are counted, and a body is refused at the one that is too many: [`VALUES_MAX`] and [`KEYS_MAX`] keep the
//! tree of the worst body under 32 MiB.

use std::{cell::Cell, fmt};

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::error::{ApiError, excerpt};

/// How deep arrays and objects may nest, the outermost object included.
pub(crate) const DEPTH_MAX: usize = 32;
/// Values of all kinds in one body, lists and objects included: the ids of 300,000 tokens to embed, which is the most that one
/// request may ask for, their 2,048 lists, and room.
pub(crate) const VALUES_MAX: usize = 320_000;
/// Keys of all objects in one body together: eight for each of 2,048 messages.
pub(crate) const KEYS_MAX: usize = 1 << 14;

/// Parses a body.
pub(crate) fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>, ApiError> {
    let refuse = |why: String| ApiError::Invalid {
        message: format!("The request body is not valid: {why}."),
        param: None,
        code: "invalid_json",
    };
    let mut source = serde_json::Deserializer::from_slice(bytes);
    let left = Left { values: Cell::new(VALUES_MAX), keys: Cell::new(KEYS_MAX) };
    let value = Strict { depth: DEPTH_MAX, left: &left }
        .deserialize(&mut source)
        .and_then(|value| source.end().map(|()| value))
        .map_err(|error| refuse(error.to_string()))?;
    match value {
        Value::Object(map) => Ok(map),
        _ => Err(refuse("it must be a JSON object".into())),
    }
}

/// What a body may still hold.
struct Left {
    values: Cell<usize>,
    keys: Cell<usize>,
}

/// Reads one value, counting down what is left.
struct Strict<'a> {
    depth: usize,
    left: &'a Left,
}

impl Strict<'_> {
    fn inner<E: Error>(&self) -> Result<usize, E> {
        self.depth.checked_sub(1).ok_or_else(|| E::custom(format_args!("nested more than {DEPTH_MAX} deep")))
    }
}

/// Takes one off what is left.
fn count<E: Error>(left: &Cell<usize>, max: usize, what: &str) -> Result<(), E> {
    let fewer = left.get().checked_sub(1).ok_or_else(|| E::custom(format_args!("more than {max} {what}")))?;
    left.set(fewer);
    Ok(())
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, source: D) -> Result<Value, D::Error> {
        count(&self.left.values, VALUES_MAX, "values")?;
        source.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
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
        while let Some(item) = items.next_element_seed(Strict { depth, ..self })? {
            list.push(item);
        }
        // A list of one has room for four otherwise, which counts where lists of one are the whole body.
        list.shrink_to_fit();
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let depth = self.inner()?;
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom(format_args!("the key `{}` comes twice", excerpt(&key))));
            }
            count(&self.left.keys, KEYS_MAX, "keys")?;
            let value = entries.next_value_seed(Strict { depth, ..self })?;
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
    fn values_and_keys_are_bounded_exactly() {
        let of = |n: usize, item: &str| format!("{{\"a\":[{}]}}", vec![item; n].join(",")).into_bytes();
        // The body and the list are values, too.
        assert!(parse_object(&of(VALUES_MAX - 2, "0")).is_ok());
        assert!(refusal(&of(VALUES_MAX - 1, "0")).contains("values"));
        assert!(refusal(&of(VALUES_MAX / 2, "[0]")).contains("values"));
        assert!(parse_object(&of(KEYS_MAX - 1, r#"{"b":0}"#)).is_ok());
        assert!(refusal(&of(KEYS_MAX, r#"{"b":0}"#)).contains("keys"));
        let wide: Vec<String> = (0..=KEYS_MAX).map(|i| format!("\"{i}\":0")).collect();
        assert!(refusal(format!("{{{}}}", wide.join(",")).as_bytes()).contains("keys"));
    }

    #[test]
    fn long_numbers_and_odd_characters_are_read_or_refused() {
        let digits = "9".repeat(1 << 20);
        for number in [digits.clone(), format!("-{digits}"), "1e400".into(), format!("1e{digits}"), "-1e309".into()] {
            assert!(refusal(format!("{{\"a\":{number}}}").as_bytes()).contains("number"), "{:.20}", number);
        }
        let tiny = parse_object(format!("{{\"a\":1e-{digits}}}").as_bytes()).expect("a number");
        assert_eq!(tiny["a"], 0.0);
        let long = parse_object(format!("{{\"a\":0.{digits}}}").as_bytes()).expect("a number");
        assert!(long["a"].as_f64().is_some_and(|x| (x - 1.0).abs() < 1e-9));
        // A byte-order mark is no white space; an escaped zero byte is a character as any other.
        for body in ["\u{feff}{}", "{}\0", "{\"a\":\"\0\"}", "{\"\0\":1}"] {
            refusal(body.as_bytes());
        }
        assert_eq!(parse_object(br#"{"a":"\u0000"}"#).expect("valid")["a"], "\0");
        for half in [r"\ud800", r"\udc00", r"\ud800\ud800", r"\ud800x", r"\ud8"] {
            refusal(format!("{{\"a\":\"{half}\"}}").as_bytes());
        }
        let key = "k".repeat(1 << 20);
        assert!(refusal(format!("{{\"{key}\":1,\"{key}\":2}}").as_bytes()).len() < 200);
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
