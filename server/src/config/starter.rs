//! What a first start leaves behind: a tenant `demo` with a key of its own, and a commented file that names it.

use std::{fmt::Write, path::PathBuf};

use super::{
    ModelEntry,
    file::{KeyTable, TenantTable},
};

/// The tenant of a server that was told of none.
pub const DEMO_TENANT: &str = "demo";
/// Where its key is.
pub const DEMO_KEY_FILE: &str = ".weir/demo.key";
/// Where the operators' key is.
pub const ADMIN_KEY_FILE: &str = ".weir/admin.key";
/// Where the secret that key hashes are made with is.
pub const PEPPER_FILE: &str = ".weir/pepper";
/// Where the key is that months of the ledger are signed with.
pub const LEDGER_KEY_FILE: &str = ".weir/ledger.key";
/// The file that is read when no other is named, and left when there is none.
pub const STARTER_FILE: &str = "weir.toml";

/// The tenant of a server that was told of none.
pub fn demo_tenant() -> TenantTable {
    let key =
        KeyTable { name: Some("first".into()), sha256: None, key_file: Some(PathBuf::from(DEMO_KEY_FILE)), role: None };
    TenantTable {
        name: DEMO_TENANT.into(),
        weight: None,
        queue_len_max: None,
        running_max: None,
        kv_blocks_floor: None,
        kv_blocks_ceiling: None,
        device_seconds_per_hour: None,
        device_seconds_per_day: None,
        device_seconds_per_month: None,
        cache_blocks_floor: None,
        cache_blocks_ceiling: None,
        ttft_target: None,
        itl_target: None,
        priority_ceiling: None,
        pool: None,
        pool_only: None,
        models: None,
        ip_allow: None,
        domain: None,
        keys: vec![key],
    }
}

/// The file's text, with the models of this start written in so that `weir serve` alone starts them again.
pub fn starter_text(models: &[ModelEntry]) -> String {
    let mut text = String::from(HEAD);
    for model in models {
        text.push_str("[[models]]\n");
        let name = model.name.as_deref();
        if let Some(name) = name {
            let _ = writeln!(text, "name = {}", quoted(name));
        }
        let _ = writeln!(text, "source = {}\n", quoted(&model.source));
    }
    if models.is_empty() {
        text.push_str("# [[models]]\n# name = \"my-model\"\n# source = \"path/to/model.gguf\"\n\n");
    }
    text.push_str(TENANTS);
    text
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

const HEAD: &str = r#"# Weir's configuration. Flags win over WEIR_* variables, which win over this file; `weir config print` shows
# what is in force. An unknown key is an error. Lines that are commented out show the defaults.

[server]
# host = "127.0.0.1"
# port = 8000
# metrics = "127.0.0.1:8002"     # Prometheus text, for operators: it shows every tenant. Or "off"
# admin = "127.0.0.1:8001"       # for operators, with the key below: models are added here. Or "off"
# admin_key_file = ".weir/admin.key"
# pepper_file = ".weir/pepper"   # the secret that key hashes are made with: keep a copy
# ledger_key_file = ".weir/ledger.key"  # the key that closed months are signed with: keep a copy
# database = "sqlite:.weir/weir.db"  # tenants, keys, the ledger. Or "postgres://...", better in DATABASE_URL(_FILE)
# replica = ""                   # what this server is called in the store, when several share it
# revoked_time = "0s"            # how long what runs may go on once its key was revoked or its tenant suspended
# tenant_webhooks = "public"     # or "any": tenants' own also to private networks; or "off"
# trusted_proxies = []           # "10.0.0.0/8": whose word on the client's address, host and tenant counts
# insecure_public = false        # true: listen where others can reach it, without TLS and without a proxy
# tls.certificate = "off"        # a file in PEM, read again when it changes
# tls.key = "off"
# models_root = "off"            # the folder that models may be added from
# body_bytes_max = "4MiB"
# connections_max = 1024
# request_timeout = "600s"
# drain_time = "25s"             # for running requests, when told to end
# drain_accept_time = "5s"       # of it, after SIGTERM: who connects is told to go elsewhere
# record = "off"                 # a new file for a trace of the load: lengths, times and tenants, never text
# record_bytes_max = "1GiB"

[engine]
# devices = ["cpu"]              # also "cuda", "cuda:0" or "auto"; each has an executor and a copy of every model
# gpu_missing = "exit"           # or "cpu": serve without a GPU that is named and cannot be used
# gpu_executor = "beside"        # the program weir-gpu: beside weir, or a file
# threads = 0                    # divided among the CPU devices; 0: one per core
# kv_memory = "1GiB"             # of each generation model, on each device; unset, a GPU takes what weights leave
# step_tokens_max = 512
# rows_max = 64
# step_latency_max = "200ms"     # 1ms to 60s: prompts are cut to it, texts being drawn are not; unset, a GPU has 100ms
# locality_quantum = "250ms"     # device time for which what is cached goes first, up to 10s
# queue_len_max = 1024
# executor = "process"           # or "thread"
# canary_interval = "5s"
# seed = 0

# What is served. `source` is a folder, a .gguf file, a Hugging Face id (org/name[@revision][:file.gguf]) or
# fake:step=4ms,token=20us. Models on the command line replace this list.
"#;

const TENANTS: &str = r#"# Who may ask. Tenants share each device by weight while both have work waiting. A tenant here is put into the
# database once; from then on what the database says counts, and `weir tenant` changes it. Its keys stay here.
[[tenants]]
name = "demo"
weight = 1
# queue_len_max = 256            # requests waiting
# running_max = 64               # requests running
# kv_blocks_floor = 0            # cache that no other tenant can take away
# kv_blocks_ceiling = 1000       # cache at most; absent is no limit
# device_seconds_per_hour = 600  # device time it may use; also _per_day, _per_month, in UTC; absent is no limit
# cache_blocks_floor = 0         # the same two for what is cached and not in use
# cache_blocks_ceiling = 1000
# ttft_target = "2s"             # a request whose first token is not expected by then is refused
# itl_target = "50ms"            # steps beside its texts are cut to it
# priority_ceiling = 0           # the most urgent class (0 to 9) that `priority` in a request can ask for
# models = ["some-model"]        # what it may use, and know of; absent is everything

[[tenants.keys]]
name = "first"
key_file = ".weir/demo.key"      # the key itself; the file must be readable by its owner only

# A second tenant, with twice the share. `weir key new` prints a key and the line to put here: the key goes to the
# tenant, its hash stays with the server.
# [[tenants]]
# name = "acme"
# weight = 2
#
# [[tenants.keys]]
# name = "laptop"
# sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
"#;

#[cfg(test)]
mod tests {
    use super::{
        super::{Config, Layer, Origin, read_file},
        *,
    };

    #[test]
    fn the_file_left_behind_says_what_was_in_force() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join(STARTER_FILE);
        let models = [
            ModelEntry { name: None, source: "fake:step=4ms,token=20us".into(), devices: Vec::new() },
            ModelEntry { name: Some("m".into()), source: "odd \"name\\".into(), devices: Vec::new() },
        ];
        std::fs::write(&path, starter_text(&models)).expect("write");
        let read = read_file(&path).expect("valid");
        assert_eq!(read.models, models);
        assert_eq!(read.settings, Default::default());
        let mut demo = demo_tenant();
        demo.weight = Some(1);
        demo.keys[0].key_file = Some(folder.path().join(DEMO_KEY_FILE));
        assert_eq!(read.tenants, [demo]);
    }

    #[test]
    fn commented_settings_show_the_defaults() {
        let uncomment = |line: &str| match line.strip_prefix("# ") {
            Some(rest) if rest.contains(" = ") && !rest.contains("   source") => rest.to_owned(),
            _ => line.to_owned(),
        };
        let head: Vec<String> = HEAD.lines().filter(|l| !l.starts_with("# fake")).map(uncomment).collect();
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join(STARTER_FILE);
        std::fs::write(&path, head.join("\n")).expect("write");
        let read = read_file(&path).expect("valid");
        let mut shown = Config::merge(Layer::default(), Layer::default(), Some((path, read)));
        // Paths in a file are meant from its folder.
        assert_eq!(shown.admin_key_file.value, folder.path().join(ADMIN_KEY_FILE));
        shown.admin_key_file.value = PathBuf::from(ADMIN_KEY_FILE);
        assert_eq!(shown.pepper_file.value, folder.path().join(PEPPER_FILE));
        shown.pepper_file.value = PathBuf::from(PEPPER_FILE);
        assert_eq!(shown.ledger_key_file.value, folder.path().join(LEDGER_KEY_FILE));
        shown.ledger_key_file.value = PathBuf::from(LEDGER_KEY_FILE);
        assert_eq!(shown.database.value.file(), Some(folder.path().join(".weir/weir.db")));
        shown.database.value = Default::default();
        let bare = Config::merge(Layer::default(), Layer::default(), None);
        assert_eq!(shown.seed.origin, Origin::File);
        assert_eq!(super::super::print::values(&shown), super::super::print::values(&bare));
    }

    #[test]
    fn the_second_tenant_works_once_its_comments_are_gone() {
        let text: String =
            TENANTS.lines().skip_while(|l| !l.starts_with("# [[tenants]]")).fold(String::new(), |mut text, line| {
                text.push_str(line.trim_start_matches('#').trim_start());
                text.push('\n');
                text
            });
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join(STARTER_FILE);
        std::fs::write(&path, text).expect("write");
        let read = read_file(&path).expect("valid");
        assert_eq!(read.tenants[0].name, "acme");
        assert_eq!(read.tenants[0].spec().weight, 2);
    }
}
