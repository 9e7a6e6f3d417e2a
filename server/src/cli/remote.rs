//! What the operators' commands share: where the server is, the fields they set, and tables.

use std::{fmt::Write, io::Read, path::PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Map, Value, json};

use super::{
    client::{Server, admin_key},
    put,
};
use crate::config::ADMIN_KEY_FILE;

/// Fields that are text, whatever they look like.
const TEXTS: &[&str] = &["name", "domain", "status", "reason", "plan", "pool"];
/// Rows that are asked for at a time.
const PAGE_LEN: u32 = 500;

/// A column's name, and what it shows of a row.
pub(super) type Column = (&'static str, fn(&Value) -> String);

/// Where the operators' API is, and how to show what it says.
#[derive(Debug, Args)]
pub(super) struct Remote {
    /// The operators' address of the server
    #[arg(long, env = "WEIR_ADMIN_URL", default_value = "http://127.0.0.1:8001", global = true)]
    url: String,
    /// File with the operators' key, unless WEIR_ADMIN_KEY holds it
    #[arg(long, value_name = "FILE", env = "WEIR_ADMIN_KEY_FILE", default_value = ADMIN_KEY_FILE, global = true)]
    key_file: PathBuf,
    /// Show the server's answer as it is
    #[arg(long, global = true)]
    json: bool,
}

impl Remote {
    fn server(&self) -> anyhow::Result<Server> {
        Ok(Server::new(&self.url, &admin_key(&self.key_file)?))
    }

    /// Asks, and reads the answer.
    pub(super) fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let answer = self.server()?.send(method, path, body)?;
        serde_json::from_reader(answer).context("the server's answer")
    }

    /// Asks for what is no JSON.
    pub(super) fn text(&self, path: &str) -> anyhow::Result<String> {
        let mut text = String::new();
        self.server()?.get(path)?.read_to_string(&mut text).context("the server's answer")?;
        Ok(text)
    }

    /// Asks for what may be long.
    pub(super) fn stream(&self, path: &str) -> anyhow::Result<impl Read + use<>> {
        self.server()?.get(path)
    }

    /// Asks for every page of a list, which may have a query already.
    pub(super) fn all(&self, path: &str) -> anyhow::Result<Vec<Value>> {
        let mut rows = Vec::new();
        let mut after = String::new();
        loop {
            let join = if path.contains('?') { '&' } else { '?' };
            let page = self.ask("GET", &format!("{path}{join}limit={PAGE_LEN}&after={}", encoded(&after)), None)?;
            rows.extend(page["data"].as_array().cloned().unwrap_or_default());
            match page["next"].as_str() {
                Some(next) if next != after => after = next.to_owned(),
                _ => return Ok(rows),
            }
        }
    }

    /// Shows one thing: as it is, or as lines.
    pub(super) fn show(&self, body: &Value, lines: impl FnOnce(&Value) -> String) {
        match self.json {
            true => put(&format!("{body:#}\n")),
            false => put(&lines(body)),
        }
    }

    /// Shows a list: one JSON list, or a table with a column for each name and what it shows of a row.
    pub(super) fn list(&self, rows: &[Value], columns: &[Column]) {
        if self.json {
            return put(&format!("{:#}\n", Value::from(rows)));
        }
        let heads = columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        let cells = rows.iter().map(|row| columns.iter().map(|(_, show)| show(row)).collect());
        put(&table(std::iter::once(heads).chain(cells).collect()));
    }
}

/// Columns as wide as what is in them, two spaces apart.
fn table(rows: Vec<Vec<String>>) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows.first().map_or(0, Vec::len)).map(width).collect();
    rows.iter().fold(String::new(), |mut text, row| {
        let line = row.iter().zip(&widths).fold(String::new(), |mut line, (cell, width)| {
            let _ = write!(line, "{cell:<width$}  ");
            line
        });
        let _ = writeln!(text, "{}", line.trim_end());
        text
    })
}

/// What a field of a row says, for a table; `-` of none.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => plain(text),
        Value::Array(list) if list.is_empty() => "-".into(),
        Value::Array(list) => list.iter().map(text).collect::<Vec<_>>().join(","),
        Value::Object(map) if map.is_empty() => "-".into(),
        other => plain(&other.to_string()),
    }
}

/// Nothing that a terminal would act on.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A moment in UTC; `-` of none.
pub(super) fn moment(value: &Value) -> String {
    let Some(at_us) = value.as_i64() else { return "-".into() };
    let seconds = at_us.div_euclid(1_000_000);
    let (day, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let date = weir_runtime::quota::date(day);
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}",
        date.year,
        date.month,
        date.day,
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// A thing as lines of names and values, without those that say nothing.
pub(super) fn lines(body: &Value) -> String {
    let rows = body.as_object().into_iter().flatten();
    let rows = rows.filter(|(name, value)| name.as_str() != "object" && text(value) != "-");
    table(
        rows.map(|(name, value)| match name.ends_with("_us") && value.as_i64().is_some_and(|at| at > 1 << 50) {
            true => vec![name.trim_end_matches("_us").to_owned(), format!("{} UTC", moment(value))],
            false => vec![name.clone(), text(value)],
        })
        .collect(),
    )
}

/// `FIELD=VALUE`s as a patch. A value is JSON if it can be read as such, else text; nothing takes the field away. A field that is not
/// in `own` is a limit, and goes into `limits`. `device_seconds_per_...` are shorter words for nanoseconds.
pub(super) fn patch(fields: &[String], own: &[&str], limits: &str) -> anyhow::Result<Map<String, Value>> {
    let mut patch = Map::new();
    for field in fields {
        let Some((name, said)) = field.split_once('=') else { bail!("`{field}` is not FIELD=VALUE") };
        let value = match said {
            "" => Value::Null,
            said if TEXTS.contains(&name) => said.into(),
            said => serde_json::from_str(said).unwrap_or_else(|_| Value::from(said)),
        };
        let (name, value) = match name.strip_prefix("device_seconds_per_") {
            Some(period) => (format!("device_ns_per_{period}"), nanos(name, &value)?),
            None => (name.to_owned(), value),
        };
        let mut path: Vec<&str> = name.split('.').collect();
        if !own.contains(&path[0]) {
            path.insert(0, limits);
        }
        let (last, way) = path.split_last().expect("a split has a part");
        let place = way.iter().try_fold(&mut patch, |at, name| {
            at.entry(*name).or_insert_with(|| json!({})).as_object_mut().with_context(|| format!("{field}: said twice"))
        })?;
        place.insert((*last).to_owned(), value);
    }
    Ok(patch)
}

fn nanos(name: &str, value: &Value) -> anyhow::Result<Value> {
    match value {
        Value::Null => Ok(Value::Null),
        value => {
            let seconds = value.as_f64().filter(|seconds| (0.0..=9e9).contains(seconds));
            let seconds = seconds.with_context(|| format!("{name} must be a number of seconds"))?;
            Ok(((seconds * 1e9).round() as u64).into())
        }
    }
}

/// An id as part of a path or a query.
pub(super) fn encoded(id: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    id.bytes().fold(String::new(), |mut out, byte| {
        match plain(byte) {
            true => out.push(char::from(byte)),
            false => out.push_str(&format!("%{byte:02X}")),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patched(fields: &[&str]) -> Value {
        let fields: Vec<String> = fields.iter().map(|field| (*field).to_owned()).collect();
        patch(&fields, &["name", "plan", "models", "metadata"], "overrides").expect("fields").into()
    }

    #[test]
    fn fields_make_a_patch() {
        let made = patched(&[
            "plan=professional",
            "weight=3",
            "models=[\"m\"]",
            "name=2024",
            "device_seconds_per_hour=1.5",
            "running_max=",
            "metadata.crm=17",
        ]);
        assert_eq!(
            made,
            json!({
                "plan": "professional", "models": ["m"], "name": "2024", "metadata": {"crm": 17},
                "overrides": {"weight": 3, "device_ns_per_hour": 1_500_000_000_u64, "running_max": null},
            })
        );
        for bad in ["weight", "device_seconds_per_day=soon"] {
            assert!(patch(&[bad.to_owned()], &[], "overrides").is_err(), "{bad}");
        }
    }

    #[test]
    fn a_table_is_as_wide_as_what_is_in_it_and_holds_no_controls() {
        let rows = [json!({"id": "a", "n": null}), json!({"id": "longer\u{1b}[2J", "n": ["x", "y"]})];
        let cells = rows.iter().map(|row| vec![text(&row["id"]), text(&row["n"])]);
        let shown = table(std::iter::once(vec!["ID".to_owned(), "N".to_owned()]).chain(cells).collect());
        assert_eq!(shown, "ID          N\na           -\nlonger\u{fffd}[2J  x,y\n");
    }

    #[test]
    fn moments_are_utc() {
        assert_eq!(moment(&json!(1_709_210_096_000_000_i64)), "2024-02-29 12:34:56");
        assert_eq!(moment(&Value::Null), "-");
    }

    #[test]
    fn an_id_is_one_part_of_the_path() {
        assert_eq!(encoded("chatcmpl-1.a_b~"), "chatcmpl-1.a_b~");
        assert_eq!(encoded("a/b?c%"), "a%2Fb%3Fc%25");
    }
}
