//! What sets the pace of one level.

use std::fmt;

/// A level's place on the axis of its sweep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// Closed loop.
    Closed {
        /// Connections kept busy.
        concurrency: u32,
    },
    /// Open loop, seeded arrivals.
    Open {
        /// Requests per second.
        rate: f64,
        /// Shape of the gaps' Gamma distribution.
        burstiness: f64,
    },
    /// Open loop, as a file says.
    Trace,
}

impl Pace {
    /// Whether requests leave on a schedule.
    pub(crate) fn is_open(self) -> bool {
        !matches!(self, Pace::Closed { .. })
    }

    /// Its value on the axis of a plot; None for a trace, which is a sweep of one.
    pub(crate) fn value(self) -> Option<f64> {
        match self {
            Pace::Closed { concurrency } => Some(f64::from(concurrency)),
            Pace::Open { rate, .. } => Some(rate),
            Pace::Trace => None,
        }
    }

    /// What figures' names end with: `c8`, `r12.5`, `trace`.
    pub(crate) fn suffix(self) -> String {
        match self {
            Pace::Closed { concurrency } => format!("c{concurrency}"),
            Pace::Open { rate, .. } => format!("r{rate}"),
            Pace::Trace => "trace".into(),
        }
    }
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pace::Closed { concurrency } => write!(f, "concurrency {concurrency}"),
            Pace::Open { rate, .. } => write!(f, "{rate} requests/s"),
            Pace::Trace => write!(f, "the trace"),
        }
    }
}
