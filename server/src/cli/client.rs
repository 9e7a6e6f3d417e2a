//! How commands talk to a running server.

use std::{env, io, path::Path, time::Duration};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::{identity::SecretSource, keys::read_key_file};

/// A server that is there answers a connection at once.
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// The key of a command that talks to a running server: WEIR_API_KEY, or what WEIR_API_KEY_FILE names, else what is in the
/// file.
pub(super) fn client_key(file: &Path) -> anyhow::Result<String> {
    if let Some(source) = SecretSource::from_env(|name| env::var(name).ok(), "WEIR_API_KEY")? {
        return Ok(source.read()?.reveal().to_owned());
    }
    let read = read_key_file(file).context("no key: start `weir serve` here first, or set WEIR_API_KEY")?;
    Ok(read.reveal().to_owned())
}

/// The key of a command for operators: WEIR_ADMIN_KEY, or what is in the file.
pub(super) fn admin_key(file: &Path) -> anyhow::Result<String> {
    if let Some(key) = env::var("WEIR_ADMIN_KEY").ok().filter(|key| !key.is_empty()) {
        return Ok(key);
    }
    let read =
        read_key_file(file).context("no operators' key: run this where `weir serve` runs, or set WEIR_ADMIN_KEY")?;
    Ok(read.reveal().to_owned())
}

/// A server to talk to.
pub(super) struct Server {
    agent: ureq::Agent,
    url: String,
    authorization: String,
}

impl Server {
    pub(super) fn new(url: &str, key: &str) -> Self {
        // Errors have a body that says more than their status. A proxy of the environment is not for this machine.
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_TIME))
            .proxy(None)
            .build();
        let url = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        Server { agent: config.into(), url, authorization: format!("Bearer {key}") }
    }

    pub(super) fn post(&self, path: &str, body: &Value) -> anyhow::Result<impl io::Read + use<>> {
        let request = self.agent.post(format!("{}{path}", self.url)).header("authorization", &self.authorization);
        let sent = request.header("content-type", "application/json").send(body.to_string().as_bytes());
        self.read(sent)
    }

    /// Any method, with a body or without.
    pub(super) fn send(&self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<impl io::Read + use<>> {
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header("authorization", &self.authorization);
        let sent = match body {
            Some(body) => {
                self.agent.run(request.header("content-type", "application/json").body(body.to_string().into_bytes())?)
            }
            None => self.agent.run(request.body(())?),
        };
        self.read(sent)
    }

    pub(super) fn get(&self, path: &str) -> anyhow::Result<impl io::Read + use<>> {
        let request = self.agent.get(format!("{}{path}", self.url)).header("authorization", &self.authorization);
        self.read(request.call())
    }

    fn read(
        &self,
        sent: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> anyhow::Result<ureq::BodyReader<'static>> {
        let response = sent.with_context(|| format!("no server at {}", self.url))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response.into_body().into_reader());
        }
        let text = response.into_body().read_to_string().unwrap_or_default();
        let body: Value = serde_json::from_str(&text).unwrap_or_default();
        match body["error"]["message"].as_str() {
            Some(message) => bail!("{message}"),
            None => bail!("{} answered {status}", self.url),
        }
    }
}
