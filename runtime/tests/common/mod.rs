//! What the engine's tests share.
#![allow(dead_code, unreachable_pub)]

use weir_runtime::{Engine, FailureKind, FinishReason, StreamEvent, Submission, TokenLogprob, TokenStream, Usage};

/// A stream, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub texts: Vec<String>,
    pub reasons: Vec<Option<FinishReason>>,
    pub end: Result<Usage, FailureKind>,
    pub deltas: usize,
    /// Of every choice, in order.
    pub logprobs: Vec<Vec<TokenLogprob>>,
}

/// Reads a stream of `n` choices; there is exactly one ending, and nothing after it.
pub async fn read(stream: TokenStream, n: usize) -> Answer {
    read_telling(stream, n, || {}).await
}

/// As [`read`], and tells of each event.
pub async fn read_telling(mut stream: TokenStream, n: usize, mut tell: impl FnMut()) -> Answer {
    let mut answer = Answer {
        texts: vec![String::new(); n],
        reasons: vec![None; n],
        end: Ok(Usage::default()),
        deltas: 0,
        logprobs: vec![Vec::new(); n],
    };
    let mut ended = false;
    while let Some(event) = stream.next().await {
        assert!(!ended, "an event after the last");
        tell();
        match event {
            StreamEvent::Delta { index, text, logprobs, .. } => {
                answer.logprobs[index as usize].extend(logprobs);
                answer.texts[index as usize].push_str(&text);
                answer.deltas += 1;
            }
            StreamEvent::Finished { index, reason } => answer.reasons[index as usize] = Some(reason),
            StreamEvent::Done(usage) => {
                answer.end = Ok(usage);
                ended = true;
            }
            StreamEvent::Failed(failure) => {
                answer.end = Err(failure.kind);
                ended = true;
            }
        }
    }
    assert!(ended, "a stream without an end");
    answer
}

/// Submits and reads.
pub async fn complete(engine: &Engine, submission: Submission) -> Answer {
    let n = submission.n as usize;
    read(engine.submit(submission).await.expect("accepted"), n).await
}

/// The value of a metric line that begins with `name`.
pub async fn metric(engine: &Engine, name: &str) -> f64 {
    let text = engine.metrics_text().await;
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in\n{text}"));
    line.rsplit(' ').next().expect("value").parse().expect("number")
}
