//! What must be said beside a level's figures: how requests failed, and what else a reader should know.

use std::collections::BTreeMap;

use crate::config::LoadKind;
use crate::level::{LevelReport, Shape};
use crate::sample::{Attempt, Sample};
use crate::window::DECODE_TOKENS_MIN;

/// Distinct failure texts kept per level; the rest are counted under one line.
const FAILURES_SHOWN_MAX: usize = 8;

/// Requests that failed in the same way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What the failure says.
    pub reason: String,
    /// How many requests ended so.
    pub count: u32,
}

/// Failures by their text, the commonest first; the rarest kinds share the last line.
pub(crate) fn failures(attempts: &[Attempt]) -> Vec<Failure> {
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for error in attempts.iter().filter_map(|attempt| attempt.outcome.as_ref().err()) {
        *counts.entry(error.to_string()).or_default() += 1;
    }
    let mut found: Vec<Failure> = counts.into_iter().map(|(reason, count)| Failure { reason, count }).collect();
    found.sort_by_key(|failure| std::cmp::Reverse(failure.count));
    if found.len() > FAILURES_SHOWN_MAX {
        let count = found.drain(FAILURES_SHOWN_MAX..).map(|failure| failure.count).sum();
        found.push(Failure { reason: "failures of other kinds".into(), count });
    }
    found
}

/// What a reader of a level's figures should know.
pub(crate) fn notes(report: &LevelReport, shape: &Shape, samples: &[&Sample]) -> Vec<String> {
    let mut notes = Vec::new();
    let mut note = |applies: bool, text: String| {
        if applies {
            notes.push(text);
        }
    };
    let sent = report.completed + report.failed;
    let stopped = shape.requests.is_some_and(|requests| sent < requests);
    note(stopped, format!("the level was ended after {sent} requests: only failures came"));
    note(
        !report.steady && report.completed > 0,
        "too short for a steady window: warm-up and cool-down are in its rates".into(),
    );
    note(
        report.cached_tokens > 0,
        format!("{} prompt tokens came from a cache: take a seed the server has not seen", report.cached_tokens),
    );
    if shape.kind == LoadKind::Completions {
        let other_prompt = samples.iter().filter(|s| s.prompt_tokens != s.asked_prompt).count();
        note(other_prompt > 0, format!("{other_prompt} requests were counted with another prompt length than sent"));
    }
    if shape.kind != LoadKind::Embeddings {
        let other_output = samples.iter().filter(|s| s.output_tokens != s.asked_output).count();
        note(other_output > 0, format!("{other_output} requests gave another number of tokens than asked for"));
        let uncounted = samples.iter().any(|s| !s.counted);
        note(uncounted, "the server does not count tokens per delta: ITL is by even shares of the total".into());
        note(
            report.decode_tokens_per_s.is_none()
                && !shape.pace.is_open()
                && shape.stream
                && u64::from(shape.output_tokens.max) > DECODE_TOKENS_MIN
                && !samples.is_empty(),
            "no decode rate: all connections decoded together for too few tokens; ask for longer outputs".into(),
        );
    }
    match &report.machine {
        None => note(true, "this machine's processor times cannot be read: other load was not judged".into()),
        Some(machine) => {
            note(machine.server_pid.is_none(), "the server's process was not found: other load was not judged".into());
            note(
                machine.steal_cores > 0.05,
                format!("the hypervisor kept {:.0} % of a core from this machine", machine.steal_cores * 100.0),
            );
        }
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::RequestError;
    use crate::level::Outcome;
    use crate::level::tests::{outcome, shape, steady_sample};

    #[test]
    fn failures_are_counted_by_kind() {
        let failed =
            |error: RequestError| Attempt { connection: 0, tenant: 0, begin: 0, end: 5, late: 0, outcome: Err(error) };
        let mut all = vec![failed(RequestError::Truncated("a stream"))];
        all.extend((0..3).map(|_| failed(RequestError::Stream("no".into()))));
        all.extend((0..9).map(|i| failed(RequestError::Stream(format!("{i}")))));
        let report = LevelReport::new(
            &Shape { requests: Some(99), ..shape(1) },
            Outcome { attempts: all, ..Outcome::default() },
            None,
        );
        assert_eq!((report.completed, report.failed), (0, 13));
        assert_eq!(report.failures.iter().map(|f| f.count).sum::<u32>(), 13);
        assert_eq!(report.failures.len(), FAILURES_SHOWN_MAX + 1);
        assert_eq!(report.failures[0].count, 3);
        assert_eq!((report.rates.requests, report.latencies.ttft, report.decode_tokens_per_s), (0.0, None, None));
        assert!(report.notes[0].contains("after 13 requests"), "{:?}", report.notes);
    }

    #[test]
    fn what_a_reader_must_know_is_noted() {
        let mut sample = steady_sample(0, 0, 100, 5);
        sample.cached_tokens = 3;
        sample.prompt_tokens = 12;
        sample.counted = false;
        sample.asked_output = 11;
        let notes = LevelReport::new(&shape(1), outcome(vec![sample]), None).notes.join("\n");
        for part in [
            "3 prompt tokens came from a cache",
            "another prompt length",
            "another number of tokens",
            "per delta",
            "no decode rate",
        ] {
            assert!(notes.contains(part), "{part}: {notes}");
        }
    }
}
