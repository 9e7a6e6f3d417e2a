//! Traces: JSON lines that say when each request is sent, how long it is, and whose.
//!
//! `{"at": 0.25, "prompt_tokens": 120, "output_tokens": 40, "tenant": "a"}`, with `at` in seconds since the start and `tenant` left
//! out where there is only one. Lines may stand in any order; blank ones are passed over.

use std::path::Path;

use serde::Deserialize;

use crate::config::{PROMPT_TOKENS_MAX, REQUESTS_MAX, Tenant};
use crate::error::BenchError;

/// A day: a later time is a slip of units.
const AT_MAX: f64 = 86_400.0;

/// One request of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Traced {
    /// Nanoseconds since the start.
    pub(crate) at: u64,
    pub(crate) prompt_tokens: u32,
    pub(crate) output_tokens: u32,
    /// The place among the run's tenants.
    pub(crate) tenant: u16,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    at: f64,
    prompt_tokens: u32,
    #[serde(default = "one")]
    output_tokens: u32,
    tenant: Option<String>,
}

/// Embeddings have no output to name.
fn one() -> u32 {
    1
}

/// Reads a file; the requests come back in the order of their times.
pub(crate) fn read(path: &Path, tenants: &[Tenant]) -> Result<Vec<Traced>, BenchError> {
    let error = |line, reason| BenchError::Trace { path: path.to_path_buf(), line, reason };
    let text = std::fs::read_to_string(path).map_err(|e| error(None, e.to_string()))?;
    parse(&text, tenants).map_err(|(line, reason)| error(line, reason))
}

/// The line that an error is about, counted from 1, and what is wrong.
type TraceError = (Option<usize>, String);

fn parse(text: &str, tenants: &[Tenant]) -> Result<Vec<Traced>, TraceError> {
    let mut requests = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let request = parse_line(line, tenants).map_err(|reason| (Some(index + 1), reason))?;
        if requests.len() >= REQUESTS_MAX as usize {
            return Err((Some(index + 1), format!("a trace has at most {REQUESTS_MAX} requests")));
        }
        requests.push(request);
    }
    if requests.is_empty() {
        return Err((None, "it holds no request".into()));
    }
    // Stable: requests of the same moment keep the file's order.
    requests.sort_by_key(|request| request.at);
    Ok(requests)
}

fn parse_line(line: &str, tenants: &[Tenant]) -> Result<Traced, String> {
    // serde_json's words end with a place in the text it was given, which is always "line 1" here.
    let line: Line = serde_json::from_str(line).map_err(|e| {
        let words = e.to_string();
        words.split_once(" at line ").map_or(words.clone(), |(before, _)| before.to_string())
    })?;
    if !(0.0..=AT_MAX).contains(&line.at) {
        return Err(format!("`at` is {} s, not 0 to {AT_MAX}", line.at));
    }
    if line.prompt_tokens == 0 || line.prompt_tokens > PROMPT_TOKENS_MAX {
        return Err(format!("`prompt_tokens` is {}, not 1 to {PROMPT_TOKENS_MAX}", line.prompt_tokens));
    }
    if line.output_tokens == 0 {
        return Err("`output_tokens` is 0, not at least 1".into());
    }
    let tenant = match &line.tenant {
        None if tenants.len() == 1 => 0,
        None => return Err("`tenant` is missing, and there are several".into()),
        Some(name) => {
            let known = tenants.iter().position(|tenant| tenant.name == *name);
            known.ok_or_else(|| format!("no tenant of this run is called `{name}`"))?
        }
    };
    Ok(Traced {
        at: (line.at * 1e9) as u64,
        prompt_tokens: line.prompt_tokens,
        output_tokens: line.output_tokens,
        // At most `TENANTS_MAX`.
        tenant: tenant as u16,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::tenant;

    fn tenants() -> Vec<Tenant> {
        vec![tenant("a", "x", 1.0), tenant("b", "y", 1.0)]
    }

    #[test]
    fn requests_come_back_in_the_order_of_their_times() {
        let text = "{\"at\":1.5,\"prompt_tokens\":10,\"output_tokens\":4,\"tenant\":\"b\"}\n\n\
                    {\"at\":0.25,\"prompt_tokens\":20,\"tenant\":\"a\"}\r\n";
        let request = |at, prompt_tokens, output_tokens, tenant| Traced { at, prompt_tokens, output_tokens, tenant };
        assert_eq!(
            parse(text, &tenants()).unwrap(),
            [request(250_000_000, 20, 1, 0), request(1_500_000_000, 10, 4, 1)]
        );
    }

    #[test]
    fn one_tenant_need_not_be_named() {
        let text = r#"{"at": 0, "prompt_tokens": 1, "output_tokens": 1}"#;
        assert_eq!(parse(text, &tenants()[..1]).unwrap()[0].tenant, 0);
        assert!(parse(text, &tenants()).unwrap_err().1.contains("`tenant` is missing"));
    }

    #[test]
    fn an_error_names_its_line() {
        let good = "{\"at\":0,\"prompt_tokens\":1,\"tenant\":\"a\"}\n";
        for (bad, part) in [
            ("nonsense", "expected"),
            (r#"{"prompt_tokens":1,"tenant":"a"}"#, "missing field `at`"),
            (r#"{"at":-1,"prompt_tokens":1,"tenant":"a"}"#, "`at` is -1"),
            (r#"{"at":1e99,"prompt_tokens":1,"tenant":"a"}"#, "`at` is"),
            (r#"{"at":0,"prompt_tokens":0,"tenant":"a"}"#, "`prompt_tokens` is 0"),
            (r#"{"at":0,"prompt_tokens":1.5,"tenant":"a"}"#, "invalid type"),
            (r#"{"at":0,"prompt_tokens":1,"output_tokens":0,"tenant":"a"}"#, "`output_tokens` is 0"),
            (r#"{"at":0,"prompt_tokens":1,"tenant":"c"}"#, "called `c`"),
            (r#"{"at":0,"prompt_tokens":1,"tenant":"a","prio":1}"#, "unknown field `prio`"),
        ] {
            let (line, reason) = parse(&format!("{good}\n{bad}\n{good}"), &tenants()).unwrap_err();
            assert_eq!(line, Some(3), "{bad}: {reason}");
            assert!(reason.contains(part), "{bad}: {reason}");
        }
        assert_eq!(parse("\n", &tenants()).unwrap_err().0, None);
    }
}
