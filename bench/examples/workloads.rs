//! Named loads under every policy in the simulator: prints a figure a line, and leaves the figures and a chart of each load in a folder.
//!
//! `cargo run --release --locked -p weir-bench --example workloads [FOLDER [NAME...]]`
#![allow(missing_docs)]

use std::path::PathBuf;
use std::time::Instant;

use weir_bench::compare::compare;
use weir_scheduler::ModelId;
use weir_scheduler::sim::{SimModel, WORKLOADS};

fn main() -> std::io::Result<()> {
    let mut words = std::env::args().skip(1);
    let folder = words.next().map(PathBuf::from);
    let named: Vec<String> = words.collect();
    let mut figures = Vec::new();
    for workload in
        WORKLOADS.iter().filter(|workload| named.is_empty() || named.iter().any(|name| name == workload.name))
    {
        let started = Instant::now();
        let comparison = compare(workload, 1, 1, SimModel::h200_llama8b(ModelId(0)), workload.seconds);
        for (name, value) in comparison.figures() {
            println!("figure=3.{name} value={value:.6}");
            figures.push(format!(" \"{name}\": {value:.6}"));
        }
        if let Some(folder) = &folder {
            std::fs::write(folder.join(format!("workload_{}.svg", workload.name)), comparison.plot())?;
            std::fs::write(folder.join("workloads.json"), format!("{{\n{}\n}}\n", figures.join(",\n")))?;
        }
        eprintln!("{}: {:.1} s", workload.name, started.elapsed().as_secs_f64());
    }
    Ok(())
}
