use std::collections::HashMap;

use super::*;

fn env(pairs: &[(&str, &str)]) -> Result<Layer, String> {
    let map: HashMap<String, String> = pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    read_env(|name| map.get(name).cloned())
}

fn file(text: &str) -> (PathBuf, FileSettings) {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("weir.toml");
    std::fs::write(&path, text).expect("write");
    let read = read_file(&path).expect("valid");
    (path, read)
}

fn flags(port: Option<u16>, models: &[&str]) -> Layer {
    let mut layer = Layer { models: models.iter().map(|m| (*m).to_owned()).collect(), ..Layer::default() };
    layer.settings.server.port = port;
    layer
}

#[test]
fn flags_win_over_environment_over_file_over_defaults() {
    let from_file = || Some(file("[server]\nport = 3\n"));
    let from_env = || env(&[("WEIR_PORT", "2")]).expect("valid");
    let port = |flags, env, file| {
        let port = Config::merge(flags, env, file).port;
        (port.value, port.origin)
    };
    let none = Layer::default;
    assert_eq!(port(flags(Some(1), &[]), from_env(), from_file()), (1, Origin::Flag));
    assert_eq!(port(none(), from_env(), from_file()), (2, Origin::Env));
    assert_eq!(port(none(), none(), from_file()), (3, Origin::File));
    assert_eq!(port(none(), none(), None), (8000, Origin::Default));
}

#[test]
fn models_come_from_the_strongest_layer_that_names_any() {
    let from_file = || Some(file("[[models]]\nname = \"x\"\nsource = \"fake\"\n"));
    let from_env = || env(&[("WEIR_MODELS", "a=fake  b=fake")]).expect("valid");
    let models = |flags, env, file| {
        let models = Config::merge(flags, env, file).models;
        (models.value.into_iter().map(|m| m.source).collect::<Vec<_>>(), models.origin)
    };
    let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    assert_eq!(models(flags(None, &["f=fake"]), from_env(), from_file()), (owned(&["f=fake"]), Origin::Flag));
    assert_eq!(models(Layer::default(), from_env(), from_file()), (owned(&["a=fake", "b=fake"]), Origin::Env));
    assert_eq!(models(Layer::default(), Layer::default(), from_file()), (owned(&["fake"]), Origin::File));
    assert_eq!(models(Layer::default(), Layer::default(), None), (Vec::new(), Origin::Default));
}

#[test]
fn every_setting_has_its_variable() {
    let all = [
        ("WEIR_HOST", "0.0.0.0"),
        ("WEIR_METRICS", "off"),
        ("WEIR_ADMIN", "127.0.0.1:1"),
        ("WEIR_ADMIN_KEY_FILE", "k"),
        ("WEIR_PEPPER_FILE", "p"),
        ("WEIR_LEDGER_KEY_FILE", "l"),
        ("WEIR_DATABASE", "sqlite:d"),
        ("WEIR_REPLICA", "one"),
        ("WEIR_REVOKED_TIME", "5s"),
        ("WEIR_TENANT_WEBHOOKS", "off"),
        ("WEIR_TRUSTED_PROXIES", "10.0.0.0/8,::1"),
        ("WEIR_INSECURE_PUBLIC", "true"),
        ("WEIR_TLS_CERTIFICATE", "c"),
        ("WEIR_TLS_KEY", "k"),
        ("WEIR_MODELS_ROOT", "models"),
        ("WEIR_BODY_BYTES_MAX", "1MiB"),
        ("WEIR_CONNECTIONS_MAX", "7"),
        ("WEIR_REQUEST_TIMEOUT", "5s"),
        ("WEIR_DRAIN_TIME", "4s"),
        ("WEIR_DRAIN_ACCEPT_TIME", "0s"),
        ("WEIR_RECORD", "trace.ndjson"),
        ("WEIR_RECORD_BYTES_MAX", "1MiB"),
        ("WEIR_DEVICES", "cpu,cpu"),
        ("WEIR_GPU_MISSING", "cpu"),
        ("WEIR_GPU_EXECUTOR", "/opt/weir-gpu"),
        ("WEIR_THREADS", "3"),
        ("WEIR_KV_MEMORY", "2GiB"),
        ("WEIR_STEP_TOKENS_MAX", "8"),
        ("WEIR_ROWS_MAX", "9"),
        ("WEIR_STEP_LATENCY_MAX", "1ms"),
        ("WEIR_LOCALITY_QUANTUM", "0s"),
        ("WEIR_QUEUE_LEN_MAX", "10"),
        ("WEIR_EXECUTOR", "thread"),
        ("WEIR_CANARY_INTERVAL", "1s"),
        ("WEIR_SEED", "11"),
        ("WEIR_PORT", "12"),
    ];
    let config = Config::merge(Layer::default(), env(&all).expect("valid"), None);
    assert_eq!(config.host.value, "0.0.0.0");
    assert_eq!(config.metrics_address(), None);
    assert_eq!((config.kv_memory.value, config.seed.value), (ByteSize(2 << 30), 11));
    assert_eq!(config.devices.value.specs().len(), 2);
    let printed = print(&config);
    assert_eq!(printed.matches("# environment").count(), all.len(), "{printed}");
    assert_eq!(printed.matches("# default").count(), 0, "{printed}");
}

#[test]
fn port_stands_in_and_service_links_are_ignored() {
    let port = |pairs: &[(&str, &str)]| env(pairs).expect("valid").settings.server.port;
    assert_eq!(port(&[("PORT", "5")]), Some(5));
    assert_eq!(port(&[("PORT", "5"), ("WEIR_PORT", "6")]), Some(6));
    assert_eq!(port(&[("WEIR_PORT", "tcp://10.0.0.1:8000")]), None);
    assert_eq!(port(&[("WEIR_PORT", "tcp://10.0.0.1:8000"), ("PORT", "5")]), Some(5));
    assert_eq!(port(&[("WEIR_PORT", "")]), None);
}

#[test]
fn the_stores_address_comes_from_the_usual_variable_or_a_file() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("url");
    std::fs::write(&path, "postgres://u:p@db/weir\n").expect("write");
    let path = path.to_string_lossy().into_owned();
    let database = |pairs: &[(&str, &str)]| {
        env(pairs).map(|layer| layer.settings.server.database.map(|url| url.reveal().to_owned()))
    };
    assert_eq!(database(&[("DATABASE_URL", "sqlite:a")]), Ok(Some("sqlite:a".into())));
    assert_eq!(database(&[("DATABASE_URL_FILE", &path)]), Ok(Some("postgres://u:p@db/weir".into())));
    assert_eq!(database(&[("DATABASE_URL", "sqlite:a"), ("WEIR_DATABASE", "sqlite:b")]), Ok(Some("sqlite:b".into())));
    assert!(database(&[("DATABASE_URL", "sqlite:a"), ("DATABASE_URL_FILE", &path)]).is_err());
    assert!(database(&[("DATABASE_URL", "mysql://x")]).expect_err("refused").contains("DATABASE_URL"));
}

#[test]
fn a_variable_that_does_not_parse_is_named() {
    for (name, value) in [("WEIR_PORT", "many"), ("PORT", "-1"), ("WEIR_ROWS_MAX", "0"), ("WEIR_KV_MEMORY", "1")] {
        let error = env(&[(name, value)]).expect_err("refused");
        assert!(error.contains(name) && !error.contains('\n'), "{error}");
    }
}

#[test]
fn times_out_of_their_range_are_refused_wherever_they_are_said() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("weir.toml");
    for (table, key, bad, good) in [
        ("engine", "step_latency_max", ["0s", "999us", "61s"], ["1ms", "60s"]),
        ("engine", "locality_quantum", ["11s", "10001ms", "1m"], ["0s", "10s"]),
        ("engine", "canary_interval", ["0s", "0ms", "0ns"], ["1ns", "86400s"]),
        ("server", "request_timeout", ["0s", "0ms", "0ns"], ["1ns", "86400s"]),
    ] {
        let variable = format!("WEIR_{}", key.to_uppercase());
        let write = |value| std::fs::write(&path, format!("[{table}]\n{key} = \"{value}\"\n")).expect("write");
        for value in bad {
            write(value);
            let error = read_file(&path).expect_err("refused").to_string();
            assert!(error.contains(&format!("{table}.{key} must be ")), "{error}");
            let error = env(&[(&variable, value)]).expect_err("refused");
            assert!(error.contains(&variable) && error.contains("must be "), "{error}");
        }
        for value in good {
            write(value);
            assert!(read_file(&path).is_ok() && env(&[(&variable, value)]).is_ok(), "{key} = {value}");
        }
    }
}

#[test]
fn what_is_printed_can_be_read_and_holds_no_secret() {
    let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let text = format!(
        "[server]\nport = 9\nadmin_key_file = \"/a\"\npepper_file = \"/p\"\nledger_key_file = \"/l\"\ndatabase = \"sqlite:/d\"\n[[models]]\nname = \"x\"\nsource = \"fake:step=1ms\"\n[[tenants]]\nname = \"a\"\nweight = 2\n\
         models = [\"x\"]\nkv_blocks_ceiling = 5\n[[tenants.keys]]\nname = \"k\"\nsha256 = \"{hash}\"\n\
         [[tenants.keys]]\nkey_file = \"/k\"\nrole = \"tenant_admin\"\n[[tenants]]\nname = \"b\"\n\
         ip_allow = [\"10.0.0.0/8\"]\ndomain = \"b.example\"\n[server.tls]\ncertificate = \"/c\"\nkey = \"/d\"\n\
         [[auth.jwt]]\nissuer = \"i\"\naudiences = [\"weir\"]\njwks_file = \"/j\"\nrole_claim = \"r\"\n\
         roles = {{ boss = \"operator\" }}\n[device_classes]\ncpu = 0.02\n\"h200-1g.18gb\" = 1\n"
    );
    let config = Config::merge(Layer::default(), Layer::default(), Some(file(&text)));
    let printed = print(&config);
    assert!(!printed.contains(&hash[8..]) && printed.contains(&hash[..8]), "{printed}");
    // With the hash back in its place it is a file that says the same.
    let (path, again) = file(&printed.replace(&format!("{}… (masked)", &hash[..8]), hash));
    let again = Config::merge(Layer::default(), Layer::default(), Some((path, again)));
    assert_eq!(print::values(&again), print::values(&config));
    assert_eq!(again.models.value, config.models.value);
    assert_eq!((&again.device_classes, again.device_classes.0.len()), (&config.device_classes, 2));
    assert_eq!(
        (&again.jwt, again.jwt.len(), &again.tenants[1].ip_allow),
        (&config.jwt, 1, &config.tenants[1].ip_allow)
    );
    assert_eq!(again.tenants[0].keys[1].role.as_deref(), Some("tenant_admin"));
    let specs = |c: &Config| c.tenants.iter().map(|t| (t.spec(), t.models.clone())).collect::<Vec<_>>();
    assert_eq!(specs(&again), specs(&config));
}
