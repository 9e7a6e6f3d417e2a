//! Reading what `weir serve --record` wrote. The words of the format are those of `docs/simulate.md`; `fixtures/trace-2.ndjson` holds one
//! line of each kind as a server writes them now, `fixtures/trace-1.ndjson` as one wrote them before.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    ops::RangeInclusive,
    path::Path,
};

use weir_scheduler::ModelLimits;

use super::recorded::{Line, RecordedDevice, RecordedModel, RecordedRequest, RecordedStep, RecordedTenant};
use crate::error::BenchError;

/// The versions that are read. The first has nothing of plans but weights, limits and `kv_blocks_*`: what it lacks is as if nobody had
/// bought it.
const FORMATS: RangeInclusive<u32> = 1..=2;
/// The highest number of a block: copies of a load get ranges of their own beyond it.
pub(super) const NUMBER_MAX: u64 = (1 << 36) - 1;
/// The most tokens of one request that can be played.
const LEN_MAX: u64 = 1 << 30;
/// Longest line: of a request for 2,048 inputs, a hundredth of this.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// A recorded load. What the format has and nobody here asks for is read all the same, so that a line is what it should be.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    pub(crate) devices: Vec<RecordedDevice>,
    pub(crate) tenants: Vec<RecordedTenant>,
    pub(crate) queue_len_max: u32,
    pub(crate) locality_quantum: Option<u64>,
    /// By id.
    pub(crate) models: Vec<Option<RecordedModel>>,
    /// In the order in which they came.
    pub(crate) requests: Vec<RecordedRequest>,
    pub(crate) steps: Vec<RecordedStep>,
    /// What a reader should know: lines that are missing, an end before the server's.
    pub notes: Vec<String>,
}

impl Trace {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, or a line is not one of a trace; the error names the line.
    pub fn read(path: &Path) -> Result<Trace, BenchError> {
        let error = |line, reason: String| BenchError::Trace { path: path.to_path_buf(), line, reason };
        let file = File::open(path).map_err(|e| error(None, e.to_string()))?;
        Trace::parse(BufReader::new(file)).map_err(|(line, reason)| error(line, reason))
    }

    pub(crate) fn parse(mut from: impl BufRead) -> Result<Trace, (Option<usize>, String)> {
        let (mut trace, mut text, mut dropped, mut headed) = (Trace::default(), Vec::new(), 0, false);
        for number in 1.. {
            text.clear();
            let read = std::io::Read::take(&mut from, LINE_BYTES_MAX).read_until(b'\n', &mut text);
            if read.map_err(|e| (Some(number), e.to_string()))? == 0 {
                break;
            }
            let line = match serde_json::from_slice::<Line>(&text) {
                Ok(line) => line,
                Err(_) if !text.ends_with(b"\n") && headed && (text.len() as u64) < LINE_BYTES_MAX => {
                    trace.notes.push("the last line was not finished, as when a server is killed".into());
                    break;
                }
                Err(error) => return Err((Some(number), plain(&error))),
            };
            if headed == matches!(line, Line::Header { .. }) {
                let reason = if headed { "a second header" } else { "a trace begins with its header" };
                return Err((Some(number), reason.into()));
            }
            headed = true;
            trace.take(line, &mut dropped).map_err(|reason| (Some(number), reason))?;
        }
        if !headed {
            return Err((None, "it is empty".into()));
        }
        if dropped > 0 {
            trace.notes.push(format!("{dropped} lines were dropped while it was written: some of the load is missing"));
        }
        let known = |model: u16| trace.models.get(model as usize).is_some_and(Option::is_some);
        let used = trace.requests.iter().map(|r| r.model).chain(trace.steps.iter().map(|s| s.model));
        if let Some(model) = used.filter(|model| !known(*model)).min() {
            return Err((None, format!("no line says what model {model} is")));
        }
        // A line is written when a request ends.
        trace.requests.sort_by_key(|request| request.at);
        Ok(trace)
    }

    /// Pools that plans name must be there; what is not simulated is said.
    fn check_plans(&mut self) -> Result<(), String> {
        for tenant in &self.tenants {
            if let Some(pool) = tenant.pool.as_ref().filter(|pool| self.pool(pool).is_none()) {
                return Err(format!("tenant `{}` names pool `{pool}`, and no device is in it", tenant.name));
            }
        }
        let metered: Vec<&str> = self.tenants.iter().filter(|t| t.has_quota()).map(|t| t.name.as_str()).collect();
        if !metered.is_empty() {
            self.notes.push(format!("quotas are not simulated: those of {} are left out", metered.join(", ")));
        }
        Ok(())
    }

    /// A tenant has another plan, or is new. It is played with the plan that it had last.
    fn put_tenant(&mut self, tenant: usize, plan: RecordedTenant, lines_are_missing: bool) -> Result<(), String> {
        if let Some(pool) = plan.pool.as_ref().filter(|pool| self.pool(pool).is_none()) {
            return Err(format!("tenant `{}` names pool `{pool}`, and no device is in it", plan.name));
        }
        let name = plan.name.clone();
        if plan.has_quota() {
            self.note(format!("quotas are not simulated: that of {name} is left out"));
        }
        let known = self.tenants.len();
        if tenant < known {
            self.tenants[tenant] = plan;
            self.note(format!("the plan of {name} changed while it was recorded: its last is played"));
        } else if tenant == known {
            self.tenants.push(plan);
        } else if !lines_are_missing {
            return Err(format!("`tenant` is {tenant}, and the next is {known}"));
        }
        Ok(())
    }

    /// Notes something, once.
    fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// The number of a pool: the first device that is in it.
    pub(super) fn pool(&self, name: &str) -> Option<u16> {
        self.devices.iter().position(|device| device.pool.as_deref() == Some(name)).map(|first| first as u16)
    }

    fn take(&mut self, line: Line, dropped: &mut u64) -> Result<(), String> {
        match line {
            Line::Header { format, devices, tenants, queue_len_max, locality_quantum, .. } => {
                if !FORMATS.contains(&format) {
                    let (first, last) = (FORMATS.start(), FORMATS.end());
                    return Err(format!("format {format}; this program reads formats {first} to {last}"));
                }
                if format < 2 {
                    let note = "it is of format 1, which has no targets, pools, priorities, quotas or bounds of the cache: none are simulated";
                    self.notes.push(note.into());
                }
                (self.devices, self.tenants) = (devices, tenants);
                (self.queue_len_max, self.locality_quantum) = (queue_len_max, locality_quantum);
                self.check_plans()?;
            }
            Line::Model { model, name, blocks, rows_max, tokens_max, context_len_max, .. } => {
                let at = usize::from(model);
                if at >= self.models.len() {
                    self.models.resize(at + 1, None);
                }
                let limits = ModelLimits { blocks, rows_max, tokens_max, context_len_max };
                self.models[at].get_or_insert(RecordedModel { name, limits });
            }
            Line::Tenant { tenant, plan, .. } => {
                self.put_tenant(tenant, plan, *dropped > 0)?;
            }
            Line::Request {
                at,
                tenant,
                model,
                priority,
                prompt_len,
                new_tokens_max,
                drawn,
                lens,
                blocks,
                cached_tokens,
                end,
                ttft,
                took,
                device_time,
            } => {
                if tenant >= self.tenants.len() && *dropped > 0 {
                    // The line that said whose it is was dropped.
                    return Ok(());
                }
                if tenant >= self.tenants.len() {
                    return Err(format!("`tenant` is {tenant}, and the header has {}", self.tenants.len()));
                }
                if drawn.is_empty() == lens.is_empty() {
                    return Err("a request has either `drawn` or `lens`".into());
                }
                if lens.is_empty() && prompt_len == 0 || lens.contains(&0) {
                    return Err("a prompt or an input of no tokens".into());
                }
                let len = lens.iter().chain(&drawn).map(|len| u64::from(*len)).sum::<u64>() + u64::from(prompt_len);
                if len > LEN_MAX {
                    return Err(format!("a request of {len} tokens; at most {LEN_MAX} can be played"));
                }
                let named: u64 = blocks.iter().map(|(_, len)| u64::from(*len)).sum();
                if named > len || blocks.iter().any(|(first, len)| first.saturating_add(u64::from(*len)) > NUMBER_MAX) {
                    return Err("`blocks` has more blocks than tokens, or a number that no trace has".into());
                }
                self.requests.push(RecordedRequest {
                    at,
                    tenant,
                    model,
                    priority,
                    prompt_len,
                    new_tokens_max,
                    drawn,
                    lens,
                    blocks,
                    cached_tokens,
                    end,
                    ttft,
                    took,
                    device_time,
                });
            }
            Line::Step { device, model, decode, prefill, embed, device_time, wall, .. } => {
                self.steps.push(RecordedStep {
                    model,
                    device,
                    rows: u64::from(decode.0) + u64::from(prefill.0) + u64::from(embed.0),
                    tokens: u64::from(decode.0) + prefill.1 + embed.1,
                    context: decode.1 + prefill.2 + embed.1,
                    reads: decode.1 + prefill.3 + embed.2,
                    device_time,
                    wall,
                });
            }
            Line::Dropped { lines } => *dropped += lines,
            Line::End { bytes_max } => {
                self.notes.push(format!("it ends at its size, {bytes_max} bytes, not with the server"));
            }
        }
        Ok(())
    }
}

/// serde_json's words end with a place in the text that it was given, which is always "line 1" here.
fn plain(error: &serde_json::Error) -> String {
    let words = error.to_string();
    words.split_once(" at line ").map_or(words.clone(), |(before, _)| before.to_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::recorded::RecordedEnd;
    use super::*;

    pub(crate) const HEAD: &str = concat!(
        r#"{"kind":"header","format":2,"weir":"0.1.0","devices":[{"name":"cpu:0","step_latency_max":200000000}],"tenants":["#,
        r#"{"name":"a","weight":1,"queue_len_max":256,"running_max":64,"kv_blocks_floor":0,"kv_blocks_ceiling":null},"#,
        r#"{"name":"b","weight":1,"queue_len_max":256,"running_max":64,"kv_blocks_floor":0,"kv_blocks_ceiling":null}],"#,
        r#""queue_len_max":1024}"#,
        "\n",
        r#"{"kind":"model","at":1,"device":0,"model":0,"name":"m","blocks":512,"rows_max":16,"tokens_max":512,"context_len_max":4096}"#,
        "\n"
    );

    pub(crate) fn trace(lines: &str) -> Trace {
        Trace::parse(format!("{HEAD}{lines}").as_bytes()).unwrap()
    }

    pub(crate) fn request(at: u64, tenant: usize, prompt_len: u32, drawn: u32) -> String {
        format!(
            "{{\"kind\":\"request\",\"at\":{at},\"tenant\":{tenant},\"model\":0,\"prompt_len\":{prompt_len},\
             \"new_tokens_max\":64,\"drawn\":[{drawn}],\"end\":\"finished\",\"ttft\":5,\"took\":9,\"device_time\":7}}\n"
        )
    }

    #[test]
    fn the_lines_that_a_server_writes_are_read() {
        let step = r#"{"kind":"step","at":3,"device":0,"model":0,"decode":[2,300],"prefill":[1,4,104,410],"embed":[1,5,15],"device_time":6,"wall":8}"#;
        let list =
            r#"{"kind":"request","at":2,"tenant":1,"model":0,"lens":[3,4],"end":"refused","took":0,"device_time":0}"#;
        let trace = trace(&format!("{}{step}\n{list}\n{{\"kind\":\"dropped\",\"lines\":3}}\n", request(5, 0, 70, 4)));
        assert_eq!(trace.tenants[1].name, "b");
        assert_eq!(trace.models[0].as_ref().unwrap().name, "m");
        let step = RecordedStep {
            model: 0,
            device: 0,
            rows: 4,
            tokens: 11,
            context: 409,
            reads: 725,
            device_time: 6,
            wall: 8,
        };
        assert_eq!(trace.steps, [step]);
        let seen: Vec<_> = trace.requests.iter().map(|r| (r.at, r.tenant, r.drawn.len(), r.lens.len())).collect();
        assert_eq!(seen, [(2, 1, 0, 2), (5, 0, 1, 0)]);
        assert!(trace.notes[0].starts_with("3 lines were dropped"), "{:?}", trace.notes);
    }

    fn fixture(name: &str) -> Trace {
        Trace::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(name)).unwrap()
    }

    #[test]
    fn every_line_that_a_server_writes_is_read() {
        let trace = fixture("trace-2.ndjson");
        assert_eq!((trace.queue_len_max, trace.locality_quantum), (64, Some(250_000_000)));
        let devices: Vec<_> = trace.devices.iter().map(|d| (d.step_latency_max, d.pool.as_deref())).collect();
        assert_eq!(devices, [(200_000_000, None), (100_000_000, Some("gold"))]);
        let plan = &trace.tenants[1];
        assert_eq!((plan.name.as_str(), plan.weight, plan.queue_len_max, plan.running_max), ("b", 3, 8, 7));
        assert_eq!((plan.kv_blocks_floor, plan.kv_blocks_ceiling, plan.priority_ceiling), (4, Some(40), 2));
        assert_eq!((plan.cache_blocks_floor, plan.cache_blocks_ceiling), (3, Some(30)));
        assert_eq!((plan.ttft_target, plan.itl_target), (Some(2_000_000_000), Some(50_000_000)));
        assert_eq!((plan.pool.as_deref(), plan.pool_only, trace.pool("gold")), (Some("gold"), true, Some(1)));
        let quota = (plan.device_time_per_hour, plan.device_time_per_day, plan.device_time_per_month);
        assert_eq!(quota, (Some(600_000_000_000), Some(6_000_000_000_000), Some(60_000_000_000_000)));
        assert_eq!((trace.tenants.len(), trace.tenants[2].name.as_str()), (3, "c"));
        assert!(!trace.tenants[0].has_quota() && trace.tenants[0].ttft_target.is_none());
        let model = trace.models[0].as_ref().unwrap();
        let limits = ModelLimits { blocks: 5, rows_max: 6, tokens_max: 7, context_len_max: 8 };
        assert_eq!((model.name.as_str(), model.limits), ("m", limits));
        assert_eq!(trace.steps[0].rows, 2);
        let ends: Vec<RecordedEnd> = trace.requests.iter().map(|request| request.end).collect();
        use RecordedEnd::{Cancelled, Failed, Finished, Refused};
        assert_eq!(ends, [Finished, Cancelled, Failed, Refused, Finished]);
        let text = &trace.requests[0];
        assert_eq!((text.prompt_len, text.new_tokens_max, &text.drawn[..], text.priority), (70, 16, &[3, 4][..], 1));
        assert_eq!((&text.blocks[..], text.cached_tokens, text.ttft), (&[(0, 2)][..], 32, Some(5)));
        assert_eq!((text.took, text.device_time), (9, 7));
        assert_eq!(trace.requests[4].lens, [3, 4]);
        assert_eq!(trace.notes.len(), 3, "quotas, what was dropped, and the end: {:?}", trace.notes);
    }

    #[test]
    fn what_older_servers_wrote_is_read_and_what_it_lacks_is_said() {
        let trace = fixture("trace-1.ndjson");
        assert_eq!((trace.requests.len(), trace.steps.len(), trace.locality_quantum), (1, 1, None));
        let plan = &trace.tenants[0];
        assert_eq!((plan.kv_blocks_ceiling, plan.cache_blocks_ceiling, plan.pool_only), (Some(40), None, false));
        assert!(trace.notes.len() == 1 && trace.notes[0].contains("format 1"), "{:?}", trace.notes);
    }

    #[test]
    fn an_error_names_its_line() {
        let good = request(1, 0, 10, 1);
        for (bad, part) in [
            ("nonsense\n", "expected"),
            ("{\"kind\":\"what\"}\n", "unknown variant `what`"),
            ("{\"kind\":\"dropped\"}\n", "missing field `lines`"),
            ("{\"kind\":\"dropped\",\"lines\":1,\"text\":\"x\"}\n", "unknown field `text`"),
            (&*request(1, 2, 10, 1), "`tenant` is 2"),
            (&*request(1, 0, 0, 1), "no tokens"),
            (&*request(1, 0, 1, 1).replace("[1]", "[]"), "either `drawn` or `lens`"),
            (HEAD, "a second header"),
        ] {
            let (line, reason) = Trace::parse(format!("{HEAD}{good}{bad}{good}").as_bytes()).unwrap_err();
            assert_eq!(line, Some(4), "{bad}: {reason}");
            assert!(reason.contains(part), "{bad}: {reason}");
        }
        assert_eq!(Trace::parse(&b""[..]).unwrap_err().0, None);
        let newer = HEAD.replace("\"format\":2", "\"format\":3");
        assert!(Trace::parse(newer.as_bytes()).unwrap_err().1.contains("format 3"));
        let lost = HEAD.replacen("\"weight\":1", "\"pool\":\"gold\",\"weight\":1", 1);
        assert!(Trace::parse(lost.as_bytes()).unwrap_err().1.contains("pool `gold`"));
        let (line, reason) = Trace::parse(good.as_bytes()).unwrap_err();
        assert_eq!((line, reason.as_str()), (Some(1), "a trace begins with its header"));
        let other = good.replace("\"model\":0", "\"model\":7");
        assert!(Trace::parse(format!("{HEAD}{other}").as_bytes()).unwrap_err().1.contains("model 7"));
    }

    #[test]
    fn a_line_that_was_not_finished_ends_the_trace() {
        let half = &request(9, 0, 10, 1)[..40];
        let trace = trace(&format!("{}{half}", request(1, 0, 10, 1)));
        assert_eq!(trace.requests.len(), 1);
        assert_eq!(trace.notes.len(), 1);
    }
}
