//! Every route of both listeners with a key of every role: made from the tables, and asked of the routers themselves.

use super::*;
use crate::{
    api::admin_router,
    identity::{
        Role,
        routes::{ADMIN, API, Route},
    },
};

/// A path that a route takes, of things that are not there.
fn path(route: &Route) -> String {
    route.path.split('/').map(|part| if part.starts_with('{') { "nothing" } else { part }).collect::<Vec<_>>().join("/")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_has_its_routes_and_every_refusal_has_one_body() {
    let rig = stored::rig().await;
    let (api, admin) = (rig.api.clone(), rig.admin.clone());
    let mut bodies: BTreeSet<(u16, String)> = BTreeSet::new();
    for (door, router, table) in [(Door::Api, &api, API), (Door::Admin, &admin, ADMIN)] {
        for route in table {
            for (role, key) in [
                (Role::Member, KEY),
                (Role::TenantAdmin, TENANT_ADMIN),
                (Role::Operator, OPERATOR),
                (Role::Auditor, rig.auditor.as_str()),
            ] {
                let method: Method = route.method.parse().expect("a method");
                let answer = ask(router, Some(key), method, &path(route), "").await;
                let status = answer.status.as_u16();
                let expected = match role.door() == door {
                    false => Some(401),
                    true if route.scope.is_some_and(|scope| !role.scopes().contains(scope)) => Some(403),
                    true => None,
                };
                match expected {
                    Some(expected) => assert_eq!(status, expected, "{role} {route:?}"),
                    None => assert!(status != 401 && status != 403 || no_root(&answer), "{role} {route:?}: {status}"),
                }
                if let Some(status) = expected {
                    bodies.insert((status, answer.text().to_owned()));
                }
            }
        }
    }
    let statuses: Vec<u16> = bodies.iter().map(|(status, _)| *status).collect();
    assert_eq!(statuses, [401, 403], "{bodies:?}");
}

/// The one 403 that is about the server and not about the key: there is no folder to add models from.
fn no_root(answer: &Answer) -> bool {
    answer.text().contains("models_root")
}

#[tokio::test(flavor = "multi_thread")]
async fn no_route_is_missing_from_its_table() {
    let rig = stored::rig().await;
    let (api, admin) = (rig.api.clone(), rig.admin.clone());
    // What the documents list is what there is.
    let document = ask(&api, Some(KEY), Method::GET, "/openapi.json", "").await.json();
    let operators = ask(&admin, Some(OPERATOR), Method::GET, "/admin/v1/openapi.json", "").await.json();
    for (path, methods) in operators["paths"].as_object().expect("paths") {
        for method in methods.as_object().expect("methods").keys() {
            let there = ADMIN.iter().any(|route| (route.method, route.path) == (&*method.to_uppercase(), path));
            assert!(there, "{method} {path}");
        }
    }
    let listed: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .expect("paths")
        .iter()
        .filter(|(path, _)| !PUBLIC.contains(&path.as_str()))
        .flat_map(|(path, methods)| {
            let path = match path.strip_suffix("/{id}") {
                Some(folder) => format!("{folder}/{{*id}}"),
                None => path.clone(),
            };
            methods.as_object().expect("methods").keys().map(move |method| (method.to_uppercase(), path.clone()))
        })
        .collect();
    let table: BTreeSet<(String, String)> =
        API.iter().map(|route| (route.method.to_owned(), route.path.to_owned())).collect();
    assert!(listed.is_subset(&table), "{:?}", listed.difference(&table));
    // And what is in a table is there.
    for (router, key, table) in [(&api, KEY, API), (&admin, OPERATOR, ADMIN)] {
        for route in table {
            let answer = ask(router, Some(key), Method::TRACE, &path(route), "").await;
            assert_eq!(answer.status, 405, "{route:?}");
            assert!(answer.header("allow").is_some_and(|allow| allow.contains(route.method)), "{route:?}");
        }
    }
}

/// As through a proxy, with what it says of the tenant.
async fn through_proxy(router: &Router, method: Method, path: &str, said: (&str, &str)) -> Answer {
    let request = HttpRequest::builder().method(method).uri(path);
    let request = request.header("authorization", format!("Bearer {OPERATOR}")).header(said.0, said.1);
    let mut request = request.body(axum::body::Body::empty()).expect("request");
    request.extensions_mut().insert(Peer("10.0.0.1".parse().expect("address")));
    send(router, request).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_confined_to_a_tenant_sees_that_tenant_only() {
    let (app, api) = loaded(LIMITS).await;
    let admin = admin_router(app, None);
    let chat = json!({"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}).to_string();
    let answer = ask(&api, Some(KEY), Method::POST, "/v1/chat/completions", chat).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let path = format!("/admin/v1/requests/{}", answer.json()["id"].as_str().expect("an id"));
    for (said, status) in [
        (("x-weir-tenant", "a"), 200),
        (("x-forwarded-host", "a.example"), 200),
        (("x-weir-tenant", "b"), 404),
        (("x-forwarded-host", "b.example"), 404),
        (("x-other", "b"), 200),
    ] {
        let found = through_proxy(&admin, Method::GET, &path, said).await;
        assert_eq!(found.status, status, "{said:?}: {}", found.text());
    }
    for (method, path) in [
        (Method::GET, "/admin/v1/devices"),
        (Method::POST, "/admin/v1/devices/cpu:0/drain"),
        (Method::GET, "/admin/v1/models"),
    ] {
        let refused = through_proxy(&admin, method, path, ("x-weir-tenant", "a")).await;
        assert_eq!(refused.status, 403, "{path}: {}", refused.text());
    }
    assert_eq!(through_proxy(&admin, Method::GET, "/admin/v1/devices", ("x-other", "a")).await.status, 200);
}
