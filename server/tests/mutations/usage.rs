//! What this process has used, from `/proc`: no unsafe code, no clock of a thread.

use std::fs;

/// Nanoseconds on a CPU, of all threads that live. Waiting for one does not count, so that other load on the machine
/// does not.
pub(crate) fn cpu_nanos() -> u64 {
    let tasks = fs::read_dir("/proc/self/task").expect("procfs");
    let one = |task: fs::DirEntry| {
        // A thread may end meanwhile.
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    tasks.filter_map(Result::ok).filter_map(one).sum()
}

/// A line of `/proc/self/status`, in KiB: `VmRSS`, or `VmHWM`, its peak.
pub(crate) fn kib(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).expect("the line");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Starts the peak anew from what is resident now.
pub(crate) fn reset_peak() {
    fs::write("/proc/self/clear_refs", "5").expect("a process may reset its own peak");
}
