//! The one memory map of the crate.

use std::path::Path;

use crate::ModelError;
use crate::file::open_regular;

/// A weight file mapped read-only. Cheap to open: pages come in as they are read, and go when memory is short.
pub(crate) struct Mapping {
    map: memmap2::Mmap,
}

impl Mapping {
    /// Maps the whole file at `path`.
    #[expect(unsafe_code, reason = "the named memory map of this crate; see SAFETY")]
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        let unreadable = |source| ModelError::Unreadable { path: path.to_owned(), source };
        let file = open_regular(path)?;
        // SAFETY: the map is read-only and lives no longer than `self`. Bytes that another process rewrites while we read
        // them can only yield other numbers, because every header value is checked in the copy that is used, and every
        // tensor is read as plain old data. A file that is truncated meanwhile raises SIGBUS; model files are replaced by
        // rename (a new inode), never shortened in place, and the runbook says so.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(unreadable)?;
        Ok(Self { map })
    }

    /// The bytes of the file.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }
}
