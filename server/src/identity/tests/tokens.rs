//! Tokens: RFC 8725, and what went wrong elsewhere.

use ring::hmac;
use serde_json::{Value, json};
use weir_runtime::TenantId;

use super::{mint::*, *};

/// The folder is where the keys are: it must live as long as the others.
fn rig() -> (Mint, Identity, tempfile::TempDir) {
    let (mint, folder) = (Mint::new(), tempfile::tempdir().expect("folder"));
    let settings = table(&mint, folder.path()).checked().expect("settings");
    let b = TenantRow { models: Some(["m".to_owned(), "n".to_owned()].into()), ..tenant(2, "b") };
    let pepper = Pepper::random().expect("pepper");
    let snapshot = Snapshot::build(pepper, vec![tenant(1, "a"), b], vec![], vec![], None).expect("built");
    let proxies = "10.0.0.0/8".parse().expect("ranges");
    let identity = Identity::new(snapshot, Issuers::new(vec![settings]).expect("issuers"), proxies);
    (mint, identity, folder)
}

/// A scope claim with which nothing is missing.
fn run(more: Value) -> Value {
    let mut all = claims(json!({"scope": "inference models:read"}));
    for (name, value) in more.as_object().expect("an object") {
        all[name] = value.clone();
    }
    all
}

#[tokio::test]
async fn good_tokens_of_all_three_kinds_name_their_tenant() {
    let (mint, identity, _folder) = rig();
    for (key, algorithm) in [("ec", "ES256"), ("ed", "EdDSA"), ("rsa", "RS256")] {
        let token = mint.sign(key, &json!({"alg": algorithm, "kid": key}), &run(json!({})));
        let caller = ask(&identity, &token).await.expect(algorithm);
        assert_eq!((caller.tenant, caller.role, caller.method), (TenantId(1), Role::Member, AuthMethod::Jwt));
        assert_eq!((&*caller.credential, caller.expires_us), ("https://id.example#u", Some((NOW + 600) * 1_000_000)));
        assert!(caller.may(Scope::Inference) && !caller.may(Scope::UsageRead));
    }
}

#[tokio::test]
async fn forged_signatures_are_nobodys() {
    let (mint, identity, _folder) = rig();
    let stranger = Mint::new();
    let header = |alg: &str, kid: &str| json!({"alg": alg, "kid": kid});
    let good = mint.good(&run(json!({})));
    assert!(ask(&identity, &good).await.is_ok());
    let parts: Vec<&str> = good.split('.').collect();
    let (head, body, signature) = (parts[0], parts[1], parts[2]);
    let other_body = text(run(json!({"tenant": "b"})).to_string().as_bytes());
    let hs = |secret: &[u8], header: Value| {
        let signed = format!("{}.{body}", text(header.to_string().as_bytes()));
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed.as_bytes());
        format!("{signed}.{}", text(tag.as_ref()))
    };
    let unsigned = |header: Value| text(header.to_string().as_bytes());
    let pem = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/jwt/rsa.pem")).expect("a key");
    // s of an ECDSA signature as its negative verifies, too: it is the same key's, and so no forgery. What ring must
    // not take is a signature of zeros (CVE-2022-21449).
    let cases: Vec<(&str, String)> = vec![
        ("no algorithm", format!("{}.{body}.", unsigned(json!({"alg": "none", "kid": "ec"})))),
        ("no algorithm in other letters", format!("{}.{body}.", unsigned(json!({"alg": "nOnE"})))),
        ("no algorithm, old signature", format!("{}.{body}.{signature}", unsigned(json!({"alg": "none"})))),
        ("no signature", format!("{head}.{body}.")),
        ("two parts", format!("{head}.{body}")),
        ("another body", format!("{head}.{other_body}.{signature}")),
        ("another header", format!("{}.{body}.{signature}", unsigned(json!({"alg": "ES256", "kid": "ec", "x": 1})))),
        ("half a signature", format!("{head}.{body}.{}", &signature[..40])),
        ("zeros", format!("{head}.{body}.{}", text(&[0; 64]))),
        ("a signature twice", format!("{head}.{body}.{signature}{signature}")),
        ("padding", format!("{good}==")),
        ("spare bits", format!("{head}.{body}.{}", spare_bits(signature))),
        ("another's key, our name", stranger.good(&run(json!({})))),
        ("the modulus as a secret", hs(&mint.modulus(), header("HS256", "rsa"))),
        ("the PEM as a secret", hs(&pem, header("HS256", "rsa"))),
        ("the point as a secret", hs(&mint.point(), header("HS256", "ec"))),
        ("nothing as a secret", hs(b"", header("HS256", "ec"))),
        ("a published secret", hs(&[7; 32], header("HS256", "hmac"))),
        ("a public key's algorithm over HMAC", hs(&mint.point(), header("ES256", "ec"))),
        ("another kind of key", mint.sign("ed", &header("ES256", "ec"), &run(json!({})))),
        ("another name", mint.sign("ec", &header("ES256", "ed"), &run(json!({})))),
        ("another algorithm", mint.sign("rsa", &header("ES256", "rsa"), &run(json!({})))),
        ("a longer hash", mint.sign("rsa", &header("RS512", "rsa"), &run(json!({})))),
        ("another padding", mint.sign("rsa", &header("PS256", "rsa"), &run(json!({})))),
        ("no name among several keys", mint.sign("ec", &json!({"alg": "ES256"}), &run(json!({})))),
        ("a path as a name", mint.sign("ec", &header("ES256", "../../keys.json"), &run(json!({})))),
        ("SQL as a name", mint.sign("ec", &header("ES256", "' OR 1=1 --"), &run(json!({})))),
        ("an address as a name", mint.sign("ec", &header("ES256", "https://evil.example/"), &run(json!({})))),
        ("an empty name", mint.sign("ec", &header("ES256", ""), &run(json!({})))),
        ("a list as a name", mint.sign("ec", &json!({"alg": "ES256", "kid": ["ec"]}), &run(json!({})))),
    ];
    for (what, token) in cases {
        assert_eq!(ask(&identity, &token).await.map(|_| ()), Err(Denied::Unknown), "{what}");
    }
    // A key of the token's own, signed by that key or by a good one.
    let own = stranger.key_set()["keys"][0].clone();
    for (name, value) in [
        ("jwk", own),
        ("jku", json!("https://evil.example/keys")),
        ("x5u", json!("https://evil.example/cert")),
        ("x5c", json!(["MIIB"])),
        ("crit", json!(["exp"])),
        ("b64", json!(false)),
        ("zip", json!("DEF")),
        ("cty", json!("JWT")),
        ("typ", json!("logout+jwt")),
    ] {
        let mut header = header("ES256", "ec");
        header[name] = value;
        for signer in [&mint, &stranger] {
            let token = signer.sign("ec", &header, &run(json!({})));
            assert_eq!(ask(&identity, &token).await.map(|_| ()), Err(Denied::Unknown), "{name}");
        }
    }
}

/// The same bytes with the unused bits of the last digit set.
fn spare_bits(text: &str) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let (rest, last) = text.split_at(text.len() - 1);
    let at = DIGITS.iter().position(|digit| *digit == last.as_bytes()[0]).expect("a digit");
    format!("{rest}{}", char::from(DIGITS[at | 1]))
}

#[tokio::test]
async fn claims_that_do_not_fit_are_nobodys() {
    let (mint, identity, _folder) = rig();
    for (name, value) in [
        ("exp", json!(NOW - 30)),
        ("exp", json!(NOW.to_string())),
        ("exp", json!((NOW + 600).to_string())),
        ("exp", json!(NOW + 86_400 * 400)),
        ("exp", json!(1e99)),
        ("nbf", json!(NOW + 31)),
        ("nbf", json!("soon")),
        ("nbf", json!([NOW])),
        ("iat", json!(NOW + 31)),
        ("iss", json!("https://id.example/")),
        ("iss", json!("https://evil.example")),
        ("iss", json!([ISSUER])),
        ("aud", json!("other")),
        ("aud", json!(["other", 7])),
        ("aud", json!(["weir", 7])),
        ("aud", json!({"weir": true})),
        ("aud", json!("weir other")),
        ("sub", json!("")),
        ("sub", json!(7)),
        ("tenant", json!("c")),
        ("tenant", json!("A")),
        ("tenant", json!("a ")),
        ("tenant", json!("")),
        ("tenant", json!(1)),
        ("tenant", json!([])),
        ("tenant", json!([["a"]])),
        ("tenant", json!({"id": "a"})),
        ("tenant", json!("operator")),
        ("role", json!(7)),
        ("role", json!({"root": true})),
        ("models", json!("m".repeat(9000))),
        ("models", json!({})),
        ("scope", json!({})),
    ] {
        let token = mint.good(&run(json!({ name: value.clone() })));
        assert_eq!(ask(&identity, &token).await.map(|_| ()), Err(Denied::Unknown), "{name} {value:.60}");
    }
    for name in ["exp", "nbf", "iss", "aud", "sub", "tenant"] {
        let mut all = run(json!({}));
        all.as_object_mut().expect("an object").remove(name);
        assert_eq!(ask(&identity, &mint.good(&all)).await.map(|_| ()), Err(Denied::Unknown), "{name}");
    }
    // A claim that comes twice, in either order; JSON libraries disagree on which counts.
    for twice in [r#"{"tenant":"a","tenant":"b","#, r#"{"tenant":"b","tenant":"a","#] {
        let rest = run(json!({})).to_string().replace("\"tenant\":\"a\",", "");
        let body = rest.replacen('{', twice, 1);
        let token = signed_as_written(&mint, &body);
        assert_eq!(ask(&identity, &token).await.map(|_| ()), Err(Denied::Unknown), "{body}");
    }
    assert!(ask(&identity, &signed_as_written(&mint, &run(json!({})).to_string())).await.is_ok());
}

/// Signs a body that no JSON value can hold.
fn signed_as_written(mint: &Mint, body: &str) -> String {
    mint.sign_text("ec", r#"{"alg":"ES256","kid":"ec"}"#, body)
}

#[tokio::test]
async fn roles_open_their_own_listener_only() {
    let (mint, identity, _folder) = rig();
    let cases = [
        (json!({}), Door::Api, Some(Role::Member)),
        (json!({"role": "boss"}), Door::Api, Some(Role::TenantAdmin)),
        (json!({"role": "operator"}), Door::Api, Some(Role::Member)),
        (json!({"role": "root", "tenant": "operator"}), Door::Api, None),
        (json!({"role": "ear", "tenant": "operator"}), Door::Api, None),
        (json!({"role": "root"}), Door::Api, None),
        (json!({}), Door::Admin, None),
        (json!({"role": "boss"}), Door::Admin, None),
        (json!({"role": "operator", "tenant": "operator"}), Door::Admin, None),
        (json!({"tenant": "operator"}), Door::Admin, None),
        (json!({"role": "root"}), Door::Admin, None),
        (json!({"role": "root", "tenant": ["operator", "a"]}), Door::Admin, None),
        (json!({"role": "root", "tenant": "operator"}), Door::Admin, Some(Role::Operator)),
        (json!({"role": "ear", "tenant": "operator"}), Door::Admin, Some(Role::Auditor)),
    ];
    for (more, door, role) in cases {
        let outcome = ask_at(&identity, &mint.good(&run(more.clone())), door).await;
        assert_eq!(outcome.map(|caller| caller.role), role.ok_or(Denied::Unknown), "{more} {door:?}");
    }
    // Nor does a scope claim give what the role does not have.
    let wide = run(json!({"scope": "inference keys:write tenants:write audit:read"}));
    let caller = ask(&identity, &mint.good(&wide)).await.expect("a member");
    assert_eq!(caller.scopes, Scopes::of(&[Scope::Inference]));
}

#[tokio::test]
async fn an_issuer_speaks_for_its_own_tenants_only() {
    let (mint, folder) = (Mint::new(), tempfile::tempdir().expect("folder"));
    let pepper = Pepper::random().expect("pepper");
    for (own, cases) in [
        (vec!["a"], [("a", Ok(1)), ("b", Err(Denied::Unknown)), ("operator", Err(Denied::Unknown))]),
        (vec!["a", "operator"], [("a", Ok(1)), ("b", Err(Denied::Unknown)), ("operator", Ok(0))]),
    ] {
        let mut table = table(&mint, folder.path());
        table.tenants = Some(own.iter().map(|name| (*name).to_owned()).collect());
        let settings = table.checked().expect("settings");
        let tenants = vec![tenant(1, "a"), tenant(2, "b")];
        let snapshot = Snapshot::build(pepper.clone(), tenants, vec![], vec![], None).expect("built");
        let issuers = Issuers::new(vec![settings]).expect("issuers");
        let identity = Identity::new(snapshot, issuers, "192.0.2.0/24".parse().expect("ranges"));
        for (name, outcome) in cases {
            let (door, role) = if name == "operator" { (Door::Admin, "root") } else { (Door::Api, "") };
            let token = mint.good(&run(json!({"tenant": name, "role": role})));
            let found = ask_at(&identity, &token, door).await.map(|caller| caller.tenant.0);
            assert_eq!(found, outcome, "{own:?} {name}");
        }
        // Nor does a trusted word for its own tenant help a token that is for others, too.
        let token = format!("Bearer {}", mint.good(&run(json!({"tenant": ["a", "b"]}))));
        let lines = [("authorization", token.as_str()), ("x-weir-tenant", "a"), ("x-forwarded-for", "198.51.100.1")];
        let found = ask_with(&identity, &lines, "192.0.2.9", Door::Api).await.map(|caller| caller.tenant.0);
        assert_eq!(found, Err(Denied::Unknown), "{own:?}");
    }
}

#[tokio::test]
async fn a_token_that_was_good_is_judged_anew() {
    let (mint, identity, folder) = rig();
    let token = mint.good(&run(json!({})));
    let mut headers = HeaderMap::new();
    headers.append("authorization", format!("Bearer {token}").parse().expect("header"));
    let at = |seconds: i64| {
        let (headers, identity) = (&headers, &identity);
        async move {
            let now = Now { unix_us: (NOW + seconds) * 1_000_000, at: Instant::now() };
            identity.identify(headers, None, Door::Api, now).await.map(|caller| caller.tenant.0)
        }
    };
    assert_eq!((at(0).await, at(1).await, at(629).await), (Ok(1), Ok(1), Ok(1)));
    assert_eq!((at(630).await, at(0).await, at(-36).await), (Err(Denied::Unknown), Ok(1), Err(Denied::Unknown)));
    // Its tenant is gone, and is back.
    let snapshot = identity.snapshot();
    identity.replace(Snapshot::empty(snapshot.pepper().clone()));
    assert_eq!(at(0).await, Err(Denied::Unknown));
    let again = Snapshot::build(snapshot.pepper().clone(), vec![tenant(1, "a")], vec![], vec![], None);
    identity.replace(again.expect("built"));
    assert_eq!(at(0).await, Ok(1));
    // Its issuer takes the key back.
    std::fs::write(folder.path().join("keys.json"), Mint::new().key_set().to_string()).expect("written");
    identity.issuers().refresh().await;
    assert_eq!(at(0).await, Err(Denied::Unknown));
}

#[tokio::test]
async fn models_are_the_tenants_at_most() {
    let (mint, identity, _folder) = rig();
    let token = mint.good(&run(json!({"tenant": "b", "models": ["m", "x"]})));
    let caller = ask(&identity, &token).await.expect("a member");
    assert!(caller.may_use("m") && !caller.may_use("x") && !caller.may_use("n"));
}

#[tokio::test]
async fn a_token_for_several_tenants_needs_a_trusted_word_for_one_of_them() {
    let (mint, identity, _folder) = rig();
    let token = format!("Bearer {}", mint.good(&run(json!({"tenant": ["a", "b", "gone"]}))));
    let ask = |peer: &'static str, tenant: Option<&'static str>| {
        let (token, identity) = (token.clone(), &identity);
        async move {
            let mut lines = vec![("authorization", token.as_str()), ("x-forwarded-for", "192.0.2.1")];
            lines.extend(tenant.map(|tenant| ("x-weir-tenant", tenant)));
            ask_with(identity, &lines, peer, Door::Api).await.map(|caller| caller.tenant.0)
        }
    };
    for (peer, tenant, outcome) in [
        ("10.0.0.1", Some("a"), Ok(1)),
        ("10.0.0.1", Some("b"), Ok(2)),
        ("10.0.0.1", Some("gone"), Err(Denied::Confined)),
        ("10.0.0.1", Some("c"), Err(Denied::Confined)),
        ("10.0.0.1", Some(""), Err(Denied::Confined)),
        ("10.0.0.1", None, Err(Denied::Confined)),
        ("192.0.2.9", Some("a"), Err(Denied::Confined)),
        ("192.0.2.9", None, Err(Denied::Confined)),
    ] {
        assert_eq!(ask(peer, tenant).await, outcome, "{peer} {tenant:?}");
    }
}

#[tokio::test]
async fn who_fails_too_often_is_told_to_wait_but_what_is_known_goes_on() {
    let (mint, folder) = (Mint::new(), tempfile::tempdir().expect("folder"));
    let settings = table(&mint, folder.path()).checked().expect("settings");
    let pepper = Pepper::random().expect("pepper");
    let (good, row) = key(&pepper, 1, Role::Member);
    let snapshot = Snapshot::build(pepper, vec![tenant(1, "a")], vec![row], vec![], None).expect("built");
    let proxies = "10.0.0.0/8".parse().expect("ranges");
    let identity = Identity::new(snapshot, Issuers::new(vec![settings]).expect("issuers"), proxies);
    let token = mint.good(&run(json!({})));
    let now = moment();
    let ask = |credential: String, peer: &'static str| {
        let identity = &identity;
        async move {
            let mut headers = HeaderMap::new();
            headers.append("authorization", format!("Bearer {credential}").parse().expect("header"));
            headers.append("x-forwarded-for", "198.51.100.7".parse().expect("header"));
            identity.identify(&headers, Some(peer.parse().expect("address")), Door::Api, now).await.map(|_| ())
        }
    };
    assert_eq!(ask(token.clone(), "192.0.2.9").await, Ok(()));
    for _ in 0..BURST {
        assert_eq!(ask("wrong".into(), "192.0.2.9").await, Err(Denied::Unknown));
    }
    assert!(matches!(ask("wrong".into(), "192.0.2.9").await, Err(Denied::TooMany(_))));
    assert_eq!(ask(token.clone(), "192.0.2.9").await, Ok(()), "what was good before is remembered");
    let fresh = mint.good(&run(json!({"sub": "v"})));
    assert!(matches!(ask(fresh, "192.0.2.9").await, Err(Denied::TooMany(_))), "no signature is looked at");
    assert_eq!(ask(good.reveal().into(), "192.0.2.9").await, Ok(()));
    // Behind a proxy it is the client that failed; an invented header moves nobody's debt.
    assert_eq!(ask("wrong".into(), "10.0.0.1").await, Err(Denied::Unknown));
    assert_eq!(ask(token, "10.0.0.1").await, Ok(()));
}
