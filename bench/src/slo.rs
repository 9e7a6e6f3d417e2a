//! What makes a request a good one: limits on its latencies, all of which must hold.

use std::str::FromStr;

use crate::sample::Sample;

const NANOS_PER_MILLI: f64 = 1e6;

/// Limits in ms, as vLLM's `--goodput` names them, and `itl` besides; None sets no limit.
///
/// A request is good when it succeeded and no latency that it has is above its limit: an answer of one token has neither
/// `tpot` nor `itl`. `itl` bounds each gap between tokens, so the worst one decides.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Slo {
    /// Time to first token.
    pub ttft: Option<f64>,
    /// Mean time per output token after the first.
    pub tpot: Option<f64>,
    /// Each time between two tokens.
    pub itl: Option<f64>,
    /// End-to-end latency.
    pub e2el: Option<f64>,
}

impl Slo {
    /// Whether only a streamed answer can be judged.
    pub(crate) fn needs_stream(self) -> bool {
        self.ttft.or(self.tpot).or(self.itl).is_some()
    }

    pub(crate) fn is_met_by(self, sample: &Sample) -> bool {
        let within = |limit: Option<f64>, nanos: Option<f64>| match (limit, nanos) {
            (Some(limit), Some(nanos)) => nanos / NANOS_PER_MILLI <= limit,
            _ => true,
        };
        within(self.ttft, sample.ttft().map(|nanos| nanos as f64))
            && within(self.tpot, sample.tpot())
            && within(self.itl, sample.token_gaps().max_by(f64::total_cmp))
            && within(self.e2el, Some(sample.e2el() as f64))
    }
}

impl FromStr for Slo {
    type Err = String;

    /// Limits by name, such as `ttft:500 itl:50 e2el:5000`, separated by spaces or commas.
    fn from_str(text: &str) -> Result<Slo, String> {
        let mut slo = Slo::default();
        for part in text.split([' ', ',']).filter(|part| !part.is_empty()) {
            let (name, limit) = part.split_once(':').ok_or(format!("`{part}` is not NAME:MS"))?;
            let place = match name {
                "ttft" => &mut slo.ttft,
                "tpot" => &mut slo.tpot,
                "itl" => &mut slo.itl,
                "e2el" => &mut slo.e2el,
                _ => return Err(format!("`{name}` is none of ttft, tpot, itl, e2el")),
            };
            let limit = limit.parse::<f64>().ok().filter(|ms| ms.is_finite() && *ms >= 0.0);
            let limit = limit.ok_or(format!("`{part}`: its limit is not a number of ms"))?;
            if place.replace(limit).is_some() {
                return Err(format!("`{name}` stands twice"));
            }
        }
        if slo == Slo::default() { Err("no limit is given".into()) } else { Ok(slo) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::tests::completion;

    const MS: u64 = 1_000_000;

    #[test]
    fn limits_are_parsed_by_name() {
        let slo: Slo = "ttft:500 itl:50,e2el:5000.5".parse().unwrap();
        assert_eq!(slo, Slo { ttft: Some(500.0), tpot: None, itl: Some(50.0), e2el: Some(5000.5) });
        for text in ["", "ttft", "ttft:", "ttft:x", "ttft:-1", "ttft:inf", "p99:3", "ttft:1 ttft:2"] {
            assert!(text.parse::<Slo>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn a_good_request_is_within_every_limit() {
        // TTFT 100 ms, gaps of 10, 10 and 40 ms, so TPOT 20 ms; ends at 170 ms.
        let sample = completion(0, 0, 170 * MS, &[(100 * MS, 1), (110 * MS, 1), (120 * MS, 1), (160 * MS, 1)]);
        let met = |text: &str| text.parse::<Slo>().unwrap().is_met_by(&sample);
        for (text, expected) in [
            ("ttft:100", true),
            ("ttft:99.9", false),
            ("tpot:20", true),
            ("tpot:19", false),
            ("itl:40", true),
            ("itl:39", false),
            ("e2el:170", true),
            ("e2el:169", false),
            ("ttft:100 tpot:20 itl:40 e2el:170", true),
            ("ttft:100 tpot:20 itl:40 e2el:169", false),
        ] {
            assert_eq!(met(text), expected, "{text}");
        }
    }

    #[test]
    fn what_an_answer_does_not_have_is_not_held_against_it() {
        let one_token = completion(0, 0, 10 * MS, &[(5 * MS, 1)]);
        assert!("tpot:0 itl:0 ttft:5".parse::<Slo>().unwrap().is_met_by(&one_token));
    }
}
