//! `GET /v1/usage`: what a tenant used, and what it costs.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{
    Extension,
    extract::{Request, State},
    response::Response,
};
use serde::Serialize;
use utoipa::ToSchema;
use weir_runtime::{
    billing::{self, Dimension, Rates, TooManyGroups, Usage, UsageGroup, UsageRow},
    quota::calendar::{self, Period},
    store::{Price, StoreError, Tx},
};

use super::{App, query::Query, respond};
use crate::{
    error::{ApiError, ErrorBody},
    identity::{Caller, Now, Scope},
};

/// Days of one answer.
const DAYS_MAX: i64 = 400;

/// Use, in groups.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct UsageReport {
    /// `usage`.
    object: &'static str,
    /// The first day, UTC.
    from: String,
    /// The last day, UTC.
    to: String,
    /// What the groups are by.
    group_by: Vec<&'static str>,
    /// In order; each group has the fields that it is by.
    data: Vec<UsageLine>,
    /// All groups together.
    total: UsageSums,
}

/// A group.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct UsageLine {
    /// Whose.
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
    /// UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    day: Option<String>,
    /// The model.
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    /// The credential; null stands for all that are not the caller's to see.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    key: Option<Option<String>>,
    /// The plan at that time.
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<String>,
    /// The class of devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    device_class: Option<String>,
    #[serde(flatten)]
    sums: UsageSums,
}

/// How much, and what it costs.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct UsageSums {
    /// Requests that ended.
    requests: i64,
    /// Tokens of their prompts.
    prompt_tokens: i64,
    /// Tokens that were drawn.
    completion_tokens: i64,
    /// Device time, to the microsecond.
    device_seconds: f64,
    /// The same, exactly.
    device_ns: i64,
    /// Millionths of the currency, rounded down.
    cost_micros: i64,
    /// Device time in it that no price is set for.
    unpriced_device_ns: i64,
}

impl From<&UsageGroup> for UsageSums {
    fn from(group: &UsageGroup) -> Self {
        UsageSums {
            requests: group.sums.requests,
            prompt_tokens: group.sums.prompt_tokens,
            completion_tokens: group.sums.completion_tokens,
            device_seconds: (group.sums.device_ns / 1000) as f64 / 1e6,
            device_ns: group.sums.device_ns,
            cost_micros: group.cost.micros(),
            unpriced_device_ns: group.unpriced_ns,
        }
    }
}

/// What is asked for.
pub(super) struct Asked {
    /// The first and the last day since 1970.
    pub(super) days: (i64, i64),
    pub(super) by: BTreeSet<Dimension>,
}

impl Asked {
    /// Names of the query.
    pub(super) const KNOWN: [&'static str; 3] = ["from", "to", "group_by"];

    /// From the first of this month to today, by day and model, unless it says otherwise.
    pub(super) fn of(query: &Query, dimensions: &[Dimension], now_us: i64) -> Result<Asked, ApiError> {
        let day = |name: &str, default: i64| match query.get(name) {
            None => Ok(default),
            Some(text) => day_of(text).ok_or_else(|| {
                ApiError::param(name, "invalid_value", format!("Invalid '{name}': write a day as 2026-11-21 (UTC)."))
            }),
        };
        let to = day("to", calendar::day_of(now_us))?;
        let first = calendar::day_of(Period::Month.begin(calendar::day_begins_us(to)));
        let from = day("from", first)?;
        if from > to || to - from >= DAYS_MAX {
            let message = format!("'from' must be before 'to', and {DAYS_MAX} days before it at most.");
            return Err(ApiError::param("from", "invalid_value", message));
        }
        let words = query.get("group_by").unwrap_or("day,model");
        let by = words.split(',').map(|word| {
            Dimension::parse(word.trim()).filter(|dimension| dimensions.contains(dimension)).ok_or_else(|| {
                let known: Vec<&str> = dimensions.iter().map(|dimension| dimension.word()).collect();
                let message = format!("Invalid 'group_by': it is a list of {}.", known.join(", "));
                ApiError::param("group_by", "invalid_value", message)
            })
        });
        Ok(Asked { days: (from, to), by: by.collect::<Result<_, _>>()? })
    }
}

/// A day since 1970 from its date.
pub(super) fn day_of(text: &str) -> Option<i64> {
    let (month, day) = text.split_at_checked(7)?;
    let digits = day.strip_prefix('-').filter(|day| day.len() == 2 && day.bytes().all(|byte| byte.is_ascii_digit()))?;
    let day: u32 = digits.parse().ok()?;
    let begins = calendar::day_of(calendar::month_begins_us(month)?);
    let found = begins + i64::from(day) - 1;
    (day >= 1 && calendar::date(found).day == day).then_some(found)
}

/// A date as it is written.
pub(super) fn date_text(day: i64) -> String {
    let date = calendar::date(day);
    format!("{:04}-{:02}-{:02}", date.year, date.month, date.day)
}

/// Adds a tenant's rows to `usage`, each as `shown` makes it, or not at all.
pub(super) async fn gather(
    tx: &mut Tx,
    usage: &mut Usage,
    tenant: &str,
    asked: &Asked,
    prices: &[Price],
    price_ppm: &BTreeMap<String, u64>,
    shown: impl Fn(UsageRow) -> Option<UsageRow>,
) -> Result<(), ApiError> {
    let rates = Rates { prices, price_ppm };
    let mut full = Ok(());
    billing::usage(tx, tenant, asked.days, |row| {
        if let (Ok(()), Some(row)) = (full, shown(row)) {
            full = usage.add(&row, &rates);
        }
    })
    .await
    .map_err(of_store)?;
    full.map_err(|error: TooManyGroups| ApiError::param("group_by", "too_many_groups", capital(&error.to_string())))
}

/// The answer.
pub(super) fn report(asked: &Asked, usage: &Usage) -> UsageReport {
    let by = |dimension| usage.dimensions().contains(&dimension);
    let line = |((tenant, day, [model, key, plan, class]), group): (&billing::GroupKey, &UsageGroup)| {
        let text = |dimension, text: &String| by(dimension).then(|| text.clone());
        UsageLine {
            tenant: text(Dimension::Tenant, tenant),
            day: by(Dimension::Day).then(|| date_text(*day)),
            model: text(Dimension::Model, model),
            key: by(Dimension::Key).then(|| Some(key.clone()).filter(|key| !key.is_empty())),
            plan: text(Dimension::Plan, plan),
            device_class: text(Dimension::DeviceClass, class),
            sums: group.into(),
        }
    };
    UsageReport {
        object: "usage",
        from: date_text(asked.days.0),
        to: date_text(asked.days.1),
        group_by: usage.dimensions().iter().map(|dimension| dimension.word()).collect(),
        data: usage.groups().map(line).collect(),
        total: usage.total().into(),
    }
}

/// What a tenant may group by.
const OWN: [Dimension; 5] = [Dimension::Day, Dimension::Model, Dimension::Key, Dimension::Plan, Dimension::DeviceClass];

/// What the caller's tenant used, and what it costs.
///
/// A key that may know of some models only sees the use of those. Which keys there are is for those with `keys:read`:
/// others see their own, and all the rest as one.
#[utoipa::path(
    get, path = "/v1/usage", tag = "Weir",
    params(
        ("from" = Option<String>, Query, description = "The first day, such as 2026-11-01 (UTC); the first of the month where absent"),
        ("to" = Option<String>, Query, description = "The last day; today where absent"),
        ("group_by" = Option<String>, Query, description = "Some of day, model, key, plan, device_class; day,model where absent")
    ),
    responses(
        (status = 200, description = "Use in groups, and their total", body = UsageReport),
        (status = "default", description = "Any error", body = ErrorBody)
    )
)]
pub(crate) async fn own(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, ApiError> {
    let query = Query::of(request.uri(), &Asked::KNOWN)?;
    let asked = Asked::of(&query, &OWN, Now::read().unix_us)?;
    let store = app.kept()?;
    let mut tx = store.read_as(&caller.name).await.map_err(of_store)?;
    let price_ppm = tx.tenant(&caller.name).await.map_err(of_store)?.settings.price_ppm;
    let prices = tx.prices().await.map_err(of_store)?;
    let mut usage = Usage::by(asked.by.clone());
    let shown = |row: UsageRow| {
        let key = if caller.may(Scope::KeysRead) || *row.key == *caller.credential { row.key } else { String::new() };
        caller.may_use(&row.model).then_some(UsageRow { key, ..row })
    };
    gather(&mut tx, &mut usage, &caller.name, &asked, &prices, &price_ppm, shown).await?;
    Ok(respond::json(&report(&asked, &usage)))
}

/// What a caller is told of the store's errors.
pub(super) fn of_store(error: StoreError) -> ApiError {
    match error {
        StoreError::Unavailable(_) | StoreError::Retry(_) => {
            tracing::warn!(%error, "the store does not answer");
            let message = "The server's store does not answer at present.".to_owned();
            ApiError::Overloaded { message, retry_after: std::time::Duration::from_secs(1) }
        }
        error => {
            tracing::error!(%error, "the store failed");
            ApiError::Internal("The server's store failed.".into())
        }
    }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).chain(['.']).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_dates_that_there_are() {
        assert_eq!(day_of("1970-01-01"), Some(0));
        assert_eq!(day_of("2026-11-21").map(date_text).as_deref(), Some("2026-11-21"));
        assert_eq!(day_of("2028-02-29").map(date_text).as_deref(), Some("2028-02-29"));
        for bad in [
            "2026-02-29",
            "2026-11-31",
            "2026-11-00",
            "2026-11-1",
            "2026-11",
            "2026-13-01",
            "",
            "2026-11-+1",
            "é026-11-01",
        ] {
            assert_eq!(day_of(bad), None, "{bad}");
        }
    }

    #[test]
    fn without_words_it_is_the_month_so_far() {
        let now_us = calendar::day_begins_us(day_of("2026-11-21").expect("a day")) + 5;
        let asked = |text: &str| {
            let query = Query::of(&format!("/x?{text}").parse().expect("an address"), &Asked::KNOWN)?;
            Asked::of(&query, &OWN, now_us).map(|asked| {
                let by: Vec<&str> = asked.by.iter().map(|dimension| dimension.word()).collect();
                format!("{} {} {}", date_text(asked.days.0), date_text(asked.days.1), by.join(","))
            })
        };
        assert_eq!(asked("").as_deref(), Ok("2026-11-01 2026-11-21 day,model"));
        assert_eq!(asked("to=2026-10-03&group_by=key").as_deref(), Ok("2026-10-01 2026-10-03 key"));
        assert_eq!(asked("from=2025-12-01").as_deref(), Ok("2025-12-01 2026-11-21 day,model"));
        for bad in ["from=2025-10-01", "from=2026-11-22", "group_by=tenant", "group_by=day,", "from=x", "tenant=a"] {
            assert_eq!(asked(bad).expect_err(bad).status().as_u16(), 400, "{bad}");
        }
    }
}
