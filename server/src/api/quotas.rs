//! Quotas as they stand: which windows a tenant has, how full they are, and what a request is told of that in a header.

use std::{fmt::Write, sync::Arc};

use axum::{
    Extension,
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue},
    response::Response,
};
use serde::Serialize;
use utoipa::ToSchema;
use weir_runtime::{
    TenantSpec,
    quota::{self, Period, QuotaWarning, Unit},
    store::{Limits, Tx},
};

use super::{App, respond};
use crate::{
    error::{ApiError, ErrorBody},
    identity::{Caller, Now},
};

/// The header of requests whose tenant has passed a soft limit.
const WARNING: HeaderName = HeaderName::from_static("x-weir-quota-warning");

/// The windows of a tenant that have a limit.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct QuotaList {
    object: &'static str,
    data: Vec<QuotaWindow>,
}

/// One of them, as the store has it at this moment.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct QuotaWindow {
    /// `quota`.
    object: &'static str,
    /// `device_ns` or `requests`.
    unit: &'static str,
    /// `hour`, `day` or `month`.
    period: &'static str,
    /// When it began, in microseconds since 1970.
    begins_us: i64,
    /// When it ends.
    until_us: i64,
    /// What may be used of it, with burst and carry-over.
    allowed: i64,
    /// What servers have taken of it: used, or held for a few seconds.
    granted: i64,
    /// Of that, what is known to be used.
    spent: i64,
    /// What was let through beyond what is allowed: in shadow mode, what would have been refused.
    over: i64,
    /// From where on the tenant is warned, in hundredths of what is allowed; null is nowhere.
    soft_limit_percent: Option<u32>,
    /// Whether the soft limit is passed.
    warns: bool,
    /// Nothing is refused.
    shadow: bool,
}

/// A tenant's windows, from the store: what all servers together have taken.
pub(super) async fn report(tx: &mut Tx, tenant: &str, plan: &str, limits: &Limits) -> Result<QuotaList, ApiError> {
    let spec = TenantSpec::of_limits(tenant, plan, limits);
    let at_us = Now::read().unix_us;
    let mut data = Vec::new();
    for unit in Unit::ALL {
        let Some(limits) = spec.limits(unit) else { continue };
        let windows = quota::windows(tx, tenant, unit, &limits, at_us).await?;
        let limited =
            Period::ALL.into_iter().zip(windows).filter(|(period, _)| limits.amounts[*period as usize].is_some());
        data.extend(limited.map(|(period, window)| {
            let allowed = limits.allowed(period, window.brought);
            let soft = Some(limits.soft_percent).filter(|percent| *percent > 0);
            QuotaWindow {
                object: "quota",
                unit: unit.name(),
                period: period.name(),
                begins_us: window.begins_us,
                until_us: period.end(window.begins_us),
                allowed,
                granted: window.granted,
                spent: window.spent,
                over: window.granted.saturating_sub(allowed).max(0),
                soft_limit_percent: soft,
                warns: soft.is_some_and(|percent| quota::percent(allowed, percent) <= window.granted),
                shadow: limits.shadow,
            }
        }));
    }
    Ok(QuotaList { object: "list", data })
}

/// How full the windows of the caller's tenant are that have a limit.
#[utoipa::path(
    get, path = "/v1/quotas", tag = "Weir",
    responses((status = 200, description = "Windows", body = QuotaList),
              (status = "default", description = "Any error", body = ErrorBody))
)]
pub(crate) async fn own(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
) -> Result<Response, ApiError> {
    let account = &caller.account;
    let mut tx = app.kept()?.read_as(&caller.name).await?;
    Ok(respond::json(&report(&mut tx, &caller.name, &account.plan, &account.limits).await?))
}

impl App {
    /// Says in an answer's headers which windows of the caller's tenant are past their soft limits, as far as this server knows.
    /// Whoever has no soft limit costs nothing here.
    pub(super) fn warn_of_quotas(&self, caller: &Caller, headers: &mut HeaderMap) {
        if caller.account.limits.soft_limit_percent.is_none() {
            return;
        }
        let Some(engine) = self.engine.get() else { return };
        let warnings = engine.quota_warnings(caller.tenant);
        if let Some(value) = warning(&warnings, Now::read().unix_us) {
            headers.insert(WARNING, value);
        }
    }
}

/// A list of items with parameters (RFC 9651). Device time is in seconds, rounded down to what such numbers can hold.
fn warning(warnings: &[QuotaWarning], now_us: i64) -> Option<HeaderValue> {
    let mut text = String::new();
    for warning in warnings {
        let comma = if text.is_empty() { "" } else { ", " };
        let amount = |amount: i64| match warning.unit {
            Unit::Requests => format!("{amount}"),
            Unit::DeviceNs => format!("{}.{:03}", amount / 1_000_000_000, amount / 1_000_000 % 1000),
        };
        let unit = match warning.unit {
            Unit::Requests => "requests",
            Unit::DeviceNs => "device_seconds",
        };
        let (period, percent) = (warning.period.name(), warning.percent);
        let (used, limit) = (amount(warning.granted), amount(warning.allowed));
        let reset = warning.until_us.saturating_sub(now_us).max(0) as u64;
        let reset = reset.div_ceil(1_000_000);
        let _ = write!(text, "{comma}{unit};period={period};soft={percent};used={used};limit={limit};reset={reset}");
    }
    HeaderValue::from_str(&text).ok().filter(|_| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_names_the_window_and_how_full_it_is() {
        let hour = QuotaWarning {
            unit: Unit::DeviceNs,
            period: Period::Hour,
            percent: 80,
            granted: 481_234_567_890,
            allowed: 600_000_000_000,
            until_us: 3_600_000_000,
        };
        let month = QuotaWarning { unit: Unit::Requests, period: Period::Month, granted: 90, allowed: 100, ..hour };
        assert_eq!(warning(&[], 0), None);
        let said = warning(&[hour, month], 3_599_000_001).expect("a header");
        assert_eq!(
            said.to_str().ok(),
            Some(
                "device_seconds;period=hour;soft=80;used=481.234;limit=600.000;reset=1, \
                 requests;period=month;soft=80;used=90;limit=100;reset=1"
            )
        );
    }
}
