//! What the engine's tests share: an engine to ask, what to ask it, and how to read its answers.
#![allow(dead_code, unreachable_pub)]

use std::time::Duration;

use weir_runtime::{
    DeviceConfig, EmbedInput, EmbedSubmission, Engine, EngineConfig, ExecutorMode, FailureKind, FinishReason,
    LOCALITY_QUANTUM, ModelSpec, Prompt, SamplingParams, StreamEvent, Submission, TenantSpec, TokenLogprob,
    TokenStream, Usage,
};

/// Two tenants, `a` and `b`, on one CPU whose executor is a thread of this process; no canary comes in between.
pub fn config(models: Vec<ModelSpec>) -> EngineConfig {
    EngineConfig {
        models,
        tenants: vec![TenantSpec::named("a"), TenantSpec::named("b")],
        devices: vec![cpu(0)],
        inspector: ExecutorMode::Thread,
        queue_len_max: 1024,
        locality_quantum: LOCALITY_QUANTUM,
        canary_interval: Duration::from_secs(3600),
        seed: 1,
        record: None,
        accounts: None,
    }
}

/// The device of [`config`]; a small cache is enough for the models that tests make.
pub fn cpu(index: u32) -> DeviceConfig {
    DeviceConfig { threads: 2, kv_bytes: 4 << 20, ..DeviceConfig::cpu(index, ExecutorMode::Thread) }
}

/// Models as the command line names them.
pub fn specs(models: &[&str]) -> Vec<ModelSpec> {
    models.iter().map(|model| model.parse().expect("model")).collect()
}

/// An engine of [`config`] with these models.
pub async fn start(models: &[&str]) -> Engine {
    Engine::start(config(specs(models))).await.expect("starts")
}

/// A greedy text of exactly so many tokens, of the first model.
pub fn text(engine: &Engine, tenant: &str, prompt: impl Into<String>, max_tokens: u32) -> Submission {
    Submission {
        tenant: engine.tenant(tenant).expect("tenant"),
        key: "".into(),
        bill: None,
        model: engine.models()[0].name.clone(),
        request_id: "test".into(),
        priority: 0,
        answer_id: None,
        prompt: Prompt::Text(prompt.into()),
        n: 1,
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        max_tokens: Some(max_tokens),
        min_tokens: 0,
        stop: Vec::new(),
        ignore_eos: true,
        logprobs: None,
        echo: false,
    }
}

/// Texts to embed, with the first model.
pub fn embedding<T: Into<String>>(
    engine: &Engine,
    tenant: &str,
    texts: impl IntoIterator<Item = T>,
) -> EmbedSubmission {
    EmbedSubmission {
        tenant: engine.tenant(tenant).expect("tenant"),
        key: "".into(),
        bill: None,
        model: engine.models()[0].name.clone(),
        request_id: "test".into(),
        priority: 0,
        inputs: texts.into_iter().map(|text| EmbedInput::Text(text.into())).collect(),
        truncate: false,
    }
}

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
