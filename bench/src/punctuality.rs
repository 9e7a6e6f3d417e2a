//! How well an open loop kept its schedule, and whether its figures can stand.

use std::ops::Range;

use crate::sample::Attempt;
use crate::stats::Summary;
use crate::window;

const NANOS_PER_MILLI: f64 = 1e6;
const NANOS_PER_SECOND: f64 = 1e9;
/// An open loop kept its schedule if one request in a hundred at most was later than this, or than
/// [`LATE_SHARE_MAX`] of the median latency: less changes no figure that a reader could quote.
const LATE_MS_MAX: f64 = 5.0;
const LATE_SHARE_MAX: f64 = 0.1;

/// How well an open loop kept its schedule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Punctuality {
    /// Requests due per second in the window.
    pub offered: f64,
    /// The latest request, ms behind its time.
    pub late_ms_max: f64,
    /// 99 of 100 requests were no later than this, ms.
    pub late_ms_p99: f64,
    /// Arrivals that were not sent because too many requests were open.
    pub unsent: u32,
}

impl Punctuality {
    pub(crate) fn of(attempts: &[Attempt], window: &Range<u64>, unsent: u32) -> Punctuality {
        let late = Summary::of(attempts.iter().map(|attempt| attempt.late as f64 / NANOS_PER_MILLI).collect());
        let due = attempts.iter().filter(|attempt| window.contains(&attempt.begin)).count() as f64;
        let seconds = window::length(window) / NANOS_PER_SECOND;
        Punctuality {
            offered: if seconds > 0.0 { due / seconds } else { 0.0 },
            late_ms_max: late.map_or(0.0, |late| late.max),
            late_ms_p99: late.map_or(0.0, |late| late.p99),
            unsent,
        }
    }

    /// Why the client's own part spoils the level, if so.
    pub(crate) fn void(&self, open_max: u32, median_ms: f64) -> Option<String> {
        if self.unsent > 0 {
            return Some(format!("{} arrivals were not sent: {open_max} requests were open", self.unsent));
        }
        (self.late_ms_p99 > LATE_MS_MAX.max(LATE_SHARE_MAX * median_ms)).then(|| {
            format!("the client did not keep its schedule: 1 in 100 was {:.1} ms late or more", self.late_ms_p99)
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::level::LevelReport;
    use crate::level::tests::{MS, close, open_outcome, open_shape};

    #[test]
    fn an_open_loop_says_what_was_offered_and_how_late_it_was() {
        let report = LevelReport::new(&open_shape(), open_outcome(3), None);
        let punctuality = report.punctuality.unwrap();
        close(punctuality.offered, 10.0);
        close(punctuality.late_ms_max, 3.0);
        close(report.rates.requests, 10.0);
        assert_eq!((report.void, report.decode_tokens_per_s), (None, None));
    }

    #[test]
    fn a_client_that_misses_its_schedule_voids_the_level() {
        // A tenth of the median latency, 200 ms, is allowed.
        assert_eq!(LevelReport::new(&open_shape(), open_outcome(20), None).void, None);
        let void = LevelReport::new(&open_shape(), open_outcome(21), None).void.unwrap();
        assert!(void.contains("21.0 ms late"), "{void}");
        // One in forty-one is more than one in a hundred.
        let mut one = open_outcome(0);
        one.attempts[7].late = 100 * MS;
        assert!(LevelReport::new(&open_shape(), one, None).void.is_some());
        let mut unsent = open_outcome(0);
        unsent.unsent = 4;
        let void = LevelReport::new(&open_shape(), unsent, None).void.unwrap();
        assert_eq!(void, "4 arrivals were not sent: 1000 requests were open");
    }
}
