//! What is read of the bodies that come back.

use serde::Deserialize;

use crate::error::RequestError;
use crate::sample::{Arrival, Sample};

/// How much of a refusal's body is shown when it is not the JSON of an error.
const REFUSAL_SHOWN_BYTES: usize = 200;

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<ChunkChoice>,
    usage: Option<Usage>,
    error: Option<ErrorBody>,
}

#[derive(Deserialize)]
struct ChunkChoice {
    text: Option<String>,
    /// Of a chat, in place of `text`.
    delta: Option<Delta>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
}

impl ChunkChoice {
    fn has_text(&self) -> bool {
        let text = self.text.as_ref().or_else(|| self.delta.as_ref()?.content.as_ref());
        text.is_some_and(|text| !text.is_empty())
    }
}

#[derive(Clone, Copy, Deserialize)]
struct Usage {
    prompt_tokens: u32,
    #[serde(default)]
    completion_tokens: u32,
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Clone, Copy, Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u32>,
}

impl Usage {
    fn cached_tokens(&self) -> u32 {
        self.prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or(0)
    }
}

#[derive(Deserialize)]
struct ErrorBody {
    message: Option<String>,
    code: Option<serde_json::Value>,
}

/// Reads the events of one streamed completion or chat.
#[derive(Debug, Default)]
pub(crate) struct CompletionReader {
    arrivals: Vec<Arrival>,
    /// Tokens known to have arrived, from the running usage.
    counted: u32,
    /// Text came without a count: the counts do not say when tokens arrived.
    uncounted: bool,
    /// Prompt tokens, and cached ones among them.
    usage: Option<(u32, u32)>,
    total: Option<u32>,
    done: bool,
}

impl CompletionReader {
    /// Takes one event's data, read at `now`.
    pub(crate) fn event(&mut self, data: &[u8], now: u64) -> Result<(), RequestError> {
        if self.done {
            return Err(RequestError::Answer("events come after [DONE]"));
        }
        if data == b"[DONE]" {
            self.done = true;
            return Ok(());
        }
        let chunk: Chunk = serde_json::from_slice(data).map_err(|e| RequestError::Json(e.to_string()))?;
        if let Some(error) = chunk.error {
            return Err(RequestError::Stream(error.message.unwrap_or_default()));
        }
        let has_text = chunk.choices.iter().any(ChunkChoice::has_text);
        let mut new = 0;
        if let Some(usage) = chunk.usage {
            self.usage = Some((usage.prompt_tokens, usage.cached_tokens()));
            self.total = Some(usage.completion_tokens);
            if !chunk.choices.is_empty() {
                new = usage
                    .completion_tokens
                    .checked_sub(self.counted)
                    .ok_or(RequestError::Answer("its running token count shrinks"))?;
                self.counted = usage.completion_tokens;
            }
        }
        self.uncounted |= has_text && chunk.usage.is_none();
        if has_text || (new > 0 && !self.uncounted) {
            self.arrive(now, new);
        }
        Ok(())
    }

    /// Notes `new` tokens at `now`. Events of one read are one arrival: what the client sees at once cannot be told apart
    /// in time.
    fn arrive(&mut self, now: u64, new: u32) {
        match self.arrivals.last_mut() {
            Some(last) if last.at == now => last.tokens += new,
            _ => self.arrivals.push(Arrival { at: now, tokens: new }),
        }
    }

    /// The sample of a stream that has ended.
    pub(crate) fn finish(mut self, begin: u64, end: u64) -> Result<Sample, RequestError> {
        if !self.done {
            return Err(RequestError::Truncated("a stream, before [DONE]"));
        }
        let ((prompt_tokens, cached_tokens), Some(total)) = (self.usage.unwrap_or_default(), self.total) else {
            return Err(RequestError::Answer("the stream carries no usage"));
        };
        if total == 0 || self.arrivals.is_empty() {
            return Err(RequestError::Answer("the stream ended without a token"));
        }
        let counted = !self.uncounted;
        if counted {
            let rest =
                total.checked_sub(self.counted).ok_or(RequestError::Answer("its usage is below its running count"))?;
            if let Some(last) = self.arrivals.last_mut() {
                last.tokens += rest;
            }
        } else {
            share_out(total, &mut self.arrivals);
        }
        let usage = Usage { prompt_tokens, completion_tokens: total, prompt_tokens_details: None };
        Ok(Sample { arrivals: self.arrivals, cached_tokens, counted, ..sample(usage, begin, end) })
    }
}

/// Spreads `total` tokens over arrivals whose own counts are unknown, as evenly as whole numbers allow.
fn share_out(total: u32, arrivals: &mut [Arrival]) {
    let (total, count) = (u64::from(total), arrivals.len() as u64);
    for (i, arrival) in arrivals.iter_mut().enumerate() {
        let i = i as u64;
        // At most `total`, which came from a u32.
        arrival.tokens = ((i + 1) * total / count - i * total / count) as u32;
    }
}

#[derive(Deserialize)]
struct EmbeddingAnswer {
    // The vectors are skipped unread: decoding them is the client's own cost.
    data: Vec<serde::de::IgnoredAny>,
    usage: Usage,
}

/// The sample of an embeddings answer of `inputs` vectors.
pub(crate) fn embedding_sample(body: &[u8], inputs: u32, begin: u64, end: u64) -> Result<Sample, RequestError> {
    let answer: EmbeddingAnswer = serde_json::from_slice(body).map_err(|e| RequestError::Json(e.to_string()))?;
    if answer.data.len() != inputs as usize {
        return Err(RequestError::Answer("it holds another number of vectors than were asked for"));
    }
    Ok(Sample { inputs, output_tokens: 0, ..sample(answer.usage, begin, end) })
}

#[derive(Deserialize)]
struct WholeAnswer {
    choices: Vec<serde::de::IgnoredAny>,
    usage: Usage,
}

/// The sample of a completion or chat that was not streamed.
pub(crate) fn whole_sample(body: &[u8], begin: u64, end: u64) -> Result<Sample, RequestError> {
    let answer: WholeAnswer = serde_json::from_slice(body).map_err(|e| RequestError::Json(e.to_string()))?;
    if answer.choices.len() != 1 || answer.usage.completion_tokens == 0 {
        return Err(RequestError::Answer("it holds no completion"));
    }
    Ok(sample(answer.usage, begin, end))
}

/// A sample of what the server counted. Whose it is and what was asked for is filled in by the caller.
fn sample(usage: Usage, begin: u64, end: u64) -> Sample {
    Sample {
        connection: 0,
        tenant: 0,
        begin,
        end,
        arrivals: Vec::new(),
        prompt_tokens: usage.prompt_tokens,
        cached_tokens: usage.cached_tokens(),
        output_tokens: usage.completion_tokens,
        asked_prompt: 0,
        asked_output: 0,
        inputs: 1,
        counted: true,
    }
}

#[derive(Deserialize)]
struct ModelList {
    data: Vec<ModelName>,
}

#[derive(Deserialize)]
struct ModelName {
    id: String,
}

/// The names in the answer of `/v1/models`.
pub(crate) fn model_names(body: &[u8]) -> Result<Vec<String>, RequestError> {
    let list: ModelList = serde_json::from_slice(body).map_err(|e| RequestError::Json(e.to_string()))?;
    Ok(list.data.into_iter().map(|model| model.id).collect())
}

/// What a status other than 200 says.
pub(crate) fn refusal(status: u16, body: &[u8]) -> RequestError {
    #[derive(Deserialize)]
    struct Refusal {
        error: ErrorBody,
    }
    match serde_json::from_slice::<Refusal>(body) {
        Ok(Refusal { error }) => RequestError::Status {
            status,
            code: error.code.and_then(|code| code.as_str().map(str::to_string)),
            message: error.message.unwrap_or_default(),
        },
        Err(_) => {
            let shown = String::from_utf8_lossy(&body[..body.len().min(REFUSAL_SHOWN_BYTES)]);
            RequestError::Status { status, code: None, message: shown.trim().replace(['\r', '\n'], " ") }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(events: &[(u64, &str)]) -> Result<Sample, RequestError> {
        let mut reader = CompletionReader::default();
        for &(now, data) in events {
            reader.event(data.as_bytes(), now)?;
        }
        reader.finish(1, 99)
    }

    fn arrivals(events: &[(u64, &str)]) -> Vec<(u64, u32)> {
        read(events).unwrap().arrivals.iter().map(|a| (a.at, a.tokens)).collect()
    }

    #[test]
    fn running_usage_counts_the_tokens_of_each_delta() {
        let events = [
            (10, r#"{"choices":[{"text":"a","index":0}],"usage":{"prompt_tokens":8,"completion_tokens":1}}"#),
            (20, r#"{"choices":[{"text":"","index":0}],"usage":{"prompt_tokens":8,"completion_tokens":2}}"#),
            (30, r#"{"choices":[{"text":"bc"}],"usage":{"prompt_tokens":8,"completion_tokens":5}}"#),
            (30, r#"{"choices":[{"text":"d"}],"usage":{"prompt_tokens":8,"completion_tokens":6}}"#),
            (
                40,
                r#"{"choices":[{"text":"","finish_reason":"length"}],"usage":{"prompt_tokens":8,"completion_tokens":6}}"#,
            ),
            (
                41,
                r#"{"choices":[],"usage":{"prompt_tokens":8,"completion_tokens":6,"prompt_tokens_details":{"cached_tokens":4}}}"#,
            ),
            (42, "[DONE]"),
        ];
        assert_eq!(arrivals(&events), [(10, 1), (20, 1), (30, 4)]);
        let sample = read(&events).unwrap();
        assert_eq!((sample.prompt_tokens, sample.cached_tokens, sample.output_tokens), (8, 4, 6));
        assert!(sample.counted);
    }

    #[test]
    fn without_running_usage_the_total_is_shared_out() {
        let events = [
            (10, r#"{"choices":[{"text":"a"}],"usage":null}"#),
            (20, r#"{"choices":[{"text":"b"}]}"#),
            (30, r#"{"choices":[{"text":"c"}]}"#),
            (31, r#"{"choices":[{"text":"","finish_reason":"length"}]}"#),
            (32, r#"{"choices":[],"usage":{"prompt_tokens":8,"completion_tokens":7,"prompt_tokens_details":null}}"#),
            (33, "[DONE]"),
        ];
        assert_eq!(arrivals(&events), [(10, 2), (20, 2), (30, 3)]);
        assert!(!read(&events).unwrap().counted);
    }

    #[test]
    fn usage_on_the_finish_chunk_alone_does_not_say_when_tokens_came() {
        let events = [
            (10, r#"{"choices":[{"text":"a"}]}"#),
            (20, r#"{"choices":[{"text":"b"}]}"#),
            (
                21,
                r#"{"choices":[{"text":"","finish_reason":"length"}],"usage":{"prompt_tokens":8,"completion_tokens":5}}"#,
            ),
            (22, "[DONE]"),
        ];
        assert_eq!(arrivals(&events), [(10, 2), (20, 3)]);
    }

    #[test]
    fn incomplete_and_broken_streams_are_failures() {
        let chunk = r#"{"choices":[{"text":"a"}],"usage":{"prompt_tokens":8,"completion_tokens":3}}"#;
        let less = r#"{"choices":[{"text":"b"}],"usage":{"prompt_tokens":8,"completion_tokens":2}}"#;
        let none = r#"{"choices":[],"usage":{"prompt_tokens":8,"completion_tokens":0}}"#;
        let error = r#"{"error":{"message":"out of quota","type":"x","param":null,"code":null}}"#;
        assert_eq!(read(&[(1, chunk)]), Err(RequestError::Truncated("a stream, before [DONE]")));
        assert_eq!(read(&[(1, chunk), (2, error), (3, "[DONE]")]), Err(RequestError::Stream("out of quota".into())));
        for events in [
            vec![(1, chunk), (2, less), (3, "[DONE]")],
            vec![(1, none), (2, "[DONE]")],
            vec![(1, "[DONE]")],
            vec![(1, chunk), (2, "[DONE]"), (3, chunk)],
            vec![(1, r#"{"choices":[{"text":"a"}]}"#), (2, "[DONE]")],
        ] {
            assert!(matches!(read(&events), Err(RequestError::Answer(_))), "{events:?}");
        }
        assert!(matches!(read(&[(1, "nonsense")]), Err(RequestError::Json(_))));
    }

    #[test]
    fn embeddings_are_counted_not_decoded() {
        let body = br#"{"object":"list","data":[{"embedding":"AAAA","index":0},{"embedding":[0.5],"index":1}],"usage":{"prompt_tokens":9,"total_tokens":9}}"#;
        let sample = embedding_sample(body, 2, 1, 2).unwrap();
        assert_eq!((sample.inputs, sample.prompt_tokens), (2, 9));
        assert!(matches!(embedding_sample(body, 3, 1, 2), Err(RequestError::Answer(_))));
        assert!(matches!(embedding_sample(b"{}", 1, 1, 2), Err(RequestError::Json(_))));
    }

    #[test]
    fn a_chat_streams_its_text_in_deltas() {
        let events = [
            (
                5,
                r#"{"choices":[{"delta":{"role":"assistant","content":""}}],"usage":{"prompt_tokens":8,"completion_tokens":0}}"#,
            ),
            (10, r#"{"choices":[{"delta":{"content":"a"}}],"usage":{"prompt_tokens":8,"completion_tokens":1}}"#),
            (20, r#"{"choices":[{"delta":{"content":"b"}}],"usage":{"prompt_tokens":8,"completion_tokens":3}}"#),
            (
                21,
                r#"{"choices":[{"delta":{},"finish_reason":"length"}],"usage":{"prompt_tokens":8,"completion_tokens":3}}"#,
            ),
            (22, "[DONE]"),
        ];
        assert_eq!(arrivals(&events), [(10, 1), (20, 2)]);
    }

    #[test]
    fn a_whole_answer_is_its_usage() {
        let body =
            br#"{"choices":[{"text":"ab"}],"usage":{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11}}"#;
        let sample = whole_sample(body, 1, 5).unwrap();
        assert_eq!((sample.prompt_tokens, sample.output_tokens, sample.ttft(), sample.e2el()), (9, 2, None, 4));
        let empty = br#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":0}}"#;
        assert!(matches!(whole_sample(empty, 1, 5), Err(RequestError::Answer(_))));
    }

    #[test]
    fn refusals_show_message_and_code_or_the_body() {
        let status = |body: &str| refusal(429, body.as_bytes()).to_string();
        assert_eq!(
            status(r#"{"error":{"message":"slow down","code":"rate_limit_exceeded"}}"#),
            "status 429 (rate_limit_exceeded): slow down"
        );
        assert_eq!(status("<html>\r\nno</html>\n"), "status 429: <html>  no</html>");
    }
}
