//! How far a download is, in plain lines on stderr: they read the same in a terminal, a log and a service's journal.

use std::time::{Duration, Instant};

/// A line at most this often.
const EVERY: Duration = Duration::from_secs(2);

pub(super) struct Progress {
    what: String,
    total: Option<u64>,
    first: u64,
    started: Instant,
    told: Instant,
}

impl Progress {
    /// Says what begins, and where if not at 0.
    pub(super) fn start(what: &str, first: u64, total: Option<u64>) -> Self {
        let whole = total.map(|t| format!(" ({})", size(t))).unwrap_or_default();
        let resumed = if first > 0 { format!(", continued at {}", size(first)) } else { String::new() };
        eprintln!("downloading {what}{whole}{resumed}");
        let now = Instant::now();
        Progress { what: what.to_owned(), total, first, started: now, told: now }
    }

    /// Says how far it is, if it is time to.
    pub(super) fn at(&mut self, done: u64) {
        let now = Instant::now();
        if now.duration_since(self.told) >= EVERY {
            self.told = now;
            eprintln!("downloading {}: {}", self.what, state(self.first, done, self.total, now - self.started));
        }
    }
}

/// `120.0 MB of 240.0 MB, 50%, 12.0 MB/s`; the rate is that of what was downloaded, not of what was there before.
fn state(first: u64, done: u64, total: Option<u64>, elapsed: Duration) -> String {
    let rate = done.saturating_sub(first) as f64 / elapsed.as_secs_f64().max(1e-3) / 1e6;
    match total.filter(|t| *t > 0) {
        Some(total) => {
            let percent = done as f64 / total as f64 * 100.0;
            format!("{} of {}, {percent:.0}%, {rate:.1} MB/s", size(done), size(total))
        }
        None => format!("{}, {rate:.1} MB/s", size(done)),
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} bytes"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_counts_only_what_came_now() {
        let ten = Duration::from_secs(10);
        assert_eq!(state(60_000_000, 120_000_000, Some(240_000_000), ten), "120.0 MB of 240.0 MB, 50%, 6.0 MB/s");
        assert_eq!((size(999), size(1_500)), ("999 bytes".to_owned(), "1.5 kB".to_owned()));
        assert_eq!(state(0, 20_000_000, None, ten), "20.0 MB, 2.0 MB/s");
    }
}
