//! What an executor says on standard error: every line goes to the log, under the device's name, and the first ones are kept to say
//! why it died, should it die before it has said anything in frames. A program whose libraries are missing does.

use std::{
    io::{self, BufRead, BufReader, Read},
    path::Path,
    process::ChildStderr,
    thread,
    time::Duration,
};

use crate::complaint::complaint;

/// Bytes of a line; a longer one is logged as several.
const LINE_BYTES_MAX: u64 = 1 << 10;
/// Lines of one life that are logged. An executor says little; one that does not stop must not fill a disk.
const LINES_MAX: usize = 1000;
/// Bytes that are kept.
const KEPT_BYTES_MAX: usize = 8 << 10;
/// Time for the last lines of an executor that has ended. Only a child of its own that holds the pipe takes so long.
const LAST_LINES_MAX: Duration = Duration::from_secs(1);

/// The standard error of one executor.
#[derive(Debug)]
pub(super) struct Stderr {
    program: String,
    /// The first lines, once there are no more.
    kept: flume::Receiver<String>,
}

impl Stderr {
    /// Logs what comes from now on.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(super) fn listen(program: &Path, stream: ChildStderr, device: &str) -> io::Result<Self> {
        let device = device.to_owned();
        let (sender, kept) = flume::bounded(1);
        thread::Builder::new().name("executor-stderr".into()).spawn(move || {
            let first = pass_on(stream, |line| tracing::warn!(device, "{line}"));
            // The link may be gone.
            let _ = sender.send(first);
        })?;
        Ok(Stderr { program: program.file_name().unwrap_or_default().to_string_lossy().into_owned(), kept })
    }

    /// Why the program ended, if it said so; it must have ended.
    pub(super) fn complaint(self) -> Option<String> {
        let kept = self.kept.recv_timeout(LAST_LINES_MAX).ok()?;
        complaint(&self.program, &kept).map(|line| format!("{} does not start: {line}", self.program))
    }
}

/// Hands lines to `log` until the stream ends, and returns the first of them.
fn pass_on(stream: impl Read, mut log: impl FnMut(&str)) -> String {
    let mut reader = BufReader::new(stream);
    let (mut kept, mut bytes, mut lines) = (String::new(), Vec::new(), 0_usize);
    loop {
        bytes.clear();
        match reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes) {
            // A pipe that cannot be read is one that has ended.
            Ok(0) | Err(_) => return kept,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&bytes);
        let line = text.trim_end();
        if line.is_empty() {
            continue;
        }
        lines += 1;
        match lines {
            ..=LINES_MAX => log(line),
            lines if lines == LINES_MAX + 1 => log("(it says more than is logged)"),
            // Read on all the same: nobody may wait for a full pipe.
            _ => {}
        }
        if kept.len() + line.len() < KEPT_BYTES_MAX {
            kept.push_str(line);
            kept.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(text: &[u8]) -> (Vec<String>, String) {
        let mut lines = Vec::new();
        let kept = pass_on(text, |line| lines.push(line.to_owned()));
        (lines, kept)
    }

    #[test]
    fn lines_are_logged_and_kept() {
        let (lines, kept) = passed(b"one\n\n two\r\nthree, \xff");
        assert_eq!(lines, ["one", " two", "three, \u{fffd}"]);
        assert_eq!(kept, "one\n two\nthree, \u{fffd}\n");
    }

    #[test]
    fn one_that_does_not_stop_is_read_to_its_end_and_costs_little() {
        let (lines, kept) = passed("again and again\n".repeat(100_000).as_bytes());
        assert_eq!(lines.len(), LINES_MAX + 1);
        assert!(kept.len() <= KEPT_BYTES_MAX && lines.last().is_some_and(|last| last.starts_with('(')));
        let (lines, _) = passed(&vec![b'x'; 10_000]);
        assert_eq!(lines.len(), 10_000_usize.div_ceil(LINE_BYTES_MAX as usize));
    }
}
