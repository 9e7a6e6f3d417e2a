//! Opening files that somebody else made: only regular ones, and never by waiting.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::ModelError;

/// Opens the regular file at `path` for reading. Links are followed (model caches are made of them). A pipe would block until
/// somebody writes to it and a device answers what it likes, so neither is read; opening without waiting and looking at what
/// was opened leaves no moment in which one could be put in place of the other.
pub(crate) fn open_regular(path: &Path) -> Result<File, ModelError> {
    let unreadable = |source| ModelError::Unreadable { path: path.to_owned(), source };
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    let damaged = |reason: &str| Err(ModelError::Damaged { path: path.to_owned(), reason: reason.to_owned() });
    if !metadata.is_file() {
        return damaged("it is no regular file");
    }
    if metadata.len() == 0 {
        return damaged("it is empty");
    }
    Ok(file)
}
