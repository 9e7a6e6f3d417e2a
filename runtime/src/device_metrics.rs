//! Metrics of each device, under its name.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError, atomic::AtomicU64},
    time::{Duration, Instant},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use crate::devices::{DevicePhase, DeviceStatus};

/// Scrapes closer together than this see the ratio of the one before.
const WINDOW_MIN: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeviceLabel {
    device: String,
}

type Ratio = Gauge<f64, AtomicU64>;

/// What is told of each device.
pub(crate) struct DeviceMetrics {
    up: Family<DeviceLabel, Gauge>,
    draining: Family<DeviceLabel, Gauge>,
    restarts: Family<DeviceLabel, Counter>,
    steps: Family<DeviceLabel, Counter>,
    busy: Family<DeviceLabel, Counter<f64, AtomicU64>>,
    busy_ratio: Family<DeviceLabel, Ratio>,
    running: Family<DeviceLabel, Gauge>,
    waiting: Family<DeviceLabel, Gauge>,
    blocks: Family<DeviceLabel, Gauge>,
    blocks_used: Family<DeviceLabel, Gauge>,
    /// When each device was last looked at for its ratio, and how long it had been busy by then.
    looks: Mutex<HashMap<String, (Instant, Duration)>>,
}

impl DeviceMetrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let mut gauge = |name: &str, help: &str| {
            let family = Family::<DeviceLabel, Gauge>::default();
            registry.register(name, help, family.clone());
            family
        };
        let up = gauge("device_up", "1 while the device runs steps");
        let draining = gauge("device_draining", "1 while the device is drained, or on the way there");
        let running = gauge("device_requests_running", "Requests in the device's batch");
        let waiting = gauge("device_requests_waiting", "Requests in the device's queue, which others may take over");
        let blocks = gauge("device_kv_blocks", "KV blocks of all models on the device");
        let blocks_used = gauge("device_kv_blocks_used", "KV blocks held by running requests");
        let mut counter = |name: &str, help: &str| {
            let family = Family::<DeviceLabel, Counter>::default();
            registry.register(name, help, family.clone());
            family
        };
        let restarts = counter("device_restarts", "Executors of the device started again after they were lost");
        let steps = counter("device_steps", "Steps that the device has run");
        let busy = Family::<DeviceLabel, Counter<f64, AtomicU64>>::default();
        registry.register_with_unit("device_busy", "Time in steps, as they measured it", Unit::Seconds, busy.clone());
        let busy_ratio = Family::<DeviceLabel, Ratio>::default();
        let help =
            "Share of the time since the last scrape, at least a second, that was spent in steps which have ended";
        registry.register("device_busy_ratio", help, busy_ratio.clone());
        let looks = Mutex::default();
        DeviceMetrics { up, draining, restarts, steps, busy, busy_ratio, running, waiting, blocks, blocks_used, looks }
    }

    /// Copies what the devices say of themselves.
    pub(crate) fn observe(&self, now: Instant, devices: &[DeviceStatus]) {
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        for device in devices {
            let label = DeviceLabel { device: device.name.clone() };
            let up = matches!(device.phase, DevicePhase::Ready | DevicePhase::Draining);
            let draining = matches!(device.phase, DevicePhase::Drained | DevicePhase::Draining);
            self.up.get_or_create(&label).set(i64::from(up));
            self.draining.get_or_create(&label).set(i64::from(draining));
            self.running.get_or_create(&label).set(i64::from(device.requests_running));
            self.waiting.get_or_create(&label).set(i64::from(device.requests_waiting));
            self.blocks.get_or_create(&label).set(i64::from(device.kv_blocks));
            self.blocks_used.get_or_create(&label).set(i64::from(device.kv_blocks_used));
            let restarts = self.restarts.get_or_create(&label);
            restarts.inc_by(device.restarts.saturating_sub(restarts.get()));
            drop(restarts);
            let steps = self.steps.get_or_create(&label);
            steps.inc_by(device.steps.saturating_sub(steps.get()));
            drop(steps);
            let busy = self.busy.get_or_create(&label);
            busy.inc_by((device.busy.as_secs_f64() - busy.get()).max(0.0));
            drop(busy);
            let look = looks.entry(device.name.clone()).or_insert((now, device.busy));
            let window = now.saturating_duration_since(look.0);
            let ratio = self.busy_ratio.get_or_create(&label);
            if window >= WINDOW_MIN {
                let busy = device.busy.saturating_sub(look.1);
                // A step that began before the window may be longer than it.
                ratio.set((busy.as_secs_f64() / window.as_secs_f64()).min(1.0));
                *look = (now, device.busy);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text;

    use super::*;
    use crate::config::DeviceKind;

    #[test]
    fn the_ratio_is_of_the_time_between_two_scrapes() {
        let mut registry = Registry::with_prefix("weir");
        let metrics = DeviceMetrics::new(&mut registry);
        let begin = Instant::now();
        let mut device = DeviceStatus {
            name: "cpu:0".into(),
            kind: DeviceKind::Cpu,
            phase: DevicePhase::Ready,
            reason: None,
            models: Vec::new(),
            requests_running: 3,
            requests_waiting: 0,
            kv_blocks: 8,
            kv_blocks_used: 5,
            epoch: 1,
            restarts: 0,
            steps: 0,
            busy: Duration::ZERO,
            pid: None,
        };
        let mut seen = |seconds: f64, busy: f64| {
            (device.steps, device.busy) = (device.steps + 1, Duration::from_secs_f64(busy));
            metrics.observe(begin + Duration::from_secs_f64(seconds), std::slice::from_ref(&device));
            let mut shown = String::new();
            text::encode(&mut shown, &registry).expect("text");
            let line = shown.lines().find_map(|line| line.strip_prefix("weir_device_busy_ratio{device=\"cpu:0\"} "));
            line.expect("a ratio").parse::<f64>().expect("a number")
        };
        assert!(seen(0.0, 0.0) < 1e-9);
        assert!((seen(4.0, 1.0) - 0.25).abs() < 1e-9);
        assert!((seen(4.5, 1.5) - 0.25).abs() < 1e-9, "too soon to say");
        assert!((seen(6.0, 3.0) - 1.0).abs() < 1e-9);
        assert!((seen(8.0, 9.0) - 1.0).abs() < 1e-9, "never above one");
    }
}
