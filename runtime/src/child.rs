//! A process that is asked one thing: what it says within bounds of length and time. It cannot make who asks wait longer.

use std::{
    io::{self, Read},
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group};

/// Bytes of an answer, and of what is said on standard error, that are read.
const ANSWER_MAX: u64 = 64 << 10;
/// Pause between two looks at whether the process has ended.
const POLL: Duration = Duration::from_millis(5);
/// Time for the last of what an ended process has said to arrive. Only a child of its own that still holds its pipes takes
/// so long.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);

/// What became of the process.
#[derive(Debug)]
pub(crate) struct Heard {
    /// `None` when it had to be killed.
    pub(crate) status: Option<ExitStatus>,
    pub(crate) said: String,
    pub(crate) complained: String,
}

/// Runs `command` with nothing to read and in a group of its own, for `time_max` at most; then the group is killed.
///
/// # Errors
/// When it cannot be started or watched.
pub(crate) fn ask(command: &mut Command, time_max: Duration) -> io::Result<Heard> {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn()?;
    let said = child.stdout.take().map(listen);
    let complained = child.stderr.take().map(listen);
    let status = wait(&mut child, Instant::now() + time_max)?;
    let heard = |listener: Option<flume::Receiver<String>>| {
        listener.and_then(|listener| listener.recv_timeout(LAST_WORDS_MAX).ok()).unwrap_or_default()
    };
    Ok(Heard { status, said: heard(said), complained: heard(complained) })
}

/// Waits for the process; `None` when it had to be killed.
fn wait(child: &mut Child, deadline: Instant) -> io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            // With its own children, which may hold its pipes open. Its number is its own until it is waited for.
            kill_process_group(Pid::from_child(child), Signal::KILL)?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(POLL);
    }
}

/// Reads what the process says, up to a bound. One that says more is not listened to, and stops when the pipe is full.
fn listen(stream: impl Read + Send + 'static) -> flume::Receiver<String> {
    let (sender, heard) = flume::bounded(1);
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is what was said.
        let _ = stream.take(ANSWER_MAX).read_to_end(&mut bytes);
        // Nobody is there to hear it when it took too long.
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    heard
}
