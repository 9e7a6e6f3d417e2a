//! Sizes and times with their units: `1GiB`, `50ms`.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, de::Error};

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// A length of time, at most a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

const SIZES: [(&str, u64); 8] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1000),
    ("kB", 1000),
    ("B", 1),
];

/// Longest first: `ms` also ends in `s`.
const TIMES: [(&str, u64); 6] =
    [("ns", 1), ("us", 1_000), ("µs", 1_000), ("ms", 1_000_000), ("s", 1_000_000_000), ("m", 60_000_000_000)];
const DAY_NANOS: u64 = 86_400_000_000_000;

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        scaled(text, &SIZES, u64::MAX).map(ByteSize).ok_or_else(|| format!("`{text}` is not a size such as 512MiB"))
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let nanos = scaled(text, &TIMES, DAY_NANOS);
        nanos
            .map(|n| Span(Duration::from_nanos(n)))
            .ok_or_else(|| format!("`{text}` is not a time such as 50ms or 10s"))
    }
}

/// A whole or decimal number and a unit, exactly; `None` when it is neither, or over `max`.
fn scaled(text: &str, units: &[(&str, u64)], max: u64) -> Option<u64> {
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
    let (number, unit) = text.split_at(split);
    let scale = units.iter().find(|(name, _)| *name == unit.trim_start())?.1;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || fraction.is_empty() || fraction.len() > 9 {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let part = u128::from(fraction.parse::<u64>().ok()?) * u128::from(scale) / 10u128.pow(fraction.len() as u32);
    let value = u128::from(whole) * u128::from(scale) + part;
    u64::try_from(value).ok().filter(|v| *v <= max)
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_scaled(f, self.0, &SIZES[..3], "B")
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = u64::try_from(self.0.as_nanos()).unwrap_or(DAY_NANOS);
        let units = [("s", TIMES[4].1), ("ms", TIMES[3].1), ("us", TIMES[1].1)];
        write_scaled(f, nanos, &units, "ns")
    }
}

/// In the largest unit that divides it.
fn write_scaled(f: &mut fmt::Formatter<'_>, value: u64, units: &[(&str, u64)], smallest: &str) -> fmt::Result {
    let found = units.iter().find(|(_, scale)| value != 0 && value.is_multiple_of(*scale));
    let (unit, scale) = found.map_or((smallest, 1), |(unit, scale)| (*unit, *scale));
    write!(f, "{}{unit}", value / scale)
}

impl Span {
    /// Whole seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Span(Duration::from_secs(seconds))
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        String::deserialize(source)?.parse().map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        String::deserialize(source)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_survive_printing() {
        for text in ["0B", "1B", "1KiB", "1536MiB", "4MiB", "1GiB", "1000B"] {
            assert_eq!(text.parse::<ByteSize>().expect("size").to_string(), text);
        }
        for text in ["0ns", "7ns", "20us", "50ms", "1500ms", "10s", "86400s"] {
            assert_eq!(text.parse::<Span>().expect("time").to_string(), text);
        }
        assert_eq!("1.5GiB".parse(), Ok(ByteSize(3 << 29)));
        assert_eq!("2m".parse(), Ok(Span::seconds(120)));
        assert_eq!("0.25 s".parse(), Ok(Span(Duration::from_millis(250))));
    }

    #[test]
    fn numbers_without_units_and_nonsense_are_refused() {
        for bad in ["", "5", "GiB", "-1GiB", "1 gib", "1.2.3MB", ".5GiB", "1.GiB", "99999999999GiB", "1e3MB", "1GiBs"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
        for bad in ["", "5", "s", "-1s", "1h", "86401s", "1.5.2s", "NaNs", "infs"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }
}
