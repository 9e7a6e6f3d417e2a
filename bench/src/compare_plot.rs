//! A comparison of policies as a chart: how even each window was, and who had how much of it.

use crate::compare::{Comparison, PolicyRun};
use crate::svg::{Panel, Scale, Series, chart};

/// Points of a line at most: every so many windows are left out beyond that.
const POINTS_MAX: usize = 60;
/// Tenants with a line of their own at most.
const TENANTS_MAX: usize = 6;

impl Comparison {
    /// Jain's index by window under every policy, then each tenant's device time by window under Weir's and under first come first
    /// served.
    pub fn plot(&self) -> String {
        let panel = |title: String, y_title: &str, series| Panel {
            title,
            x_title: "simulated seconds".into(),
            y_title: y_title.into(),
            x_scale: Scale::Linear,
            y_scale: Scale::Linear,
            series,
        };
        let evenness = self.runs.iter().enumerate().map(|(colour, run)| {
            let points = run.jain.iter().map(|(from, index, _)| (*from, *index)).collect();
            line(run.policy.into(), colour, points)
        });
        let mut panels = Vec::new();
        if self.runs.iter().any(|run| !run.jain.is_empty()) {
            panels.push(panel(
                "Evenness among those who waited all through a window".into(),
                "Jain's index",
                evenness.collect(),
            ));
        }
        for run in self.runs.iter().filter(|run| ["weir", "fcfs"].contains(&run.policy)) {
            panels.push(panel(format!("Who had the device: {}", run.policy), "device s per 10 s", shares(run)));
        }
        chart(self.workload.name, self.workload.about, &panels)
    }
}

/// The first tenants' device time by window.
fn shares(run: &PolicyRun) -> Vec<Series> {
    let tenants = run.tenants.iter().enumerate().take(TENANTS_MAX);
    let of_tenant = |(place, (tenant, _)): (usize, &(weir_scheduler::TenantId, u32))| {
        let point = |window: &weir_scheduler::sim::Window| {
            (window.from.0 as f64 / 1e9, window.parts[place].charge.0 as f64 / 1e9)
        };
        line(format!("tenant {}", tenant.0), place, run.windows.iter().map(point).collect())
    };
    tenants.map(of_tenant).collect()
}

fn line(name: String, colour: usize, points: Vec<(f64, f64)>) -> Series {
    let every = points.len().div_ceil(POINTS_MAX).max(1);
    let points = points.into_iter().step_by(every).map(|(x, y)| (x, y, true)).collect();
    Series { name, colour, dashed: false, points, spread: Vec::new() }
}
