//! What rows say: one type for each kind, and its body.
//!
//! Bodies are JSON, so that they can be read and recomputed by hand; the bytes that are stored are the bytes that are
//! hashed, so nothing depends on how a parser would write them again. Lists of pairs stand where a map would be, for
//! a map has no order.

use std::{borrow::Cow, fmt};

use serde::{Deserialize, Deserializer, Serialize, de};

use super::{
    row::{Hash, ROW_VERSION, Row},
    verify::Fault,
};

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

/// What an operator's time went into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OperatorKind {
    /// Loading models.
    Load,
    /// Requests of the operator's own: canaries and warm-up.
    Own,
    /// Computing again what a preemption or a lost device took.
    Redo,
    /// What metered tenants' rows took above their grants.
    Overrun,
    /// Rows that failed.
    Failed,
    /// Wall time of a step in which the device did not compute.
    Gap,
    /// The device had no executor.
    Absent,
    /// What none of the others says.
    Other,
    /// Lost in a crash.
    Lost,
    /// Between a crash and the next start.
    Down,
}

impl OperatorKind {
    /// All of them, in the order of [`OperatorTimes`].
    pub const ALL: [OperatorKind; 10] = [
        OperatorKind::Load,
        OperatorKind::Own,
        OperatorKind::Redo,
        OperatorKind::Overrun,
        OperatorKind::Failed,
        OperatorKind::Gap,
        OperatorKind::Absent,
        OperatorKind::Other,
        OperatorKind::Lost,
        OperatorKind::Down,
    ];

    /// As it is stored.
    pub fn name(self) -> &'static str {
        match self {
            OperatorKind::Load => "load",
            OperatorKind::Own => "own",
            OperatorKind::Redo => "redo",
            OperatorKind::Overrun => "overrun",
            OperatorKind::Failed => "failed",
            OperatorKind::Gap => "gap",
            OperatorKind::Absent => "absent",
            OperatorKind::Other => "other",
            OperatorKind::Lost => "lost",
            OperatorKind::Down => "down",
        }
    }
}

/// The operator's time by kind, in nanoseconds. Written as the list of its kinds that are not zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OperatorTimes([i64; OperatorKind::ALL.len()]);

impl OperatorTimes {
    /// Of one kind.
    pub fn get(&self, kind: OperatorKind) -> i64 {
        self.0[kind as usize]
    }

    /// Of one kind, to be changed.
    pub fn get_mut(&mut self, kind: OperatorKind) -> &mut i64 {
        &mut self.0[kind as usize]
    }

    /// All of it, which 128 bits hold whatever a row claims.
    pub fn total(&self) -> i128 {
        self.0.iter().map(|ns| i128::from(*ns)).sum()
    }

    /// Whether no kind has less than in `before`.
    pub(super) fn is_since(&self, before: &OperatorTimes) -> bool {
        self.0.iter().zip(&before.0).all(|(now, before)| now >= before)
    }
}

impl Serialize for OperatorTimes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let kinds = OperatorKind::ALL.into_iter().map(|kind| (kind.name(), self.get(kind)));
        serializer.collect_seq(kinds.filter(|(_, ns)| *ns != 0))
    }
}

impl<'de> Deserialize<'de> for OperatorTimes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let pairs = Vec::<(Text<'de>, i64)>::deserialize(deserializer)?;
        let mut times = OperatorTimes::default();
        let mut last = None;
        for (name, ns) in pairs {
            let kind = OperatorKind::ALL.into_iter().find(|kind| kind.name() == name.as_ref());
            let kind = kind.ok_or_else(|| de::Error::custom(format!("an unknown operator account, {name:?}")))?;
            // In one order and without zeros, each state has one form.
            if ns == 0 || last.is_some_and(|last| last >= kind) {
                return Err(de::Error::custom("operator accounts out of order"));
            }
            last = Some(kind);
            *times.get_mut(kind) = ns;
        }
        Ok(times)
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
    fn is_empty(&self) -> bool {
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

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OpenBody<'a> {
    version: u8,
    #[serde(borrow)]
    replica: Text<'a>,
    previous: Option<(i64, Text<'a>)>,
}

/// [`SettleBody`], to be written.
#[derive(Serialize)]
struct SettleBodyOf<'a> {
    plan: &'a Text<'a>,
    split: &'a [Share<'a>],
    stop: &'a Text<'a>,
    #[serde(skip_serializing_if = "Text::is_empty")]
    name: &'a Text<'a>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SettleBody<'a> {
    #[serde(borrow)]
    plan: Text<'a>,
    split: Vec<Share<'a>>,
    stop: Text<'a>,
    #[serde(borrow, default)]
    name: Option<Text<'a>>,
}

impl Serialize for Share<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (&self.device, &self.class, self.ns).serialize(serializer)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Share<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (device, class, ns) = Deserialize::deserialize(deserializer)?;
        Ok(Share { device, class, ns })
    }
}

impl Serialize for Running<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (&self.tenant, &self.request, &self.model, &self.key, &self.plan, self.ns).serialize(serializer)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Running<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (tenant, request, model, key, plan, ns) = Deserialize::deserialize(deserializer)?;
        Ok(Running { tenant, request, model, key, plan, ns })
    }
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

    /// The row, without its place in a chain.
    pub(super) fn to_row(&self) -> Row<'static> {
        let mut row = Row {
            epoch: 0,
            seq: 0,
            at_us: 0,
            kind: self.kind().name().into(),
            tenant: "".into(),
            request: "".into(),
            model: "".into(),
            key: "".into(),
            device_ns: 0,
            prompt_tokens: 0,
            completion_tokens: 0,
            body: "{}".into(),
            hash: Hash::NONE,
        };
        match self {
            Record::Open(open) => {
                let previous = open.previous.map(|(epoch, head)| (epoch, Text::from(head.to_string())));
                row.body = json(&OpenBody { version: ROW_VERSION, replica: open.replica.clone(), previous }).into();
            }
            Record::Settle(settle) | Record::Recovered(settle) => {
                row.tenant = settle.tenant.as_ref().to_owned().into();
                row.request = settle.request.as_ref().to_owned().into();
                row.model = settle.model.as_ref().to_owned().into();
                row.key = settle.key.as_ref().to_owned().into();
                row.device_ns = settle.total();
                row.prompt_tokens = settle.prompt_tokens;
                row.completion_tokens = settle.completion_tokens;
                let Settle { plan, split, stop, name, .. } = settle;
                row.body = json(&SettleBodyOf { plan, split, stop, name }).into();
            }
            Record::Checkpoint(checkpoint) => row.body = json(checkpoint).into(),
            Record::Lost(lost) => {
                row.device_ns = lost.lost.saturating_add(lost.down);
                row.body = json(lost).into();
            }
            Record::Close => {}
        }
        row
    }

    /// Reads a row. Its columns must agree with its body, and what its kind has no use for must be empty.
    pub(super) fn from_row(row: &'a Row<'_>) -> Result<Record<'a>, Fault> {
        let unreadable = |what: String| Fault::Unreadable { what };
        let kind = row.kind().ok_or_else(|| unreadable(format!("its kind, {:?}, is unknown", row.kind)))?;
        let settled = matches!(kind, Kind::Settle | Kind::Recovered);
        let bare = [&row.tenant, &row.request, &row.model, &row.key].iter().all(|text| text.is_empty())
            && (row.prompt_tokens, row.completion_tokens) == (0, 0);
        if !settled && !bare {
            return Err(unreadable("it names a tenant's request".into()));
        }
        let record = match kind {
            Kind::Open => {
                let body: OpenBody<'_> = body(&row.body)?;
                if body.version != ROW_VERSION {
                    return Err(unreadable(format!("it is of version {}", body.version)));
                }
                let previous = match body.previous {
                    None => None,
                    Some((epoch, head)) => {
                        let head = Hash::from_hex(head.as_ref());
                        Some((epoch, head.ok_or_else(|| unreadable("a hash in it is none".into()))?))
                    }
                };
                Record::Open(Open { replica: body.replica, previous })
            }
            Kind::Settle | Kind::Recovered => {
                let SettleBody { plan, split, stop, name } = body(&row.body)?;
                // Without a name there is no field, so that each bill has one form.
                if name.as_ref().is_some_and(Text::is_empty) {
                    return Err(unreadable("its name is empty".into()));
                }
                let settle = Settle {
                    tenant: Text::from(&*row.tenant),
                    request: Text::from(&*row.request),
                    model: Text::from(&*row.model),
                    key: Text::from(&*row.key),
                    plan,
                    split,
                    prompt_tokens: row.prompt_tokens,
                    completion_tokens: row.completion_tokens,
                    stop,
                    name: name.unwrap_or(Text::from("")),
                };
                match kind {
                    Kind::Settle => Record::Settle(settle),
                    _ => Record::Recovered(settle),
                }
            }
            Kind::Checkpoint => Record::Checkpoint(body(&row.body)?),
            Kind::Lost => Record::Lost(body(&row.body)?),
            Kind::Close if row.body == "{}" => Record::Close,
            Kind::Close => return Err(unreadable("its body is not empty".into())),
        };
        let charged = match &record {
            Record::Settle(settle) | Record::Recovered(settle) => settle.total(),
            Record::Lost(lost) => lost.lost.saturating_add(lost.down),
            _ => 0,
        };
        match charged == row.device_ns {
            true => Ok(record),
            false => Err(Fault::Split { charged: row.device_ns, split: charged }),
        }
    }
}

fn json<T: Serialize>(body: &T) -> String {
    serde_json::to_string(body).expect("bodies are of numbers, texts and lists, which JSON has")
}

fn body<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Fault> {
    serde_json::from_str(text).map_err(|error| Fault::Unreadable { what: format!("its body: {error}") })
}
