//! What Linux's `/proc` says: processor time, resident memory, children, listeners. The root is a path, so that tests can
//! lay out their own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Ticks per second of the times in `/proc` (`USER_HZ`): 100 on every Linux that Rust's std supports.
pub(crate) const TICKS_PER_SECOND: f64 = 100.0;

#[derive(Clone, Debug)]
pub(crate) struct ProcFs {
    root: PathBuf,
}

/// The first line of `/proc/stat`, in ticks over all cores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CpuTicks {
    /// Everything but idle, waiting for IO, and stolen.
    pub(crate) busy: u64,
    /// Time in which this virtual machine had work but another one had the processor.
    pub(crate) steal: u64,
}

/// What `/proc/<pid>/stat` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProcessStat {
    pub(crate) name: String,
    pub(crate) parent: u32,
    /// User and system time of all threads, those that have ended included.
    pub(crate) ticks: u64,
}

impl ProcFs {
    pub(crate) fn new(root: impl AsRef<Path>) -> ProcFs {
        ProcFs { root: root.as_ref().to_path_buf() }
    }

    /// None where there is no such `/proc`.
    pub(crate) fn cpu(&self) -> Option<CpuTicks> {
        parse_cpu(&fs::read_to_string(self.root.join("stat")).ok()?)
    }

    /// All processes that can be seen.
    pub(crate) fn processes(&self) -> BTreeMap<u32, ProcessStat> {
        let Ok(entries) = fs::read_dir(&self.root) else { return BTreeMap::new() };
        entries
            .filter_map(|entry| {
                let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
                // One that ends between the two reads is as good as never seen.
                Some((pid, parse_stat(&fs::read_to_string(self.root.join(pid.to_string()).join("stat")).ok()?)?))
            })
            .collect()
    }

    /// Resident memory of a process, in bytes.
    pub(crate) fn resident_bytes(&self, pid: u32) -> Option<u64> {
        let status = fs::read_to_string(self.root.join(pid.to_string()).join("status")).ok()?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix("kB")?;
        kib.trim().parse::<u64>().ok()?.checked_mul(1024)
    }

    /// The process that listens on a TCP port, if this user may see its descriptors.
    pub(crate) fn listener(&self, port: u16) -> Option<u32> {
        let inodes: Vec<String> = ["net/tcp", "net/tcp6"]
            .iter()
            .filter_map(|name| fs::read_to_string(self.root.join(name)).ok())
            .flat_map(|table| listening_inodes(&table, port))
            .map(|inode| format!("socket:[{inode}]"))
            .collect();
        if inodes.is_empty() {
            return None;
        }
        // A socket may have been inherited: its first owner has the lowest id, as a rule.
        self.processes().into_keys().find(|pid| {
            let Ok(entries) = fs::read_dir(self.root.join(pid.to_string()).join("fd")) else { return false };
            entries
                .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
                .any(|link| link.to_str().is_some_and(|link| inodes.iter().any(|inode| inode == link)))
        })
    }
}

fn parse_cpu(stat: &str) -> Option<CpuTicks> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_ascii_whitespace().map_while(|word| word.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; guest time is in user already.
    match ticks[..] {
        [user, nice, system, _idle, _iowait, irq, softirq, steal, ..] => {
            Some(CpuTicks { busy: user + nice + system + irq + softirq, steal })
        }
        _ => None,
    }
}

fn parse_stat(stat: &str) -> Option<ProcessStat> {
    // The name stands in parentheses and may hold any character, those included.
    let (before, after) = stat.rsplit_once(')')?;
    let (_, name) = before.split_once('(')?;
    let words: Vec<&str> = after.split_ascii_whitespace().collect();
    // state ppid pgrp session tty tpgid flags minflt cminflt majflt cmajflt utime stime
    let number = |at: usize| words.get(at)?.parse::<u64>().ok();
    Some(ProcessStat { name: name.to_string(), parent: words.get(1)?.parse().ok()?, ticks: number(11)? + number(12)? })
}

/// Inodes of the sockets in state LISTEN on `port`, of a table such as `/proc/net/tcp`.
fn listening_inodes(table: &str, port: u16) -> Vec<u64> {
    const LISTEN: &str = "0A";
    let row = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let (_, local_port) = words.get(1)?.rsplit_once(':')?;
        let matches = u16::from_str_radix(local_port, 16).ok()? == port && *words.get(3)? == LISTEN;
        if matches { words.get(9)?.parse().ok() } else { None }
    };
    table.lines().filter_map(row).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A `/proc` of our own, gone when dropped.
    pub(crate) struct FakeProc {
        root: PathBuf,
    }

    impl FakeProc {
        pub(crate) fn new(name: &str) -> FakeProc {
            let root = std::env::temp_dir().join(format!("weir-bench-{}-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&root);
            fs::create_dir_all(root.join("net")).unwrap();
            FakeProc { root }
        }

        pub(crate) fn cpu(&self, user: u64, steal: u64) {
            fs::write(self.root.join("stat"), format!("cpu  {user} 0 0 9000 100 0 0 {steal} 0 0\ncpu0 1 1\n")).unwrap();
        }

        pub(crate) fn process(&self, pid: u32, name: &str, parent: u32, ticks: u64, rss_kib: u64) {
            let folder = self.root.join(pid.to_string());
            fs::create_dir_all(folder.join("fd")).unwrap();
            let stat = format!(
                "{pid} ({name}) S {parent} 1 1 0 -1 4194304 1 2 3 4 {} {} 0 0 20 0\n",
                ticks - ticks / 3,
                ticks / 3
            );
            fs::write(folder.join("stat"), stat).unwrap();
            fs::write(folder.join("status"), format!("Name:\t{name}\nVmHWM:\t 9 kB\nVmRSS:\t  {rss_kib} kB\n"))
                .unwrap();
        }

        pub(crate) fn listen(&self, pid: u32, port: u16, inode: u64) {
            let row = |port: u16, state: &str, inode: u64| {
                format!(
                    "   0: 0100007F:{port:04X} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000  0 0 {inode} 1 0\n"
                )
            };
            let table = format!("  sl  local_address ...\n{}{}", row(port, "01", inode + 1), row(port, "0A", inode));
            fs::write(self.root.join("net/tcp"), table).unwrap();
            let link = self.root.join(pid.to_string()).join("fd/7");
            std::os::unix::fs::symlink(format!("socket:[{inode}]"), link).unwrap();
        }

        pub(crate) fn fs(&self) -> ProcFs {
            ProcFs::new(&self.root)
        }
    }

    impl Drop for FakeProc {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.root);
        }
    }

    #[test]
    fn busy_time_leaves_out_idle_iowait_and_steal() {
        let stat = "cpu  10 20 30 4000 500 6 7 80 9 1\ncpu0 1 2 3 4\n";
        assert_eq!(parse_cpu(stat), Some(CpuTicks { busy: 73, steal: 80 }));
        assert_eq!(parse_cpu("cpu0 1 2 3 4 5 6 7 8\n"), None);
        assert_eq!(parse_cpu("cpu  1 2 3\n"), None);
    }

    #[test]
    fn a_process_name_may_hold_anything() {
        let stat = parse_stat("42 (a) b (c) S 7 1 1 0 -1 0 1 2 3 4 150 50 0 0 20 0").unwrap();
        assert_eq!(stat, ProcessStat { name: "a) b (c".into(), parent: 7, ticks: 200 });
        assert_eq!(parse_stat("42 (x) S 7 1"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn processes_memory_and_listeners_are_found() {
        let proc = FakeProc::new("found");
        proc.cpu(500, 20);
        proc.process(10, "weir", 1, 300, 2048);
        proc.process(11, "weir", 10, 99, 4096);
        proc.listen(10, 8000, 77);
        let fs = proc.fs();
        assert_eq!(fs.cpu(), Some(CpuTicks { busy: 500, steal: 20 }));
        assert_eq!(
            fs.processes().into_iter().map(|(pid, p)| (pid, p.parent, p.ticks)).collect::<Vec<_>>(),
            [(10, 1, 300), (11, 10, 99)]
        );
        assert_eq!(fs.resident_bytes(11), Some(4096 * 1024));
        assert_eq!(fs.resident_bytes(12), None);
        assert_eq!(fs.listener(8000), Some(10));
        assert_eq!(fs.listener(8001), None);
    }

    #[test]
    fn the_real_proc_shows_this_process_listening() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let fs = ProcFs::new("/proc");
        assert_eq!(fs.listener(listener.local_addr().unwrap().port()), Some(std::process::id()));
        assert!(fs.processes()[&std::process::id()].name.starts_with("weir_bench"));
        assert!(fs.resident_bytes(std::process::id()).unwrap() > 100_000);
        assert!(fs.cpu().unwrap().busy > 0);
    }
}
