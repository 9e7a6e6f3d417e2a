//! A server with a store: the routes that look after tenants, keys, plans and prices.

use std::{fs, os::unix::fs::PermissionsExt};

use tempfile::TempDir;
use weir_runtime::store::Store;

use super::*;
use crate::{
    api::admin_router,
    config::TenantTable,
    everybody::{FileKeys, import},
    identity::{CidrList, Issuers, Pepper},
};

/// Both listeners of a server whose store is in a folder. Tenants and keys are as in `people`; the auditor's key is the store's.
pub(super) struct Rig {
    pub(super) api: Router,
    pub(super) admin: Router,
    pub(super) auditor: String,
    _folder: TempDir,
}

pub(super) async fn rig() -> Rig {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("admin.key");
    fs::write(&file, OPERATOR).expect("written");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("set");
    let key = |text: &str, role: &str| {
        format!("[[keys]]\nsha256 = \"{}\"\nrole = \"{role}\"\n", crate::keys::KeyHash::of(text.as_bytes()).hex())
    };
    let tables = [
        format!("name = \"a\"\n{}{}", key(KEY, "member"), key(TENANT_ADMIN, "tenant_admin")),
        format!("name = \"b\"\nmodels = [\"m\"]\n{}", key(OTHER_KEY, "tenant_admin")),
    ]
    .map(|text| toml::from_str::<TenantTable>(&text).expect("a table"));
    let url = format!("sqlite:{}", folder.path().join("weir.db").display());
    let store = Store::open(&url, &Default::default()).await.expect("a store");
    import(&store, &tables, 1).await.expect("imported");
    let files = FileKeys::new(&tables, Some(file));
    let (pepper, issuers) = (Pepper::random().expect("pepper"), Issuers::default());
    let everybody = Everybody::open(store, pepper, files, issuers, CidrList::default(), BTreeSet::new());
    let everybody = everybody.await.expect("everybody");
    let models = ["m=fake:step=10us,token=1us", "slow=fake:step=20ms,token=1us"];
    let engine = Engine::start(EngineConfig { tenants: everybody.specs().await, ..config(&models) });
    let engine = engine.await.expect("an engine");
    everybody.set_engine(engine.clone()).await;
    let app = App::of(everybody, LIMITS);
    app.set_engine(engine);
    let (api, admin) = (router(app.clone()), admin_router(app.clone(), None));
    let made = ask(&admin, Some(OPERATOR), Method::POST, "/admin/v1/tenants/operator/keys", "{}").await;
    assert_eq!((made.status.as_u16(), &made.json()["role"]), (200, &json!("auditor")), "{}", made.text());
    let auditor = made.json()["key"].as_str().expect("a key").to_owned();
    Rig { api, admin, auditor, _folder: folder }
}

impl Rig {
    /// As the operator; the answer must have this status.
    async fn operate(&self, method: Method, path: &str, body: Value, status: u16) -> Value {
        let answer = ask(&self.admin, Some(OPERATOR), method, &format!("/admin/v1/{path}"), body.to_string()).await;
        assert_eq!(answer.status, status, "{path} {body}: {}", answer.text());
        answer.json()
    }

    async fn see(&self, path: &str) -> Value {
        let answer = ask(&self.admin, Some(OPERATOR), Method::GET, &format!("/admin/v1/{path}"), "").await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.json()
    }

    async fn chat(&self, key: &str) -> Answer {
        ask(&self.api, Some(key), Method::POST, "/v1/chat/completions", hello().to_string()).await
    }
}

fn secret(made: &Value) -> String {
    made["key"].as_str().expect("the key").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_and_its_first_key_are_made_together_and_serve_at_once() {
    let rig = rig().await;
    let made = rig
        .operate(
            Method::POST,
            "tenants",
            json!({"id": "acme", "name": "Acme", "overrides": {"weight": 7}, "key": {"name": "first"}}),
            200,
        )
        .await;
    assert_eq!((&made["plan"], &made["status"], &made["number"]), (&json!("starter"), &json!("active"), &json!(3)));
    assert_eq!((&made["limits"]["weight"], &made["limits"]["requests_per_minute"]), (&json!(7), &json!(60)));
    assert_eq!((&made["key"]["role"], &made["key"]["tenant"]), (&json!("member"), &json!("acme")));
    let key = secret(&made["key"]);
    let answer = rig.chat(&key).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    // Once, and never again.
    let listed = rig.see("tenants/acme/keys").await;
    assert_eq!((listed["data"].as_array().map(Vec::len), &listed["data"][0]["key"]), (Some(1), &Value::Null));
    assert!(!rig.see("audit").await.to_string().contains(&key[22..]), "the secret is in no log");
    // Neither, where one of them cannot be made.
    for (body, status) in [
        (json!({"id": "other", "key": {"role": "operator"}}), 400),
        (json!({"id": "other", "key": {"scopes": ["keys:write"]}}), 403),
        (json!({"id": "other", "key": {"scopes": ["everything"]}}), 400),
        (json!({"id": "other", "key": {"expires_us": 1}}), 400),
        (json!({"id": "acme"}), 409),
        (json!({"id": "operator"}), 400),
        (json!({"id": "other", "plan": "none"}), 404),
        (json!({"name": "other"}), 400),
    ] {
        rig.operate(Method::POST, "tenants", body, status).await;
    }
    rig.operate(Method::GET, "tenants/other", json!({}), 404).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_or_pending_tenant_reads_403_with_its_reason() {
    let rig = rig().await;
    let made = rig.operate(Method::POST, "tenants", json!({"id": "acme"}), 200).await;
    let key = secret(&made["key"]);
    let suspended = rig.operate(Method::POST, "tenants/acme/suspend", json!({"reason": "unpaid"}), 200).await;
    assert_eq!((&suspended["status"], &suspended["reason"]), (&json!("suspended"), &json!("unpaid")));
    let answer = rig.chat(&key).await;
    let error = &answer.json()["error"];
    let shape = json!({
        "message": "Your tenant is suspended: unpaid", "type": "permission_error", "param": null, "code": "forbidden"
    });
    assert_eq!((answer.status.as_u16(), error), (403, &shape));
    let again = rig.operate(Method::POST, "tenants/acme/suspend", json!({"reason": "unpaid"}), 200).await;
    assert_eq!(again["version"], suspended["version"], "twice is as good as once");
    let version = &suspended["version"];
    let patch = json!({"status": "pending", "reason": "no contract", "version": version});
    rig.operate(Method::PATCH, "tenants/acme", patch, 200).await;
    let answer = rig.chat(&key).await;
    assert!(answer.status == 403 && answer.text().contains("no contract"), "{}", answer.text());
    rig.operate(Method::POST, "tenants/acme/activate", json!({}), 200).await;
    assert_eq!(rig.chat(&key).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_names_the_version_it_was_made_from_and_what_is_wrong() {
    let rig = rig().await;
    let version = rig.see("tenants/b").await["version"].clone();
    let answer = rig.operate(Method::PATCH, "tenants/b", json!({"name": "B"}), 400).await;
    assert_eq!(answer["error"]["param"], "version");
    for (patch, field) in [
        (json!({"overrides": {"wieght": 1}}), "overrides.wieght"),
        (json!({"overrides": {"weight": 0}}), "overrides.weight"),
        (json!({"ip_allow": ["10.0.0.1/8"]}), "ip_allow"),
        (json!({"id": "c"}), "id"),
    ] {
        let answer = rig.operate(Method::PATCH, "tenants/b", with(patch, json!({"version": version})), 400).await;
        assert_eq!(answer["error"]["param"], field, "{answer}");
    }
    let patch = json!({"name": "B", "overrides": {"running_max": 2}, "version": version});
    let changed = rig.operate(Method::PATCH, "tenants/b", patch.clone(), 200).await;
    assert_eq!((&changed["name"], &changed["models"]), (&json!("B"), &json!(["m"])));
    let answer = rig.operate(Method::PATCH, "tenants/b", patch, 409).await;
    assert_eq!(answer["error"]["code"], "version_conflict");
    // The same in a header.
    for (version, status) in [("\"1\"", 409), ("\"2\"", 200), ("x", 400)] {
        let request = HttpRequest::builder().method(Method::PATCH).uri("/admin/v1/tenants/b");
        let request = request.header("authorization", format!("Bearer {OPERATOR}")).header("if-match", version);
        let answer = send(&rig.admin, request.body("{\"name\": \"C\"}".into()).expect("request")).await;
        assert_eq!(answer.status, status, "{version}: {}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_administrator_looks_after_its_own_keys_only() {
    let rig = rig().await;
    let own = async |key: &str, method: Method, path: &str, body: Value| {
        ask(&rig.api, Some(key), method, path, body.to_string()).await
    };
    let made = own(TENANT_ADMIN, Method::POST, "/v1/keys", json!({"name": "x", "scopes": ["inference"]})).await;
    assert_eq!(made.status, 200, "{}", made.text());
    let (id, key) = (made.json()["id"].as_str().expect("id").to_owned(), secret(&made.json()));
    assert_eq!(rig.chat(&key).await.status, 200);
    assert_eq!(ask(&rig.api, Some(&key), Method::GET, "/v1/models", "").await.status, 403, "it has one scope");
    for wider in [json!({"role": "operator"}), json!({"role": "auditor"}), json!({"scopes": ["keys:write"]})] {
        assert_eq!(own(TENANT_ADMIN, Method::POST, "/v1/keys", wider.clone()).await.status, 403, "{wider}");
    }
    // To another tenant's administrator the key is as one that never was.
    for action in ["rotate", "revoke"] {
        let foreign = own(OTHER_KEY, Method::POST, &format!("/v1/keys/{id}/{action}"), json!({})).await;
        let none = own(OTHER_KEY, Method::POST, &format!("/v1/keys/wk_none/{action}"), json!({})).await;
        assert_eq!((foreign.status.as_u16(), none.status.as_u16()), (404, 404));
        assert_eq!(foreign.text().replace(&id, "wk_none"), none.text());
    }
    assert_eq!(own(OTHER_KEY, Method::GET, "/v1/keys", json!({})).await.json()["data"], json!([]));
    let rotated = own(TENANT_ADMIN, Method::POST, &format!("/v1/keys/{id}/rotate"), json!({"overlap_s": 60})).await;
    let new = secret(&rotated.json());
    assert_eq!((rig.chat(&key).await.status, rig.chat(&new).await.status), (StatusCode::OK, StatusCode::OK));
    assert_eq!(rotated.json()["replaces"], json!(id));
    let none = own(TENANT_ADMIN, Method::POST, &format!("/v1/keys/{id}/rotate"), json!({"overlap_s": 0})).await;
    assert_eq!((none.status.as_u16(), rig.chat(&key).await.status.as_u16()), (200, 401), "no overlap");
    let ended = own(TENANT_ADMIN, Method::POST, &format!("/v1/keys/{id}/rotate"), json!({})).await;
    assert_eq!((ended.status.as_u16(), code(&ended).as_str()), (409, "key_ended"));
    let id = rotated.json()["id"].as_str().expect("id").to_owned();
    assert_eq!(own(TENANT_ADMIN, Method::POST, &format!("/v1/keys/{id}/revoke"), json!({})).await.status, 200);
    assert_eq!(rig.chat(&new).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn revoking_a_key_cuts_what_runs_by_it_and_nothing_else() {
    let rig = rig().await;
    let key = async || {
        let made = rig.operate(Method::POST, "tenants/a/keys", json!({}), 200).await;
        (made["id"].as_str().expect("id").to_owned(), secret(&made))
    };
    let (id, cut) = key().await;
    let (_, other) = key().await;
    let open = async |key: &str, tokens: u32| {
        let body = with(hello(), json!({"model": "slow", "stream": true, "max_tokens": tokens}));
        let request = HttpRequest::post("/v1/chat/completions").header("authorization", format!("Bearer {key}"));
        let response =
            rig.api.clone().oneshot(request.body(axum::body::Body::from(body.to_string())).expect("request")).await;
        response.expect("infallible")
    };
    let text = async |response: Response| {
        let bytes = to_bytes(response.into_body(), 16 << 20).await.expect("body");
        String::from_utf8(bytes.to_vec()).expect("UTF-8")
    };
    // As long as a test may run; only the cut ends it.
    let running = open(&cut, 20_000).await;
    let beside = open(&other, 20).await;
    let file = open(KEY, 20).await;
    assert_eq!((running.status(), beside.status()), (StatusCode::OK, StatusCode::OK));
    rig.operate(Method::POST, &format!("tenants/a/keys/{id}/revoke"), json!({}), 200).await;
    let said = text(running).await;
    assert!(said.contains("Incorrect API key provided."), "{}", &said[said.len().saturating_sub(400)..]);
    for response in [beside, file] {
        assert!(text(response).await.trim_end().ends_with("data: [DONE]"));
    }
    let running = open(&other, 20_000).await;
    rig.operate(Method::POST, "tenants/a/suspend", json!({}), 200).await;
    assert!(text(running).await.contains("suspended"));
}

#[tokio::test(flavor = "multi_thread")]
async fn plans_and_prices_change_for_everybody_who_has_them() {
    let rig = rig().await;
    let plan = rig.operate(Method::POST, "plans", json!({"id": "gold", "limits": {"weight": 9}}), 200).await;
    rig.operate(Method::POST, "tenants", json!({"id": "acme", "plan": "gold"}), 200).await;
    let body = json!({"limits": {"running_max": 3}, "version": plan["version"]});
    let changed = rig.operate(Method::PATCH, "plans/gold", body, 200).await;
    assert_eq!(changed["limits"], json!({"weight": 9, "running_max": 3}));
    assert_eq!(rig.see("tenants/acme").await["limits"], changed["limits"]);
    rig.operate(Method::DELETE, "plans/gold", json!({}), 409).await;
    rig.operate(Method::POST, "plans", json!({"id": "lead"}), 200).await;
    rig.operate(Method::DELETE, "plans/lead", json!({}), 200).await;
    rig.operate(Method::GET, "plans/lead", json!({}), 404).await;
    rig.operate(Method::POST, "prices", json!({"micros_per_device_hour": 2_500_000}), 200).await;
    for (body, field) in [
        (json!({}), "micros_per_device_hour"),
        (json!({"micros_per_device_hour": -1}), "micros_per_device_hour"),
        (json!({"micros_per_device_hour": 1, "from_us": 1}), "from_us"),
        (json!({"micros_per_device_hour": 1, "modle": "m"}), "modle"),
    ] {
        let answer = rig.operate(Method::POST, "prices", body, 400).await;
        assert_eq!(answer["error"]["param"], field, "{answer}");
    }
    let prices = rig.see("prices").await;
    assert_eq!((prices["data"].as_array().map(Vec::len), &prices["data"][0]["plan"]), (Some(1), &json!("*")));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_is_on_record_with_who_made_it_and_the_log_is_whole() {
    let rig = rig().await;
    rig.operate(Method::POST, "tenants", json!({"id": "acme", "key": null}), 200).await;
    let log = rig.see("audit?tenant=acme").await;
    let row = &log["data"][0];
    assert_eq!(
        (&row["action"], &row["actor_kind"], &row["method"]),
        (&json!("tenant.create"), &json!("operator"), &json!("api_key"))
    );
    assert_eq!(&row["after"]["plan"], &json!("starter"));
    assert!(row["request"].as_str().is_some_and(|id| id.starts_with("req-")), "{row}");
    // Pages follow each other without a gap.
    let first = rig.see("audit?limit=2").await;
    let next = rig.see(&format!("audit?limit=2&after={}", first["next"].as_str().expect("more"))).await;
    let seqs =
        |page: &Value| page["data"].as_array().expect("rows").iter().map(|row| row["seq"].clone()).collect::<Vec<_>>();
    assert_eq!([seqs(&first), seqs(&next)].concat(), [1, 2, 3, 4].map(Value::from));
    let proof = rig.see("audit/verify").await;
    assert_eq!((&proof["valid"], &proof["fault"]), (&json!(true), &Value::Null));
    for bad in ["audit?limit=0", "audit?limit=x", "audit?after=x", "audit?tennant=x"] {
        rig.operate(Method::GET, bad, json!({}), 400).await;
    }
}
