//! Limits per minute and of connections, each tenant's own, as this replica sees them: nothing is shared with others and
//! no store is asked. What the scheduler can see (requests that run, requests that wait) is its to bound.
//!
//! * Requests: one is taken before anything of the body is read, out of a [`bucket::Bucket`].
//! * Tokens: what a request may take is set aside when it has been read ([`estimate`]) and put right when it has ended
//!   ([`Meter`]); an answer that is cut off counts as far as it was told.
//! * Connections: a connection counts for the tenant that last asked over it ([`Seat`]), until it is closed.
//!
//! A tenant in shadow mode is counted, its headers are written, and nothing is refused: what would have been is a metric.

mod bucket;
mod headers;
mod meter;
mod seat;
#[cfg(test)]
mod tests;

use std::{
    fmt::Write,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use axum::{
    extract::Request,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use weir_runtime::{TenantId, store};

use self::bucket::{Bucket, Rate};
pub(crate) use self::meter::{Meter, estimate};
pub use self::seat::Seat;
use super::App;
use crate::{
    error::{ApiError, BodyUnread},
    identity::Caller,
};

/// A connection that is one too many is told to try again after this long: when another closes, nobody knows.
const CONNECTIONS_RETRY: Duration = Duration::from_secs(1);

/// Every tenant's state.
#[derive(Debug, Default)]
pub(crate) struct Limiter {
    /// By number, which is dense. The list grows when a tenant first asks; a request only reads it.
    tenants: ArcSwap<Vec<Arc<TenantRates>>>,
    clock: Clock,
}

/// One tenant's. Its locks are held for some nanoseconds, and by nobody else.
#[derive(Debug, Default)]
pub(super) struct TenantRates {
    requests: Mutex<Bucket>,
    tokens: Mutex<Bucket>,
    connections: AtomicU32,
    spared: Spared,
}

/// What a tenant in shadow mode was not refused.
#[derive(Debug, Default)]
pub(super) struct Spared {
    requests: AtomicU64,
    tokens: AtomicU64,
    connections: AtomicU64,
}

impl Spared {
    /// By the limit's name.
    fn counts(&self) -> [(&'static str, u64); 3] {
        let counts = [
            ("requests_per_minute", &self.requests),
            ("tokens_per_minute", &self.tokens),
            ("connections_max", &self.connections),
        ];
        counts.map(|(limit, count)| (limit, count.load(Ordering::Relaxed)))
    }
}

/// Microseconds since the start.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock(Instant);

impl Default for Clock {
    fn default() -> Self {
        Clock(Instant::now())
    }
}

impl Clock {
    fn now_us(self) -> u64 {
        u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// A tenant's limits, as they hold for one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Allowed {
    requests: Option<Rate>,
    tokens: Option<Rate>,
    connections: Option<u32>,
    shadow: bool,
}

impl From<&store::Limits> for Allowed {
    fn from(limits: &store::Limits) -> Self {
        let burst = limits.burst_percent.unwrap_or(0);
        Allowed {
            requests: limits.requests_per_minute.map(|amount| Rate::per_minute(amount.into(), burst)),
            tokens: limits.tokens_per_minute.map(|amount| Rate::per_minute(amount, burst)),
            connections: limits.connections_max,
            shadow: limits.shadow.unwrap_or(false),
        }
    }
}

impl Limiter {
    fn rates(&self, tenant: TenantId) -> Arc<TenantRates> {
        let index = tenant.0 as usize;
        if let Some(known) = self.tenants.load().get(index) {
            return known.clone();
        }
        self.tenants.rcu(|tenants| {
            let mut more = Vec::clone(tenants);
            more.resize_with(more.len().max(index + 1), Arc::default);
            more
        });
        self.tenants.load()[index].clone()
    }

    /// What tenants in shadow mode were not refused, as Prometheus text.
    pub(super) fn metrics(&self, name_of: impl Fn(TenantId) -> Option<String>) -> String {
        let name = "weir_shadow_refusals_total";
        let help = "Requests that a limit would have refused, had their tenant not been in shadow mode";
        let mut text = format!("# HELP {name} {help}.\n# TYPE {name} counter\n");
        for (number, rates) in (0..).zip(&**self.tenants.load()) {
            for (limit, count) in rates.spared.counts().into_iter().filter(|(_, count)| *count > 0) {
                let tenant = name_of(TenantId(number)).unwrap_or_default();
                let _ = writeln!(text, "{name}{{tenant=\"{tenant}\",limit=\"{limit}\"}} {count}");
            }
        }
        text
    }

    /// Lets a request in, or says when it may come again.
    fn enter(&self, tenant: TenantId, allowed: Allowed, seat: Option<&Seat>) -> Result<Meter, (ApiError, Meter)> {
        let rates = self.rates(tenant);
        let meter = Meter::new(rates.clone(), allowed, self.clock);
        if let Some(seat) = seat
            && !seat.take(tenant, &rates, allowed.connections)
        {
            if allowed.shadow {
                rates.spared.connections.fetch_add(1, Ordering::Relaxed);
                seat.take(tenant, &rates, None);
            } else {
                let message = "Too many connections of your tenant are open.".to_owned();
                return Err((ApiError::RateLimited { message, retry_after: CONNECTIONS_RETRY }, meter));
            }
        }
        let Some(rate) = allowed.requests else { return Ok(meter) };
        let now_us = self.clock.now_us();
        let mut bucket = rates.requests.lock().unwrap_or_else(PoisonError::into_inner);
        if allowed.shadow {
            if !bucket.count(rate, 1, now_us) {
                rates.spared.requests.fetch_add(1, Ordering::Relaxed);
            }
            return Ok(meter);
        }
        match bucket.take(rate, 1, now_us) {
            Ok(()) => Ok(meter),
            Err(retry_after) => {
                let (limit, wait) = (rate.size(), headers::duration(retry_after));
                let message = format!("Rate limit reached: {limit} requests per minute. Try again in {wait}.");
                Err((ApiError::RateLimited { message, retry_after }, meter))
            }
        }
    }
}

/// Its limits as they hold for this request.
fn allowed(caller: &Caller) -> Allowed {
    Allowed::from(&caller.account.limits)
}

/// Before whatever costs device time: takes the request out of its tenant's minute, and says in the answer what is left.
pub(super) async fn limit<W: Future<Output = Response>>(
    app: &App,
    caller: &Caller,
    mut request: Request,
    work: impl FnOnce(Request, Meter) -> W,
) -> Response {
    let allowed = allowed(caller);
    let seat = request.extensions().get::<Seat>().cloned();
    match app.limiter.enter(caller.tenant, allowed, seat.as_ref()) {
        Ok(meter) => {
            request.extensions_mut().insert(meter.clone());
            let mut response = work(request, meter.clone()).await;
            meter.write(response.headers_mut());
            app.warn_of_quotas(caller, response.headers_mut());
            response
        }
        Err((error, meter)) => {
            let mut response = error.into_response();
            response.extensions_mut().insert(BodyUnread);
            if seat.is_some_and(|seat| !seat.is_taken()) {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            meter.write(response.headers_mut());
            response
        }
    }
}
