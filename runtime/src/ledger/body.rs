//! How records are written into rows, and read from them.
//!
//! Bodies are JSON, so that they can be read and recomputed by hand; the bytes that are stored are the bytes that are
//! hashed, so nothing depends on how a parser would write them again. Lists of pairs stand where a map would be, for
//! a map has no order.

use serde::{Deserialize, Deserializer, Serialize};

use super::{
    record::{Kind, Open, Record, Running, Settle, Share, Text},
    row::{Hash, ROW_VERSION, Row},
    verify::Fault,
};

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

impl<'a> Record<'a> {
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
