//! The words of a probe. Two executables share them, and only one of them has a command line library.

use std::collections::HashMap;
use std::str::FromStr;

use super::ProbeError;

/// `--name value` and `--flag`, each at most once.
pub(super) struct Args(HashMap<String, String>);

impl Args {
    pub(super) fn parse(words: &[String], names: &[&str], flags: &[&str]) -> Result<Self, ProbeError> {
        let mut found = HashMap::new();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let usage = |reason: &str| ProbeError::Usage(format!("`{word}` {reason}"));
            let name = word.strip_prefix("--").ok_or_else(|| usage("is not expected here"))?;
            let (name, inline) = match name.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (name, None),
            };
            let value = if flags.contains(&name) {
                inline.is_none().then(String::new).ok_or_else(|| usage("takes no value"))?
            } else if names.contains(&name) {
                inline.or_else(|| words.next().cloned()).ok_or_else(|| usage("lacks its value"))?
            } else {
                return Err(usage("is not known"));
            };
            if found.insert(name.to_owned(), value).is_some() {
                return Err(usage("is given twice"));
            }
        }
        Ok(Self(found))
    }

    pub(super) fn has(&self, flag: &str) -> bool {
        self.0.contains_key(flag)
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub(super) fn required(&self, name: &str) -> Result<&str, ProbeError> {
        self.text(name).ok_or_else(|| ProbeError::Usage(format!("--{name} is missing")))
    }

    /// A number of at least 1.
    pub(super) fn count(&self, name: &str, default: Option<u32>) -> Result<u32, ProbeError> {
        let Some(text) = self.text(name) else {
            return default.ok_or_else(|| ProbeError::Usage(format!("--{name} is missing")));
        };
        match u32::from_str(text) {
            Ok(count) if count > 0 => Ok(count),
            _ => Err(ProbeError::Usage(format!("--{name} is `{text}`, not a number of at least 1"))),
        }
    }
}
