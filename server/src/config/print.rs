//! `weir config print`: what is in force, as a file that says the same, each value with where it came from. Secrets are
//! never in it: of a hash the first digits, of a key file the path.

use std::fmt::Write;

use super::{Config, Origin, Sourced, Span};

/// Renders everything.
pub fn print(config: &Config) -> String {
    let mut text = String::new();
    match &config.file {
        Some(path) => writeln!(text, "# file: {}", path.display()),
        None => writeln!(text, "# file: none"),
    }
    .expect("strings take everything");
    let mut table = "";
    for (key, value, origin) in values_with_origin(config) {
        let (of, name) = key.split_once('.').unwrap_or(("", key));
        if of != table {
            table = of;
            let _ = writeln!(text, "\n[{table}]");
        }
        let line = format!("{name} = {value}");
        let _ = writeln!(text, "{line:<40} # {}", origin_word(origin));
    }
    if !config.device_classes.0.is_empty() {
        text.push_str("\n[device_classes]\n");
    }
    for (class, rate) in &config.device_classes.0 {
        let _ = writeln!(text, "{} = {rate:?}", quoted(class));
    }
    for model in &config.models.value {
        let _ = writeln!(text, "\n[[models]] # {}", origin_word(config.models.origin));
        if let Some(name) = &model.name {
            let _ = writeln!(text, "name = {}", quoted(name));
        }
        let _ = writeln!(text, "source = {}", quoted(&model.source));
        if !model.devices.is_empty() {
            let _ = writeln!(text, "devices = {}", list(&model.devices));
        }
    }
    for issuer in &config.jwt {
        // There is no secret in it: what it names is public.
        text.push_str("\n[[auth.jwt]]\n");
        // Value by value, so that tables in it stay in its lines.
        for (key, value) in toml::Table::try_from(issuer).unwrap_or_default() {
            let _ = writeln!(text, "{key} = {value}");
        }
    }
    for pool in &config.pools {
        let _ = writeln!(text, "\n[[pools]]\nname = {}\ndevices = {}", quoted(&pool.name), list(&pool.devices));
    }
    for tenant in &config.tenants {
        let spec = tenant.spec();
        let _ = writeln!(text, "\n[[tenants]]\nname = {}\nweight = {}", quoted(&spec.name), spec.weight);
        let _ = writeln!(text, "queue_len_max = {}\nrunning_max = {}", spec.queue_len_max, spec.running_max);
        let _ = writeln!(text, "kv_blocks_floor = {}", spec.kv_blocks_floor);
        if let Some(ceiling) = spec.kv_blocks_ceiling {
            let _ = writeln!(text, "kv_blocks_ceiling = {ceiling}");
        }
        let quotas = [
            ("hour", tenant.device_seconds_per_hour),
            ("day", tenant.device_seconds_per_day),
            ("month", tenant.device_seconds_per_month),
        ];
        for (period, seconds) in quotas {
            if let Some(seconds) = seconds {
                let _ = writeln!(text, "device_seconds_per_{period} = {seconds}");
            }
        }
        let _ = writeln!(text, "cache_blocks_floor = {}", spec.cache_blocks_floor);
        if let Some(ceiling) = spec.cache_blocks_ceiling {
            let _ = writeln!(text, "cache_blocks_ceiling = {ceiling}");
        }
        for (key, target) in [("ttft_target", spec.ttft_target), ("itl_target", spec.itl_target)] {
            if let Some(target) = target {
                let _ = writeln!(text, "{key} = \"{}\"", Span(target));
            }
        }
        let _ = writeln!(text, "priority_ceiling = {}", spec.priority_ceiling);
        if let Some(pool) = &spec.pool {
            let _ = writeln!(text, "pool = {}\npool_only = {}", quoted(pool), spec.pool_only);
        }
        if let Some(models) = &tenant.models {
            let list: Vec<String> = models.iter().map(|m| quoted(m)).collect();
            let _ = writeln!(text, "models = [{}]", list.join(", "));
        }
        if let Some(ranges) = &tenant.ip_allow {
            let _ = writeln!(text, "ip_allow = {}", list(&ranges.0));
        }
        if let Some(domain) = &tenant.domain {
            let _ = writeln!(text, "domain = {}", quoted(domain));
        }
        for key in &tenant.keys {
            text.push_str("\n[[tenants.keys]]\n");
            if let Some(name) = &key.name {
                let _ = writeln!(text, "name = {}", quoted(name));
            }
            if let Some(role) = &key.role {
                let _ = writeln!(text, "role = {}", quoted(role));
            }
            if let Some(hash) = &key.sha256 {
                let _ = writeln!(text, "sha256 = {}", quoted(&masked(hash)));
            }
            if let Some(path) = &key.key_file {
                let _ = writeln!(text, "key_file = {}", quoted(&path.to_string_lossy()));
            }
        }
    }
    text
}

/// Each setting's key and value in TOML.
#[cfg(test)]
pub(super) fn values(config: &Config) -> Vec<(&'static str, String)> {
    values_with_origin(config).into_iter().map(|(key, value, _)| (key, value)).collect()
}

fn values_with_origin(c: &Config) -> Vec<(&'static str, String, Origin)> {
    fn plain<T: ToString>(key: &'static str, from: &Sourced<T>) -> (&'static str, String, Origin) {
        (key, from.value.to_string(), from.origin)
    }
    fn text<T: ToString>(key: &'static str, from: &Sourced<T>) -> (&'static str, String, Origin) {
        (key, quoted(&from.value.to_string()), from.origin)
    }
    vec![
        text("server.host", &c.host),
        plain("server.port", &c.port),
        text("server.metrics", &c.metrics),
        text("server.admin", &c.admin),
        ("server.admin_key_file", quoted(&c.admin_key_file.value.to_string_lossy()), c.admin_key_file.origin),
        ("server.pepper_file", quoted(&c.pepper_file.value.to_string_lossy()), c.pepper_file.origin),
        ("server.ledger_key_file", quoted(&c.ledger_key_file.value.to_string_lossy()), c.ledger_key_file.origin),
        text("server.database", &c.database),
        text("server.replica", &c.replica),
        text("server.revoked_time", &c.revoked_time),
        ("server.tenant_webhooks", quoted(c.tenant_webhooks.value.word()), c.tenant_webhooks.origin),
        ("server.trusted_proxies", list(&c.trusted_proxies.value.0), c.trusted_proxies.origin),
        plain("server.insecure_public", &c.insecure_public),
        text("server.tls.certificate", &c.tls_certificate),
        text("server.tls.key", &c.tls_key),
        text("server.models_root", &c.models_root),
        text("server.body_bytes_max", &c.body_bytes_max),
        plain("server.connections_max", &c.connections_max),
        text("server.request_timeout", &c.request_timeout),
        text("server.drain_time", &c.drain_time),
        text("server.drain_accept_time", &c.drain_accept_time),
        text("server.record", &c.record),
        text("server.record_bytes_max", &c.record_bytes_max),
        ("engine.devices", list(c.devices.value.specs()), c.devices.origin),
        text("engine.gpu_missing", &c.gpu_missing),
        text("engine.gpu_executor", &c.gpu_executor),
        plain("engine.threads", &c.threads),
        text("engine.kv_memory", &c.kv_memory),
        plain("engine.step_tokens_max", &c.step_tokens_max),
        plain("engine.rows_max", &c.rows_max),
        text("engine.step_latency_max", &c.step_latency_max),
        text("engine.locality_quantum", &c.locality_quantum),
        plain("engine.queue_len_max", &c.queue_len_max),
        text("engine.executor", &c.executor),
        text("engine.canary_interval", &c.canary_interval),
        plain("engine.seed", &c.seed),
    ]
}

fn origin_word(origin: Origin) -> &'static str {
    match origin {
        Origin::Flag => "flag",
        Origin::Env => "environment",
        Origin::File => "file",
        Origin::Default => "default",
    }
}

fn masked(hash: &str) -> String {
    let shown: String = hash.chars().take(8).collect();
    format!("{shown}… (masked)")
}

fn list<T: ToString>(entries: &[T]) -> String {
    let quoted: Vec<String> = entries.iter().map(|entry| quoted(&entry.to_string())).collect();
    format!("[{}]", quoted.join(", "))
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
