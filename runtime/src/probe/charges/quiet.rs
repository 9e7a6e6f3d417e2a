//! Times that no neighbour made longer.

use std::fs;
use std::time::Duration;

use super::super::place::Elapsed;
use super::super::{Place, ProbeError};

/// A run is taken for disturbed when its threads waited for a core for more than this part of it.
const WAITED_MAX: u32 = 50;
/// Runs tried for one undisturbed, before the best of them is taken.
const TRIES: usize = 6;

/// Says how long `work` takes when nobody else wants the cores.
///
/// The kernel counts how long a runnable thread had no core. On one thread that much is taken off. With more, a wait of one is felt by
/// all, so the work is run until a run is undisturbed, or else the shortest is taken. A neighbour in another virtual machine shows
/// nowhere, and is what repeats and medians are for.
pub(super) fn quiet(
    place: Place<'_>,
    disturbed: &mut u64,
    mut work: impl FnMut() -> Result<(), ProbeError>,
) -> Result<Duration, ProbeError> {
    let mut best = Duration::MAX;
    for _ in 0..TRIES {
        let before = waited();
        let Elapsed { device, .. } = place.clock(&mut work)?;
        let waited = Duration::from_nanos(waited().saturating_sub(before));
        if place.device.pool().threads() == 1 {
            return Ok(device.saturating_sub(waited));
        }
        best = best.min(device);
        if waited <= device / WAITED_MAX {
            return Ok(device);
        }
        *disturbed += 1;
    }
    Ok(best)
}

/// Nanoseconds for which this process's threads were ready to run and did not; 0 where the kernel does not count it.
fn waited() -> u64 {
    let of_thread = |task: fs::DirEntry| -> Option<u64> {
        let counts = fs::read_to_string(task.path().join("schedstat")).ok()?;
        counts.split(' ').nth(1)?.parse().ok()
    };
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return 0 };
    tasks.flatten().filter_map(of_thread).sum()
}
