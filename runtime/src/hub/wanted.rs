//! What was asked for, parsed once: these strings become paths and addresses.

use std::fmt;

use hf_hub::{Repo, RepoType};

use super::HubError;

/// A repository at a revision, and perhaps one file of it.
pub(super) struct Wanted {
    id: String,
    revision: String,
    file: Option<String>,
}

impl Wanted {
    pub(super) fn parse(id: &str, revision: Option<&str>, file: Option<&str>) -> Result<Self, HubError> {
        let revision = revision.unwrap_or("main");
        let bad = |what, value: &str, reason| Err(HubError::BadName { what, value: value.to_owned(), reason });
        // `--` stands for `/` in the cache's folder names, so the hub does not allow it in an id.
        let plain = |part: &str| part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        if !is_relative(id) || id.split('/').count() > 2 || !id.split('/').all(plain) || id.contains("--") {
            return bad("model id", id, "expected org/name");
        }
        if !is_relative(revision) || !revision.split('/').all(|p| plain(p) && !p.contains("..")) {
            return bad("revision", revision, "expected a branch, a tag or a commit");
        }
        match file {
            Some(file) if !is_relative(file) => bad("file", file, "expected a path inside the repository"),
            Some(file) if !is_gguf(file) => bad("file", file, "only a .gguf file can be named"),
            _ => Ok(Wanted { id: id.to_owned(), revision: revision.to_owned(), file: file.map(str::to_owned) }),
        }
    }

    pub(super) fn repo(&self) -> Repo {
        Repo::with_revision(self.id.clone(), RepoType::Model, self.revision.clone())
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn revision(&self) -> &str {
        &self.revision
    }

    pub(super) fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.id, self.revision)
    }
}

/// Whether a name stays below the folder it is joined to: no empty, `.` or `..` segment, nothing odd in it.
pub(super) fn is_relative(name: &str) -> bool {
    name.split('/').all(|s| !s.is_empty() && s != "." && s != "..")
        && !name.contains(|c: char| c.is_control() || c == '\\' || c == ':')
}

/// Whether a name ends as a GGUF file's does.
pub(super) fn is_gguf(name: &str) -> bool {
    name.to_ascii_lowercase().ends_with(".gguf")
}

/// Whether a text is a whole commit: 40 lower-case hexadecimal digits.
pub(super) fn is_commit(text: &str) -> bool {
    is_hex(text, 40)
}

/// Whether a text is so many lower-case hexadecimal digits.
pub(super) fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_revisions_and_files_of_the_hub_are_taken() {
        for (id, revision, file) in [
            ("org/Model-1.5_b", None, None),
            ("gpt2", Some("v1.0"), None),
            ("org/m", Some("refs/pr/5"), Some("Q4 K/m-Q4_K_M.gguf")),
        ] {
            assert!(Wanted::parse(id, revision, file).is_ok(), "{id} {revision:?} {file:?}");
        }
    }

    #[test]
    fn names_that_leave_the_cache_are_refused() {
        for id in ["", "/", "a/", "/a", "..", "a/..", "a/b/c", "a--b/c", "a b/c", "a/b?c", "a\\b"] {
            assert!(Wanted::parse(id, None, None).is_err(), "{id}");
        }
        for revision in ["", "../x", "a/../b", "a..b", "/a", "a b", "a#b"] {
            assert!(Wanted::parse("a/b", Some(revision), None).is_err(), "{revision}");
        }
        for file in ["", "../m.gguf", "/m.gguf", "a/../m.gguf", "m.bin", "a\\m.gguf"] {
            assert!(Wanted::parse("a/b", None, Some(file)).is_err(), "{file}");
        }
    }
}
