//! GGUF headers: our own reader, which believes nothing.
//!
//! The file opens with a magic, a version, two counts, the key-value pairs, the tensor directory, and, from the next
//! multiple of the alignment on, the tensor data. All numbers are little-endian. A reader that trusts a count or an offset
//! reads outside the file or allocates by the attacker's number; so here every step goes through [`Cursor`], which checks
//! what is left, counts are bounded before anything is reserved, sizes use checked arithmetic, and tensors must lie inside
//! the file and apart from each other. Arrays (a vocabulary has 10^5 strings) are walked once to be checked and kept as ranges.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use super::dtype;
use super::{TensorEntry, check_disjoint};
use crate::ModelError;

/// Tensors a header may list. The largest open models (hundreds of experts, stacked) stay far below it.
const TENSORS_MAX: u64 = 1 << 16;
/// Key-value pairs a header may list; real files have about 40.
const PAIRS_MAX: u64 = 1 << 12;
/// Elements of one array; the largest vocabularies have 2^18 tokens and 2^19 merges.
const ARRAY_MAX: u64 = 1 << 22;
/// Bytes of one string value (chat templates are the long ones), and of one key or tensor name.
const STRING_MAX: u64 = 1 << 22;
const NAME_MAX: u64 = 1 << 10;
/// The format's default when `general.alignment` is absent.
const ALIGNMENT_DEFAULT: u64 = 32;

/// A value of the header.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    /// An array: its element type, length, and the bytes of its elements in the file.
    Array {
        element: u32,
        len: usize,
        range: Range<usize>,
    },
}

/// A checked GGUF header.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) values: HashMap<String, Value>,
    pub(crate) tensors: HashMap<String, TensorEntry>,
}

/// Reads little-endian values and never passes the end.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

type Checked<T> = Result<T, String>;

impl<'a> Cursor<'a> {
    fn take(&mut self, len: u64) -> Checked<&'a [u8]> {
        let end = usize::try_from(len).ok().and_then(|len| self.at.checked_add(len));
        let Some(slice) = end.and_then(|end| self.bytes.get(self.at..end)) else {
            return Err(format!("{len} bytes at offset {} pass the end of the file", self.at));
        };
        self.at += slice.len();
        Ok(slice)
    }

    fn array<const N: usize>(&mut self) -> Checked<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64)?);
        Ok(out)
    }

    fn u32(&mut self) -> Checked<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Checked<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn text(&mut self, len_max: u64) -> Checked<&'a str> {
        let len = self.u64()?;
        if len > len_max {
            return Err(format!("a string of {len} bytes at offset {}, at most {len_max} are read", self.at));
        }
        let at = self.at;
        std::str::from_utf8(self.take(len)?).map_err(|_| format!("the string at offset {at} is not UTF-8"))
    }

    /// Reads a scalar of type `kind` (the format's numbering).
    fn scalar(&mut self, kind: u32) -> Checked<Value> {
        Ok(match kind {
            0 => Value::Unsigned(u64::from(u8::from_le_bytes(self.array()?))),
            1 => Value::Signed(i64::from(i8::from_le_bytes(self.array()?))),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.array()?))),
            3 => Value::Signed(i64::from(i16::from_le_bytes(self.array()?))),
            4 => Value::Unsigned(u64::from(self.u32()?)),
            5 => Value::Signed(i64::from(i32::from_le_bytes(self.array()?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.array()?))),
            7 => match self.array::<1>()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => return Err(format!("a boolean of value {other}")),
            },
            8 => Value::Text(self.text(STRING_MAX)?.to_owned()),
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => {
                return Err(format!("value type {other} at offset {} is unknown", self.at));
            }
        })
    }

    /// Checks an array and leaves its elements where they are.
    fn list(&mut self) -> Checked<Value> {
        let element = self.u32()?;
        let len = self.u64()?;
        if len > ARRAY_MAX {
            return Err(format!("an array of {len} elements, at most {ARRAY_MAX} are read"));
        }
        let start = self.at;
        match scalar_bytes(element) {
            Some(size) => {
                self.take(len * size)?;
            }
            None if element == 8 => {
                for _ in 0..len {
                    self.text(STRING_MAX)?;
                }
            }
            None => {
                return Err(format!("an array of elements of type {element} is not read"));
            }
        }
        // Bounded by ARRAY_MAX, so it fits every usize.
        Ok(Value::Array { element, len: len as usize, range: start..self.at })
    }
}

fn scalar_bytes(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

impl Header {
    /// Reads and checks the header of the GGUF file `bytes`; `path` is for messages.
    pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Self, ModelError> {
        parse(bytes).map_err(|error| match error {
            Refusal::Damaged(reason) => ModelError::Damaged { path: path.to_owned(), reason },
            Refusal::Unsupported(reason) => ModelError::Unsupported { path: path.to_owned(), reason },
        })
    }

    /// The value at `key`, if there is one.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// An unsigned integer at `key` in whatever width it is stored.
    pub(crate) fn unsigned(&self, key: &str) -> Option<u64> {
        match self.get(key)? {
            Value::Unsigned(value) => Some(*value),
            Value::Signed(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    /// An unsigned integer that fits a `u32`.
    pub(crate) fn u32(&self, key: &str) -> Option<u32> {
        self.unsigned(key).and_then(|value| u32::try_from(value).ok())
    }

    /// A float at `key`.
    pub(crate) fn float(&self, key: &str) -> Option<f64> {
        match self.get(key)? {
            Value::Float(value) => Some(*value),
            _ => None,
        }
    }

    /// A boolean at `key`.
    pub(crate) fn bool(&self, key: &str) -> Option<bool> {
        match self.get(key)? {
            Value::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// A string at `key`.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Value::Text(value) => Some(value),
            _ => None,
        }
    }

    /// The strings of the array at `key`; `bytes` is the file this header was parsed from.
    pub(crate) fn texts<'a>(&self, bytes: &'a [u8], key: &str) -> Option<Vec<&'a str>> {
        let Value::Array { element: 8, len, range } = self.get(key)? else {
            return None;
        };
        let mut cursor = Cursor { bytes: bytes.get(..range.end)?, at: range.start };
        (0..*len).map(|_| cursor.text(STRING_MAX).ok()).collect()
    }

    /// The numbers of the array at `key` as floats (exact for every 32-bit type).
    pub(crate) fn numbers(&self, bytes: &[u8], key: &str) -> Option<Vec<f64>> {
        let Value::Array { element, len, range } = self.get(key)? else {
            return None;
        };
        let mut cursor = Cursor { bytes: bytes.get(..range.end)?, at: range.start };
        (0..*len)
            .map(|_| match cursor.scalar(*element).ok()? {
                Value::Unsigned(value) => Some(value as f64),
                Value::Signed(value) => Some(value as f64),
                Value::Float(value) => Some(value),
                _ => None,
            })
            .collect()
    }
}

enum Refusal {
    Damaged(String),
    Unsupported(String),
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Self::Damaged(reason)
    }
}

fn parse(bytes: &[u8]) -> Result<Header, Refusal> {
    let mut cursor = Cursor { bytes, at: 0 };
    if cursor.take(4)? != b"GGUF" {
        return Err(Refusal::Damaged("it does not start with the GGUF magic".into()));
    }
    match cursor.u32()? {
        2 | 3 => {}
        1 => {
            return Err(Refusal::Unsupported("GGUF version 1 is not read; convert it anew".into()));
        }
        version => {
            return Err(Refusal::Unsupported(format!(
                "GGUF version {version} is not read (2 and 3 are; a big-endian file looks like this, too)"
            )));
        }
    }
    let tensors = cursor.u64()?;
    let pairs = cursor.u64()?;
    if tensors > TENSORS_MAX || pairs > PAIRS_MAX {
        return Err(Refusal::Damaged(format!(
            "it declares {tensors} tensors and {pairs} values, at most {TENSORS_MAX} and {PAIRS_MAX} are read"
        )));
    }

    let mut values = HashMap::new();
    for _ in 0..pairs {
        let key = cursor.text(NAME_MAX)?;
        let kind = cursor.u32()?;
        let value = if kind == 9 { cursor.list() } else { cursor.scalar(kind) }
            .map_err(|reason| format!("`{key}`: {reason}"))?;
        if values.insert(key.to_owned(), value).is_some() {
            return Err(Refusal::Damaged(format!("the key `{key}` appears twice")));
        }
    }
    let mut header = Header { values, tensors: HashMap::new() };
    if header.unsigned("split.count").is_some_and(|count| count > 1) {
        return Err(Refusal::Unsupported("it is one part of a split model; join the parts into one file first".into()));
    }
    let alignment = match header.get("general.alignment") {
        None => ALIGNMENT_DEFAULT,
        Some(_) => header
            .unsigned("general.alignment")
            .filter(|a| a.is_power_of_two() && *a <= 1 << 20)
            .ok_or_else(|| "general.alignment is no power of two up to 1048576".to_owned())?,
    };
    header.tensors = tensor_directory(&mut cursor, tensors, alignment)?;
    Ok(header)
}

fn tensor_directory(
    cursor: &mut Cursor<'_>,
    count: u64,
    alignment: u64,
) -> Result<HashMap<String, TensorEntry>, Refusal> {
    let mut entries = Vec::new();
    for _ in 0..count {
        let name = cursor.text(NAME_MAX)?.to_owned();
        let dims = cursor.u32()?;
        if dims == 0 || dims > 4 {
            return Err(Refusal::Damaged(format!("tensor `{name}` has {dims} dimensions")));
        }
        // The file lists the fastest dimension first; everything here is row-major, slowest first.
        let mut shape = (0..dims).map(|_| cursor.u64()).collect::<Checked<Vec<_>>>()?;
        shape.reverse();
        let kind = cursor.u32()?;
        let offset = cursor.u64()?;
        let Some(storage) = dtype::ggml(kind) else {
            return Err(Refusal::Unsupported(format!("tensor `{name}` has the unknown type number {kind}")));
        };
        if shape.contains(&0) {
            return Err(Refusal::Damaged(format!("tensor `{name}` has an empty dimension")));
        }
        let len = storage
            .bytes(&shape)
            .ok_or_else(|| format!("tensor `{name}` of shape {shape:?} does not fit its type {}", storage.name))?;
        if !offset.is_multiple_of(alignment) {
            return Err(Refusal::Damaged(format!("tensor `{name}` starts at {offset}, off the alignment {alignment}")));
        }
        entries.push((name, shape, storage, offset, len));
    }
    let data_start =
        (cursor.at as u64).checked_next_multiple_of(alignment).ok_or_else(|| "the header is too long".to_owned())?;
    let file_len = cursor.bytes.len() as u64;

    let mut tensors = HashMap::with_capacity(entries.len());
    for (name, shape, storage, offset, len) in entries {
        let start = data_start.checked_add(offset);
        let end = start.and_then(|start| start.checked_add(len)).filter(|end| *end <= file_len);
        let (Some(start), Some(end)) = (start, end) else {
            return Err(Refusal::Damaged(format!(
                "tensor `{name}` needs {len} bytes at {offset}, past the end of the file (a download that broke off?)"
            )));
        };
        // Inside the mapped file, so both fit usize.
        let entry = TensorEntry {
            storage,
            shape: shape.iter().map(|&dim| dim as usize).collect(),
            range: start as usize..end as usize,
        };
        if tensors.insert(name.clone(), entry).is_some() {
            return Err(Refusal::Damaged(format!("the tensor `{name}` appears twice")));
        }
    }
    check_disjoint(&tensors)?;
    Ok(tensors)
}
