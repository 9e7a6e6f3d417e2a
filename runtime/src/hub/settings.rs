//! Where the hub and its cache are, and who asks.

use std::fmt;
use std::path::PathBuf;

use super::HubError;

const ENDPOINT: &str = "https://huggingface.co";

/// The environment of a fetch.
#[derive(Clone)]
pub struct Settings {
    /// The folder that holds `hub/`, the cache, and `token` (`HF_HOME`, else `~/.cache/huggingface`).
    pub home: PathBuf,
    /// Sent to the endpoint only (`HF_TOKEN`, else the file `token` in [`home`](Self::home)).
    pub token: Option<String>,
    /// The hub's address (`HF_ENDPOINT`, else huggingface.co).
    pub endpoint: String,
    /// Use only what the cache has (`HF_HUB_OFFLINE`).
    pub offline: bool,
}

impl Settings {
    /// The settings in this process's environment.
    pub fn from_env() -> Result<Self, HubError> {
        Self::from_vars(|name| std::env::var(name).ok())
    }

    /// The settings that named variables give; an empty variable is an unset one. `HF_HUB_OFFLINE` is on for `1`, `true`,
    /// `yes` and `on`, in any case. Like the Python tools, `XDG_CACHE_HOME` takes the place of `~/.cache`.
    pub fn from_vars(variable: impl Fn(&str) -> Option<String>) -> Result<Self, HubError> {
        let variable = |name: &str| variable(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let user = variable("HOME").map(PathBuf::from);
        let home = match variable("HF_HOME") {
            Some(path) => match (path.strip_prefix("~/"), &user) {
                (Some(rest), Some(user)) => user.join(rest),
                _ => PathBuf::from(path),
            },
            None => variable("XDG_CACHE_HOME")
                .map(PathBuf::from)
                .or_else(|| user.map(|user| user.join(".cache")))
                .ok_or(HubError::NoHome)?
                .join("huggingface"),
        };
        // Absence of the file is the usual case; a token that cannot be read is no token, as for the Python tools.
        let token = variable("HF_TOKEN").or_else(|| {
            let text = std::fs::read_to_string(home.join("token")).ok()?;
            Some(text.trim().to_owned()).filter(|t| !t.is_empty())
        });
        let offline = variable("HF_HUB_OFFLINE")
            .is_some_and(|v| matches!(v.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on"));
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        Ok(Settings { home, token, endpoint, offline })
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("home", &self.home)
            .field("token", &self.token.as_ref().map(|_| "***"))
            .field("endpoint", &self.endpoint)
            .field("offline", &self.offline)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(vars: &[(&str, &str)]) -> Result<Settings, HubError> {
        let vars: Vec<(String, String)> = vars.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        Settings::from_vars(move |name| vars.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone()))
    }

    #[test]
    fn variables_are_honoured() {
        let got = settings(&[
            ("HF_HOME", "/hf"),
            ("HF_TOKEN", " secret\n"),
            ("HF_ENDPOINT", "https://mirror.example"),
            ("HF_HUB_OFFLINE", "TRUE"),
        ])
        .expect("settings");
        assert_eq!(got.home, PathBuf::from("/hf"));
        assert_eq!(got.token.as_deref(), Some("secret"));
        assert_eq!(got.endpoint, "https://mirror.example");
        assert!(got.offline);
        assert!(!format!("{got:?}").contains("secret"));
    }

    #[test]
    fn defaults_are_those_of_the_python_tools() {
        let got = settings(&[("HOME", "/u"), ("HF_HUB_OFFLINE", "0"), ("HF_HOME", "")]).expect("settings");
        assert_eq!(got.home, PathBuf::from("/u/.cache/huggingface"));
        assert_eq!((got.endpoint.as_str(), got.offline, got.token), (ENDPOINT, false, None));
        let got = settings(&[("HOME", "/u"), ("XDG_CACHE_HOME", "/c")]).expect("settings");
        assert_eq!(got.home, PathBuf::from("/c/huggingface"));
        let got = settings(&[("HOME", "/u"), ("HF_HOME", "~/hf")]).expect("settings");
        assert_eq!(got.home, PathBuf::from("/u/hf"));
        assert!(matches!(settings(&[]), Err(HubError::NoHome)));
    }

    #[test]
    fn the_token_file_is_the_second_choice() {
        let home = tempfile::tempdir().expect("temp folder");
        std::fs::write(home.path().join("token"), "from-file\n").expect("write");
        let path = home.path().to_str().expect("utf-8");
        let token = |vars: &[(&str, &str)]| settings(vars).expect("settings").token;
        assert_eq!(token(&[("HF_HOME", path)]).as_deref(), Some("from-file"));
        assert_eq!(token(&[("HF_HOME", path), ("HF_TOKEN", "from-env")]).as_deref(), Some("from-env"));
    }
}
