//! The writing thread: from notes to lines, up to a size.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
};

use prometheus_client::metrics::counter::Counter;

use super::{
    Note, RequestNote,
    blocks::BlockNumbers,
    lines::{FORMAT, Header, Line},
};

/// Room kept for the last line.
const END_BYTES_MAX: u64 = 64;

pub(super) struct Writer<W: Write = File> {
    out: BufWriter<W>,
    bytes: u64,
    bytes_max: u64,
    written: Counter,
    /// Counted by the engine thread, and how many of them the trace has told of.
    dropped: Counter,
    told: u64,
    numbers: BlockNumbers,
    line: Vec<u8>,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(out: W, bytes_max: u64, written: Counter, dropped: Counter) -> Self {
        let told = dropped.get();
        let (out, numbers) = (BufWriter::new(out), BlockNumbers::default());
        Writer { out, bytes: 0, bytes_max, written, dropped, told, numbers, line: Vec::new() }
    }

    pub(super) fn begin(&mut self, header: &Header) -> io::Result<()> {
        self.put(&Line::Header { format: FORMAT, weir: env!("CARGO_PKG_VERSION"), header })?;
        self.out.flush()
    }

    /// Writes until nobody sends any more, or the trace has its size.
    pub(super) fn run(mut self, inbox: &flume::Receiver<Note>) -> io::Result<()> {
        while let Ok(note) = inbox.recv() {
            if !self.write(note)? {
                self.put(&Line::End { bytes_max: self.bytes_max })?;
                break;
            }
            if inbox.is_empty() {
                // Whoever looks at the file sees all of it, and a server that is killed leaves whole lines.
                self.out.flush()?;
            }
        }
        self.out.flush()
    }

    /// Writes a note; false if there is no room for it.
    fn write(&mut self, note: Note) -> io::Result<bool> {
        let dropped = self.dropped.get();
        if dropped > self.told {
            let lines = dropped - self.told;
            self.told = dropped;
            if !self.put(&Line::Dropped { lines })? {
                return Ok(false);
            }
        }
        match &note {
            Note::Model { at, device, model, name, limits } => {
                self.put(&Line::model(*at, (*device, *model), name, *limits))
            }
            Note::Tenant { at, tenant, plan } => self.put(&Line::Tenant { at: *at, tenant: *tenant, plan }),
            Note::Request(request) => {
                let blocks = self.numbers.runs(&request.blocks);
                self.put(&request_line(request, blocks))
            }
            Note::Step { at, device, model, load, device_nanos, wall_nanos } => self.put(&Line::Step {
                at: *at,
                device: *device,
                model: *model,
                load: *load,
                device_time: *device_nanos,
                wall: *wall_nanos,
            }),
        }
    }

    /// Writes a line; false if it does not fit before the end.
    fn put(&mut self, line: &Line<'_>) -> io::Result<bool> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, line)?;
        self.line.push(b'\n');
        let len = self.line.len() as u64;
        let room = self.bytes_max.saturating_sub(self.bytes);
        if !matches!(line, Line::End { .. }) && len + END_BYTES_MAX > room {
            return Ok(false);
        }
        self.out.write_all(&self.line)?;
        self.bytes += len;
        self.written.inc();
        Ok(true)
    }
}

fn request_line(request: &RequestNote, blocks: Vec<(u64, u32)>) -> Line<'_> {
    Line::Request {
        at: request.at,
        tenant: request.tenant,
        model: request.model,
        priority: request.priority,
        prompt_len: request.prompt_len,
        new_tokens_max: request.new_tokens_max,
        drawn: &request.drawn,
        lens: &request.lens,
        blocks,
        cached_tokens: request.cached_tokens,
        end: request.end,
        ttft: request.ttft,
        took: request.took,
        device_time: request.device_nanos,
    }
}
