//! Metrics of what things cost: the device, by the prices that the scheduler has fitted to its steps, and the scheduler itself, by the
//! engine thread's clock.

use std::{
    fmt::{self, Write},
    sync::atomic::AtomicU64,
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use weir_scheduler::Stats;

use crate::{devices::DeviceStatus, node::NodeModel};

/// A decision is some microseconds, of a step of some milliseconds.
const DECISION_BUCKETS: [f64; 12] = [1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 1e-2, 1e-1];

/// What has a price: see `docs/charges.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Priced {
    Step,
    Row,
    Token,
    Context,
    Read,
}

impl EncodeLabelValue for Priced {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Priced::Step => "step",
            Priced::Row => "row",
            Priced::Token => "token",
            Priced::Context => "context",
            Priced::Read => "read",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PriceLabel {
    device: String,
    model: String,
    of: Priced,
}

/// What the scheduler decides about a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Decision {
    /// Which rows it has.
    Plan,
    /// What its report means: who pays, what is freed.
    Settle,
}

impl EncodeLabelValue for Decision {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Decision::Plan => "plan",
            Decision::Settle => "settle",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabel {
    decision: Decision,
}

/// What is told of costs.
pub(crate) struct CostMetrics {
    prices: Family<PriceLabel, Gauge<f64, AtomicU64>>,
    decisions: Family<DecisionLabel, Histogram>,
}

impl CostMetrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let prices = Family::<PriceLabel, Gauge<f64, AtomicU64>>::default();
        let help = "Fitted device time of a step, and of each row, new token, position of context and read in it";
        registry.register_with_unit("fitted_price", help, Unit::Seconds, prices.clone());
        let decisions = Family::<DecisionLabel, Histogram>::new_with_constructor(|| Histogram::new(DECISION_BUCKETS));
        let help = "Time that the scheduler took to plan a step, and to settle its report";
        registry.register_with_unit("scheduler_decision", help, Unit::Seconds, decisions.clone());
        CostMetrics { prices, decisions }
    }

    /// The scheduler has decided about a step.
    pub(crate) fn decided(&self, decision: Decision, took: Duration) {
        self.decisions.get_or_create(&DecisionLabel { decision }).observe(took.as_secs_f64());
    }

    /// Copies the prices. Those of a device that is lost stay as they were: it comes back with them.
    pub(crate) fn observe(&self, stats: &Stats, models: &[NodeModel], devices: &[DeviceStatus]) {
        for entry in &stats.models {
            let device = devices.get(usize::from(entry.device.0));
            let (Some(device), Some(model)) = (device, models.get(usize::from(entry.model.0))) else { continue };
            let prices = [
                (Priced::Step, entry.step_cost, 1.0),
                (Priced::Row, entry.kilorow_cost, 1e3),
                (Priced::Token, entry.kilotoken_cost, 1e3),
                (Priced::Context, entry.kilocontext_cost, 1e3),
                (Priced::Read, entry.megaread_cost, 1e6),
            ];
            for (of, cost, count) in prices {
                let label = PriceLabel { device: device.name.clone(), model: model.name.clone(), of };
                self.prices.get_or_create(&label).set(cost.0 as f64 / 1e9 / count);
            }
        }
    }
}
