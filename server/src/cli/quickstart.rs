//! What `weir serve` prints once it is ready: lines to paste, for the models that are there.

use std::{fmt::Write, net::SocketAddr};

use weir_runtime::{Engine, ModelCard};

use crate::config::{DEMO_KEY_FILE, DEMO_TENANT, TenantTable};

/// The lines.
pub(super) fn text(engine: &Engine, address: SocketAddr, tls: bool, tenants: &[TenantTable]) -> String {
    let models: Vec<ModelCard> = engine.models().iter().map(|card| (**card).clone()).collect();
    render(&models, address, if tls { "https" } else { "http" }, key_of(tenants).as_deref())
}

/// A key file that the lines may read: the demo tenant's, or else the first there is.
fn key_of(tenants: &[TenantTable]) -> Option<String> {
    let files = |tenant: &TenantTable| tenant.keys.iter().find_map(|key| key.key_file.clone());
    let demo = tenants.iter().filter(|t| t.name == DEMO_TENANT).find_map(files);
    let path = demo.or_else(|| tenants.iter().find_map(files))?;
    let path = path.to_string_lossy();
    // A path with anything odd in it would need quoting in two languages.
    let plain = path.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
    plain.then(|| path.into_owned())
}

fn render(models: &[ModelCard], address: SocketAddr, scheme: &str, key_file: Option<&str>) -> String {
    // Every address of this machine is also this one.
    let host = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        std::net::IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
        std::net::IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    };
    let base = format!("{scheme}://{}/v1", SocketAddr::new(host, address.port()));
    let (key, python_key) = match key_file {
        Some(path) => (format!("$(cat {path})"), format!("open(\"{path}\").read().strip()")),
        None => ("$WEIR_API_KEY".to_owned(), "os.environ[\"WEIR_API_KEY\"]".to_owned()),
    };
    let chat = models.iter().find(|m| m.generates && m.has_chat_template);
    let embed = models.iter().find(|m| m.embeds);
    let names: Vec<&str> = models.iter().map(|m| m.name.as_str()).collect();
    let mut text = format!("\nWeir serves {} on {}\n", names.join(", "), base.trim_end_matches("/v1"));
    let _ = match key_file {
        Some(DEMO_KEY_FILE) => writeln!(text, "The key of tenant demo is in {DEMO_KEY_FILE}"),
        Some(_) => Ok(()),
        None => writeln!(text, "Put a key into WEIR_API_KEY to try these:"),
    };
    if let Some(model) = chat {
        let body = format!(
            r#"{{"model":"{}","stream":true,"max_tokens":64,"messages":[{{"role":"user","content":"Name three rivers."}}]}}"#,
            model.name
        );
        let _ = write!(text, "\nA streamed chat:\n\n{}", curl(&format!("{base}/chat/completions"), &key, &body));
    }
    if let Some(model) = embed {
        let body = format!(r#"{{"model":"{}","input":"A weir divides a river."}}"#, model.name);
        let _ = write!(text, "\nAn embedding:\n\n{}", curl(&format!("{base}/embeddings"), &key, &body));
    }
    if chat.is_some() || embed.is_some() {
        text.push_str("\nThe same in Python (pip install openai):\n\n");
        text.push_str(&python(&base, &python_key, chat, embed));
    }
    text.push('\n');
    text
}

fn curl(url: &str, key: &str, body: &str) -> String {
    format!("curl -N {url} -H \"Authorization: Bearer {key}\" -H 'Content-Type: application/json' -d '{body}'\n")
}

fn python(base: &str, key: &str, chat: Option<&ModelCard>, embed: Option<&ModelCard>) -> String {
    let mut text = String::from("python3 - <<'EOF'\n");
    if key.starts_with("os.") {
        text.push_str("import os\n");
    }
    let _ = write!(text, "from openai import OpenAI\nclient = OpenAI(base_url=\"{base}\", api_key={key})\n");
    if let Some(model) = chat {
        let _ = write!(
            text,
            "stream = client.chat.completions.create(model=\"{}\", max_tokens=64, stream=True,\n    \
             messages=[{{\"role\": \"user\", \"content\": \"Name three rivers.\"}}])\n\
             for chunk in stream:\n    \
             print(chunk.choices[0].delta.content or \"\", end=\"\", flush=True)\nprint()\n",
            model.name
        );
    }
    if let Some(model) = embed {
        let _ = write!(
            text,
            "reply = client.embeddings.create(model=\"{}\", input=\"A weir divides a river.\")\n\
             print(reply.data[0].embedding[:4])\n",
            model.name
        );
    }
    text.push_str("EOF\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(name: &str, generates: bool) -> ModelCard {
        ModelCard {
            name: name.into(),
            generates,
            embeds: !generates,
            context_len: 512,
            vocab_size: 256,
            embedding_dim: (!generates).then_some(4),
            has_chat_template: generates,
            created: 0,
            parameters: 0,
            quantization: "q".into(),
            architecture: "a".into(),
        }
    }

    #[test]
    fn lines_name_only_what_is_there() {
        let any = "0.0.0.0:8000".parse().expect("address");
        let both = render(&[card("chat", true), card("embed", false)], any, "http", Some(DEMO_KEY_FILE));
        assert!(both.contains("http://127.0.0.1:8000/v1/chat/completions"));
        assert!(both.contains("Bearer $(cat .weir/demo.key)"));
        assert!(both.contains("client.embeddings.create(model=\"embed\""));
        let one = render(&[card("embed", false)], "[::]:80".parse().expect("address"), "https", None);
        assert!(!one.contains("chat"));
        assert!(one.contains("https://[::1]:80/v1/embeddings") && one.contains("import os\n"));
        let none = render(&[], any, "http", None);
        assert!(!none.contains("curl") && !none.contains("python"));
    }

    #[test]
    fn bodies_are_json() {
        let text = render(&[card("c", true), card("e", false)], "127.0.0.1:1".parse().expect("address"), "http", None);
        let bodies: Vec<&str> = text.lines().filter_map(|l| l.split_once("-d '")?.1.strip_suffix('\'')).collect();
        assert_eq!(bodies.len(), 2);
        crate::openai::chat::ChatRequest::parse(bodies[0].as_bytes()).expect("chat body");
        crate::openai::embedding::EmbeddingRequest::parse(bodies[1].as_bytes()).expect("embedding body");
    }
}
