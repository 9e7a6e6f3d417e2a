//! Who used the machine while a level ran, and whether its figures can stand.
//!
//! On two cores a compiler in another window halves every figure. So the processor time of the server, its executors and
//! this client is read before and after, the rest of the machine's busy time is *other load*, and a level with more than
//! [`OTHER_CORES_MAX`] of it, before or during, is void: printed, named, and not to be quoted.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::procfs::{CpuTicks, ProcFs, ProcessStat, TICKS_PER_SECOND};

/// Other load above this share of one core voids a level.
const OTHER_CORES_MAX: f64 = 0.05;
/// The name of the server's executable, by which it is looked for when its listener cannot be seen.
const SERVER_NAME: &str = "weir";
/// How long the machine is watched before a level. Ticks are 10 ms: the limit is five of them.
const IDLE_CHECK: Duration = Duration::from_secs(1);

/// What the machine did during a level. Cores are processor seconds per second.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MachineReport {
    /// The server's process; None if it was not found (another machine, another user).
    pub server_pid: Option<u32>,
    /// Its children: the executors.
    pub executor_pids: Vec<u32>,
    /// How long the machine was looked at, s: the level, warm-up and cool-down included.
    pub elapsed_s: f64,
    /// Cores used by the server.
    pub server_cores: f64,
    /// Cores used by the executors together.
    pub executor_cores: f64,
    /// Cores used by this client.
    pub own_cores: f64,
    /// Cores used by everything else, the kernel's own threads included.
    pub other_cores: f64,
    /// The same in the second before the level.
    pub other_cores_before: f64,
    /// Cores that a hypervisor gave to other machines while this one had work.
    pub steal_cores: f64,
    /// Resident memory of the server at the end, MiB.
    pub rss_mib_server: Option<f64>,
    /// Resident memory of the executors together at the end, MiB; pages that they share are counted in each.
    pub rss_mib_executor: Option<f64>,
}

impl MachineReport {
    /// Why the level's figures cannot stand, if so.
    pub(crate) fn void(&self) -> Option<String> {
        // Without the server's process its work would count as other load: nothing can be said.
        self.server_pid?;
        let busy = |when: &str, cores: f64| {
            (cores > OTHER_CORES_MAX)
                .then(|| format!("other load took {:.0} % of a core {when} the level", cores * 100.0))
        };
        busy("during", self.other_cores).or_else(|| busy("before", self.other_cores_before))
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Machine {
    fs: ProcFs,
    own_pid: u32,
    /// Given by the caller: the server first, then executors.
    pids: Vec<u32>,
    /// The server's port, when it is on this machine.
    port: Option<u16>,
    idle_check: Duration,
}

/// Processor times at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    at: Instant,
    cpu: CpuTicks,
    own_ticks: u64,
    server: Option<(u32, u64)>,
    executors: BTreeMap<u32, u64>,
}

/// Cores used between two readings.
struct Share {
    server: f64,
    executors: f64,
    own: f64,
    other: f64,
    steal: f64,
}

impl Machine {
    pub(crate) fn this(pids: &[u32], port: Option<u16>) -> Machine {
        Machine {
            fs: ProcFs::new("/proc"),
            own_pid: std::process::id(),
            pids: pids.to_vec(),
            port,
            idle_check: IDLE_CHECK,
        }
    }

    /// How long to watch the machine before a level.
    pub(crate) fn idle_check(&self) -> Duration {
        self.idle_check
    }

    /// None where there is no `/proc` to read.
    pub(crate) fn read(&self) -> Option<Reading> {
        let processes = self.fs.processes();
        let server = self.server(&processes);
        let named = self.pids.iter().skip(1).copied();
        let mut executors: BTreeMap<u32, u64> = BTreeMap::new();
        for pid in named.chain(server.map(|pid| descendants(&processes, pid)).unwrap_or_default()) {
            if let Some(process) = processes.get(&pid).filter(|_| pid != self.own_pid && Some(pid) != server) {
                executors.insert(pid, process.ticks);
            }
        }
        Some(Reading {
            at: Instant::now(),
            cpu: self.fs.cpu()?,
            own_ticks: processes.get(&self.own_pid)?.ticks,
            server: server.map(|pid| (pid, processes.get(&pid).map_or(0, |process| process.ticks))),
            executors,
        })
    }

    fn server(&self, processes: &BTreeMap<u32, ProcessStat>) -> Option<u32> {
        if let Some(&pid) = self.pids.first() {
            return processes.contains_key(&pid).then_some(pid);
        }
        // A server inside this very process cannot be told from the client.
        if let Some(pid) = self.fs.listener(self.port?) {
            return (pid != self.own_pid).then_some(pid);
        }
        // Executors bear the name too, as children of the server; so may this client.
        processes.iter().find_map(|(&pid, process)| {
            let is_child = processes.get(&process.parent).is_some_and(|parent| parent.name == SERVER_NAME);
            (process.name == SERVER_NAME && pid != self.own_pid && !is_child).then_some(pid)
        })
    }

    /// The report on a level that ran from `begin` to `end`, after the machine was watched from `before` to `begin`.
    pub(crate) fn report(&self, before: &Reading, begin: &Reading, end: &Reading) -> MachineReport {
        let mib = |pids: &mut dyn Iterator<Item = u32>| {
            let sizes: Vec<u64> = pids.filter_map(|pid| self.fs.resident_bytes(pid)).collect();
            (!sizes.is_empty()).then(|| sizes.iter().sum::<u64>() as f64 / f64::from(1 << 20))
        };
        let share = begin.until(end);
        MachineReport {
            server_pid: end.server.map(|(pid, _)| pid),
            executor_pids: end.executors.keys().copied().collect(),
            elapsed_s: (end.at - begin.at).as_secs_f64(),
            server_cores: share.server,
            executor_cores: share.executors,
            own_cores: share.own,
            other_cores: share.other,
            other_cores_before: before.until(begin).other,
            steal_cores: share.steal,
            rss_mib_server: mib(&mut end.server.iter().map(|&(pid, _)| pid)),
            rss_mib_executor: mib(&mut end.executors.keys().copied()),
        }
    }
}

impl Reading {
    fn until(&self, later: &Reading) -> Share {
        // Two readings in the same tick say nothing, but must not divide by zero.
        let ticks = ((later.at - self.at).as_secs_f64() * TICKS_PER_SECOND).max(1.0);
        let cores = |ticks_used: u64| ticks_used as f64 / ticks;
        let spent = |then: Option<u64>, now: u64| now.saturating_sub(then.unwrap_or(0));
        let server = later
            .server
            .map_or(0, |(pid, now)| spent(self.server.filter(|&(known, _)| known == pid).map(|(_, then)| then), now));
        let executors = later.executors.iter().map(|(pid, &now)| spent(self.executors.get(pid).copied(), now)).sum();
        let own = spent(Some(self.own_ticks), later.own_ticks);
        let busy = spent(Some(self.cpu.busy), later.cpu.busy);
        Share {
            server: cores(server),
            executors: cores(executors),
            own: cores(own),
            // The kernel samples the one and measures the other: the difference may be below zero by a tick or two.
            other: cores(busy.saturating_sub(server + executors + own)),
            steal: cores(spent(Some(self.cpu.steal), later.cpu.steal)),
        }
    }
}

/// Children of `root`, their children, and so on.
fn descendants(processes: &BTreeMap<u32, ProcessStat>, root: u32) -> Vec<u32> {
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        let children = processes.iter().filter(|(_, process)| process.parent == parent).map(|(&pid, _)| pid);
        let new: Vec<u32> = children.filter(|pid| !found.contains(pid)).collect();
        found.extend(new);
        next += 1;
    }
    found.split_off(1)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::procfs::tests::FakeProc;

    pub(crate) const OWN_PID: u32 = 5;

    /// A machine whose `/proc` is laid out by a test; it is not watched before a level.
    pub(crate) fn fake_machine(proc: &FakeProc, port: Option<u16>) -> Machine {
        Machine { fs: proc.fs(), own_pid: OWN_PID, pids: Vec::new(), port, idle_check: Duration::ZERO }
    }

    /// A level of a second on a machine that did nothing else.
    pub(crate) fn quiet() -> MachineReport {
        MachineReport {
            server_pid: Some(10),
            executor_pids: vec![11],
            elapsed_s: 1.0,
            server_cores: 0.5,
            executor_cores: 0.25,
            own_cores: 0.125,
            other_cores: 0.0,
            other_cores_before: 0.0,
            steal_cores: 0.0,
            rss_mib_server: Some(20.0),
            rss_mib_executor: Some(10.0),
        }
    }

    fn lay_out(proc: &FakeProc, busy: u64, server: u64, executor: u64, own: u64) {
        proc.cpu(busy, busy / 10);
        proc.process(OWN_PID, "weir", 1, own, 1024);
        proc.process(10, "weir", 1, server, 2048);
        proc.process(11, "weir", 10, executor, 4096);
        proc.process(12, "helper", 11, 0, 1024);
        proc.process(20, "rustc", 1, 5000, 1024);
    }

    /// Readings one second apart by their own clock: nothing here waits.
    fn readings(proc: &FakeProc, machine: &Machine, ticks: [[u64; 4]; 3]) -> [Reading; 3] {
        let start = Instant::now();
        let mut second = 0;
        ticks.map(|[busy, server, executor, own]| {
            lay_out(proc, busy, server, executor, own);
            let at = start + Duration::from_secs(second);
            second += 1;
            Reading { at, ..machine.read().unwrap() }
        })
    }

    #[test]
    fn a_quiet_machine_is_split_between_server_executors_and_client() {
        let proc = FakeProc::new("quiet");
        let machine = fake_machine(&proc, Some(8000));
        let [before, begin, end] = readings(&proc, &machine, [[1000, 0, 0, 0], [1004, 0, 0, 0], [1184, 20, 150, 6]]);
        let report = machine.report(&before, &begin, &end);
        assert_eq!((report.server_pid, report.executor_pids.as_slice()), (Some(10), [11, 12].as_slice()));
        assert_eq!((report.server_cores, report.executor_cores, report.own_cores), (0.2, 1.5, 0.06));
        assert_eq!((report.other_cores, report.other_cores_before, report.steal_cores), (0.04, 0.04, 0.18));
        assert_eq!((report.rss_mib_server, report.rss_mib_executor), (Some(2.0), Some(5.0)));
        assert_eq!(report.void(), None);
    }

    #[test]
    fn other_load_voids_a_level() {
        let proc = FakeProc::new("void");
        let machine = fake_machine(&proc, Some(8000));
        let [before, begin, end] = readings(&proc, &machine, [[1000, 0, 0, 0], [1000, 0, 0, 0], [1206, 20, 150, 6]]);
        let during = machine.report(&before, &begin, &end).void();
        assert_eq!(during.as_deref(), Some("other load took 30 % of a core during the level"));
        let [before, begin, end] = readings(&proc, &machine, [[1000, 0, 0, 0], [1100, 0, 0, 0], [1276, 20, 150, 6]]);
        let earlier = machine.report(&before, &begin, &end).void();
        assert_eq!(earlier.as_deref(), Some("other load took 100 % of a core before the level"));
    }

    #[test]
    fn the_server_is_found_by_id_by_port_then_by_name() {
        let proc = FakeProc::new("find");
        lay_out(&proc, 0, 0, 0, 0);
        let server = |machine: &Machine| machine.read().unwrap().server.map(|(pid, _)| pid);
        let machine = fake_machine(&proc, Some(8000));
        assert_eq!(server(&machine), Some(10));
        proc.listen(20, 8000, 99);
        assert_eq!(server(&machine), Some(20));
        assert_eq!(server(&Machine { pids: vec![12], ..machine.clone() }), Some(12));
        assert_eq!(server(&Machine { pids: vec![999], ..machine.clone() }), None);
        assert_eq!(server(&Machine { port: None, ..machine }), None);
    }

    #[test]
    fn a_server_inside_the_client_is_not_told_apart() {
        let proc = FakeProc::new("inside");
        lay_out(&proc, 0, 0, 0, 0);
        proc.listen(OWN_PID, 8000, 99);
        assert!(fake_machine(&proc, Some(8000)).read().unwrap().server.is_none());
    }

    #[test]
    fn an_unknown_server_leaves_other_load_unjudged() {
        let proc = FakeProc::new("unjudged");
        let machine = fake_machine(&proc, None);
        let [before, begin, end] = readings(&proc, &machine, [[0, 0, 0, 0], [0, 0, 0, 0], [150, 0, 150, 0]]);
        let report = machine.report(&before, &begin, &end);
        assert_eq!((report.server_pid, report.void(), report.rss_mib_server), (None, None, None));
        assert_eq!(report.other_cores, 1.5);
    }
}
