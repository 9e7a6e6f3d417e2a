//! What a client is told when it does not get its answer. The only place that knows HTTP status codes.
//!
//! Every body has OpenAI's shape, all four keys always present:
//! `{"error":{"message","type","param","code"}}`. Texts for the client are here; details that could carry an address, a
//! path or another tenant's name stay in the log.

use std::time::Duration;

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;
use weir_runtime::{FailureKind, RequestFailure, SubmitError};

use crate::identity::{Denied, Wider};

/// How much of a client's own words an error repeats.
const ECHO_LEN_MAX: usize = 64;

/// A refusal or a failure, named after what happened to the caller.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ApiError {
    /// Something in the body is wrong. 400.
    #[error("{message}")]
    Invalid {
        /// What, and what would be right.
        message: String,
        /// The field, as a path such as `messages[2].content`.
        param: Option<String>,
        /// A word for programs.
        code: &'static str,
    },
    /// No key, or one that is not known. 401.
    #[error("{0}")]
    Unauthenticated(&'static str),
    /// The key is good, but not for this. 403.
    #[error("{0}")]
    Forbidden(String),
    /// The model does not exist, or the caller may not know that it does: both read the same. 404.
    #[error("The model `{}` does not exist or you do not have access to it.", excerpt(.0))]
    UnknownModel(String),
    /// No such device; operators only. 404.
    #[error("There is no device `{}`.", excerpt(.0))]
    UnknownDevice(String),
    /// No such request, one that is forgotten, or another tenant's: all read the same. 404.
    #[error("There is no request `{}`, or it ended too long ago.", excerpt(.0))]
    UnknownRequest(String),
    /// There is no such thing, or it is somebody else's: both read the same. 404.
    #[error("There is no {kind} `{}`.", excerpt(.id))]
    Missing {
        /// `tenant`, `key`, ...
        kind: &'static str,
        /// Its id.
        id: String,
    },
    /// No such route. 404.
    #[error("Invalid URL ({0})")]
    UnknownRoute(String),
    /// The route exists, the method does not. 405.
    #[error("Not allowed: {0}")]
    MethodNotAllowed(String),
    /// The head is not HTTP. 400.
    #[error("The request is not well-formed HTTP/1.1.")]
    HeadUnreadable,
    /// The head did not arrive in time. 408.
    #[error("The request did not arrive in time.")]
    HeadTooSlow,
    /// The head is over the cap. 431.
    #[error("The request's headers are larger than {0} bytes, or too many.")]
    HeadTooLarge(usize),
    /// What was asked for contradicts what is there. 409.
    #[error("{message}")]
    Conflict {
        /// What is there.
        message: String,
        /// A word for programs.
        code: &'static str,
    },
    /// The body did not arrive in time. 408.
    #[error("The request body did not arrive in time.")]
    BodyTooSlow,
    /// The body is over the cap. 413.
    #[error("The request body is larger than {0} bytes.")]
    BodyTooLarge(usize),
    /// A `Content-Encoding`, which is never decoded: a small body may hold a very large one. 415.
    #[error("Content-Encoding is not supported: send the body as it is.")]
    Encoded,
    /// The tenant has reached a limit of its own. 429.
    #[error("{message}")]
    RateLimited {
        /// Which.
        message: String,
        /// When to come back.
        retry_after: Duration,
    },
    /// The tenant's quota is spent; retrying before the window ends is useless. 429.
    #[error("{message}")]
    QuotaSpent {
        /// Which window.
        message: String,
        /// When it ends.
        retry_after: Duration,
    },
    /// The node is full, loading or going down. 503.
    #[error("{message}")]
    Overloaded {
        /// Which.
        message: String,
        /// When to come back.
        retry_after: Duration,
    },
    /// What requests cost cannot be written down. 503.
    #[error("{0}")]
    LedgerUnavailable(String),
    /// The first token is not expected within the plan's target. 503.
    #[error("{message}")]
    TargetUnmet {
        /// For people.
        message: String,
        /// When it would be.
        retry_after: Duration,
    },
    /// The request took longer than the server allows. 504.
    #[error("The request took longer than {0} s.")]
    TimedOut(u64),
    /// Not the caller's fault. 500.
    #[error("{0}")]
    Internal(String),
}

/// The body of every error.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    /// The only key.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorDetail {
    /// For people.
    pub message: String,
    /// The family: `invalid_request_error`, `authentication_error`, `permission_error`, `rate_limit_error`, `server_error`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The field that is wrong, where it is one field.
    pub param: Option<String>,
    /// A word for programs.
    pub code: Option<&'static str>,
}

/// Left in a response by a refusal that came before the body was read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BodyUnread;

impl ApiError {
    /// A wrong value of one field.
    pub(crate) fn param(param: impl Into<String>, code: &'static str, message: impl Into<String>) -> Self {
        ApiError::Invalid { message: message.into(), param: Some(param.into()), code }
    }

    /// A field that is known but that this server does not carry out.
    pub(crate) fn unsupported(param: impl Into<String>, why: &str) -> Self {
        let param = param.into();
        ApiError::Invalid {
            message: format!("Unsupported parameter: '{param}'. {why}"),
            param: Some(param),
            code: "unsupported_parameter",
        }
    }

    /// Status, type and code.
    fn catalogue(&self) -> (StatusCode, &'static str, &'static str) {
        const REQUEST: &str = "invalid_request_error";
        match self {
            ApiError::Invalid { code, .. } => (StatusCode::BAD_REQUEST, REQUEST, code),
            ApiError::Unauthenticated(_) => (StatusCode::UNAUTHORIZED, "authentication_error", "invalid_api_key"),
            ApiError::Forbidden(_) => (StatusCode::FORBIDDEN, "permission_error", "forbidden"),
            ApiError::UnknownModel(_) => (StatusCode::NOT_FOUND, REQUEST, "model_not_found"),
            ApiError::UnknownDevice(_) => (StatusCode::NOT_FOUND, REQUEST, "device_not_found"),
            ApiError::UnknownRequest(_) => (StatusCode::NOT_FOUND, REQUEST, "request_not_found"),
            ApiError::Missing { kind, .. } => (StatusCode::NOT_FOUND, REQUEST, missing_code(kind)),
            ApiError::UnknownRoute(_) => (StatusCode::NOT_FOUND, REQUEST, "unknown_url"),
            ApiError::MethodNotAllowed(_) => (StatusCode::METHOD_NOT_ALLOWED, REQUEST, "method_not_allowed"),
            ApiError::HeadUnreadable => (StatusCode::BAD_REQUEST, REQUEST, "invalid_http"),
            ApiError::HeadTooSlow => (StatusCode::REQUEST_TIMEOUT, REQUEST, "request_timeout"),
            ApiError::HeadTooLarge(_) => {
                (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, REQUEST, "request_header_too_large")
            }
            ApiError::Conflict { code, .. } => (StatusCode::CONFLICT, REQUEST, code),
            ApiError::BodyTooSlow => (StatusCode::REQUEST_TIMEOUT, REQUEST, "request_timeout"),
            ApiError::BodyTooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, REQUEST, "request_too_large"),
            ApiError::Encoded => (StatusCode::UNSUPPORTED_MEDIA_TYPE, REQUEST, "unsupported_content_encoding"),
            ApiError::RateLimited { .. } => (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "rate_limit_exceeded"),
            ApiError::QuotaSpent { .. } => (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "insufficient_quota"),
            ApiError::Overloaded { .. } => (StatusCode::SERVICE_UNAVAILABLE, "server_error", "overloaded"),
            ApiError::LedgerUnavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "server_error", "ledger_unavailable"),
            ApiError::TargetUnmet { .. } => (StatusCode::SERVICE_UNAVAILABLE, "server_error", "latency_target_unmet"),
            ApiError::TimedOut(_) => (StatusCode::GATEWAY_TIMEOUT, "server_error", "request_timeout"),
            ApiError::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "server_error", "internal_error"),
        }
    }

    /// The status this error has as a response of its own.
    pub fn status(&self) -> StatusCode {
        self.catalogue().0
    }

    /// The word for programs.
    pub fn code(&self) -> &'static str {
        self.catalogue().2
    }

    /// The JSON body, which is also what an error after the status line sends as an event.
    pub fn body(&self) -> String {
        let (_, kind, code) = self.catalogue();
        let param = match self {
            ApiError::Invalid { param, .. } => param.clone(),
            ApiError::UnknownModel(_) => Some("model".to_owned()),
            ApiError::UnknownRequest(_) => Some("id".to_owned()),
            _ => None,
        };
        let body = ErrorBody { error: ErrorDetail { message: self.to_string(), kind, param, code: Some(code) } };
        serde_json::to_string(&body).expect("strings always serialise")
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            ApiError::RateLimited { retry_after, .. }
            | ApiError::QuotaSpent { retry_after, .. }
            | ApiError::Overloaded { retry_after, .. }
            | ApiError::TargetUnmet { retry_after, .. } => Some(*retry_after),
            ApiError::LedgerUnavailable(_) => Some(Duration::from_secs(1)),
            _ => None,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.body()));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(after) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds_rounded_up(after)));
        }
        match self {
            ApiError::Unauthenticated(_) => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
                response.extensions_mut().insert(BodyUnread);
            }
            ApiError::Encoded | ApiError::UnknownRoute(_) | ApiError::MethodNotAllowed(_) => {
                response.extensions_mut().insert(BodyUnread);
            }
            // openai-python retries every 429 and 5xx twice unless told otherwise.
            ApiError::QuotaSpent { .. } | ApiError::TimedOut(_) => {
                headers.insert("x-should-retry", HeaderValue::from_static("false"));
            }
            // What is left of the body is not read: the connection cannot carry another request.
            ApiError::BodyTooSlow | ApiError::BodyTooLarge(_) => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}

impl From<Denied> for ApiError {
    fn from(denied: Denied) -> Self {
        let forbidden = |message: &str| ApiError::Forbidden(message.to_owned());
        match denied {
            Denied::Missing => ApiError::Unauthenticated(
                "You didn't provide an API key. Send it in a header: 'Authorization: Bearer YOUR_KEY'.",
            ),
            Denied::Repeated => ApiError::Unauthenticated("More than one Authorization header."),
            Denied::Malformed => ApiError::Unauthenticated("The Authorization header must read 'Bearer YOUR_KEY'."),
            Denied::Unknown => ApiError::Unauthenticated("Incorrect API key provided."),
            Denied::TooMany(retry_after) => {
                ApiError::RateLimited { message: "Too many keys from your address were refused.".into(), retry_after }
            }
            Denied::Address => forbidden("Your tenant does not accept requests from your address."),
            Denied::Suspended(None) => forbidden("Your tenant is suspended."),
            Denied::Suspended(Some(why)) => ApiError::Forbidden(format!("Your tenant is suspended: {why}")),
            Denied::Pending(why) => ApiError::Forbidden(format!("Your tenant is not active yet: {why}")),
            Denied::Confined => forbidden("The tenant that was named is not yours, or one has to be named."),
        }
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Invalid { message, param, code } => {
                ApiError::Invalid { message, param: param.map(str::to_owned), code: code.unwrap_or("invalid_value") }
            }
            SubmitError::UnknownModel { model } => ApiError::UnknownModel(model),
            error @ SubmitError::WrongKind { .. } => ApiError::param("model", "invalid_value", error.to_string()),
            SubmitError::ContextTooLong { message, param } => {
                ApiError::param(param, "context_length_exceeded", message)
            }
            SubmitError::Busy { message, retry_after, tenant_limit: true } => {
                ApiError::RateLimited { message, retry_after }
            }
            SubmitError::Busy { message, retry_after, tenant_limit: false } => {
                ApiError::Overloaded { message, retry_after }
            }
            SubmitError::QuotaSpent { message, retry_after } => ApiError::QuotaSpent { message, retry_after },
            error @ SubmitError::LedgerUnavailable => ApiError::LedgerUnavailable(error.to_string()),
            error @ SubmitError::Draining => {
                // Another replica has room now; this one comes back after a restart.
                ApiError::Overloaded { message: error.to_string(), retry_after: Duration::from_secs(1) }
            }
            SubmitError::TargetUnmet { message, retry_after } => ApiError::TargetUnmet { message, retry_after },
            SubmitError::Internal { message } => ApiError::Internal(message),
        }
    }
}

impl From<RequestFailure> for ApiError {
    fn from(failure: RequestFailure) -> Self {
        match failure.kind {
            FailureKind::Draining => {
                ApiError::Overloaded { message: failure.message, retry_after: Duration::from_secs(1) }
            }
            FailureKind::QuotaSpent { retry_after } => ApiError::QuotaSpent { message: failure.message, retry_after },
            FailureKind::LedgerUnavailable => ApiError::LedgerUnavailable(failure.message),
            // Not the server's to be retried: the same again would be refused.
            FailureKind::Quarantined => {
                ApiError::Invalid { message: failure.message, param: None, code: "request_quarantined" }
            }
            FailureKind::NeverFits => {
                ApiError::Invalid { message: failure.message, param: None, code: "context_length_exceeded" }
            }
            _ => ApiError::Internal(failure.message),
        }
    }
}

/// The word for something that is not there.
fn missing_code(kind: &str) -> &'static str {
    match kind {
        "tenant" => "tenant_not_found",
        "plan" => "plan_not_found",
        "key" => "key_not_found",
        "price" => "price_not_found",
        "webhook" => "webhook_not_found",
        "invoice" => "invoice_not_found",
        "closed month" => "month_not_found",
        _ => "not_found",
    }
}

impl From<Wider> for ApiError {
    fn from(wider: Wider) -> Self {
        ApiError::Forbidden(format!("Not allowed: {wider}."))
    }
}

/// Whole seconds for `Retry-After`, never less than the truth and never zero.
fn seconds_rounded_up(time: Duration) -> u64 {
    (time.as_secs() + u64::from(time.subsec_nanos() > 0)).max(1)
}

/// A client's own words, short enough to repeat.
pub(crate) fn excerpt(text: &str) -> String {
    match text.char_indices().nth(ECHO_LEN_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_never_early() {
        let cases = [(0, 1), (1, 1), (999, 1), (1000, 1), (1001, 2), (59_999, 60)];
        for (millis, seconds) in cases {
            assert_eq!(seconds_rounded_up(Duration::from_millis(millis)), seconds, "{millis} ms");
        }
    }

    #[test]
    fn whoever_is_nobody_hears_the_same() {
        let body = |denied| ApiError::from(denied).body();
        assert!(body(Denied::Unknown).contains("Incorrect API key provided."));
        for (denied, status) in [
            (Denied::Missing, 401),
            (Denied::Repeated, 401),
            (Denied::Malformed, 401),
            (Denied::Unknown, 401),
            (Denied::Address, 403),
            (Denied::Suspended(None), 403),
            (Denied::Suspended(Some("x".into())), 403),
            (Denied::Pending("x".into()), 403),
            (Denied::Confined, 403),
            (Denied::TooMany(Duration::from_millis(1)), 429),
        ] {
            assert_eq!(ApiError::from(denied.clone()).status(), status, "{denied:?}");
        }
        assert!(body(Denied::Pending("The contract.".into())).contains("Your tenant is not active yet: The contract."));
        assert!(body(Denied::Suspended(Some("Unpaid.".into()))).contains("Your tenant is suspended: Unpaid."));
        assert!(body(Denied::Suspended(None)).contains("Your tenant is suspended."));
    }

    #[test]
    fn every_body_has_the_four_keys() {
        let wait = Duration::from_secs(3);
        let message = String::from("m");
        let cases = [
            (ApiError::param("n", "invalid_type", "m"), 400, "invalid_request_error", "invalid_type"),
            (ApiError::Unauthenticated("m"), 401, "authentication_error", "invalid_api_key"),
            (ApiError::Forbidden(message.clone()), 403, "permission_error", "forbidden"),
            (ApiError::UnknownModel("x".into()), 404, "invalid_request_error", "model_not_found"),
            (ApiError::UnknownDevice("x".into()), 404, "invalid_request_error", "device_not_found"),
            (ApiError::UnknownRequest("x".into()), 404, "invalid_request_error", "request_not_found"),
            (ApiError::UnknownRoute("GET /".into()), 404, "invalid_request_error", "unknown_url"),
            (ApiError::MethodNotAllowed("PUT /".into()), 405, "invalid_request_error", "method_not_allowed"),
            (ApiError::HeadUnreadable, 400, "invalid_request_error", "invalid_http"),
            (ApiError::HeadTooSlow, 408, "invalid_request_error", "request_timeout"),
            (ApiError::HeadTooLarge(1), 431, "invalid_request_error", "request_header_too_large"),
            (
                ApiError::Conflict { message: message.clone(), code: "model_exists" },
                409,
                "invalid_request_error",
                "model_exists",
            ),
            (ApiError::BodyTooSlow, 408, "invalid_request_error", "request_timeout"),
            (ApiError::BodyTooLarge(1), 413, "invalid_request_error", "request_too_large"),
            (ApiError::Encoded, 415, "invalid_request_error", "unsupported_content_encoding"),
            (
                ApiError::RateLimited { message: message.clone(), retry_after: wait },
                429,
                "rate_limit_error",
                "rate_limit_exceeded",
            ),
            (
                ApiError::QuotaSpent { message: message.clone(), retry_after: wait },
                429,
                "rate_limit_error",
                "insufficient_quota",
            ),
            (
                ApiError::TargetUnmet { message: message.clone(), retry_after: wait },
                503,
                "server_error",
                "latency_target_unmet",
            ),
            (ApiError::Overloaded { message, retry_after: wait }, 503, "server_error", "overloaded"),
            (ApiError::TimedOut(600), 504, "server_error", "request_timeout"),
            (ApiError::Internal("m".into()), 500, "server_error", "internal_error"),
        ];
        for (error, status, kind, code) in cases {
            let body: serde_json::Value = serde_json::from_str(&error.body()).expect("JSON");
            let detail = body["error"].as_object().expect("object");
            let keys: Vec<&str> = detail.keys().map(String::as_str).collect();
            assert_eq!(keys.len(), 4, "{keys:?}");
            assert!(detail["message"].as_str().is_some_and(|m| !m.is_empty()));
            assert!(detail.contains_key("param"));
            assert_eq!((detail["type"].as_str(), detail["code"].as_str()), (Some(kind), Some(code)));
            let waits = error.retry_after().is_some();
            let response = error.into_response();
            assert_eq!(response.status().as_u16(), status);
            assert_eq!(response.headers().contains_key("retry-after"), waits);
        }
    }

    #[test]
    fn a_name_is_repeated_only_in_part() {
        let long = "x".repeat(10_000);
        assert!(ApiError::UnknownModel(long).body().len() < 400);
    }
}
