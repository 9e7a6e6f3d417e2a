//! `POST /v1/chat/completions`.

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
        chat::ChatRequest,
        reply::ChatCompletion,
        stream::{Encoder, Shape},
    },
};

/// Answers a conversation.
#[utoipa::path(
    post, path = "/v1/chat/completions", tag = "OpenAI", request_body = ChatRequest,
    responses(
        (status = 200, description = "The answer; with `stream`, events with `ChatChunk`s", body = ChatCompletion),
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
    let request = ChatRequest::parse(&bytes)?;
    let card = app.model_for(&caller, Asked::Chat, request.model.as_deref())?;
    meter.reserve(estimate(bytes.len(), request.sampling.tokens_max(), request.sampling.choices()))?;
    drop(bytes);
    let head = Head {
        id: format!("chatcmpl-{}", random_id()),
        created: unix_now(),
        model: card.name.clone(),
        system_fingerprint: fingerprint(&card),
        logprobs_top: request.logprobs_top(),
    };
    let sampling = request.sampling;
    let submission = Submission {
        tenant: caller.tenant,
        key: caller.credential.clone(),
        bill: meter.bill(0),
        model: card.name.clone(),
        request_id: id.0.to_string(),
        priority: sampling.priority(),
        answer_id: Some(head.id.clone()),
        prompt: Prompt::Chat(request.messages.into_iter().map(Into::into).collect()),
        n: sampling.choices(),
        sampling: sampling.params(),
        max_tokens: sampling.tokens_max(),
        min_tokens: sampling.min_tokens.unwrap_or(0),
        stop: sampling.stop.clone().unwrap_or_default(),
        ignore_eos: sampling.ignore_eos.unwrap_or(false),
        logprobs: head.logprobs_top,
        echo: false,
    };
    let stream = within(&deadline, app.engine()?.submit(submission)).await??;
    let count = sampling.choices() as usize;
    let choices = Choices::new(vec![stream], sampling.choices()).metered(meter);
    if sampling.streams() {
        let encoder = Encoder::new(Shape::Chat, head, sampling.options(), choices.prompt_tokens(), count);
        return respond::stream(choices, encoder, deadline).await;
    }
    let (answer, usage) = respond::gather(choices, Answer::new(count), deadline).await?;
    Ok(respond::json(&answer.chat(head, usage)))
}
