//! Named loads under every policy in the simulator: prints a figure a line.
#![allow(missing_docs)]

use std::time::Instant;

use weir_bench::compare::compare;
use weir_scheduler::ModelId;
use weir_scheduler::sim::{SimModel, WORKLOADS};

fn main() {
    let named: Vec<String> = std::env::args().skip(1).collect();
    for workload in
        WORKLOADS.iter().filter(|workload| named.is_empty() || named.iter().any(|name| name == workload.name))
    {
        let started = Instant::now();
        let comparison = compare(workload, 1, 1, SimModel::h200_llama8b(ModelId(0)), workload.seconds);
        for (name, value) in comparison.figures() {
            println!("figure=3.{name} value={value:.6}");
        }
        eprintln!("{}: {:.1} s", workload.name, started.elapsed().as_secs_f64());
    }
}
