//! `POST /v1/completions`.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Request, State},
    response::Response,
};
use weir_runtime::{Prompt, Submission};

use super::{
    App, Asked, RequestId, body,
    choices::Choices,
    fingerprint,
    limits::{Meter, estimate},
    respond::{self, Deadline, within},
    unix_now,
};
use crate::{
    error::{ApiError, ErrorBody},
    identity::Caller,
    keys::random_id,
    openai::{
        answer::{Answer, Head},
        completion::{CompletionRequest, TextOrTokens},
        reply::Completion,
        stream::{Encoder, Shape},
    },
};

/// Continues text.
#[utoipa::path(
    post, path = "/v1/completions", tag = "OpenAI", request_body = CompletionRequest,
    responses(
        (status = 200, description = "The continuation; with `stream`, events of the same shape", body = Completion),
        (status = "default", description = "Any error", body = ErrorBody)
    )
)]
pub(crate) async fn handle(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Extension(id): Extension<RequestId>,
    Extension(meter): Extension<Meter>,
    request: Request,
) -> Result<Response, ApiError> {
    let deadline = Deadline::of(&app, &caller);
    let (parts, content) = request.into_parts();
    let bytes = body::read(&parts.headers, content, app.limits.body_bytes_max).await?;
    let request = CompletionRequest::parse(&bytes)?;
    let card = app.model_for(&caller, Asked::Completion, request.model.as_deref())?;
    let texts = request.sampling.choices().saturating_mul(u32::try_from(request.prompt.len()).unwrap_or(u32::MAX));
    meter.reserve(estimate(bytes.len(), request.sampling.tokens_max(), texts))?;
    drop(bytes);
    let head = Head {
        id: format!("cmpl-{}", random_id()),
        created: unix_now(),
        model: card.name.clone(),
        system_fingerprint: fingerprint(&card),
        logprobs_top: request.logprobs,
    };
    let echo = request.echoes();
    let sampling = request.sampling;
    let n = sampling.choices();
    let mut streams = Vec::with_capacity(request.prompt.len());
    for prompt in request.prompt {
        let submission = Submission {
            tenant: caller.tenant,
            key: caller.credential.clone(),
            bill: meter.bill(streams.len()),
            model: card.name.clone(),
            request_id: id.0.to_string(),
            priority: sampling.priority(),
            answer_id: Some(head.id.clone()),
            prompt: match prompt {
                TextOrTokens::Text(text) => Prompt::Text(text),
                TextOrTokens::Tokens(ids) => Prompt::Tokens(ids),
            },
            n,
            sampling: sampling.params(),
            max_tokens: sampling.tokens_max(),
            min_tokens: sampling.min_tokens.unwrap_or(0),
            stop: sampling.stop.clone().unwrap_or_default(),
            ignore_eos: sampling.ignore_eos.unwrap_or(false),
            logprobs: head.logprobs_top,
            echo,
        };
        // A refusal drops the streams before it, which cancels them: all prompts are accepted, or none.
        let stream = within(&deadline, app.engine()?.submit(submission)).await??;
        // The first may cost something even if the next is refused.
        meter.begun(stream.prompt_tokens());
        streams.push(stream);
    }
    let count = streams.len() * n as usize;
    let choices = Choices::new(streams, n).metered(meter);
    if sampling.streams() {
        let encoder = Encoder::new(Shape::Completion, head, sampling.options(), choices.prompt_tokens(), count);
        return respond::stream(choices, encoder, deadline).await;
    }
    let (answer, usage) = respond::gather(choices, Answer::new(count), deadline).await?;
    Ok(respond::json(&answer.completion(head, usage)))
}
