//! How much memory is left to this process.

use std::fs;

/// Bytes that can be taken without swapping, within the machine and within this process's control group; `None` where neither
/// says.
pub(crate) fn memory_available() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| meminfo(&text));
    let group = |name: &str| fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse::<u64>().ok();
    // Without a limit the first reads "max".
    let group = group("memory.max").and_then(|max| Some(max.saturating_sub(group("memory.current")?)));
    match (machine, group) {
        (Some(machine), Some(group)) => Some(machine.min(group)),
        (machine, group) => machine.or(group),
    }
}

fn meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_is_read() {
        assert_eq!(meminfo("MemTotal:       16 kB\nMemAvailable:    7 kB\n"), Some(7 << 10));
        assert_eq!(meminfo("MemTotal: 16 kB\n"), None);
        assert_eq!(meminfo("MemAvailable: many kB\n"), None);
    }
}
