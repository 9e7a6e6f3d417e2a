//! The folder that models are added from. No request carries a path: a source is a plain name, looked for beneath the root.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Bytes of a source's name.
const NAME_MAX: usize = 128;
/// Entries of a model's folder, and how deep its folders go.
const ENTRIES_MAX: usize = 1 << 12;
const DEPTH_MAX: usize = 3;

/// The root, without links in its path.
#[derive(Debug, Clone)]
pub struct ModelsRoot(PathBuf);

/// A source that is not loaded from.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SourceError {
    #[error(
        "`source` is the name of a folder or file beneath the models' root: letters, digits and -_., not a dot first"
    )]
    Name,
    #[error("there is nothing of that name beneath the models' root")]
    Missing,
    #[error("`{0}` leads out of the models' root")]
    Outside(String),
    #[error("`{0}` is no regular file")]
    Special(String),
    #[error("the folder has more than {ENTRIES_MAX} entries, or folders more than {DEPTH_MAX} deep")]
    TooLarge,
    #[error("`{0}` cannot be read")]
    Unreadable(String),
}

impl ModelsRoot {
    /// Takes a folder for the root.
    ///
    /// # Errors
    /// When there is no such folder.
    pub fn open(path: &Path) -> io::Result<Self> {
        let root = fs::canonicalize(path)?;
        match root.is_dir() {
            true => Ok(ModelsRoot(root)),
            false => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    /// The path of a source, all of whose files are regular and lie beneath the root, wherever links lead.
    pub(super) fn find(&self, source: &str) -> Result<PathBuf, SourceError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if source.is_empty() || source.len() > NAME_MAX || source.starts_with('.') || !source.chars().all(plain) {
            return Err(SourceError::Name);
        }
        let path = self.0.join(source);
        if fs::symlink_metadata(&path).is_err() {
            return Err(SourceError::Missing);
        }
        self.check(&path, 0, &mut 0)?;
        Ok(path)
    }

    fn check(&self, path: &Path, depth: usize, entries: &mut usize) -> Result<(), SourceError> {
        *entries += 1;
        if depth > DEPTH_MAX || *entries > ENTRIES_MAX {
            return Err(SourceError::TooLarge);
        }
        let shown = || self.shown(&path.to_string_lossy());
        let real = fs::canonicalize(path).map_err(|_| SourceError::Unreadable(shown()))?;
        if !real.starts_with(&self.0) {
            return Err(SourceError::Outside(shown()));
        }
        // Of what the links lead to.
        let metadata = fs::symlink_metadata(&real).map_err(|_| SourceError::Unreadable(shown()))?;
        if metadata.is_dir() {
            for entry in fs::read_dir(&real).map_err(|_| SourceError::Unreadable(shown()))? {
                let entry = entry.map_err(|_| SourceError::Unreadable(shown()))?;
                self.check(&path.join(entry.file_name()), depth + 1, entries)?;
            }
            return Ok(());
        }
        if metadata.is_file() { Ok(()) } else { Err(SourceError::Special(shown())) }
    }

    /// A text without the root's own path, which is nobody's business.
    pub(super) fn shown(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.0.display()), "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::{fs::symlink, net::UnixListener};

    #[test]
    fn sources_are_names_and_stay_beneath_the_root() {
        let outer = tempfile::tempdir().expect("folder");
        let root_path = outer.path().join("root");
        fs::create_dir_all(root_path.join("good/1_Pooling")).expect("mkdir");
        fs::write(root_path.join("good/config.json"), "{}").expect("write");
        fs::write(outer.path().join("secret"), "s").expect("write");
        let root = ModelsRoot::open(&root_path).expect("a folder");
        assert_eq!(root.find("good"), Ok(fs::canonicalize(root_path.join("good")).expect("there")));
        for name in
            ["", ".", "..", "../secret", "good/config.json", "/etc/passwd", "a b", ".hidden", "a\0b", &"x".repeat(129)]
        {
            assert_eq!(root.find(name), Err(SourceError::Name), "{name:?}");
        }
        assert_eq!(root.find("bad"), Err(SourceError::Missing));

        let entry = |name: &str| {
            fs::create_dir(root_path.join(name)).expect("mkdir");
            root_path.join(name).join("x")
        };
        symlink("../good/config.json", entry("linked")).expect("link");
        assert!(root.find("linked").is_ok(), "a link may point to what is beneath the root, too");
        symlink(outer.path().join("secret"), entry("leak")).expect("link");
        assert_eq!(root.find("leak"), Err(SourceError::Outside("leak/x".into())));
        symlink("/etc", root_path.join("etc")).expect("link");
        assert_eq!(root.find("etc"), Err(SourceError::Outside("etc".into())));
        symlink("x", entry("circle")).expect("link");
        assert_eq!(root.find("circle"), Err(SourceError::Unreadable("circle/x".into())));
        let _socket = UnixListener::bind(entry("socket")).expect("bind");
        assert_eq!(root.find("socket"), Err(SourceError::Special("socket/x".into())));
        fs::create_dir_all(root_path.join("deep/a/b/c/d")).expect("mkdir");
        assert_eq!(root.find("deep"), Err(SourceError::TooLarge));
        assert!(ModelsRoot::open(&root_path.join("good/config.json")).is_err());
        assert!(ModelsRoot::open(&root_path.join("nothing")).is_err());
    }
}
