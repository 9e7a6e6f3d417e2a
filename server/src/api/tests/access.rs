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
    route.path.replace("{*id}", "nothing").replace("{name}", "nothing")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_has_its_routes_and_every_refusal_has_one_body() {
    let (app, api) = loaded(LIMITS).await;
    let admin = admin_router(app, None);
    let mut bodies: BTreeSet<(u16, String)> = BTreeSet::new();
    for (door, router, table) in [(Door::Api, &api, API), (Door::Admin, &admin, ADMIN)] {
        for route in table {
            for (role, key) in [
                (Role::Member, KEY),
                (Role::TenantAdmin, TENANT_ADMIN),
                (Role::Operator, OPERATOR),
                (Role::Auditor, AUDITOR),
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
    let (app, api) = loaded(LIMITS).await;
    let admin = admin_router(app, None);
    // What the document lists is what there is.
    let document = ask(&api, Some(KEY), Method::GET, "/openapi.json", "").await.json();
    let listed: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .expect("paths")
        .iter()
        .filter(|(path, _)| !PUBLIC.contains(&path.as_str()))
        .flat_map(|(path, methods)| {
            let path = path.replace("{id}", "{*id}");
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
