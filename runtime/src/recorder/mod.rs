//! What a running server writes down of its load, for `weir simulate`: when requests came, whose they were, how long they were and
//! became, which of them began alike, and what each step cost. Never a text, a token id, or anything that a text can be told from.
//!
//! The engine thread hands [`Note`]s to a thread of their own, through a bounded channel and without waiting: when the writer cannot
//! keep up, or its disk, notes are dropped, counted in a metric, and the trace says how many. The file is new, readable by its owner
//! only, and ends at a size that was set, with a line that says so.
//!
//! The format, a JSON object a line, is in `docs/simulate.md`.

mod blocks;
mod lines;
mod writer;

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    thread::{self, JoinHandle},
};

use prometheus_client::metrics::counter::Counter;
use weir_scheduler::BlockHash;

pub(crate) use lines::{DeviceLine, Header, RequestEnd, StepLoad, TenantLine};
use writer::Writer;

/// Notes that may wait for the writer. A longest request's, of 131,072 tokens, is 32 KiB, nearly all others' are 1,000 times less.
const NOTES_LEN_MAX: usize = 1024;

/// Where a trace is written, and how much of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordConfig {
    /// The file, which must not be there yet.
    pub path: PathBuf,
    /// Bytes after which the trace ends.
    pub bytes_max: u64,
}

/// One fact for the trace. Times are nanoseconds since the engine thread started.
#[derive(Debug)]
pub(crate) enum Note {
    /// A device has a model.
    Model { at: u64, device: u16, model: u16, name: String, limits: weir_scheduler::ModelLimits },
    /// A tenant has another plan, or is new; its place among the tenants of the header, or the next.
    Tenant { at: u64, tenant: u32, plan: Box<TenantLine> },
    /// A request has ended, or was refused.
    Request(RequestNote),
    /// A step has ended.
    Step { at: u64, device: u16, model: u16, load: StepLoad, device_nanos: u64, wall_nanos: u64 },
}

/// A request, without anything of its text.
#[derive(Debug)]
pub(crate) struct RequestNote {
    /// When it came.
    pub(crate) at: u64,
    /// Its place among the tenants of the header.
    pub(crate) tenant: u32,
    pub(crate) model: u16,
    pub(crate) priority: u8,
    /// Tokens of the prompt, and the most that each choice could draw; none of a list to embed.
    pub(crate) prompt_len: u32,
    pub(crate) new_tokens_max: u32,
    /// Ids drawn by each choice.
    pub(crate) drawn: Vec<u32>,
    /// Tokens of each input to embed.
    pub(crate) lens: Vec<u32>,
    /// The full blocks of the first choice: see [`block_key`].
    pub(crate) blocks: Vec<u64>,
    pub(crate) cached_tokens: u32,
    pub(crate) end: RequestEnd,
    /// From its coming to its first token, and to its end.
    pub(crate) ttft: Option<u64>,
    pub(crate) took: u64,
    /// What its tenant was charged.
    pub(crate) device_nanos: u64,
}

/// What tells a block from others until the writer gives it a number. The name is a keyed digest, and not even this part of it
/// is written.
pub(crate) fn block_key(name: &BlockHash) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&name.0[..8]);
    u64::from_le_bytes(first)
}

/// The engine thread's end of the trace; off, it does nothing.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    ends: Option<Ends>,
    writer: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Ends {
    notes: flume::Sender<Note>,
    /// Notes that found no room.
    dropped: Counter,
}

/// The trace of a server that has not started yet. Dropped before [`Draft::keep`], its file goes: the next start finds the path free.
#[derive(Debug)]
#[must_use]
pub(crate) struct Draft(Option<PathBuf>);

impl Draft {
    /// The server has started.
    pub(crate) fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(path) = self.0.take()
            && let Err(error) = fs::remove_file(&path)
        {
            tracing::warn!(path = %path.display(), %error, "the trace of a start that failed cannot be removed");
        }
    }
}

impl Recorder {
    /// Opens the file, writes the header and starts the writer.
    ///
    /// # Errors
    /// When the file cannot be made, or is there already: a trace is never written over.
    pub(crate) fn start(
        config: &RecordConfig,
        header: &Header,
        written: Counter,
        dropped: Counter,
    ) -> io::Result<(Self, Draft)> {
        let file = create(&config.path)?;
        let draft = Draft(Some(config.path.clone()));
        let mut writer = Writer::new(file, config.bytes_max, written, dropped.clone());
        writer.begin(header)?;
        let (notes, inbox) = flume::bounded(NOTES_LEN_MAX);
        let path = config.path.clone();
        let writer = thread::Builder::new().name("weir-trace".into()).spawn(move || {
            if let Err(error) = writer.run(&inbox) {
                tracing::error!(path = %path.display(), %error, "the trace ends here: it cannot be written");
            }
        })?;
        Ok((Recorder { ends: Some(Ends { notes, dropped }), writer: Some(writer) }, draft))
    }

    /// Whether notes are worth making.
    pub(crate) fn is_on(&self) -> bool {
        self.ends.is_some()
    }

    /// Hands a note over, or drops it.
    pub(crate) fn note(&mut self, note: Note) {
        let Some(ends) = &self.ends else { return };
        match ends.notes.try_send(note) {
            Ok(()) => {}
            Err(flume::TrySendError::Full(_)) => {
                ends.dropped.inc();
            }
            // The trace has its size, or its disk none left.
            Err(flume::TrySendError::Disconnected(_)) => self.ends = None,
        }
    }

    /// Ends the trace: returns when what was handed over is in the file. It waits for the disk, so nothing else may be left to do.
    pub(crate) fn end(&mut self) {
        self.ends = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the thread that writes the trace panicked");
        }
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests;
