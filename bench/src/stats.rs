//! Percentiles and their summary.

use serde::Serialize;

/// The distribution of one latency, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// How many values.
    pub count: usize,
    /// Arithmetic mean.
    pub mean: f64,
    /// Population standard deviation, as numpy's default.
    pub std: f64,
    /// 50th percentile.
    pub median: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// The highest.
    pub max: f64,
}

impl Summary {
    /// None when there is nothing to summarise.
    pub(crate) fn of(mut values: Vec<f64>) -> Option<Summary> {
        if values.is_empty() {
            return None;
        }
        values.sort_by(f64::total_cmp);
        let count = values.len();
        let mean = values.iter().sum::<f64>() / count as f64;
        let variance = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / count as f64;
        Some(Summary {
            count,
            mean,
            std: variance.sqrt(),
            median: percentile(&values, 50.0),
            p90: percentile(&values, 90.0),
            p95: percentile(&values, 95.0),
            p99: percentile(&values, 99.0),
            max: percentile(&values, 100.0),
        })
    }
}

/// The `q`th percentile (0 to 100) of an ascending, non-empty slice, with linear interpolation between neighbours. This is
/// numpy's default, so that values can be laid beside those of clients written in Python.
fn percentile(ascending: &[f64], q: f64) -> f64 {
    let place = (ascending.len() - 1) as f64 * q / 100.0;
    let below = place.floor() as usize;
    let above = (below + 1).min(ascending.len() - 1);
    ascending[below] + (ascending[above] - ascending[below]) * (place - below as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn percentiles_interpolate_as_numpy_does() {
        // numpy.percentile([15, 20, 35, 40, 50], [0, 40, 50, 90, 99, 100])
        let v = [15.0, 20.0, 35.0, 40.0, 50.0];
        for (q, want) in [(0.0, 15.0), (40.0, 29.0), (50.0, 35.0), (90.0, 46.0), (99.0, 49.6), (100.0, 50.0)] {
            assert!(close(percentile(&v, q), want), "p{q}: {}", percentile(&v, q));
        }
    }

    #[test]
    fn a_summary_sorts_and_describes() {
        let s = Summary::of(vec![4.0, 2.0, 9.0, 4.0, 5.0, 7.0, 4.0, 5.0]).unwrap();
        assert_eq!(s.count, 8);
        assert!(close(s.mean, 5.0) && close(s.std, 2.0) && close(s.median, 4.5), "{s:?}");
        assert!(close(s.p90, 7.6) && close(s.p95, 8.3) && close(s.p99, 8.86) && close(s.max, 9.0), "{s:?}");
    }

    #[test]
    fn one_value_is_every_percentile_and_none_is_none() {
        let s = Summary::of(vec![3.5]).unwrap();
        assert_eq!((s.mean, s.std, s.median, s.p90, s.p99), (3.5, 0.0, 3.5, 3.5, 3.5));
        assert_eq!(Summary::of(Vec::new()), None);
    }
}
