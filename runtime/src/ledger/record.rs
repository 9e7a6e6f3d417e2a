//! What rows say: one type for each kind. How they are written is in [bodies](super::body).

use std::{borrow::Cow, fmt};

use serde::{Deserialize, Deserializer, Serialize, de};

use super::{operator::OperatorTimes, row::Hash};

/// Kinds of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// An epoch begins.
    Open,
    /// A request has ended: its one bill.
    Settle,
    /// The accounts of one device, and what runs.
    Checkpoint,
    /// The bill of a request that a crash ended: what the last checkpoint says of it.
    Recovered,
    /// Time of one device that a crash lost, and that it was down.
    Lost,
    /// The epoch has ended.
    Close,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 6] = [Kind::Open, Kind::Settle, Kind::Checkpoint, Kind::Recovered, Kind::Lost, Kind::Close];

    /// As it is stored.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Open => "open",
            Kind::Settle => "settle",
            Kind::Checkpoint => "checkpoint",
            Kind::Recovered => "recovered",
            Kind::Lost => "lost",
            Kind::Close => "close",
        }
    }

    pub(super) fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// A text inside a body: borrowed from it unless it holds escapes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Text<'a>(pub Cow<'a, str>);

impl AsRef<str> for Text<'_> {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Text<'_> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Self {
        Text(Cow::Borrowed(text))
    }
}

impl From<String> for Text<'_> {
    fn from(text: String) -> Self {
        Text(Cow::Owned(text))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }
            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(text.into())
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(text.to_owned().into())
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

/// What a row says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record<'a> {
    /// See [`Kind::Open`].
    Open(Open<'a>),
    /// See [`Kind::Settle`].
    Settle(Settle<'a>),
    /// See [`Kind::Checkpoint`].
    Checkpoint(Checkpoint<'a>),
    /// See [`Kind::Recovered`].
    Recovered(Settle<'a>),
    /// See [`Kind::Lost`].
    Lost(Lost<'a>),
    /// See [`Kind::Close`].
    Close,
}

/// The first row of an epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open<'a> {
    /// Whose life begins.
    pub replica: Text<'a>,
    /// The replica's epoch before this one, with the hash of its last row.
    pub previous: Option<(i64, Hash)>,
}

/// The bill of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settle<'a> {
    /// Who pays.
    pub tenant: Text<'a>,
    /// Which request: unique for the tenant.
    pub request: Text<'a>,
    /// What it asked for.
    pub model: Text<'a>,
    /// The API key that it came with.
    pub key: Text<'a>,
    /// The plan that its tenant had when it came.
    pub plan: Text<'a>,
    /// Device time of all its choices, by device; each device once.
    pub split: Vec<Share<'a>>,
    /// Tokens of the prompt; zero where a crash took the figure.
    pub prompt_tokens: i64,
    /// Tokens that were drawn, likewise.
    pub completion_tokens: i64,
    /// Why it ended.
    pub stop: Text<'a>,
    /// What its client knows it by, which need not be unique; empty for nothing.
    pub name: Text<'a>,
}

/// What a bill charges of one device. Written as a list of its fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share<'a> {
    /// Which device.
    pub device: Text<'a>,
    /// Of which class, on which its price depends.
    pub class: Text<'a>,
    /// Device time.
    pub ns: i64,
}

/// The accounts of a device: all since it was added in this epoch, up to the end of its last step that was booked.
/// What runs at that moment is in the next one. `wall = idle + operator + settled before + running`, to the
/// nanosecond.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint<'a> {
    /// Which device.
    #[serde(borrow)]
    pub device: Text<'a>,
    /// Of which class.
    pub class: Text<'a>,
    /// Nanoseconds that the accounts are of.
    pub wall: i64,
    /// No step ran, and the device could have run one.
    pub idle: i64,
    /// The operator's.
    pub operator: OperatorTimes,
    /// Every request that was charged for time on this device and is not settled.
    pub running: Vec<Running<'a>>,
}

/// What one request that runs was charged so far, on one device. Written as a list of its fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running<'a> {
    /// Who will pay.
    pub tenant: Text<'a>,
    /// Which request.
    pub request: Text<'a>,
    /// What it asked for.
    pub model: Text<'a>,
    /// The API key that it came with.
    pub key: Text<'a>,
    /// The plan that its tenant had when it came.
    pub plan: Text<'a>,
    /// Device time so far.
    pub ns: i64,
}

/// What a crash took of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lost<'a> {
    /// Which device.
    #[serde(borrow)]
    pub device: Text<'a>,
    /// Between the last checkpoint and the last word of the epoch, without what was settled in it.
    pub lost: i64,
    /// From the last word of the epoch until its recovery.
    pub down: i64,
}

impl Settle<'_> {
    /// What it charges.
    pub fn total(&self) -> i64 {
        self.split.iter().fold(0, |sum: i64, share| sum.saturating_add(share.ns))
    }
}

impl<'a> Record<'a> {
    /// Which kind of row it makes.
    pub fn kind(&self) -> Kind {
        match self {
            Record::Open(_) => Kind::Open,
            Record::Settle(_) => Kind::Settle,
            Record::Checkpoint(_) => Kind::Checkpoint,
            Record::Recovered(_) => Kind::Recovered,
            Record::Lost(_) => Kind::Lost,
            Record::Close => Kind::Close,
        }
    }
}
