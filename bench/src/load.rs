//! One request: drawn, encoded, sent, and its answer read.

use std::time::Instant;

use crate::config::{LoadKind, Tenant};
use crate::connection::Connection;
use crate::error::RequestError;
use crate::form::Form;
use crate::prompts::Prompts;
use crate::sample::{Attempt, Sample};
use crate::schedule::Ask;
use crate::sse::SseParser;
use crate::target::Target;
use crate::wire;

/// The longest answer that is read whole: an error, a list of models, a list of vectors.
const BODY_BYTES_MAX: usize = 64 << 20;

/// The requests of a level: everything but which, when, and over how many connections.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) target: Target,
    pub(crate) tenants: Vec<Tenant>,
    pub(crate) model: String,
    pub(crate) kind: LoadKind,
    /// Inputs of an embeddings request; 1 otherwise.
    pub(crate) inputs: u32,
    pub(crate) stream: bool,
    pub(crate) count_deltas: bool,
    pub(crate) prompts: Prompts,
}

/// From when a request's latencies are counted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Clock {
    /// From the moment its bytes are ready and a connection is there: drawing, encoding and dialling are the client's own
    /// time.
    Sent,
    /// From the moment it was due, ns since the level began: whatever came in between, a user would have waited for it.
    Due(u64),
}

pub(crate) fn nanos_since(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_nanos()).expect("a level lasts less than 584 years")
}

impl Load {
    /// Sends a request over connection `place` and reads its answer.
    pub(crate) async fn attempt(
        &self,
        link: &mut Connection,
        place: u32,
        ask: &Ask,
        clock: Clock,
        began: Instant,
    ) -> Attempt {
        let bytes = self.request(ask);
        let ready = nanos_since(began);
        let dialled = link.open().await;
        let begin = match clock {
            Clock::Due(at) => at,
            Clock::Sent => nanos_since(began),
        };
        let outcome = match dialled {
            Ok(()) => self.exchange(link, &bytes, ask, begin, began).await,
            Err(error) => Err(error),
        };
        let end = nanos_since(began);
        // Only a schedule can be missed, and only until the request is ready to leave: what follows is the server's doing.
        let late = if matches!(clock, Clock::Due(_)) { ready.saturating_sub(begin) } else { 0 };
        let outcome = outcome.map(|sample| Sample { connection: place, ..sample });
        Attempt { connection: place, tenant: ask.tenant, begin, end, late, outcome }
    }

    async fn exchange(
        &self,
        link: &mut Connection,
        bytes: &[u8],
        ask: &Ask,
        begin: u64,
        began: Instant,
    ) -> Result<Sample, RequestError> {
        let mut response = link.send(bytes).await?;
        let mut body = Vec::new();
        if response.status != 200 {
            let status = response.status;
            response.read_all(&mut body, BODY_BYTES_MAX).await?;
            return Err(wire::refusal(status, &body));
        }
        let mut sample = if self.kind == LoadKind::Embeddings {
            response.read_all(&mut body, BODY_BYTES_MAX).await?;
            wire::embedding_sample(&body, self.inputs, begin, nanos_since(began))?
        } else if self.stream {
            let mut reader = wire::CompletionReader::default();
            let mut events = SseParser::default();
            while response.read(&mut body).await? {
                let now = nanos_since(began);
                events.push(&body, |data| reader.event(data, now))?;
                body.clear();
            }
            response.finish();
            reader.finish(begin, nanos_since(began))?
        } else {
            response.read_all(&mut body, BODY_BYTES_MAX).await?;
            wire::whole_sample(&body, begin, nanos_since(began))?
        };
        sample.tenant = ask.tenant;
        sample.asked_prompt = ask.prompt_tokens;
        sample.asked_output = ask.output_tokens;
        Ok(sample)
    }

    fn request(&self, ask: &Ask) -> Vec<u8> {
        let key = &self.tenants[usize::from(ask.tenant)].key;
        let form = Form { target: &self.target, key, model: &self.model };
        let streaming = self.stream.then_some(self.count_deltas);
        match self.kind {
            LoadKind::Completions => {
                let prompt = self.prompts.draw(ask.prompt, ask.prompt_tokens);
                form.completion(&prompt, ask.output_tokens, streaming)
            }
            LoadKind::Chat => {
                let content = self.prompts.words(ask.prompt, ask.prompt_tokens);
                form.chat(&content, ask.output_tokens, streaming)
            }
            LoadKind::Embeddings => {
                let draw = |i| self.prompts.draw(ask.prompt + i, ask.prompt_tokens);
                form.embeddings(&(0..u64::from(self.inputs)).map(draw).collect::<Vec<_>>())
            }
        }
    }

    /// The names of the models that the server lists to a tenant.
    pub(crate) async fn models(&self, tenant: &Tenant) -> Result<Vec<String>, RequestError> {
        let mut link = Connection::new(self.target.clone());
        let form = Form { target: &self.target, key: &tenant.key, model: &self.model };
        let response = link.send(&form.models()).await?;
        let status = response.status;
        let mut body = Vec::new();
        response.read_all(&mut body, BODY_BYTES_MAX).await?;
        if status == 200 { wire::model_names(&body) } else { Err(wire::refusal(status, &body)) }
    }
}
