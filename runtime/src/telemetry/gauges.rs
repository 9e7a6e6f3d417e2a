//! The board as metrics. All of them are there from the start: where there is no driver, as zeros of a GPU 0 beside
//! `weir_nvml_up 0`, so that no dashboard or rule breaks. What a GPU that is there does not support has no line, because a
//! zero would be a claim.
//!
//! `gpu` is NVML's index, at most [`super::GPUS_MAX`] of them; which GPU that is, and under which name CUDA knows it, `weir_gpu_info`
//! says.

use std::{fmt, time::Instant};

use prometheus_client::{
    collector::Collector,
    encoding::DescriptorEncoder,
    metrics::{MetricType, exemplar::Exemplar},
};

use super::{
    Board, Identity, Sample, Throttle,
    board::{Gpu, State},
};

/// What a GPU has for a metric now, by the values of its label.
type Values = fn(&Gpu, Instant) -> Vec<(&'static str, Option<f64>)>;

/// The lines of one metric: for each GPU a value, or one for each value of one more label.
struct Metric {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    label: &'static str,
    values: Values,
}

/// The value of a metric without another label.
fn one(value: Option<f64>) -> Vec<(&'static str, Option<f64>)> {
    vec![("", value)]
}

const fn gauge(name: &'static str, help: &'static str, values: Values) -> Metric {
    Metric { name, help, kind: MetricType::Gauge, label: "", values }
}

const METRICS: [Metric; 12] = [
    gauge(
        "gpu_utilization_ratio",
        "Share of the driver's last period in which some kernel ran; MIG has none",
        |gpu, _| one(gpu.sample.busy),
    ),
    gauge("gpu_memory_busy_ratio", "Share of it in which device memory was read or written", |gpu, _| {
        one(gpu.sample.memory_busy)
    }),
    gauge("gpu_memory_used_bytes", "Device memory in use by anybody, as the driver counts", |gpu, _| {
        one(gpu.sample.memory_used.map(|bytes| bytes as f64))
    }),
    gauge("gpu_memory_total_bytes", "Device memory there is", |gpu, _| {
        one(gpu.sample.memory_total.map(|bytes| bytes as f64))
    }),
    gauge("gpu_power_watts", "Power drawn", |gpu, _| one(gpu.sample.watts)),
    gauge("gpu_temperature_celsius", "Temperature of the GPU", |gpu, _| one(gpu.sample.celsius)),
    Metric {
        label: "clock",
        ..gauge("gpu_clock_hertz", "Clocks", |gpu, _| {
            vec![("sm", gpu.sample.sm_hertz), ("memory", gpu.sample.memory_hertz)]
        })
    },
    Metric {
        label: "reason",
        ..gauge("gpu_throttled", "1 while the clocks are held down for this reason", |gpu, _| {
            let throttles = gpu.sample.throttles.as_ref();
            let now = |reason| throttles.map(|reasons| f64::from(reasons.contains(&reason)));
            Throttle::ALL.map(|reason| (reason.name(), now(reason))).to_vec()
        })
    },
    Metric {
        name: "gpu_ecc_errors",
        help: "Memory errors since the driver was loaded",
        kind: MetricType::Counter,
        label: "kind",
        values: |gpu, _| {
            let count = |errors: Option<u64>| errors.map(|errors| errors as f64);
            vec![("corrected", count(gpu.sample.ecc_corrected)), ("uncorrected", count(gpu.sample.ecc_uncorrected))]
        },
    },
    Metric {
        name: "gpu_xid_errors",
        help: "Critical errors (Xid) that the driver has reported since this process started",
        kind: MetricType::Counter,
        label: "",
        values: |gpu, _| one(Some(gpu.xids as f64)),
    },
    gauge("gpu_last_xid", "Number of the last of them, 0 if there was none", |gpu, _| one(Some(gpu.last_xid as f64))),
    gauge(
        "gpu_sample_age_seconds",
        "Age of this GPU's figures; it grows when the GPU or the driver is lost",
        |gpu, now| one(Some(gpu.read_at.map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64()))),
    ),
];

impl Collector for Board {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let state = self.state();
        encode(&state, Instant::now(), &mut encoder)
    }
}

fn encode(state: &State, now: Instant, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let help = "1 while the GPU driver's library answers.";
    encoder.encode_descriptor("nvml_up", help, None, MetricType::Gauge)?.encode_gauge(&i64::from(state.up))?;
    let nothing = [Gpu { sample: zeros(), ..Gpu::default() }];
    let gpus = if state.gpus.is_empty() { &nothing[..] } else { &state.gpus[..] };
    for metric in &METRICS {
        let help = format!("{}.", metric.help);
        let mut family = encoder.encode_descriptor(metric.name, &help, None, metric.kind)?;
        for (index, gpu) in gpus.iter().enumerate() {
            for (of, value) in (metric.values)(gpu, now) {
                let Some(value) = value else { continue };
                let mut labels = vec![("gpu", index.to_string())];
                if !metric.label.is_empty() {
                    labels.push((metric.label, of.to_owned()));
                }
                let mut line = family.encode_family(&labels)?;
                match metric.kind {
                    MetricType::Counter => {
                        line.encode_counter(&(value as u64), None::<&Exemplar<Vec<(&str, String)>, u64>>)?;
                    }
                    _ => line.encode_gauge(&value)?,
                }
            }
        }
    }
    let mut family = encoder.encode_descriptor("gpu_info", "1; says which GPU it is.", None, MetricType::Gauge)?;
    for (index, gpu) in state.gpus.iter().enumerate() {
        family.encode_family(&info(index, &gpu.sample.identity, state))?.encode_gauge(&1)?;
    }
    Ok(())
}

fn info(index: usize, identity: &Identity, state: &State) -> Vec<(&'static str, String)> {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let capability = identity.compute_capability.map(|(major, minor)| format!("{major}.{minor}"));
    vec![
        ("gpu", index.to_string()),
        ("uuid", text(&identity.uuid)),
        ("name", text(&identity.name)),
        ("pci", text(&identity.pci)),
        ("compute_capability", capability.unwrap_or_default()),
        ("mig", identity.mig.map(|mig| if mig { "on" } else { "off" }).unwrap_or_default().to_owned()),
        ("driver", text(&state.driver)),
        ("cuda", text(&state.cuda)),
    ]
}

/// The sample of a GPU that nobody has seen.
fn zeros() -> Sample {
    Sample {
        identity: Identity::default(),
        busy: Some(0.0),
        memory_busy: Some(0.0),
        memory_used: Some(0),
        memory_total: Some(0),
        watts: Some(0.0),
        celsius: Some(0.0),
        sm_hertz: Some(0.0),
        memory_hertz: Some(0.0),
        ecc_corrected: Some(0),
        ecc_uncorrected: Some(0),
        throttles: Some(Vec::new()),
        xids: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::{
        super::{
            Reading, Sampler,
            fake::{FakeTelemetry, Script, reading, whole_gpu},
        },
        *,
    };
    use crate::metrics::Metrics;

    /// The registry of a node whose GPUs follow a script, as `/metrics` shows it.
    struct Rig {
        metrics: Metrics,
        script: Script,
        _sampler: Sampler,
    }

    impl Rig {
        fn new() -> Self {
            let metrics = Metrics::new(&[]);
            let (script, fake) = FakeTelemetry::scripted();
            let sampler = Sampler::start(metrics.gpus().clone(), fake, Duration::ZERO).expect("a thread");
            Rig { metrics, script, _sampler: sampler }
        }

        /// The lines about GPUs, `weir_` left out.
        fn lines(&self) -> Vec<String> {
            let text = self.metrics.text();
            let ours = |line: &&str| line.starts_with("weir_gpu") || line.starts_with("weir_nvml");
            text.lines().filter(ours).map(|line| line.trim_start_matches("weir_").to_owned()).collect()
        }

        fn value(&self, line: &str) -> Option<f64> {
            let lines = self.lines();
            let found = lines.iter().find_map(|l| l.strip_prefix(line)?.strip_prefix(' '));
            found.map(|value| value.parse().expect("a number"))
        }
    }

    #[test]
    fn without_a_driver_all_is_there_and_zero() {
        let rig = Rig::new();
        rig.script.say(Err("no driver".into()));
        let lines = rig.lines();
        assert_eq!(lines.len(), 1 + 8 + 2 + 3 + 2 + 1, "{lines:#?}");
        for line in lines {
            assert_eq!(line.rsplit(' ').next().and_then(|v| v.parse().ok()), Some(0.0), "{line}");
        }
    }

    #[test]
    fn a_gpu_shows_what_it_says() {
        let rig = Rig::new();
        let hot = Sample { throttles: Some(vec![Throttle::Thermal]), ..whole_gpu() };
        rig.script.say(Ok(reading(vec![Ok(whole_gpu()), Ok(hot)])));
        for (line, value) in [
            ("nvml_up", 1.0),
            ("gpu_utilization_ratio{gpu=\"0\"}", 0.75),
            ("gpu_memory_busy_ratio{gpu=\"0\"}", 0.5),
            ("gpu_memory_used_bytes{gpu=\"0\"}", 3.0 * 1024.0 * 1024.0 * 1024.0),
            ("gpu_memory_total_bytes{gpu=\"1\"}", 140.0 * 1024.0 * 1024.0 * 1024.0),
            ("gpu_power_watts{gpu=\"1\"}", 512.5),
            ("gpu_temperature_celsius{gpu=\"0\"}", 61.0),
            ("gpu_clock_hertz{gpu=\"0\",clock=\"sm\"}", 1.98e9),
            ("gpu_clock_hertz{gpu=\"0\",clock=\"memory\"}", 3.2e9),
            ("gpu_ecc_errors_total{gpu=\"0\",kind=\"corrected\"}", 7.0),
            ("gpu_ecc_errors_total{gpu=\"1\",kind=\"uncorrected\"}", 1.0),
            ("gpu_throttled{gpu=\"0\",reason=\"thermal\"}", 0.0),
            ("gpu_throttled{gpu=\"1\",reason=\"thermal\"}", 1.0),
            ("gpu_xid_errors_total{gpu=\"0\"}", 0.0),
            ("gpu_last_xid{gpu=\"0\"}", 0.0),
        ] {
            assert_eq!(rig.value(line), Some(value), "{line} in {:#?}", rig.lines());
        }
        let info = "gpu_info{gpu=\"0\",uuid=\"GPU-00000000-1111\",name=\"NVIDIA H200\",pci=\"00000000:1B:00.0\",\
                    compute_capability=\"9.0\",mig=\"off\",driver=\"580.95.05\",cuda=\"13.0\"}";
        assert_eq!(rig.value(info), Some(1.0), "{:#?}", rig.lines());
    }

    #[test]
    fn what_is_not_supported_has_no_line() {
        let rig = Rig::new();
        let identity = Identity { mig: Some(true), ..whole_gpu().identity };
        rig.script.say(Ok(reading(vec![Ok(Sample { identity, watts: Some(100.0), ..Sample::default() })])));
        assert_eq!(rig.value("gpu_power_watts{gpu=\"0\"}"), Some(100.0));
        let rest = ["utilization", "memory", "temperature", "clock", "throttled", "ecc"];
        let lines = rig.lines();
        assert!(
            !lines.iter().any(|line| rest.iter().any(|name| line.starts_with(&format!("gpu_{name}")))),
            "{lines:#?}"
        );
    }

    #[test]
    fn xids_are_counted_across_readings() {
        let rig = Rig::new();
        let with = |xids: &[u64]| Ok(reading(vec![Ok(Sample { xids: xids.to_vec(), ..whole_gpu() })]));
        rig.script.say(with(&[31, 79]));
        rig.script.say(with(&[]));
        assert_eq!(rig.value("gpu_xid_errors_total{gpu=\"0\"}"), Some(2.0));
        assert_eq!(rig.value("gpu_last_xid{gpu=\"0\"}"), Some(79.0));
        rig.script.say(with(&[48]));
        assert_eq!(rig.value("gpu_xid_errors_total{gpu=\"0\"}"), Some(3.0));
        assert_eq!(rig.value("gpu_last_xid{gpu=\"0\"}"), Some(48.0));
    }

    #[test]
    fn a_reader_that_hangs_keeps_nobody_waiting_and_its_figures_grow_old() {
        let rig = Rig::new();
        rig.script.say(Ok(reading(vec![Ok(whole_gpu())])));
        // The sampler now hangs in its next read. A scrape that waited for it would never return.
        assert_eq!(rig.value("gpu_power_watts{gpu=\"0\"}"), Some(512.5));
        let age = || rig.value("gpu_sample_age_seconds{gpu=\"0\"}").expect("an age");
        let first = age();
        assert!(age() > first);
    }

    #[test]
    fn a_gpu_that_disappears_stays_with_figures_that_grow_old() {
        let board = Board::default();
        let begin = Instant::now();
        let second = Duration::from_secs(1);
        board.publish(reading(vec![Ok(whole_gpu()), Ok(whole_gpu())]), begin);
        board.publish(reading(vec![Err("it fell off the bus".into()), Ok(whole_gpu())]), begin + 7 * second);
        let ages = |now| board.state().gpus.iter().map(|gpu| age(gpu, now)).collect::<Vec<_>>();
        assert_eq!(ages(begin + 9 * second), [9.0, 2.0]);
        // The driver does not list the second any more, and then goes, too.
        board.publish(reading(vec![Ok(whole_gpu())]), begin + 10 * second);
        assert_eq!(ages(begin + 10 * second), [0.0, 3.0]);
        board.absent("the driver was unloaded");
        assert_eq!(ages(begin + 20 * second), [10.0, 13.0]);
        assert!(!board.state().up && board.state().gpus[0].sample.busy == Some(0.75));
        board.publish(reading(vec![Ok(whole_gpu()), Ok(whole_gpu())]), begin + 21 * second);
        assert_eq!(ages(begin + 21 * second), [0.0, 0.0]);
    }

    /// The last of the metrics.
    fn age(gpu: &Gpu, now: Instant) -> f64 {
        (METRICS[METRICS.len() - 1].values)(gpu, now)[0].1.expect("an age")
    }

    #[test]
    fn a_machine_with_too_many_gpus_shows_the_first() {
        let board = Arc::new(Board::default());
        let many = Reading { gpus: vec![Ok(whole_gpu()); 40], ..Reading::default() };
        board.publish(many, Instant::now());
        assert_eq!(board.state().gpus.len(), super::super::GPUS_MAX as usize);
    }
}
