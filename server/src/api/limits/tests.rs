use super::*;
use weir_runtime::{StreamEvent, Usage};

const ACME: TenantId = TenantId(1);
const RIVAL: TenantId = TenantId(7);

fn allowed(text: &str) -> Allowed {
    Allowed::from(&serde_json::from_str::<store::Limits>(text).expect("limits"))
}

fn shown(meter: &Meter) -> Vec<(String, String)> {
    let mut headers = axum::http::HeaderMap::new();
    meter.write(&mut headers);
    let mut shown: Vec<_> = headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().expect("text").to_owned()))
        .filter(|(name, _)| !name.contains("reset"))
        .collect();
    shown.sort();
    shown
}

fn remaining(meter: &Meter, of: &str) -> u64 {
    let name = format!("x-ratelimit-remaining-{of}");
    shown(meter).into_iter().find(|(n, _)| *n == name).and_then(|(_, value)| value.parse().ok()).expect("shown")
}

/// One an hour or so: slow enough that nothing fills while a test runs.
const SLOW: &str = r#"{"requests_per_minute":2,"tokens_per_minute":1000}"#;

#[test]
fn a_tenants_requests_are_its_own() {
    let limiter = Limiter::default();
    let limits = allowed(SLOW);
    assert!(limiter.enter(ACME, limits, None).is_ok());
    assert!(limiter.enter(ACME, limits, None).is_ok());
    let (error, meter) = limiter.enter(ACME, limits, None).expect_err("both are taken");
    assert_eq!((error.status().as_u16(), error.code()), (429, "rate_limit_exceeded"));
    assert_eq!(remaining(&meter, "requests"), 0);
    assert!(limiter.enter(RIVAL, limits, None).is_ok());
    assert!(limiter.enter(TenantId(2), limits, None).is_ok());
    // Without a limit there is nothing to show.
    let free = limiter.enter(ACME, Allowed::default(), None).expect("no limit");
    assert_eq!(shown(&free), []);
}

#[test]
fn tokens_are_set_aside_and_put_right() {
    let limiter = Limiter::default();
    let limits = allowed(r#"{"tokens_per_minute":1000}"#);
    let meter = || limiter.enter(ACME, limits, None).expect("no limit of requests");
    let watch = meter();
    let whole = meter();
    whole.reserve(600).expect("enough");
    assert_eq!(remaining(&watch, "tokens"), 400);
    let refused = meter().reserve(500).expect_err("not enough");
    assert_eq!(refused.code(), "rate_limit_exceeded");
    whole.begun(10);
    whole.done(Usage { prompt_tokens: 10, completion_tokens: 30, ..Usage::default() });
    assert_eq!(remaining(&watch, "tokens"), 960, "at its end, whoever still holds it");
    drop(whole);
    assert_eq!(remaining(&watch, "tokens"), 960, "once");

    let cut = meter();
    cut.reserve(500).expect("enough");
    cut.begun(20);
    for (index, tokens) in [(1, 5), (0, 7), (1, 9)] {
        cut.saw(&StreamEvent::Delta { index, text: String::new(), tokens, logprobs: Vec::new() });
    }
    drop(cut);
    assert_eq!(remaining(&watch, "tokens"), 960 - 20 - 7 - 9);

    let never = meter();
    never.reserve(500).expect("enough");
    drop(never);
    assert_eq!(remaining(&watch, "tokens"), 960 - 36, "what was refused later has cost nothing");
}

#[test]
fn who_is_refused_for_tokens_has_its_request_back() {
    let limiter = Limiter::default();
    let limits = allowed(r#"{"requests_per_minute":1,"tokens_per_minute":100}"#);
    let first = limiter.enter(ACME, limits, None).expect("full");
    first.reserve(100).expect("full");
    let limits = allowed(r#"{"requests_per_minute":2,"tokens_per_minute":100}"#);
    let second = limiter.enter(ACME, limits, None).expect("one more");
    assert!(second.reserve(50).is_err());
    assert_eq!(remaining(&second, "requests"), 1);
}

#[test]
fn who_is_only_watched_is_never_refused() {
    let limiter = Limiter::default();
    let limits = allowed(r#"{"requests_per_minute":1,"tokens_per_minute":10,"connections_max":1,"shadow":true}"#);
    let seats: Vec<Seat> = (0..5).map(|_| Seat::default()).collect();
    let mut meters = Vec::new();
    for seat in &seats {
        let meter = limiter.enter(ACME, limits, Some(seat)).expect("in shadow");
        meter.reserve(1000).expect("in shadow");
        assert_eq!((remaining(&meter, "requests"), remaining(&meter, "tokens")), (0, 0));
        meters.push(meter);
    }
    let metrics = limiter.metrics(|tenant| (tenant == ACME).then(|| "acme".into()));
    for limit in ["requests_per_minute", "tokens_per_minute", "connections_max"] {
        let line = format!("weir_shadow_refusals_total{{tenant=\"acme\",limit=\"{limit}\"}} 4\n");
        assert!(metrics.contains(&line), "{metrics}");
    }
}

#[test]
fn connections_count_for_whoever_asks_over_them_until_they_close() {
    let limiter = Limiter::default();
    let limits = allowed(r#"{"connections_max":2}"#);
    let seats: Vec<Seat> = (0..3).map(|_| Seat::default()).collect();
    let enter = |tenant, seat: &Seat| limiter.enter(tenant, limits, Some(seat)).is_ok();
    assert!(enter(ACME, &seats[0]) && enter(ACME, &seats[1]) && enter(ACME, &seats[0]));
    assert!(!enter(ACME, &seats[2]) && !seats[2].is_taken());
    assert!(enter(RIVAL, &seats[2]), "the other's are not full");
    // A proxy's connection goes over to another tenant, and leaves a place.
    assert!(enter(RIVAL, &seats[1]) && enter(ACME, &Seat::default()));
    let held = Seat::default();
    assert!(enter(ACME, &held), "the one before was closed");
    assert!(!enter(ACME, &Seat::default()));
    drop(held);
    assert!(enter(ACME, &Seat::default()));
    assert_eq!(limiter.rates(ACME).connections.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[test]
fn an_estimate_has_the_prompt_and_what_may_be_drawn() {
    assert_eq!(estimate(401, Some(10), 2), 101 + 20);
    assert_eq!(estimate(0, None, 1), 1024);
    assert_eq!(estimate(8, Some(0), 1), 2);
    assert_eq!(estimate(usize::MAX, Some(u32::MAX), u32::MAX), u64::MAX);
}
