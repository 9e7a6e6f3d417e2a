//! Which scope each route needs, as data: the guards of both listeners look here, so a route that is not in its table
//! is nobody's, and tests are made of the tables.

use super::{Caller, Door, Scope};

/// A route and what it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Its method.
    pub method: &'static str,
    /// Its path, as the router spells it.
    pub path: &'static str,
    /// What a caller needs; `None` is no more than being somebody.
    pub scope: Option<Scope>,
    /// Whether it answers a caller that is confined to one tenant ([`Caller::only`]), too: what it shows and does is that
    /// tenant's alone then. All others of the operators' listener are about the whole server.
    pub confined: bool,
}

const fn route(method: &'static str, path: &'static str, scope: Scope) -> Route {
    Route { method, path, scope: Some(scope), confined: false }
}

const fn of_one_tenant(method: &'static str, path: &'static str, scope: Scope) -> Route {
    Route { confined: true, ..route(method, path, scope) }
}

const fn anyone(method: &'static str, path: &'static str) -> Route {
    Route { method, path, scope: None, confined: false }
}

/// The API.
pub const API: &[Route] = &[
    route("POST", "/v1/chat/completions", Scope::Inference),
    route("POST", "/v1/completions", Scope::Inference),
    route("POST", "/v1/embeddings", Scope::Inference),
    route("GET", "/v1/models", Scope::ModelsRead),
    route("GET", "/v1/models/{*id}", Scope::ModelsRead),
    route("GET", "/v1/requests/{*id}", Scope::RequestsRead),
    route("GET", "/v1/keys", Scope::KeysRead),
    route("POST", "/v1/keys", Scope::KeysWrite),
    route("POST", "/v1/keys/{id}/rotate", Scope::KeysWrite),
    route("POST", "/v1/keys/{id}/revoke", Scope::KeysWrite),
    route("GET", "/v1/usage", Scope::UsageRead),
    route("GET", "/v1/quotas", Scope::UsageRead),
    route("GET", "/v1/webhooks", Scope::WebhooksRead),
    route("POST", "/v1/webhooks", Scope::WebhooksWrite),
    route("GET", "/v1/webhooks/{webhook}", Scope::WebhooksRead),
    route("PATCH", "/v1/webhooks/{webhook}", Scope::WebhooksWrite),
    route("DELETE", "/v1/webhooks/{webhook}", Scope::WebhooksWrite),
    route("POST", "/v1/webhooks/{webhook}/test", Scope::WebhooksWrite),
    route("GET", "/v1/webhooks/{webhook}/deliveries", Scope::WebhooksRead),
    route("POST", "/v1/webhooks/{webhook}/deliveries/{delivery}/retry", Scope::WebhooksWrite),
    anyone("GET", "/version"),
    anyone("GET", "/openapi.json"),
];

/// The operators' listener.
pub const ADMIN: &[Route] = &[
    route("GET", "/admin/v1/models", Scope::ModelsRead),
    route("POST", "/admin/v1/models", Scope::ModelsWrite),
    route("GET", "/admin/v1/devices", Scope::DevicesRead),
    route("POST", "/admin/v1/devices/{name}/drain", Scope::DevicesWrite),
    route("POST", "/admin/v1/devices/{name}/resume", Scope::DevicesWrite),
    route("GET", "/admin/v1/tenants", Scope::TenantsRead),
    route("POST", "/admin/v1/tenants", Scope::TenantsWrite),
    route("GET", "/admin/v1/tenants/{id}", Scope::TenantsRead),
    route("PATCH", "/admin/v1/tenants/{id}", Scope::TenantsWrite),
    route("GET", "/admin/v1/tenants/{id}/quotas", Scope::TenantsRead),
    route("POST", "/admin/v1/tenants/{id}/suspend", Scope::TenantsWrite),
    route("POST", "/admin/v1/tenants/{id}/activate", Scope::TenantsWrite),
    route("GET", "/admin/v1/tenants/{id}/keys", Scope::KeysRead),
    route("POST", "/admin/v1/tenants/{id}/keys", Scope::KeysWrite),
    route("POST", "/admin/v1/tenants/{id}/keys/{key}/rotate", Scope::KeysWrite),
    route("POST", "/admin/v1/tenants/{id}/keys/{key}/revoke", Scope::KeysWrite),
    route("GET", "/admin/v1/plans", Scope::PlansRead),
    route("POST", "/admin/v1/plans", Scope::PlansWrite),
    route("GET", "/admin/v1/plans/{id}", Scope::PlansRead),
    route("PATCH", "/admin/v1/plans/{id}", Scope::PlansWrite),
    route("DELETE", "/admin/v1/plans/{id}", Scope::PlansWrite),
    route("GET", "/admin/v1/prices", Scope::PlansRead),
    route("POST", "/admin/v1/prices", Scope::PlansWrite),
    route("GET", "/admin/v1/audit", Scope::AuditRead),
    route("GET", "/admin/v1/audit/verify", Scope::AuditRead),
    anyone("GET", "/admin/v1/openapi.json"),
    of_one_tenant("GET", "/admin/v1/requests/{*id}", Scope::RequestsRead),
    route("GET", "/admin/v1/usage", Scope::UsageRead),
    route("GET", "/admin/v1/invoices/{tenant}/{month}", Scope::LedgerRead),
    route("GET", "/admin/v1/ledger", Scope::LedgerRead),
    route("GET", "/admin/v1/ledger/verify", Scope::LedgerRead),
    route("GET", "/admin/v1/ledger/months", Scope::LedgerRead),
    route("GET", "/admin/v1/ledger/months/{month}", Scope::LedgerRead),
    route("GET", "/admin/v1/ledger/months/{month}/rows", Scope::LedgerRead),
    route("POST", "/admin/v1/ledger/months/{month}/close", Scope::LedgerWrite),
    route("POST", "/admin/v1/ledger/months/{month}/archive", Scope::LedgerWrite),
    route("GET", "/admin/v1/webhooks", Scope::WebhooksRead),
    route("POST", "/admin/v1/webhooks", Scope::WebhooksWrite),
    route("GET", "/admin/v1/webhooks/{id}", Scope::WebhooksRead),
    route("PATCH", "/admin/v1/webhooks/{id}", Scope::WebhooksWrite),
    route("DELETE", "/admin/v1/webhooks/{id}", Scope::WebhooksWrite),
    route("POST", "/admin/v1/webhooks/{id}/test", Scope::WebhooksWrite),
    route("GET", "/admin/v1/deliveries", Scope::WebhooksRead),
    route("POST", "/admin/v1/deliveries/{id}/retry", Scope::WebhooksWrite),
];

/// What a listener's table says about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The caller may.
    Allowed,
    /// The caller may not; nor may anyone where the path is not in the table.
    Forbidden,
    /// The path has no such method.
    NoSuchMethod,
}

/// Looks a request up. `path` is as the router spells it.
pub fn access(door: Door, caller: &Caller, method: &str, path: &str) -> Access {
    let mut of_path = table(door).iter().filter(|route| route.path == path).peekable();
    if of_path.peek().is_none() {
        return Access::Forbidden;
    }
    // A GET without its body.
    let method = if method == "HEAD" { "GET" } else { method };
    match of_path.find(|route| route.method == method) {
        None => Access::NoSuchMethod,
        Some(Route { scope: Some(scope), .. }) if !caller.may(*scope) => Access::Forbidden,
        Some(route) if caller.only.is_some() && !route.confined => Access::Forbidden,
        Some(_) => Access::Allowed,
    }
}

/// The methods of a path, for `Allow`.
pub fn methods(door: Door, path: &str) -> String {
    let table = table(door).iter().filter(|route| route.path == path);
    let words: Vec<&str> = table.map(|route| if route.method == "GET" { "GET,HEAD" } else { route.method }).collect();
    words.join(",")
}

const fn table(door: Door) -> &'static [Route] {
    match door {
        Door::Api => API,
        Door::Admin => ADMIN,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use weir_runtime::TenantId;

    use super::*;
    use crate::identity::{Role, Scopes};

    /// What each role may do, written out once more by hand: the tables and the roles must say the same.
    const OUTCOMES: &str = "
        POST /v1/chat/completions              member tenant_admin
        POST /v1/completions                   member tenant_admin
        POST /v1/embeddings                    member tenant_admin
        GET  /v1/models                        member tenant_admin
        GET  /v1/models/{*id}                  member tenant_admin
        GET  /v1/requests/{*id}                member tenant_admin
        GET  /v1/keys                          tenant_admin
        POST /v1/keys                          tenant_admin
        POST /v1/keys/{id}/rotate              tenant_admin
        POST /v1/keys/{id}/revoke              tenant_admin
        GET  /v1/usage                         member tenant_admin
        GET  /v1/quotas                        member tenant_admin
        GET  /v1/webhooks                      tenant_admin
        POST /v1/webhooks                      tenant_admin
        GET  /v1/webhooks/{webhook}            tenant_admin
        PATCH /v1/webhooks/{webhook}           tenant_admin
        DELETE /v1/webhooks/{webhook}          tenant_admin
        POST /v1/webhooks/{webhook}/test       tenant_admin
        GET  /v1/webhooks/{webhook}/deliveries tenant_admin
        POST /v1/webhooks/{webhook}/deliveries/{delivery}/retry tenant_admin
        GET  /version                          member tenant_admin
        GET  /openapi.json                     member tenant_admin
        GET  /admin/v1/models                  operator auditor
        POST /admin/v1/models                  operator
        GET  /admin/v1/devices                 operator auditor
        POST /admin/v1/devices/{name}/drain    operator
        POST /admin/v1/devices/{name}/resume   operator
        GET  /admin/v1/requests/{*id}          operator auditor
        GET    /admin/v1/tenants                         operator auditor
        POST   /admin/v1/tenants                         operator
        GET    /admin/v1/tenants/{id}                    operator auditor
        PATCH  /admin/v1/tenants/{id}                    operator
        GET    /admin/v1/tenants/{id}/quotas             operator auditor
        POST   /admin/v1/tenants/{id}/suspend            operator
        POST   /admin/v1/tenants/{id}/activate           operator
        GET    /admin/v1/tenants/{id}/keys               operator auditor
        POST   /admin/v1/tenants/{id}/keys               operator
        POST   /admin/v1/tenants/{id}/keys/{key}/rotate  operator
        POST   /admin/v1/tenants/{id}/keys/{key}/revoke  operator
        GET    /admin/v1/plans                           operator auditor
        POST   /admin/v1/plans                           operator
        GET    /admin/v1/plans/{id}                      operator auditor
        PATCH  /admin/v1/plans/{id}                      operator
        DELETE /admin/v1/plans/{id}                      operator
        GET    /admin/v1/prices                          operator auditor
        POST   /admin/v1/prices                          operator
        GET    /admin/v1/audit                           operator auditor
        GET    /admin/v1/audit/verify                    operator auditor
        GET    /admin/v1/openapi.json                    operator auditor
        GET  /admin/v1/usage                   operator auditor
        GET  /admin/v1/invoices/{tenant}/{month} operator auditor
        GET  /admin/v1/ledger                  operator auditor
        GET  /admin/v1/ledger/verify           operator auditor
        GET  /admin/v1/ledger/months           operator auditor
        GET  /admin/v1/ledger/months/{month}   operator auditor
        GET  /admin/v1/ledger/months/{month}/rows    operator auditor
        POST /admin/v1/ledger/months/{month}/close   operator
        POST /admin/v1/ledger/months/{month}/archive operator
        GET  /admin/v1/webhooks                operator auditor
        POST /admin/v1/webhooks                operator
        GET  /admin/v1/webhooks/{id}           operator auditor
        PATCH /admin/v1/webhooks/{id}          operator
        DELETE /admin/v1/webhooks/{id}         operator
        POST /admin/v1/webhooks/{id}/test      operator
        GET  /admin/v1/deliveries              operator auditor
        POST /admin/v1/deliveries/{id}/retry   operator
    ";

    #[test]
    fn every_route_says_who_may() {
        let mut listed = BTreeSet::new();
        for line in OUTCOMES.lines().filter(|line| !line.trim().is_empty()) {
            let mut words = line.split_whitespace();
            let (method, path) = (words.next().expect("a method"), words.next().expect("a path"));
            let allowed: BTreeSet<&str> = words.collect();
            let door = if path.starts_with("/admin/") { Door::Admin } else { Door::Api };
            for role in Role::ALL {
                let caller = Caller::with_role(TenantId(1), "a", role);
                let may = role.door() == door && access(door, &caller, method, path) == Access::Allowed;
                assert_eq!(may, allowed.contains(role.word()), "{role} {method} {path}");
            }
            assert!(listed.insert((method, path)));
        }
        let known: BTreeSet<_> = API.iter().chain(ADMIN).map(|route| (route.method, route.path)).collect();
        assert_eq!(listed, known);
    }

    #[test]
    fn a_scope_opens_its_routes_and_no_others() {
        for (door, table) in [(Door::Api, API), (Door::Admin, ADMIN)] {
            for scope in Scope::ALL {
                let caller =
                    Caller { scopes: Scopes::of(&[*scope]), ..Caller::with_role(TenantId(1), "a", Role::Operator) };
                for route in table {
                    let expected = match route.scope.is_none_or(|needed| needed == *scope) {
                        true => Access::Allowed,
                        false => Access::Forbidden,
                    };
                    assert_eq!(access(door, &caller, route.method, route.path), expected, "{} {route:?}", scope.word());
                }
            }
        }
    }

    #[test]
    fn a_caller_confined_to_a_tenant_reaches_nothing_of_the_whole_server() {
        for role in [Role::Operator, Role::Auditor] {
            let free = Caller::with_role(TenantId::OPERATOR, "operator", role);
            let confined = Caller { only: Some(TenantId(1)), ..free.clone() };
            for route in ADMIN {
                let expected = match (access(Door::Admin, &free, route.method, route.path), route.path) {
                    (outcome, "/admin/v1/requests/{*id}") => outcome,
                    _ => Access::Forbidden,
                };
                assert_eq!(access(Door::Admin, &confined, route.method, route.path), expected, "{role} {route:?}");
            }
        }
    }

    #[test]
    fn what_is_not_in_the_table_is_nobodys() {
        let operator = Caller::with_role(TenantId::OPERATOR, "operator", Role::Operator);
        for (door, path) in [(Door::Admin, "/v1/models"), (Door::Api, "/admin/v1/models"), (Door::Admin, "/admin/v1/x")]
        {
            assert_eq!(access(door, &operator, "GET", path), Access::Forbidden, "{path}");
        }
        assert_eq!(access(Door::Admin, &operator, "DELETE", "/admin/v1/models"), Access::NoSuchMethod);
        assert_eq!(access(Door::Admin, &operator, "HEAD", "/admin/v1/models"), Access::Allowed);
        assert_eq!(methods(Door::Admin, "/admin/v1/models"), "GET,HEAD,POST");
        assert_eq!(methods(Door::Api, "/v1/embeddings"), "POST");
    }
}
