//! Reading the fields of one JSON object: each is taken once, with its type and range, and what is left over at the end
//! is refused by name. `null` counts as absent everywhere, as in OpenAI's specification.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::error::{ApiError, excerpt};

/// The fields not yet taken, and where the object is (`messages[2]`, or empty for the body itself).
pub(crate) struct Fields {
    place: String,
    map: Map<String, Value>,
    /// One bit for each key that there is, see [`mark`]. Most of the fifty fields that are looked for are not there.
    marks: u64,
}

/// A bit for a key, by its length and its first letter.
fn mark(name: &str) -> u64 {
    let letter = name.bytes().next().map_or(0, usize::from);
    1 << ((name.len() * 11 + letter) % 64)
}

#[cfg(test)]
thread_local! {
    /// The paths of all fields that this thread has looked for, so that a test of every field can prove that it is.
    pub(crate) static ASKED: std::cell::RefCell<std::collections::BTreeSet<String>> = const {
        std::cell::RefCell::new(std::collections::BTreeSet::new())
    };
}

/// The range of a number, as OpenAI's specification writes ranges.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    min: f32,
    max: f32,
    /// Whether `min` itself is out.
    above: bool,
}

impl Bounds {
    /// `min <= x <= max`.
    pub(crate) const fn closed(min: f32, max: f32) -> Self {
        Bounds { min, max, above: false }
    }

    /// `min < x <= max`.
    pub(crate) const fn above(min: f32, max: f32) -> Self {
        Bounds { min, max, above: true }
    }
}

impl Fields {
    pub(crate) fn new(place: impl Into<String>, map: Map<String, Value>) -> Self {
        let marks = map.keys().fold(0, |marks, key| marks | mark(key));
        Fields { place: place.into(), map, marks }
    }

    /// An item of a list, which has to be an object.
    pub(crate) fn of(place: impl Into<String>, value: Value) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Fields::new(place, map)),
            other => Err(wrong_type(place.into(), "an object", &other)),
        }
    }

    /// A field's name as errors write it.
    pub(crate) fn path(&self, name: &str) -> String {
        match self.place.is_empty() {
            true => name.to_owned(),
            false => format!("{}.{name}", self.place),
        }
    }

    /// The field as it is.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        #[cfg(test)]
        ASKED.with_borrow_mut(|asked| asked.insert(self.path(name)));
        if self.marks & mark(name) == 0 {
            return None;
        }
        self.map.remove(name).filter(|value| !value.is_null())
    }

    pub(crate) fn string(&mut self, name: &str, bytes_max: usize) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) if text.len() <= bytes_max => Ok(Some(text)),
            Some(Value::String(_)) => Err(too_long(self.path(name), bytes_max)),
            Some(other) => Err(wrong_type(self.path(name), "a string", &other)),
        }
    }

    pub(crate) fn boolean(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(wrong_type(self.path(name), "a boolean", &other)),
        }
    }

    pub(crate) fn integer(&mut self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        self.take(name).map(|value| integer(&self.path(name), &value, &range)).transpose()
    }

    /// A whole number that fits 32 bits, from `min` on.
    pub(crate) fn count(&mut self, name: &str, min: u32, max: u32) -> Result<Option<u32>, ApiError> {
        let value = self.integer(name, i64::from(min)..=i64::from(max))?;
        Ok(value.map(|v| u32::try_from(v).expect("ranged to 32 bits")))
    }

    pub(crate) fn number(&mut self, name: &str, bounds: Bounds) -> Result<Option<f32>, ApiError> {
        self.take(name).map(|value| number(&self.path(name), &value, bounds)).transpose()
    }

    pub(crate) fn list(&mut self, name: &str, len_max: usize) -> Result<Option<Vec<Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(items)) if items.len() <= len_max => Ok(Some(items)),
            Some(Value::Array(items)) => Err(too_many(self.path(name), items.len(), len_max)),
            Some(other) => Err(wrong_type(self.path(name), "a list", &other)),
        }
    }

    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Fields>, ApiError> {
        let path = self.path(name);
        self.take(name).map(|value| Fields::of(path, value)).transpose()
    }

    /// A known field that this server does not carry out.
    pub(crate) fn refuse(&mut self, name: &str, why: &str) -> Result<(), ApiError> {
        match self.take(name) {
            None => Ok(()),
            Some(_) => Err(ApiError::unsupported(self.path(name), why)),
        }
    }

    /// A known field that is accepted only with values that ask for what happens anyway.
    pub(crate) fn only(&mut self, name: &str, allowed: impl Fn(&Value) -> bool, why: &str) -> Result<(), ApiError> {
        match self.take(name) {
            Some(value) if !allowed(&value) => Err(ApiError::unsupported(self.path(name), why)),
            _ => Ok(()),
        }
    }

    /// Refuses what nobody took.
    pub(crate) fn finish(mut self) -> Result<(), ApiError> {
        let Some(name) = self.map.keys().next().cloned() else { return Ok(()) };
        self.map.clear();
        let path = self.path(&excerpt(&name));
        Err(ApiError::param(path.clone(), "unknown_parameter", format!("Unknown parameter: '{path}'.")))
    }
}

/// A field that has to be there.
pub(crate) fn required<T>(value: Option<T>, path: &str) -> Result<T, ApiError> {
    value.ok_or_else(|| {
        ApiError::param(path, "missing_required_parameter", format!("Missing required parameter: '{path}'."))
    })
}

/// A whole number in a range. `5.0` is not one.
pub(crate) fn integer(path: &str, value: &Value, range: &RangeInclusive<i64>) -> Result<i64, ApiError> {
    let Value::Number(number) = value else { return Err(wrong_type(path, "an integer", value)) };
    let (min, max) = (*range.start(), *range.end());
    match (number.as_i64(), number.is_u64()) {
        (Some(value), _) if range.contains(&value) => Ok(value),
        (Some(value), _) if value < min => Err(ApiError::param(
            path,
            "integer_below_min_value",
            format!("Invalid '{path}': expected a value >= {min}, got {value}."),
        )),
        (Some(_), _) | (None, true) => Err(ApiError::param(
            path,
            "integer_above_max_value",
            format!("Invalid '{path}': expected a value <= {max}, got {number}."),
        )),
        (None, false) => Err(wrong_type(path, "an integer", value)),
    }
}

/// A number in a range, compared after rounding to 32 bits: what passes is what the sampler gets.
pub(crate) fn number(path: &str, value: &Value, bounds: Bounds) -> Result<f32, ApiError> {
    let Some(wide) = value.as_f64() else { return Err(wrong_type(path, "a number", value)) };
    let narrow = wide as f32;
    let Bounds { min, max, above } = bounds;
    if narrow < min || (above && narrow <= min) {
        let sign = if above { ">" } else { ">=" };
        let message = format!("Invalid '{path}': expected a value {sign} {min}, got {value}.");
        return Err(ApiError::param(path, "decimal_below_min_value", message));
    }
    // Also false for what overflowed to infinity.
    if narrow <= max {
        // Adding zero turns -0.0 into 0.0.
        return Ok(narrow + 0.0);
    }
    let message = format!("Invalid '{path}': expected a value <= {max}, got {value}.");
    Err(ApiError::param(path, "decimal_above_max_value", message))
}

pub(crate) fn wrong_type(path: impl Into<String>, expected: &str, got: &Value) -> ApiError {
    let got = match got {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a number with a fraction or exponent",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    let path = path.into();
    let message = format!("Invalid type for '{path}': expected {expected}, got {got}.");
    ApiError::param(path, "invalid_type", message)
}

pub(crate) fn too_long(path: impl Into<String>, bytes_max: usize) -> ApiError {
    let path = path.into();
    let message = format!("Invalid '{path}': string too long, at most {bytes_max} bytes.");
    ApiError::param(path, "string_above_max_length", message)
}

pub(crate) fn too_many(path: impl Into<String>, len: usize, len_max: usize) -> ApiError {
    let path = path.into();
    let message = format!("Invalid '{path}': list too long, at most {len_max} items, got {len}.");
    ApiError::param(path, "array_above_max_length", message)
}

pub(crate) fn empty(path: impl Into<String>) -> ApiError {
    let path = path.into();
    let message = format!("Invalid '{path}': it must not be empty.");
    ApiError::param(path, "empty_array", message)
}

pub(crate) fn empty_string(path: impl Into<String>) -> ApiError {
    let path = path.into();
    let message = format!("Invalid '{path}': it must not be empty.");
    ApiError::param(path, "string_below_min_length", message)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn integers_are_whole_and_in_range() {
        let read = |value| integer("n", &value, &(1..=8)).map_err(|e| e.code());
        assert_eq!(read(json!(1)), Ok(1));
        assert_eq!(read(json!(8)), Ok(8));
        let cases = [
            (json!(0), "integer_below_min_value"),
            (json!(-1), "integer_below_min_value"),
            (json!(i64::MIN), "integer_below_min_value"),
            (json!(9), "integer_above_max_value"),
            (json!(i64::MAX), "integer_above_max_value"),
            (json!(u64::MAX), "integer_above_max_value"),
            (json!(1.0), "invalid_type"),
            (json!(1e308), "invalid_type"),
            (json!("1"), "invalid_type"),
            (json!(true), "invalid_type"),
            (json!([1]), "invalid_type"),
            (json!({}), "invalid_type"),
        ];
        for (value, code) in cases {
            assert_eq!(read(value.clone()), Err(code), "{value}");
        }
    }

    #[test]
    fn numbers_are_ranged_after_rounding() {
        let read = |value| number("top_p", &value, Bounds::above(0.0, 1.0)).map_err(|e| e.code());
        assert_eq!(read(json!(1)), Ok(1.0));
        assert_eq!(read(json!(0.5)), Ok(0.5));
        // Rounds to 0, which the sampler could not use.
        assert_eq!(read(json!(1e-300)), Err("decimal_below_min_value"));
        assert_eq!(read(json!(0)), Err("decimal_below_min_value"));
        assert_eq!(read(json!(1e308)), Err("decimal_above_max_value"));
        assert_eq!(read(json!(-1e308)), Err("decimal_below_min_value"));
        assert_eq!(read(json!("NaN")), Err("invalid_type"));
        let zero = number("t", &json!(-0.0), Bounds::closed(0.0, 2.0)).expect("in range");
        assert!(zero.is_sign_positive());
    }

    #[test]
    fn leftovers_are_refused_by_name() {
        let mut fields = Fields::new("", Map::from_iter([("a".into(), json!(1)), ("b".into(), json!(null))]));
        assert_eq!(fields.take("a"), Some(json!(1)));
        let error = fields.finish().expect_err("b is left, even as null");
        assert_eq!(error.code(), "unknown_parameter");
        assert!(error.to_string().contains("'b'"));
    }
}
