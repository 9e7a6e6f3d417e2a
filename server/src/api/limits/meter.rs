//! What one request takes of its tenant's limits, and what it turned out to take.

use std::sync::{Arc, Mutex, OnceLock, PoisonError, atomic::Ordering};

use axum::http::HeaderMap;
use weir_runtime::{FailureKind, RequestFailure, StreamEvent, Usage};

use super::{Allowed, Clock, TenantRates, headers, headers::duration};
use crate::error::ApiError;

/// Tokens that are set aside for each choice of a request that does not say how many it wants.
const UNNAMED_TOKENS: u64 = 1024;
/// Bytes of a request that are taken for one token, until it is encoded.
const BYTES_PER_TOKEN: u64 = 4;

/// How many tokens a request is expected to take: what is set aside of the minute's until it has ended.
pub(crate) fn estimate(body_bytes: usize, tokens_max: Option<u32>, choices: u32) -> u64 {
    let drawn = tokens_max.map_or(UNNAMED_TOKENS, u64::from).saturating_mul(u64::from(choices));
    (body_bytes as u64).div_ceil(BYTES_PER_TOKEN).saturating_add(drawn)
}

/// The account of one request, shared by whoever sees a part of it. When the last of them lets go of it, what was set aside
/// and not used is back.
#[derive(Debug, Clone)]
pub(crate) struct Meter(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    rates: Arc<TenantRates>,
    allowed: Allowed,
    clock: Clock,
    seen: Mutex<Seen>,
    usage: OnceLock<Usage>,
    /// The id that its bills begin with.
    bill: OnceLock<Arc<str>>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Tokens set aside; nothing once that was put right.
    reserved: Option<u64>,
    /// The engine has accepted it: from then on it may cost something.
    begun: bool,
    prompt_tokens: u32,
    /// By choice, as far as was told.
    drawn: Vec<u32>,
}

impl Meter {
    pub(super) fn new(rates: Arc<TenantRates>, allowed: Allowed, clock: Clock) -> Self {
        Meter(Arc::new(Inner {
            rates,
            allowed,
            clock,
            seen: Mutex::default(),
            usage: OnceLock::new(),
            bill: OnceLock::new(),
        }))
    }

    /// Has the request billed under an id that is known before it begins.
    pub(crate) fn bill_as(&self, id: Arc<str>) {
        let _ = self.0.bill.set(id);
    }

    /// The id of the bill of its prompt of this number, if it is known.
    pub(crate) fn bill(&self, prompt: usize) -> Option<Arc<str>> {
        let id = self.0.bill.get()?;
        Some(if prompt == 0 { id.clone() } else { format!("{id}-{prompt}").into() })
    }

    /// Sets tokens aside, or says when there will be enough. A request that is refused here has taken nothing.
    pub(crate) fn reserve(&self, tokens: u64) -> Result<(), ApiError> {
        let inner = &*self.0;
        let Some(rate) = inner.allowed.tokens else { return Ok(()) };
        let now_us = inner.clock.now_us();
        {
            let mut bucket = inner.rates.tokens.lock().unwrap_or_else(PoisonError::into_inner);
            match inner.allowed.shadow {
                true if bucket.count(rate, tokens, now_us) => {}
                true => drop(inner.rates.spared.tokens.fetch_add(1, Ordering::Relaxed)),
                false => {
                    if let Err(retry_after) = bucket.take(rate, tokens, now_us) {
                        drop(bucket);
                        inner.give_request_back();
                        return Err(ApiError::RateLimited {
                            message: format!(
                                "Rate limit reached: {} tokens per minute; this request may take {tokens}. Try again in {}.",
                                rate.size(),
                                duration(retry_after)
                            ),
                            retry_after,
                        });
                    }
                }
            }
        }
        inner.seen().reserved = Some(tokens);
        Ok(())
    }

    /// The engine has accepted the request, or part of it.
    pub(crate) fn begun(&self, prompt_tokens: u32) {
        let mut seen = self.0.seen();
        seen.begun = true;
        seen.prompt_tokens = prompt_tokens;
    }

    /// The engine has refused all of it after all.
    pub(crate) fn not_begun(&self) {
        self.0.seen().begun = false;
    }

    /// Whether it may have cost something.
    pub(crate) fn has_begun(&self) -> bool {
        self.0.seen().begun
    }

    /// Something of the answer came.
    pub(crate) fn saw(&self, event: &StreamEvent) {
        match event {
            StreamEvent::Delta { index, tokens, .. } => {
                let mut seen = self.0.seen();
                let index = *index as usize;
                if seen.drawn.len() <= index {
                    seen.drawn.resize(index + 1, 0);
                }
                seen.drawn[index] = *tokens;
            }
            StreamEvent::Done(usage) => self.done(*usage),
            // These two come before anything was computed for it.
            StreamEvent::Failed(RequestFailure {
                kind: FailureKind::QuotaSpent { .. } | FailureKind::NeverFits,
                ..
            }) => self.not_begun(),
            StreamEvent::Finished { .. } | StreamEvent::Failed(_) => {}
        }
    }

    /// What it took, all in all.
    pub(crate) fn done(&self, usage: Usage) {
        let _ = self.0.usage.set(usage);
        self.0.settle();
    }

    /// The same, once that is known.
    pub(crate) fn usage(&self) -> Option<Usage> {
        self.0.usage.get().copied()
    }

    /// Says in an answer's headers what is left.
    pub(super) fn write(&self, headers: &mut HeaderMap) {
        let inner = &*self.0;
        let now_us = inner.clock.now_us();
        for (rate, bucket, names) in [
            (inner.allowed.requests, &inner.rates.requests, headers::REQUESTS),
            (inner.allowed.tokens, &inner.rates.tokens, headers::TOKENS),
        ] {
            if let Some(rate) = rate {
                let level = bucket.lock().unwrap_or_else(PoisonError::into_inner).level(rate, now_us);
                headers::write(headers, names, level);
            }
        }
    }
}

impl Inner {
    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request that is told to come later should find a place for itself then.
    fn give_request_back(&self) {
        if self.allowed.requests.is_some() && !self.allowed.shadow {
            self.rates.requests.lock().unwrap_or_else(PoisonError::into_inner).correct(1, 0);
        }
    }

    /// Puts what was taken in the place of what was set aside, once.
    fn settle(&self) {
        let mut seen = self.seen();
        let Some(reserved) = seen.reserved.take() else { return };
        let actual = match self.usage.get() {
            Some(usage) => u64::from(usage.prompt_tokens) + u64::from(usage.completion_tokens),
            // Cut off: as much as is known of it.
            None if seen.begun => {
                u64::from(seen.prompt_tokens) + seen.drawn.iter().map(|drawn| u64::from(*drawn)).sum::<u64>()
            }
            None => 0,
        };
        drop(seen);
        self.rates.tokens.lock().unwrap_or_else(PoisonError::into_inner).correct(reserved, actual);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.settle();
    }
}
