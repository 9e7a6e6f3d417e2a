//! What is kept of one request. Times are nanoseconds since the level began.

use crate::error::RequestError;

/// Tokens that reached the client at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrival {
    pub(crate) at: u64,
    pub(crate) tokens: u32,
}

/// A request that succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    /// Which connection of a closed loop; 0 in an open one.
    pub(crate) connection: u32,
    /// The place among the run's tenants.
    pub(crate) tenant: u16,
    /// From when its latencies count: about to be written, or in an open loop due.
    pub(crate) begin: u64,
    /// When its answer had been read to the end.
    pub(crate) end: u64,
    /// Ascending, at least one for a streamed completion; none for embeddings and whole answers.
    pub(crate) arrivals: Vec<Arrival>,
    pub(crate) prompt_tokens: u32,
    pub(crate) cached_tokens: u32,
    pub(crate) output_tokens: u32,
    /// What was asked for: tokens of each prompt, and of the answer.
    pub(crate) asked_prompt: u32,
    pub(crate) asked_output: u32,
    /// Embeddings asked for; 1 for a completion.
    pub(crate) inputs: u32,
    /// Whether the server counted the tokens of each delta; if not, they were shared out evenly.
    pub(crate) counted: bool,
}

/// A request, however it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attempt {
    /// As in [`Sample`].
    pub(crate) connection: u32,
    pub(crate) tenant: u16,
    pub(crate) begin: u64,
    pub(crate) end: u64,
    /// How long after it was due the client had it ready, ns; 0 in a closed loop.
    pub(crate) late: u64,
    pub(crate) outcome: Result<Sample, RequestError>,
}

impl Sample {
    /// When the prompt was done: the first token, or where none is seen the end.
    pub(crate) fn prompt_end(&self) -> u64 {
        self.arrivals.first().map_or(self.end, |first| first.at)
    }

    /// Time to first token, ns; None where no token is seen to come.
    pub(crate) fn ttft(&self) -> Option<u64> {
        Some(self.arrivals.first()?.at - self.begin)
    }

    /// End-to-end latency, ns.
    pub(crate) fn e2el(&self) -> u64 {
        self.end - self.begin
    }

    /// Mean time per token after those of the first arrival, ns; None if there are none.
    pub(crate) fn tpot(&self) -> Option<f64> {
        let (first, last) = (self.arrivals.first()?, self.arrivals.last()?);
        let tokens = self.output_tokens.checked_sub(first.tokens).filter(|&tokens| tokens > 0)?;
        Some((last.at - first.at) as f64 / f64::from(tokens))
    }

    /// Gaps between tokens, ns: a delta of k tokens gives k gaps of a k-th of the time since the delta before it.
    pub(crate) fn token_gaps(&self) -> impl Iterator<Item = f64> {
        self.arrivals.windows(2).flat_map(|pair| {
            let tokens = pair[1].tokens;
            let gap = (pair[1].at - pair[0].at) as f64 / f64::from(tokens.max(1));
            std::iter::repeat_n(gap, tokens as usize)
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A completion whose tokens arrive as given.
    pub(crate) fn completion(connection: u32, begin: u64, end: u64, arrivals: &[(u64, u32)]) -> Sample {
        Sample {
            connection,
            tenant: 0,
            begin,
            end,
            arrivals: arrivals.iter().map(|&(at, tokens)| Arrival { at, tokens }).collect(),
            prompt_tokens: 10,
            cached_tokens: 0,
            output_tokens: arrivals.iter().map(|a| a.1).sum(),
            asked_prompt: 10,
            asked_output: arrivals.iter().map(|a| a.1).sum(),
            inputs: 1,
            counted: true,
        }
    }

    #[test]
    fn latencies_of_a_stream_with_a_wide_delta() {
        let sample = completion(0, 100, 1000, &[(200, 1), (300, 1), (600, 3)]);
        assert_eq!((sample.ttft(), sample.e2el(), sample.prompt_end()), (Some(100), 900, 200));
        assert_eq!(sample.tpot(), Some(100.0));
        assert_eq!(sample.token_gaps().collect::<Vec<_>>(), [100.0; 4]);
    }

    #[test]
    fn one_arrival_has_no_time_per_token() {
        let sample = completion(0, 0, 10, &[(5, 4)]);
        assert_eq!(sample.tpot(), None);
        assert_eq!(sample.token_gaps().count(), 0);
    }

    #[test]
    fn embeddings_have_no_first_token() {
        let sample = completion(0, 3, 10, &[]);
        assert_eq!((sample.ttft(), sample.tpot(), sample.prompt_end()), (None, None, 10));
    }
}
