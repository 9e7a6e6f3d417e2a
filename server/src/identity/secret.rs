//! Secrets of the environment: in a variable, or better in a file that `NAME_FILE` names, which other processes do not
//! inherit and which can be replaced while the server runs.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// Longest secret.
const SECRET_BYTES_MAX: usize = 64 << 10;

/// A secret in the clear. It has no `Debug` that shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Where a secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// In the environment.
    Text(Secret),
    /// In a file, to be read whenever it is needed.
    File(PathBuf),
}

/// A secret that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Two places say what it is.
    #[error("{0} and {0}_FILE are both set: which one counts?")]
    Both(String),
    /// The file cannot be read.
    #[error("secret file {path}: {cause}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
    /// There is nothing in it, or too much.
    #[error("secret file {path} must hold 1 to {SECRET_BYTES_MAX} bytes of text")]
    Content {
        /// Which.
        path: PathBuf,
    },
}

impl SecretSource {
    /// Looks `NAME` and `NAME_FILE` up; empty is not set.
    pub fn from_env(get: impl Fn(&str) -> Option<String>, name: &str) -> Result<Option<Self>, SecretError> {
        let set = |name: &str| get(name).filter(|value| !value.is_empty());
        match (set(name), set(&format!("{name}_FILE"))) {
            (Some(_), Some(_)) => Err(SecretError::Both(name.to_owned())),
            (Some(text), None) => Ok(Some(SecretSource::Text(Secret(text)))),
            (None, Some(file)) => Ok(Some(SecretSource::File(file.into()))),
            (None, None) => Ok(None),
        }
    }

    /// The secret as it is now; of a file, without the end of its last line. Who may read the file is not asked: where
    /// secrets are mounted, the mount is what protects them, and its modes are often 0444.
    pub fn read(&self) -> Result<Secret, SecretError> {
        match self {
            SecretSource::Text(secret) => Ok(secret.clone()),
            SecretSource::File(path) => read(path),
        }
    }

    /// The file, for whoever watches it.
    pub fn file(&self) -> Option<&Path> {
        match self {
            SecretSource::Text(_) => None,
            SecretSource::File(path) => Some(path),
        }
    }
}

fn read(path: &Path) -> Result<Secret, SecretError> {
    let fail = |cause| SecretError::File { path: path.to_owned(), cause };
    let mut text = String::new();
    let bytes_max = SECRET_BYTES_MAX as u64 + 3;
    File::open(path).and_then(|file| file.take(bytes_max).read_to_string(&mut text)).map_err(fail)?;
    let text = text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
    match (1..=SECRET_BYTES_MAX).contains(&text.len()) {
        true => Ok(Secret(text.to_owned())),
        false => Err(SecretError::Content { path: path.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_secret_is_in_one_place() {
        let source = |pairs: &[(&str, &str)]| {
            let get = |name: &str| pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
            SecretSource::from_env(get, "S")
        };
        assert_eq!(source(&[]).expect("none"), None);
        assert_eq!(source(&[("S", ""), ("S_FILE", "")]).expect("none"), None);
        assert_eq!(source(&[("S", "x")]).expect("one"), Some(SecretSource::Text(Secret("x".into()))));
        assert_eq!(source(&[("S", ""), ("S_FILE", "f")]).expect("one"), Some(SecretSource::File("f".into())));
        assert!(matches!(source(&[("S", "x"), ("S_FILE", "f")]), Err(SecretError::Both(name)) if name == "S"));
        assert_eq!(format!("{:?}", Secret("x".into())), "Secret(…)");
    }

    #[test]
    fn files_are_read_anew_each_time() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("s");
        let source = SecretSource::File(path.clone());
        assert!(matches!(source.read(), Err(SecretError::File { .. })));
        for (text, secret) in [("a", "a"), ("b\n", "b"), ("c\r\n", "c"), (" d \n\n", " d \n")] {
            fs::write(&path, text).expect("written");
            assert_eq!(source.read().expect("a secret").reveal(), secret);
        }
        for bad in ["", "\n", &"x".repeat(SECRET_BYTES_MAX + 1)] {
            fs::write(&path, bad).expect("written");
            assert!(matches!(source.read(), Err(SecretError::Content { .. })), "{} bytes", bad.len());
        }
        fs::write(&path, "x".repeat(SECRET_BYTES_MAX) + "\r\n").expect("written");
        assert!(source.read().is_ok());
    }
}
