//! The near side of the boundary: starts an executor, feeds it, and tells the engine what it says and when it is gone.
//!
//! Two threads a link: a writer, so that the engine thread never waits for a full socket, and a reader. The executor's
//! socket is its file descriptor 0; should this process die, the executor reads an end of file and exits. When a link is
//! dropped its process is killed, hung or stopped as it may be, and reaped by the reader. What the process says on standard error
//! goes to the log, and is the reason where it ends before it has said anything else: see [`super::stderr`].

use std::{
    io::{self, BufReader},
    net::Shutdown,
    os::{fd::OwnedFd, unix::net::UnixStream, unix::process::CommandExt},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use super::{
    stderr::Stderr,
    wire::{self, FromExecutor, Load, ToExecutor},
    worker::{self, DeviceChoice},
};
use crate::config::ExecutorMode;

/// Messages that wait for the executor's socket: a load, and the steps in flight.
const WRITER_QUEUE_LEN: usize = 8;
/// Stack of an executor thread; the forward pass keeps its buffers on the heap.
const STACK_BYTES: usize = 8 << 20;

/// What a link tells the engine.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    /// The executor said something.
    Said(FromExecutor),
    /// The executor is gone; nothing follows.
    Down(String),
}

/// A running executor. Dropping it ends the executor at once; nothing it holds is needed again.
#[derive(Debug)]
pub(crate) struct Link {
    to_writer: flume::Sender<ToExecutor>,
    /// Of the process; the reader takes the child itself, to wait for it.
    pid: Option<u32>,
    socket: UnixStream,
    child: Option<Arc<Mutex<Child>>>,
}

impl Drop for Link {
    fn drop(&mut self) {
        // An executor thread cannot be killed; without its socket it ends when its step does.
        let _ = self.socket.shutdown(Shutdown::Both);
        if let Some(child) = &self.child {
            // Whoever holds it is the reader, which has killed it and waits for it to go: that may take as long as a driver likes.
            if let Ok(mut child) = child.try_lock() {
                let _ = child.kill();
            }
        }
    }
}

/// The executor cannot take the message: it is gone, or far behind.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Gone;

impl Link {
    /// Starts the executor of the device that the log calls `device`, and sends it its load. `tell` is called from the reader
    /// thread.
    ///
    /// # Errors
    /// When the socket, the process or a thread cannot be made.
    pub(crate) fn start(
        device: &str,
        mode: &ExecutorMode,
        load: Load,
        tell: impl Fn(LinkEvent) + Send + 'static,
    ) -> io::Result<Link> {
        let (near, far) = UnixStream::pair()?;
        let socket = near.try_clone()?;
        let mut stderr = None;
        let child = match mode {
            ExecutorMode::Process { program, args } => {
                let mut child = Command::new(program)
                    .args(args)
                    .stdin(Stdio::from(OwnedFd::from(far)))
                    .stdout(Stdio::null())
                    .stderr(Stdio::piped())
                    // Its own group: an interrupt from the terminal drains the server first.
                    .process_group(0)
                    .spawn()
                    .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", program.display())))?;
                stderr = child.stderr.take().map(|stream| Stderr::listen(program, stream, device)).transpose()?;
                Some(Arc::new(Mutex::new(child)))
            }
            ExecutorMode::Thread => {
                let mut reader = far.try_clone()?;
                thread::Builder::new().name("executor".into()).stack_size(STACK_BYTES).spawn(move || {
                    if let Err(error) = worker::serve(&mut reader, far, DeviceChoice::Cpu, || {}) {
                        tracing::error!(%error, "executor thread ended");
                    }
                })?;
                None
            }
        };
        let (to_writer, outgoing) = flume::bounded::<ToExecutor>(WRITER_QUEUE_LEN);
        let mut writer = near.try_clone()?;
        thread::Builder::new().name("executor-writer".into()).spawn(move || {
            for message in outgoing {
                if wire::write_frame(&mut writer, &message).is_err() {
                    break;
                }
            }
            // Tells the executor that nothing more comes; the reader sees its answer and then its end.
            let _ = writer.shutdown(Shutdown::Write);
        })?;
        let reaped = child.clone();
        thread::Builder::new().name("executor-reader".into()).spawn(move || {
            let (heard, reason) = read_all(near, &tell);
            let reason = reap(reaped, reason);
            let complaint = stderr.filter(|_| !heard).and_then(|stderr| stderr.complaint());
            tell(LinkEvent::Down(complaint.unwrap_or(reason)));
        })?;
        let pid = child.as_ref().map(|child| child.lock().unwrap_or_else(PoisonError::into_inner).id());
        let link = Link { to_writer, pid, socket, child };
        link.send(ToExecutor::Load(load)).map_err(|Gone| io::ErrorKind::BrokenPipe)?;
        Ok(link)
    }

    /// Queues a message; never waits.
    pub(crate) fn send(&self, message: ToExecutor) -> Result<(), Gone> {
        self.to_writer.try_send(message).map_err(|_| Gone)
    }

    /// The executor's process id, where it is one.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.pid
    }
}

/// Passes frames on until the stream ends; says whether there were any, and why it ended.
fn read_all(stream: UnixStream, tell: &impl Fn(LinkEvent)) -> (bool, String) {
    let mut reader = BufReader::new(stream);
    let mut heard = false;
    loop {
        match wire::read_frame::<FromExecutor>(&mut reader) {
            Ok(Some(message)) => tell(LinkEvent::Said(message)),
            Ok(None) => return (heard, "the executor ended".into()),
            Err(error) => return (heard, format!("the executor's stream broke: {error}")),
        }
        heard = true;
    }
}

/// Waits for a process that has closed its stream (killing it if it only broke it) and adds how it ended.
fn reap(child: Option<Arc<Mutex<Child>>>, reason: String) -> String {
    let Some(child) = child else { return reason };
    let mut child = child.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = child.kill();
    match child.wait() {
        Ok(status) => format!("{reason} ({status})"),
        Err(error) => format!("{reason} ({error})"),
    }
}
