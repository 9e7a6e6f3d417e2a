//! The address of the store, which may hold a password.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, de::Error};

/// Where the store is when nobody says.
const DEFAULT: &str = "sqlite:.weir/weir.db";

/// `sqlite:FILE` or `postgres://...`. It shows itself without a password; see [`DatabaseUrl::reveal`].
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// The whole address.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The file, unless it is a server.
    pub fn file(&self) -> Option<PathBuf> {
        let path = self.0.strip_prefix("sqlite://").or_else(|| self.0.strip_prefix("sqlite:"))?;
        Some(PathBuf::from(path))
    }

    /// The same, with the file meant from a folder.
    pub(super) fn beneath(self, folder: &Path) -> Self {
        match self.file() {
            Some(file) => DatabaseUrl(format!("sqlite:{}", folder.join(file).display())),
            None => self,
        }
    }
}

impl Default for DatabaseUrl {
    fn default() -> Self {
        DatabaseUrl(DEFAULT.to_owned())
    }
}

impl FromStr for DatabaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let file = text.strip_prefix("sqlite:").is_some_and(|path| !path.trim_start_matches('/').is_empty());
        let server = text.starts_with("postgres://") || text.starts_with("postgresql://");
        match file || server {
            true => Ok(DatabaseUrl(text.to_owned())),
            false => Err("must be sqlite:FILE or postgres://...".into()),
        }
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Of a server only what stands between the last `@` and the question mark: there may be a password before the one and
        // behind the other.
        match (self.0.split_once("://"), self.file()) {
            (Some((scheme, rest)), None) => {
                let place = rest.split('?').next().unwrap_or_default();
                let shown = match place.rsplit_once('@') {
                    Some((_, shown)) => shown,
                    None if rest.contains('@') => "…",
                    None => place,
                };
                write!(f, "{scheme}://{shown}")
            }
            _ => f.write_str(&self.0),
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({self})")
    }
}

impl<'de> Deserialize<'de> for DatabaseUrl {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        String::deserialize(source)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> DatabaseUrl {
        text.parse().expect("an address")
    }

    #[test]
    fn a_password_is_never_shown() {
        for (text, shown) in [
            ("postgres://weir:p@ss@db:5432/weir?sslmode=x&password=p@ss", "postgres://db:5432/weir"),
            ("postgresql://p@ss@db:5432/weir", "postgresql://db:5432/weir"),
            ("postgres://weir:p?ss@db/weir", "postgres://…"),
            ("postgres://db/weir", "postgres://db/weir"),
        ] {
            assert_eq!(format!("{} {:?}", url(text), url(text)), format!("{shown} DatabaseUrl({shown})"));
            assert_eq!(url(text).reveal(), text);
        }
    }

    #[test]
    fn files_are_meant_from_the_configurations_folder() {
        let folder = Path::new("/etc/weir");
        assert_eq!(url("sqlite:a.db").beneath(folder).reveal(), "sqlite:/etc/weir/a.db");
        assert_eq!(url("sqlite:/var/a.db").beneath(folder).reveal(), "sqlite:/var/a.db");
        assert_eq!(url("postgres://db/weir").beneath(folder).reveal(), "postgres://db/weir");
    }

    #[test]
    fn other_addresses_are_refused() {
        for bad in ["", "weir.db", "sqlite:", "sqlite://", "mysql://db"] {
            assert!(bad.parse::<DatabaseUrl>().is_err(), "{bad}");
        }
    }
}
