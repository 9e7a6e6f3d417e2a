//! Ranges of addresses, as `10.0.0.0/8`, `2001:db8::/32` or one address.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, de::Error};

/// Most ranges in one list.
const RANGES_LEN_MAX: usize = 256;

/// A range. IPv4 and its mapped form in IPv6 (`::ffff:10.0.0.1`) are the same address here: which of the two a socket
/// says depends on how it was bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    /// With the bits after the prefix cleared.
    base: u128,
    /// Of all 128 bits; an IPv4 prefix is 96 longer than it is written.
    prefix: u32,
}

impl Cidr {
    /// Whether an address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        bits(address) & mask(self.prefix) == self.base
    }
}

/// IPv4 as its mapped form.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(four) => four.to_ipv6_mapped().to_bits(),
        IpAddr::V6(six) => six.to_bits(),
    }
}

fn mask(prefix: u32) -> u128 {
    u128::MAX.checked_shl(128 - prefix).unwrap_or(0)
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("`{}` is no range of addresses: {why}", text.escape_debug());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong("write 10.0.0.0/8, 2001:db8::/32 or one address"))?;
        // Digits only: `u32` would take a plus sign.
        let prefix = prefix.map(|prefix| match prefix.bytes().all(|byte| byte.is_ascii_digit()) {
            true => prefix.parse().map_err(|_| wrong("the prefix is no number")),
            false => Err(wrong("the prefix is no number")),
        });
        let (longest, before) = if address.is_ipv4() { (32, 96) } else { (128, 0) };
        let prefix: u32 = prefix.transpose()?.unwrap_or(longest);
        if prefix > longest {
            return Err(wrong("the prefix is longer than the address"));
        }
        let (base, prefix) = (bits(address), before + prefix);
        // A bit too many is a typing mistake more often than not, and then the range is another one than was meant.
        match base & mask(prefix) == base {
            true => Ok(Cidr { base, prefix }),
            false => Err(wrong("there are bits after the prefix")),
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let six = Ipv6Addr::from_bits(self.base);
        match six.to_ipv4_mapped() {
            Some(four) if self.prefix >= 96 => write!(f, "{four}/{}", self.prefix - 96),
            _ => write!(f, "{six}/{}", self.prefix),
        }
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        String::deserialize(source)?.parse().map_err(D::Error::custom)
    }
}

/// A list of ranges; on the command line separated by commas, and `none` is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CidrList(pub Vec<Cidr>);

impl CidrList {
    /// Whether an address is in one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|range| range.contains(address))
    }

    fn checked(ranges: Vec<Cidr>) -> Result<Self, String> {
        match ranges.len() <= RANGES_LEN_MAX {
            true => Ok(CidrList(ranges)),
            false => Err(format!("more than {RANGES_LEN_MAX} ranges of addresses")),
        }
    }
}

impl FromStr for CidrList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(CidrList::default()),
            list => CidrList::checked(list.split(',').map(|range| range.trim().parse()).collect::<Result<_, _>>()?),
        }
    }
}

impl fmt::Display for CidrList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges: Vec<String> = self.0.iter().map(Cidr::to_string).collect();
        f.write_str(if ranges.is_empty() { "none".to_owned() } else { ranges.join(",") }.as_str())
    }
}

impl<'de> Deserialize<'de> for CidrList {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        CidrList::checked(Vec::deserialize(source)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Cidr {
        text.parse().expect("a range")
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn ranges_hold_what_they_say() {
        for (text, inside, outside) in [
            ("10.0.0.0/8", vec!["10.0.0.0", "10.255.255.255", "::ffff:10.1.2.3"], vec!["11.0.0.0", "9.255.255.255"]),
            (
                "192.0.2.7",
                vec!["192.0.2.7", "::ffff:192.0.2.7"],
                vec!["192.0.2.6", "::192.0.2.7", "::ffff:0:192.0.2.7"],
            ),
            ("0.0.0.0/0", vec!["0.0.0.0", "255.255.255.255"], vec!["::", "::1", "2001:db8::1"]),
            ("::/0", vec!["::", "2001:db8::1", "10.0.0.1"], vec![]),
            ("2001:db8::/33", vec!["2001:db8::1", "2001:db8:7fff::"], vec!["2001:db8:8000::", "10.0.0.1"]),
            ("::1", vec!["::1"], vec!["::", "127.0.0.1"]),
            ("::ffff:10.0.0.0/104", vec!["10.1.1.1"], vec!["11.0.0.0"]),
        ] {
            for inside in inside {
                assert!(range(text).contains(address(inside)), "{inside} in {text}");
            }
            for outside in outside {
                assert!(!range(text).contains(address(outside)), "{outside} not in {text}");
            }
        }
    }

    #[test]
    fn mistakes_are_refused() {
        for text in [
            "",
            "10",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "10.0.0.1/8",
            "2001:db8::/129",
            "host",
            "2001:db8::1/64",
            "10.0.0.0/8/8",
            " 10.0.0.0/8",
            "010.0.0.0/8",
            "fe80::1%eth0",
            "10.0.0.0/4294967304",
        ] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }

    #[test]
    fn lists_read_back() {
        let text = "10.0.0.0/8,2001:db8::/32,192.0.2.7/32,::/0";
        let list: CidrList = text.parse().expect("a list");
        assert_eq!(list.to_string(), text);
        assert_eq!("none".parse(), Ok(CidrList::default()));
        assert_eq!(CidrList::default().to_string(), "none");
        assert_eq!(" 10.0.0.0/8 , ::1".parse::<CidrList>().expect("a list").0.len(), 2);
        for bad in ["", ",", "10.0.0.0/8,", "none,::1"] {
            assert!(bad.parse::<CidrList>().is_err(), "{bad}");
        }
        let many = vec!["::1"; RANGES_LEN_MAX + 1].join(",");
        assert!(many.parse::<CidrList>().is_err());
    }
}
