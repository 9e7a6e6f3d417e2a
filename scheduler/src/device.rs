//! A device: its models, its tenants' shares, its steps in flight, and where its time went.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::BLOCK_LEN;
use crate::budget::Margin;
use crate::cost::Load;
use crate::ids::{DeviceId, ModelId, Nanos, PoolId, RequestId, StepId};
use crate::model::{Learnt, Model};
use crate::purse::{Rate, Reserve};
use crate::share::{Share, Virtual};
use crate::tenant::Tenants;
use crate::tournament::Roster;

/// Where a device's wall time went. At every moment `wall == tenants + operator + idle + in_flight`, to the nanosecond: the time of
/// the step that runs now is `in_flight`, and is booked to the others when it ends. None of the others ever shrinks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceAccounts {
    /// Since the device was added.
    pub wall: Nanos,
    /// Charged to tenants.
    pub tenants: Nanos,
    /// The operator's: its own requests, redo after preemptions, overrun rows, failed rows, the part of a step's wall time in
    /// which the device did not compute, and the time the device was lost.
    pub operator: Nanos,
    /// Of the operator's, what metered tenants' rows took above their grants.
    pub overrun: Nanos,
    /// Of the operator's, its own requests.
    pub own: Nanos,
    /// Of the operator's, positions that had been computed before.
    pub redo: Nanos,
    /// Of the operator's, rows that failed.
    pub failed: Nanos,
    /// Of the operator's, wall time of steps in which the device did not compute.
    pub gap: Nanos,
    /// Of the operator's, the time that the device was lost.
    pub absent: Nanos,
    /// No step was running.
    pub idle: Nanos,
    /// The step that runs now, so far, with what the report before it left open.
    pub in_flight: Nanos,
}

/// A row as it was planned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) slot: u32,
    /// First position, or the item.
    pub(crate) from: u32,
    pub(crate) len: u32,
    pub(crate) samples: bool,
    /// An item of an embedding request rather than a stretch of a sequence.
    pub(crate) is_item: bool,
    /// By which it shares the step's time, once that was measured.
    pub(crate) weight: u64,
    /// Kept for it of its tenant's grant, if it is metered.
    pub(crate) reserve: Option<Reserve>,
}

impl Row {
    #[inline]
    pub(crate) fn load(&self) -> Load {
        Load::new(if self.is_item { 0 } else { self.from }, self.len)
    }

    /// Whether the last position of a block is among those that it computes.
    pub(crate) fn completes_block(&self) -> bool {
        !self.is_item && (self.from + self.len) / BLOCK_LEN > self.from / BLOCK_LEN
    }
}

/// A step planned and not finished.
#[derive(Clone, Debug, Default)]
pub(crate) struct Step {
    pub(crate) id: StepId,
    pub(crate) model: u32,
    pub(crate) rows: Vec<Row>,
    /// Of all rows.
    pub(crate) load: Load,
    /// When it was planned, what it may take, and what it is expected to take.
    pub(crate) planned_at: Nanos,
    pub(crate) budget: Nanos,
    pub(crate) predicted: Nanos,
}

#[derive(Clone, Debug)]
pub(crate) struct Device {
    pub(crate) id: DeviceId,
    pub(crate) up: bool,
    /// Removed: the entry may be reused.
    pub(crate) gone: bool,
    /// Takes no newcomers; see [`crate::Scheduler::drain_device`].
    pub(crate) closed: bool,
    /// What a step should stay under.
    /// What its time counts in grants.
    pub(crate) rate: Rate,
    pub(crate) step_latency_max: Nanos,
    /// See [`crate::reserve`].
    pub(crate) pool: Option<PoolId>,
    /// How waits for a first token turn out here, against what was predicted.
    pub(crate) waits: Margin,
    pub(crate) models: Vec<Model>,
    /// What steps cost here and how far they exceed it, from before a loss: the next executor has the same device.
    pub(crate) learnt: Vec<Learnt>,
    /// By tenant slot.
    pub(crate) shares: Vec<Share>,
    /// Tenants with live requests here that are not short of the device; see [`crate::standing`].
    pub(crate) calm: Roster,
    /// Tenants that are short of the device and got a row of the last step.
    pub(crate) at_hand: Roster,
    /// Over all tenants: requests that are not settled, those of them that wait, and the device time that these are expected to take.
    pub(crate) live: u32,
    pub(crate) waiting: u32,
    pub(crate) demand: Nanos,
    /// The weights of the tenants with live requests here.
    pub(crate) weights: u64,
    /// Looks at tenants and requests while planning; see [`crate::Scheduler::touched`].
    pub(crate) touched: u64,
    /// The least virtual time among the tenants that are short of the device, when a step was planned last.
    pub(crate) least: Option<Virtual>,
    /// The same, or the greatest virtual time here if nobody is short; see [`crate::claim`].
    pub(crate) level: Virtual,
    /// The device's virtual time; see [`crate::share`].
    pub(crate) clock: Virtual,
    /// In the order they were planned.
    pub(crate) in_flight: VecDeque<Step>,
    /// Nothing but rows of this request is planned; see [`crate::Scheduler::run_alone`].
    pub(crate) alone: Option<RequestId>,
    /// While a step is planned: the one that is to run alone waits for a grant, or has just ended, and others run meanwhile; but none that was
    /// given this device by name, for it may be waiting to run alone, too.
    pub(crate) alone_waits: bool,
    /// It was too early to plan another step, until then; see [`crate::ahead`].
    pub(crate) put_off: Option<Nanos>,
    /// The last step planned.
    pub(crate) last_step: StepId,
    /// Steps kept for their buffers.
    pub(crate) spare: Vec<Step>,

    /// When the books begin, and until when they are kept: a step that runs now began at `booked`.
    pub(crate) since: Nanos,
    pub(crate) booked: Nanos,
    /// When the last report came, or the device was last idle. Not before `booked`: see [`Device::book_step`].
    pub(crate) reported: Nanos,
    pub(crate) tenants: Nanos,
    pub(crate) operator: Nanos,
    pub(crate) overrun: Nanos,
    pub(crate) own: Nanos,
    pub(crate) redo: Nanos,
    pub(crate) failed: Nanos,
    pub(crate) gap: Nanos,
    pub(crate) absent: Nanos,
    pub(crate) idle: Nanos,

    last_start: Nanos,
    start_interval: u64,
    /// The longest step that was measured here.
    pub(crate) slowest: Nanos,
}

impl Device {
    pub(crate) fn new(id: DeviceId, now: Nanos, tenants: &Tenants, step_latency_max: Nanos) -> Device {
        let mut device = Device {
            id,
            up: true,
            gone: false,
            closed: false,
            rate: Rate::ONE,
            step_latency_max,
            pool: None,
            waits: Margin::of_waits(),
            models: Vec::new(),
            learnt: Vec::new(),
            shares: Vec::new(),
            calm: Roster::default(),
            at_hand: Roster::default(),
            live: 0,
            waiting: 0,
            demand: Nanos::ZERO,
            weights: 0,
            touched: 0,
            least: None,
            level: 0,
            clock: 0,
            in_flight: VecDeque::new(),
            alone: None,
            alone_waits: false,
            put_off: None,
            last_step: StepId(0),
            spare: Vec::new(),
            since: now,
            booked: now,
            reported: now,
            tenants: Nanos::ZERO,
            operator: Nanos::ZERO,
            overrun: Nanos::ZERO,
            own: Nanos::ZERO,
            redo: Nanos::ZERO,
            failed: Nanos::ZERO,
            gap: Nanos::ZERO,
            absent: Nanos::ZERO,
            idle: Nanos::ZERO,
            last_start: now,
            start_interval: 0,
            slowest: Nanos::ZERO,
        };
        device.grow(tenants.len());
        for tenant in 0..tenants.len() as u32 {
            device.set_plan(tenants, tenant);
        }
        device
    }

    pub(crate) fn grow(&mut self, tenants: usize) {
        self.shares.resize(tenants, Share::default());
        self.calm.grow(tenants);
        self.at_hand.grow(tenants);
        for model in &mut self.models {
            model.grow(tenants);
        }
    }

    pub(crate) fn model_index(&self, id: ModelId) -> Option<usize> {
        self.models.iter().position(|model| model.id == id)
    }

    /// Books the time up to `now` in which no step ran.
    pub(crate) fn book_idle(&mut self, now: Nanos) {
        debug_assert!(self.in_flight.is_empty());
        let gap = now.saturating_sub(self.booked);
        match self.up {
            true => self.idle += gap,
            false => {
                self.operator += gap;
                self.absent += gap;
            }
        }
        self.booked = self.booked.max(now);
        self.reported = self.booked;
    }

    /// Books the wall time of the step that was just taken from the front, and returns the part of it in which the device worked.
    ///
    /// A report takes a moment to arrive, and with a step queued behind it the device works on in that moment. So time left over
    /// between the device's work and the report stays open until the next report: if that one says that the device worked
    /// longer than since this report, it was then. What is still left over is the operator's.
    pub(crate) fn book_step(&mut self, now: Nanos, device_time: Nanos) -> Nanos {
        let now = now.max(self.reported);
        let since_report = now - self.reported;
        let open = now - self.booked;
        let time = device_time.min(open);
        self.slowest = self.slowest.max(time);
        let left_open = match self.in_flight.is_empty() {
            true => Nanos::ZERO,
            false => since_report.saturating_sub(time),
        };
        self.operator += open - time - left_open;
        self.gap += open - time - left_open;
        self.booked = now - left_open;
        self.reported = now;
        time
    }

    pub(crate) fn accounts(&self, now: Nanos) -> DeviceAccounts {
        let mut books = DeviceAccounts {
            wall: now.max(self.booked).saturating_sub(self.since),
            tenants: self.tenants,
            operator: self.operator,
            overrun: self.overrun,
            own: self.own,
            redo: self.redo,
            failed: self.failed,
            gap: self.gap,
            absent: self.absent,
            idle: self.idle,
            in_flight: Nanos::ZERO,
        };
        let open = now.saturating_sub(self.booked);
        match (self.in_flight.is_empty(), self.up) {
            (false, _) => books.in_flight = open,
            (true, true) => books.idle += open,
            (true, false) => {
                books.operator += open;
                books.absent += open;
            }
        }
        books
    }

    /// The measured time between two starts while requests wait.
    pub(crate) fn start_interval(&self) -> Nanos {
        Nanos(self.start_interval)
    }

    /// A request left its queue.
    pub(crate) fn observe_start(&mut self, now: Nanos, still_waiting: bool) {
        if still_waiting {
            let gap = now.saturating_sub(self.last_start).0;
            self.start_interval = self.start_interval - self.start_interval / 16 + gap / 16;
        }
        self.last_start = now;
    }
}
