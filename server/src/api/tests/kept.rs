//! What needs a store: limits that are in it, keys of requests that are repeated, use, bills and webhooks.

use weir_runtime::store::{
    Actor, Begun, Idempotent, Limits as StoreLimits, StoreError, StoreOptions, TenantSettings, Value as Bound,
};
use weir_runtime::{
    Accounts,
    ledger::{SigningKey, WriterOptions},
};

use super::*;
use crate::{
    api::admin_router,
    everybody::{Everybody, FileKeys, import},
    identity::{CidrList, Issuers, Now, Pepper},
    keys::KeyHash,
    webhooks::{EnvelopeKey, Reach, signature},
};

pub(super) struct Rig {
    pub(super) folder: tempfile::TempDir,
    everybody: Arc<Everybody>,
    app: Arc<App>,
    api: Router,
    pub(super) admin: Router,
}

/// Tenants `a` and `b`, a model that is slow enough to be met while it runs, and one that is not.
pub(super) async fn rig() -> Rig {
    rig_reaching(Reach::Public).await
}

/// The same, where tenants' webhooks go so far.
async fn rig_reaching(reach: Reach) -> Rig {
    let folder = tempfile::tempdir().expect("folder");
    let url = format!("sqlite:{}", folder.path().join("weir.db").display());
    let store = Store::open(&url, &StoreOptions::default()).await.expect("a store");
    let tables = [("a", KEY), ("b", OTHER_KEY)].map(|(name, key)| {
        let hash = KeyHash::of(key.as_bytes()).hex();
        toml::from_str(&format!("name = {name:?}\n[[keys]]\nname = \"k\"\nsha256 = {hash:?}\n")).expect("a table")
    });
    import(&store, &tables, 1).await.expect("imported");
    let operator = folder.path().join("operator");
    crate::keys::write_key_file(&operator, &crate::keys::Key::random().expect("a key")).expect("written");
    let files = FileKeys::new(&tables, Some(operator));
    let pepper = Pepper::open(&folder.path().join("pepper")).expect("a pepper");
    let (issuers, proxies) = (Issuers::default(), CidrList::default());
    let everybody = Everybody::open(store, pepper, files, issuers, proxies, BTreeSet::new()).await.expect("everybody");
    let engine = Engine::start(EngineConfig {
        models: ["m=fake:step=10us,token=1us", "slow=fake:step=20ms,token=1us"]
            .map(|m| m.parse().expect("model"))
            .into(),
        tenants: everybody.specs().await,
        devices: vec![DeviceConfig::cpu(0, ExecutorMode::Thread)],
        inspector: ExecutorMode::Thread,
        queue_len_max: 64,
        locality_quantum: LOCALITY_QUANTUM,
        canary_interval: Duration::from_secs(5),
        seed: 1,
        record: None,
        accounts: Some(Accounts {
            store: everybody.store().clone(),
            replica: "r".into(),
            options: WriterOptions::default(),
        }),
    });
    let app = App::of(everybody.clone(), LIMITS);
    let engine = engine.await.expect("engine");
    everybody.set_engine(engine.clone()).await;
    app.set_engine(engine);
    // Months are closed when a test says so.
    app.keep_books(EnvelopeKey::open(&folder.path().join("envelope.key")), reach, None);
    let ledger_key = SigningKey::create(&folder.path().join("ledger.key")).expect("a key");
    let _ = app.ledger_key.set(Arc::new(ledger_key));
    Rig { folder, everybody, api: router(app.clone()), admin: admin_router(app.clone(), None), app }
}

impl Rig {
    pub(super) fn store(&self) -> &Store {
        self.everybody.store()
    }

    /// Gives tenant `a` limits of its own, at once.
    async fn limit(&self, overrides: &str, retain_bodies: bool) {
        let overrides: StoreLimits = serde_json::from_str(overrides).expect("limits");
        let mut change = self.store().change(&Actor::system(), 2).await.expect("a change");
        let before = change.tx().tenant("a").await.expect("a");
        let settings = TenantSettings { overrides, retain_bodies, ..before.settings };
        change.update_tenant("a", before.version, &settings).await.expect("changed");
        change.commit().await.expect("committed");
        self.everybody.catch_up().await.expect("caught up");
    }

    /// An operator's request.
    pub(super) async fn operate(&self, method: Method, path: &str, body: impl Into<axum::body::Body>) -> Answer {
        let key = std::fs::read_to_string(self.folder.path().join("operator")).expect("a key");
        ask(&self.admin, Some(key.trim()), method, path, body).await
    }
}

/// A request with an `Idempotency-Key`.
async fn keyed(router: &Router, key: &str, path: &str, body: Value, tenants: &str) -> Answer {
    let request = HttpRequest::builder().method(Method::POST).uri(path).header("idempotency-key", key);
    let request = request.header("authorization", format!("Bearer {tenants}"));
    send(router, request.body(body.to_string().into()).expect("request")).await
}

const CHAT: &str = "/v1/chat/completions";

/// The error's code, and what is said beside it.
fn known(answer: &Answer) -> (u16, String, Value) {
    let body = answer.json();
    (answer.status.as_u16(), body["error"]["code"].as_str().expect("a code").to_owned(), body["idempotency"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_while_the_first_runs_gets_the_same_answer_and_later_ones_what_became_of_it() {
    let rig = rig().await;
    let slow = with(hello(), json!({"model": "slow"}));
    let one = || keyed(&rig.api, "k-1", CHAT, slow.clone(), KEY);
    let (first, second, third) = tokio::join!(one(), one(), one());
    let ids: BTreeSet<String> = [&first, &second, &third].map(|answer| answer.json()["id"].to_string()).into();
    assert_eq!(ids.len(), 1, "{}", first.text());
    let replayed =
        [&first, &second, &third].into_iter().filter(|answer| answer.header("idempotent-replayed").is_some());
    assert_eq!(replayed.count(), 2);

    let later = one().await;
    let (status, code, ended) = known(&later);
    assert_eq!((status, code.as_str()), (409, "idempotency_key_used"));
    assert_eq!((&ended["status"], &ended["usage"]["completion_tokens"]), (&json!(200), &json!(6)));
    assert_eq!(ended["usage"], first.json()["usage"]);
    assert!(ended.get("body").is_none(), "the tenant keeps none");
    assert_eq!(later.header("x-should-retry"), Some("false"));

    let other = keyed(&rig.api, "k-1", CHAT, with(slow.clone(), json!({"max_tokens": 7})), KEY).await;
    assert_eq!((other.status.as_u16(), code_of(&other).as_str()), (400, "idempotency_key_reused"));
    let elsewhere = keyed(&rig.api, "k-1", "/v1/completions", slow.clone(), KEY).await;
    assert_eq!(code_of(&elsewhere), "idempotency_key_reused");
    assert_eq!(keyed(&rig.api, "k-1", CHAT, slow, OTHER_KEY).await.status, 200, "another tenant's is another key");
}

fn code_of(answer: &Answer) -> String {
    super::code(answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn another_body_is_refused_while_the_first_runs_too() {
    let rig = rig().await;
    let body = with(hello(), json!({"model": "slow"}));
    let other = async {
        wait_for(|| rig.app.flights.len() == 1).await;
        keyed(&rig.api, "k", CHAT, with(body.clone(), json!({"seed": 1})), KEY).await
    };
    let (first, other) = tokio::join!(keyed(&rig.api, "k", CHAT, body.clone(), KEY), other);
    assert_eq!((first.status.as_u16(), code_of(&other).as_str()), (200, "idempotency_key_reused"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_hangs_up_finds_the_answer_when_it_comes_back() {
    let rig = rig().await;
    let body = with(hello(), json!({"model": "slow", "max_tokens": 20}));
    let (api, sent) = (rig.api.clone(), body.clone());
    let first = tokio::spawn(async move { keyed(&api, "k", CHAT, sent, KEY).await });
    wait_for(|| rig.app.flights.len() == 1).await;
    first.abort();
    let back = keyed(&rig.api, "k", CHAT, body, KEY).await;
    assert_eq!(back.status, 200, "{}", back.text());
    assert_eq!(back.header("idempotent-replayed"), Some("true"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_before_it_began_gives_its_key_back() {
    let rig = rig().await;
    for refused in [json!({"model": "none"}), json!({"max_tokens": -1}), json!({"max_tokens": 900_000_000})] {
        let refused = keyed(&rig.api, "k", CHAT, with(hello(), refused), KEY).await;
        assert!(refused.status.is_client_error(), "{}", refused.text());
    }
    assert_eq!(keyed(&rig.api, "k", CHAT, hello(), KEY).await.status, 200);
    assert_eq!(keyed(&rig.api, "k", CHAT, hello(), KEY).await.status, 409);
    for bad in ["", "x".repeat(256).as_str(), "a\u{e9}"] {
        let answer = keyed(&rig.api, bad, CHAT, hello(), KEY).await;
        assert_eq!((answer.status.as_u16(), code_of(&answer).as_str()), (400, "invalid_value"), "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_kept_for_those_who_want_them() {
    let rig = rig().await;
    rig.limit("{}", true).await;
    let first = keyed(&rig.api, "k", CHAT, hello(), KEY).await;
    let (_, _, ended) = known(&keyed(&rig.api, "k", CHAT, hello(), KEY).await);
    assert_eq!(ended["body"], first.json());

    let streamed = with(hello(), json!({"stream": true}));
    let first = keyed(&rig.api, "s", CHAT, streamed.clone(), KEY).await;
    wait_for(|| rig.app.flights.len() == 0).await;
    let (status, code, ended) = known(&keyed(&rig.api, "s", CHAT, streamed, KEY).await);
    assert_eq!((status, code.as_str(), &ended["status"]), (409, "idempotency_key_used", &json!(200)));
    assert_eq!(ended["body"], json!(first.text()));
    assert_eq!(ended["usage"]["completion_tokens"], json!(6));

    let embedded = json!({"model": "m", "input": "x"});
    let first = keyed(&rig.api, "e", "/v1/embeddings", embedded.clone(), KEY).await;
    if first.status == 200 {
        assert_eq!(known(&keyed(&rig.api, "e", "/v1/embeddings", embedded, KEY).await).0, 409);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_life_that_is_over_the_ledger_says_what_it_was() {
    let rig = rig().await;
    let store = rig.store();
    let mut tx = store.write().await.expect("a transaction");
    for sql in [
        "INSERT INTO epochs (epoch, replica, started_us, ended_us) VALUES (7, 'r', 0, 9)",
        "INSERT INTO epochs (epoch, replica, started_us, ended_us) VALUES (8, 'q', 0, NULL)",
        "INSERT INTO ledger (epoch, seq, at_us, kind, tenant, request, model, key, device_ns, prompt_tokens, \
         completion_tokens, body, hash) VALUES (7, 1, 1, 'recovered', 'a', 'ik-billed', 'm', 'k', 2000, 3, 4, '{}', x'00')",
    ] {
        tx.execute(sql, &[]).await.expect("written");
    }
    tx.commit().await.expect("committed");
    let text = hello().to_string();
    for (key, request, epoch) in [("billed", "ik-billed", 7), ("not", "ik-not", 7), ("elsewhere", "ik-x", 8)] {
        let new = Idempotent {
            fingerprint: super::idempotency::fingerprint(CHAT, text.as_bytes()),
            request: request.into(),
            epoch,
            outcome: None,
            created_us: Now::read().unix_us,
            expires_us: i64::MAX,
        };
        assert_eq!(store.idempotency_begin("a", key, &new).await.expect("begun"), Begun::New);
    }
    for _ in 0..2 {
        let (status, code, ended) = known(&keyed(&rig.api, "billed", CHAT, hello(), KEY).await);
        assert_eq!((status, code.as_str()), (409, "idempotency_key_used"));
        assert_eq!((&ended["status"], &ended["usage"]["total_tokens"]), (&Value::Null, &json!(7)));
        assert_eq!(ended["usage"]["weir"]["device_seconds"], json!(0.000_002));
        let (status, _, ended) = known(&keyed(&rig.api, "not", CHAT, hello(), KEY).await);
        assert_eq!((status, &ended), (409, &json!({"status": null, "usage": null})));
        let running = keyed(&rig.api, "elsewhere", CHAT, hello(), KEY).await;
        assert_eq!((running.status.as_u16(), code_of(&running).as_str()), (409, "idempotency_in_progress"));
        assert_eq!(running.header("retry-after"), Some("1"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keyed_request_is_billed_under_an_id_that_was_known_before_it_began() {
    let rig = rig().await;
    let prompts = json!({"model": "m", "prompt": ["a", "b", "c"], "max_tokens": 5, "ignore_eos": true});
    for (key, path, body) in [("one", CHAT, hello()), ("three", "/v1/completions", prompts)] {
        let answer = keyed(&rig.api, key, path, body.clone(), KEY).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let again = Idempotent {
            fingerprint: [0; 32],
            request: "x".into(),
            epoch: 1,
            outcome: None,
            created_us: Now::read().unix_us,
            expires_us: i64::MAX,
        };
        let begun = rig.store().idempotency_begin("a", key, &again).await.expect("asked");
        let Begun::Known(known) = begun else { panic!("it is known") };
        assert_eq!(Some(known.epoch), rig.app.engine().expect("an engine").epoch());
        let bill = rig.store().bills_of("a", &known.request).await.expect("read").expect("a bill");
        let usage = answer.json()["usage"].clone();
        assert_eq!(json!(bill.completion_tokens), usage["completion_tokens"]);
        assert_eq!(json!(bill.prompt_tokens), usage["prompt_tokens"]);
        assert_eq!((bill.device_ns / 1000) as f64 / 1e6, usage["weir"]["device_seconds"].as_f64().expect("seconds"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_limits_are_told_and_kept() {
    let rig = rig().await;
    let free = post(&rig.api, CHAT, hello()).await;
    assert!(free.header("x-ratelimit-limit-requests").is_none(), "no limit, nothing to tell");
    rig.limit(r#"{"requests_per_minute":2,"tokens_per_minute":5000}"#, false).await;
    for left in ["1", "0"] {
        let answer = post(&rig.api, CHAT, hello()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("x-ratelimit-limit-requests"), Some("2"));
        assert_eq!(answer.header("x-ratelimit-remaining-requests"), Some(left));
        assert_eq!(answer.header("x-ratelimit-limit-tokens"), Some("5000"));
        assert!(answer.header("x-ratelimit-reset-requests").is_some_and(|reset| reset.ends_with('s')));
    }
    let refused = post(&rig.api, CHAT, hello()).await;
    assert_eq!((refused.status.as_u16(), code_of(&refused).as_str()), (429, "rate_limit_exceeded"));
    let wait: u64 = refused.header("retry-after").and_then(|wait| wait.parse().ok()).expect("seconds");
    assert!((1..=30).contains(&wait), "{wait}");
    assert_eq!(refused.header("x-ratelimit-remaining-requests"), Some("0"));
    // What costs nothing is not counted, and others are not concerned.
    assert_eq!(get(&rig.api, "/v1/models").await.status, 200);
    assert_eq!(ask(&rig.api, Some(OTHER_KEY), Method::POST, CHAT, hello().to_string()).await.status, 200);
    // A limit that is lifted holds at once.
    rig.limit(r#"{"requests_per_minute":100,"tokens_per_minute":20}"#, false).await;
    let large = with(hello(), json!({"max_tokens": 500}));
    let (first, second) = (post(&rig.api, CHAT, large.clone()).await, post(&rig.api, CHAT, large).await);
    assert_eq!((second.status.as_u16(), code_of(&second).as_str()), (429, "rate_limit_exceeded"), "{}", first.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_names_no_model_gets_its_tenants_default() {
    let rig = rig().await;
    let defaults = async |models: &[(&str, &str)], allowed: Option<&str>| {
        let mut change = rig.store().change(&Actor::system(), 2).await.expect("a change");
        let before = change.tx().tenant("a").await.expect("a");
        let settings = TenantSettings {
            default_models: models.iter().map(|(kind, model)| ((*kind).into(), (*model).into())).collect(),
            models: allowed.map(|model| BTreeSet::from([model.to_owned()])),
            ..before.settings
        };
        change.update_tenant("a", before.version, &settings).await.map(|_| ())?;
        change.commit().await.expect("committed");
        rig.everybody.catch_up().await.expect("caught up");
        Ok::<(), StoreError>(())
    };
    let chat = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2});
    let completion = json!({"prompt": "hi", "max_tokens": 2});
    let embedding = json!({"input": "hi"});
    let asked = async |path: &str, body: &Value| {
        let answer = post(&rig.api, path, body.clone()).await;
        match answer.status.as_u16() {
            200 => answer.json()["model"].as_str().expect("a model").to_owned(),
            status => format!("{status} {}", code_of(&answer)),
        }
    };
    let missing = "400 missing_required_parameter";
    for (path, body, kind) in [
        (CHAT, &chat, "chat"),
        ("/v1/completions", &completion, "completions"),
        ("/v1/embeddings", &embedding, "embeddings"),
    ] {
        let answer = post(&rig.api, path, body.clone()).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["error"]["param"]), (400, &json!("model")));
        assert!(answer.text().contains(&format!("no default model for {kind}")), "{}", answer.text());
    }
    defaults(&[("chat", "slow"), ("embeddings", "m")], None).await.expect("set");
    assert_eq!(asked(CHAT, &chat).await, "slow");
    assert_eq!(asked("/v1/completions", &completion).await, "slow", "a model that chats completes, too");
    assert_eq!(asked("/v1/embeddings", &embedding).await, "m");
    assert_eq!(asked(CHAT, &with(chat.clone(), json!({"model": "m"}))).await, "m", "a name goes before");
    assert_eq!(asked(CHAT, &with(chat.clone(), json!({"model": null}))).await, "slow", "null is as absent");
    let other = ask(&rig.api, Some(OTHER_KEY), Method::POST, CHAT, chat.to_string()).await;
    assert_eq!(code_of(&other), "missing_required_parameter", "it is the other tenant's default");
    defaults(&[("chat", "slow"), ("completions", "m")], None).await.expect("set");
    assert_eq!((asked(CHAT, &chat).await, asked("/v1/completions", &completion).await), ("slow".into(), "m".into()));
    assert_eq!(asked("/v1/embeddings", &embedding).await, missing);
    // What it may not use is no default, and one that is not served reads as any such name.
    defaults(&[("chat", "slow")], Some("m")).await.expect("set");
    assert_eq!(asked(CHAT, &chat).await, missing);
    defaults(&[("chat", "gone")], None).await.expect("set");
    assert_eq!(asked(CHAT, &chat).await, "404 model_not_found");
    let refused = defaults(&[("images", "m")], None).await.expect_err("no such kind");
    assert!(refused.to_string().contains("images"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_soft_limit_is_told_and_shadow_mode_is_seen_by_operators() {
    let rig = rig().await;
    const HEADER: &str = "x-weir-quota-warning";
    assert_eq!(post(&rig.api, CHAT, hello()).await.header(HEADER), None);
    rig.limit(r#"{"requests_per_month":4,"soft_limit_percent":50}"#, false).await;
    for request in 1..=4 {
        let answer = post(&rig.api, CHAT, hello()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let warning = answer.header(HEADER).unwrap_or_default();
        assert!(request < 2 || warning.starts_with("requests;period=month;soft=50;used="), "{request}: {warning}");
        assert!(request < 2 || warning.contains(";limit=4;reset="), "{request}: {warning}");
    }
    let refused = post(&rig.api, CHAT, hello()).await;
    assert_eq!((refused.status.as_u16(), code_of(&refused).as_str()), (429, "insufficient_quota"));
    assert!(refused.header(HEADER).is_some_and(|warning| warning.contains(";used=4;limit=4;")));
    assert_eq!(ask(&rig.api, Some(OTHER_KEY), Method::POST, CHAT, hello().to_string()).await.header(HEADER), None);

    let own = get(&rig.api, "/v1/quotas").await.json();
    let window = &own["data"][0];
    assert_eq!((own["data"].as_array().map(Vec::len), &window["unit"]), (Some(1), &json!("requests")), "{own}");
    assert_eq!((&window["allowed"], &window["granted"], &window["over"]), (&json!(4), &json!(4), &json!(0)));
    assert_eq!((&window["warns"], &window["shadow"]), (&json!(true), &json!(false)));
    let other = ask(&rig.api, Some(OTHER_KEY), Method::GET, "/v1/quotas", "").await.json();
    assert_eq!(other["data"], json!([]), "the other has no limits");

    rig.limit(r#"{"requests_per_month":4,"requests_per_hour":4,"requests_per_day":4}"#, false).await;
    let own = get(&rig.api, "/v1/quotas").await.json();
    let periods: Vec<&Value> = own["data"].as_array().expect("windows").iter().map(|one| &one["period"]).collect();
    assert_eq!(periods, ["hour", "day", "month"], "each of them can have a limit of requests");

    let shadow = r#"{"requests_per_month":4,"soft_limit_percent":50,"requests_per_minute":1,"shadow":true}"#;
    rig.limit(shadow, false).await;
    for _ in 0..2 {
        assert_eq!(post(&rig.api, CHAT, hello()).await.status, 200, "nothing is refused");
    }
    let seen = rig.operate(Method::GET, "/admin/v1/tenants/a/quotas", "").await.json();
    let window = &seen["data"][0];
    assert!(window["over"].as_i64().is_some_and(|over| over >= 2) && window["shadow"] == json!(true), "{seen}");
    assert_eq!(rig.operate(Method::GET, "/admin/v1/tenants/none/quotas", "").await.status, 404);
    let metrics = ask(&metrics_router(rig.app.clone()), None, Method::GET, "/metrics", "").await;
    let passed = |word: &str| {
        let labels = format!("tenant=\"a\",unit=\"requests\",period=\"month\",passed=\"{word}\"");
        format!("weir_quota_windows_passed_total{{{labels}}} 1\n")
    };
    for line in [
        passed("soft"),
        passed("spent"),
        passed("shadow"),
        "weir_shadow_refusals_total{tenant=\"a\",limit=\"requests_per_minute\"} 1\n".into(),
    ] {
        assert!(metrics.text().contains(&line), "{line}: {}", metrics.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_why_credentials_were_refused_and_all_of_them_are_documented() {
    let rig = rig().await;
    for (key, status) in [(None, 401), (Some("weir-nobody"), 401), (Some("weir-nobody"), 401), (Some(KEY), 200)] {
        assert_eq!(ask(&rig.api, key, Method::GET, "/v1/models", "").await.status, status);
    }
    assert_eq!(ask(&rig.admin, Some(KEY), Method::GET, "/admin/v1/tenants", "").await.status, 401);
    let suspend = rig.operate(Method::POST, "/admin/v1/tenants/a/suspend", "{}").await;
    assert_eq!(suspend.status, 200, "{}", suspend.text());
    assert_eq!(get(&rig.api, "/v1/models").await.status, 403);
    assert_eq!(ask(&rig.api, Some(OTHER_KEY), Method::POST, CHAT, hello().to_string()).await.status, 200);
    let metrics = ask(&metrics_router(rig.app.clone()), None, Method::GET, "/metrics", "").await;
    for line in [
        "weir_sign_ins_refused_total{listener=\"api\",reason=\"missing\"} 1\n",
        "weir_sign_ins_refused_total{listener=\"api\",reason=\"key\"} 2\n",
        "weir_sign_ins_refused_total{listener=\"admin\",reason=\"key\"} 1\n",
        "weir_sign_ins_refused_total{listener=\"api\",reason=\"suspended\"} 1\n",
        "weir_sign_ins_refused_total{listener=\"api\",reason=\"token_signature\"} 0\n",
        "weir_ledger_stopped 0\n",
        "weir_ledger_records_waiting_limit 8192\n",
        "weir_webhook_letters{state=\"dead\"} 0\n",
    ] {
        assert!(metrics.text().contains(line), "{line}: {}", metrics.text());
    }
    assert!(
        metrics.text().contains("\nweir_ledger_oldest_waiting_seconds ")
            && metrics.text().contains("\nweir_ledger_records_waiting ")
    );
    let page = include_str!("../../../../docs/metrics.md");
    let types = metrics.text().lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    // What a driver says of GPUs is one line of the page.
    let missing: Vec<&str> =
        types.filter(|name| !name.starts_with("weir_gpu_") && !page.contains(&format!("`{name}"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
    for line in metrics.text().lines().filter_map(|line| line.strip_prefix("# HELP ")) {
        assert!(line.split_once(' ').is_some_and(|(_, help)| !help.is_empty()), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn use_is_its_tenants_and_costs_what_the_bill_says() {
    let rig = rig().await;
    let today = Now::read().unix_us.div_euclid(86_400_000_000);
    let sql = "INSERT INTO usage_days (tenant, day, model, key, plan, device_class, requests, prompt_tokens, \
               completion_tokens, device_ns) VALUES ($1, $2, $3, $4, 'own', 'cpu', 1, 2, 3, 3600000000000)";
    let own = format!("sha256:{}", &KeyHash::of(KEY.as_bytes()).hex()[..8]);
    let mut tx = rig.store().write().await.expect("a transaction");
    for (tenant, model, key) in [("a", "m", own.as_str()), ("a", "m", "wk_2"), ("b", "slow", "wk_3")] {
        tx.execute(sql, &[tenant.into(), today.into(), Bound::from(model), key.into()]).await.expect("written");
    }
    tx.commit().await.expect("committed");
    let mut change = rig.store().change(&Actor::system(), 2).await.expect("a change");
    let [model, plan, device_class] = ["*"; 3].map(str::to_owned);
    let price = weir_runtime::store::Price { model, plan, device_class, from_us: 0, micros_per_device_hour: 1_500_000 };
    change.set_price(&price, 0).await.expect("a price");
    change.commit().await.expect("committed");

    let report = get(&rig.api, "/v1/usage?group_by=key").await;
    assert_eq!(report.status, 200, "{}", report.text());
    let report = report.json();
    assert_eq!((&report["total"]["requests"], &report["total"]["cost_micros"]), (&json!(2), &json!(3_000_000)));
    assert_eq!(report["total"]["device_seconds"], json!(7200.0));
    let keys: Vec<&Value> = report["data"].as_array().expect("lines").iter().map(|line| &line["key"]).collect();
    assert_eq!(keys, [&Value::Null, &json!(own)], "others' keys are not a member's to know");
    assert_eq!(get(&rig.api, "/v1/usage?group_by=tenant").await.status, 400);
    assert_eq!(get(&rig.api, "/v1/usage?tenant=b").await.status, 400);

    let all = rig.operate(Method::GET, "/admin/v1/usage?group_by=tenant", "").await.json();
    assert_eq!(all["data"].as_array().map(Vec::len), Some(2));
    assert_eq!(all["total"]["cost_micros"], json!(4_500_000));
    let month = weir_runtime::quota::calendar::month_name(Now::read().unix_us);
    let bill = rig.operate(Method::GET, &format!("/admin/v1/invoices/a/{month}"), "").await.json();
    assert_eq!((&bill["amount_micros"], &bill["closed"]), (&json!(3_000_000), &json!(false)));
    let csv = rig.operate(Method::GET, &format!("/admin/v1/invoices/a/{month}.csv"), "").await;
    assert!(csv.text().ends_with("7200000000000,3000000\r\n"), "{}", csv.text());
    for bad in ["/admin/v1/invoices/nobody/2026-11", "/admin/v1/invoices/a/2026-13", "/admin/v1/usage?tenant=x"] {
        assert_eq!(rig.operate(Method::GET, bad, "").await.status, 400, "{bad}");
    }
    let rows = rig.operate(Method::GET, "/admin/v1/ledger", "").await;
    let lines: Vec<Value> = rows.text().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.last(), Some(&json!({"object": "end", "rows": lines.len() - 1})));
    assert_eq!((&lines[0]["kind"], &lines[0]["seq"]), (&json!("open"), &json!(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_is_made_changed_and_removed_and_its_secret_shown_once() {
    let rig = rig().await;
    let made = json!({"url": "https://receiver.example/", "events": ["quota.soft_limit"], "tenant": "a"});
    let answer = rig.operate(Method::POST, "/admin/v1/webhooks", made.to_string()).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    let webhook = answer.json();
    assert!(webhook["secret"].as_str().is_some_and(|secret| secret.starts_with("whsec_") && secret.len() == 70));
    let path = format!("/admin/v1/webhooks/{}", webhook["id"].as_str().expect("an id"));
    let shown = rig.operate(Method::GET, &path, "").await.json();
    assert!(shown.get("secret").is_none() && shown["url"] == made["url"], "{shown}");
    let stored = rig.store().webhook(None, webhook["id"].as_str().expect("an id")).await.expect("stored");
    let secret = webhook["secret"].as_str().expect("text").as_bytes();
    assert!(!stored.secret.windows(secret.len()).any(|part| part == secret), "sealed");

    let edit = json!({"enabled": false, "new_secret": true, "version": 1}).to_string();
    let edited = rig.operate(Method::PATCH, &path, edit.clone()).await.json();
    assert_eq!((&edited["enabled"], &edited["version"]), (&json!(false), &json!(2)));
    assert_ne!(edited["secret"], webhook["secret"]);
    assert_eq!(rig.operate(Method::PATCH, &path, edit).await.status, 409, "from an old version");
    for bad in [
        json!({"url": "file:///", "events": ["quota.soft_limit"]}),
        json!({"url": "https://x/", "events": ["x"]}),
        json!({"url": "https://x/", "events": []}),
    ] {
        assert_eq!(rig.operate(Method::POST, "/admin/v1/webhooks", bad.to_string()).await.status, 400, "{bad}");
    }
    let nobodys = json!({"url": "https://x/", "events": ["quota.soft_limit"], "tenant": "nobody"}).to_string();
    assert_eq!(rig.operate(Method::POST, "/admin/v1/webhooks", nobodys).await.status, 404);
    assert_eq!(rig.operate(Method::DELETE, &path, "").await.status, 204);
    assert_eq!(rig.operate(Method::GET, &path, "").await.status, 404);
}

/// A key of a tenant's administrator.
async fn administrator(rig: &Rig, tenant: &str) -> String {
    let path = format!("/admin/v1/tenants/{tenant}/keys");
    let made = rig.operate(Method::POST, &path, json!({"role": "tenant_admin"}).to_string()).await;
    assert_eq!(made.status, 200, "{}", made.text());
    made.json()["key"].as_str().expect("a key").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_looks_after_its_own_webhooks_and_knows_of_no_other() {
    let rig = rig().await;
    let (a, b) = (administrator(&rig, "a").await, administrator(&rig, "b").await);
    let own = async |key: &str, method: Method, path: &str, body: Value| {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        ask(&rig.api, Some(key), method, &format!("/v1/webhooks{path}"), body).await
    };
    let wish = json!({"url": "https://receiver.example/", "events": ["quota.soft_limit"]});
    let made = own(&a, Method::POST, "", wish.clone()).await;
    assert_eq!((made.status.as_u16(), &made.json()["tenant"]), (201, &json!("a")), "{}", made.text());
    assert!(made.json()["secret"].as_str().is_some_and(|secret| secret.starts_with("whsec_")));
    let id = made.json()["id"].as_str().expect("an id").to_owned();
    // By one of these operators hear of the tenant: that is not the tenant's to know.
    let operators =
        rig.operate(Method::POST, "/admin/v1/webhooks", with(wish.clone(), json!({"tenant": "a"})).to_string());
    let operators = operators.await.json()["id"].as_str().expect("an id").to_owned();
    for key in [&a, &b] {
        let known = if *key == a { vec![json!(id)] } else { vec![] };
        let listed = own(key, Method::GET, "", Value::Null).await.json();
        let ids: Vec<Value> = listed["data"].as_array().expect("rows").iter().map(|row| row["id"].clone()).collect();
        assert_eq!(ids, known);
    }
    let everything = [
        (Method::GET, ""),
        (Method::PATCH, ""),
        (Method::DELETE, ""),
        (Method::POST, "/test"),
        (Method::GET, "/deliveries"),
        (Method::POST, "/deliveries/1/retry"),
    ];
    for (method, more) in everything {
        let none = own(&b, method.clone(), &format!("/tw_none{more}"), Value::Null).await;
        assert_eq!((none.status.as_u16(), code_of(&none).as_str()), (404, "webhook_not_found"), "{method} {more}");
        for (key, foreign) in [(&b, &id), (&b, &operators), (&a, &operators)] {
            let answer = own(key, method.clone(), &format!("/{foreign}{more}"), Value::Null).await;
            assert_eq!(answer.text().replace(foreign.as_str(), "tw_none"), none.text(), "{method} {more}");
        }
    }
    for bad in [
        json!({"url": "http://receiver.example/", "events": ["quota.soft_limit"]}),
        json!({"url": "https://receiver.example/", "events": ["quota.soft_limit"], "tenant": "b"}),
        json!({"url": "https://receiver.example/", "events": []}),
        json!({"events": ["quota.soft_limit"]}),
    ] {
        assert_eq!(own(&a, Method::POST, "", bad.clone()).await.status, 400, "{bad}");
    }
    let edited = own(&a, Method::PATCH, &format!("/{id}"), json!({"enabled": false, "new_secret": true})).await.json();
    assert_eq!((&edited["enabled"], &edited["version"]), (&json!(false), &json!(2)), "{edited}");
    assert_eq!(own(&a, Method::PATCH, &format!("/{id}"), json!({"url": "http://x.example/"})).await.status, 400);
    for _ in 1..16 {
        assert_eq!(own(&a, Method::POST, "", wish.clone()).await.status, 201);
    }
    let full = own(&a, Method::POST, "", wish.clone()).await;
    assert_eq!((full.status.as_u16(), code_of(&full).as_str()), (409, "too_many_webhooks"));
    assert_eq!(own(&b, Method::POST, "", wish).await.status, 201, "each has its own bound");
    // Operators see them all, and can turn them off.
    let all = rig.operate(Method::GET, "/admin/v1/webhooks?tenant=a", "").await.json();
    assert_eq!(all["data"].as_array().map(Vec::len), Some(17));
    assert_eq!(own(&a, Method::DELETE, &format!("/{id}"), Value::Null).await.status, 204);
    let log = rig.operate(Method::GET, "/admin/v1/audit?tenant=a", "").await.json();
    let last = log["data"].as_array().and_then(|rows| rows.last()).expect("a row").clone();
    assert_eq!((&last["action"], &last["actor_kind"]), (&json!("webhook.delete"), &json!("tenant")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_webhook_is_signed_and_reaches_private_addresses_only_where_operators_say() {
    let (rig, public) = (rig_reaching(Reach::Any).await, rig().await);
    let receiver = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = receiver.local_addr().expect("its number");
    let url = format!("http://{address}/in");
    let admin = administrator(&rig, "a").await;
    let own = async |method: Method, path: &str, body: &str| {
        ask(&rig.api, Some(&admin), method, &format!("/v1/webhooks{path}"), body.to_owned()).await
    };
    let wish = json!({"url": url, "events": ["webhook.test"]}).to_string();
    let made = own(Method::POST, "", &wish).await.json();
    let id = made["id"].as_str().expect("an id");
    let sent = own(Method::POST, &format!("/{id}/test"), "").await;
    assert_eq!(sent.status, 202, "{}", sent.text());
    let (mut stream, _) = receiver.accept().await.expect("a delivery");
    let (head, body) = received(&mut stream).await;
    let header = |name: &str| {
        let line = head.lines().find_map(|line| line.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case(name)));
        line.map(|(_, value)| value.to_owned()).expect(name)
    };
    let signed = header("weir-signature");
    let at: u64 = signed.strip_prefix("t=").and_then(|rest| rest.split_once(',')?.0.parse().ok()).expect("a time");
    assert_eq!(signed, signature(made["secret"].as_str().expect("a secret").as_bytes(), at, &body));
    let event: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((&event["type"], &event["tenant"]), (&json!("webhook.test"), &json!("a")));
    let deliveries = async |state: &str| {
        let found = own(Method::GET, &format!("/{id}/deliveries?state={state}"), "").await.json();
        found["data"].as_array().expect("rows").clone()
    };
    while deliveries("delivered").await.is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(deliveries("delivered").await[0]["status"], json!(204));

    // Elsewhere the same row, however it came there, leads nowhere.
    let store = public.store();
    let mut change = store.change(&Actor::system(), 2).await.expect("a change");
    let key = EnvelopeKey::open(&public.folder.path().join("envelope.key")).expect("the key");
    let settings =
        weir_runtime::store::WebhookSettings { url, events: BTreeSet::from(["webhook.test".into()]), enabled: true };
    for id in ["tw_private", "wh_operators"] {
        let sealed = key.seal(id, b"whsec_x").expect("sealed");
        change.create_webhook(id, Some("a"), &sealed, &settings).await.expect("made");
    }
    change.commit().await.expect("committed");
    let sender = public.app.webhooks().expect("a sender");
    for id in ["tw_private", "wh_operators"] {
        sender.test(store, Some("a"), id, Now::read().unix_us).await.expect("on its way");
    }
    let (mut stream, _) = receiver.accept().await.expect("the operators'");
    let (_, body) = received(&mut stream).await;
    assert!(body.contains("webhook.test"));
    let state = weir_runtime::store::DeliveryState::Waiting;
    let failed = loop {
        let waiting = store.deliveries(Some("tw_private"), state, 0, 10).await.expect("read");
        match waiting.into_iter().find(|delivery| delivery.error.is_some()) {
            Some(failed) => break failed,
            None => tokio::task::yield_now().await,
        }
    };
    assert_eq!((failed.status, failed.attempts >= 1), (None, true));
    assert!(failed.error.is_some_and(|error| error.contains("host not found")));
}

/// A request's head and body, which is answered with 204.
async fn received(stream: &mut tokio::net::TcpStream) -> (String, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut read = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&read).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(": ")?;
                name.eq_ignore_ascii_case("content-length").then(|| value.parse::<usize>().ok())?
            });
            if body.len() == length.expect("a length") {
                let answer = b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
                stream.write_all(answer).await.expect("answered");
                return (head.to_owned(), body.to_owned());
            }
        }
        assert!(stream.read_buf(&mut read).await.expect("read") > 0, "{text}");
    }
}

/// Waits for what must come about.
async fn wait_for(fact: impl Fn() -> bool) {
    while !fact() {
        tokio::task::yield_now().await;
    }
}
