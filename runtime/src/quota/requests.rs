//! Requests that are counted: one is taken for each, out of a grant that this process holds, without asking anybody.
//!
//! A tenant's *till* holds what was granted. While there is some, taking one is a lock and a subtraction. When it is
//! empty one asks for all who wait, and when it is nearly empty one asks ahead. Where much is left of the windows a
//! grant is a second's worth; where little is left it is at most a quarter of that and in the end one, so that with room for ten requests
//! exactly ten are let in, over any number of replicas. Whatever nobody uses goes back: after [`KEPT`], or at once
//! where it was less than was asked for and others may be waiting for it.
//!
//! A [`Ticket`] that is dropped before it is used goes back into the till. What a grant says it has spent are the tickets that were
//! used; when it is given back, those that are under way count, too.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    calendar::Period,
    grants::Taken,
    limit::{Answer, Limits, Unit, Want},
    source::{LIFE, SKEW, Source, micros, now_us},
    store::ReportOf,
};

/// Tills are looked after this often.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Grants in use are reported, and extended, this often.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// How long a grant is kept that nobody uses: it would end soon after.
const KEPT: Duration = Duration::from_millis(3_500);
/// The same where less was granted than was asked for.
const KEPT_SCARCE: Duration = Duration::from_millis(300);
/// Asked for beyond what waits, unless a second's use is more.
const AHEAD_MIN: i64 = 16;
const AHEAD_MAX: i64 = 100_000;
/// A window that is spent, or a store that does not answer, is asked again after this: meanwhile refusals cost nothing.
const REFUSAL_KEPT: Duration = Duration::from_millis(250);
/// A clock that has drifted by less was not set.
const STEP_US: u64 = SKEW.as_micros() as u64 / 2;
/// Grants of one till. More than one is there only for moments.
const GRANTS_MAX: usize = 16;

/// Why a request may not begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The windows have none left until then, in microseconds since 1970.
    Spent {
        /// When the last of them ends.
        until_us: i64,
    },
    /// Nobody knows, as the store does not answer.
    Unknown,
}

/// All tills. Clones share them.
#[derive(Debug, Clone)]
pub struct RequestCounts(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    source: Source,
    /// By the tenants' numbers, which begin at 1; nothing for one whose requests are not counted.
    tills: RwLock<Vec<Option<Arc<Till>>>>,
}

#[derive(Debug)]
struct Till {
    source: Source,
    tenant: String,
    state: Mutex<State>,
    /// Held by the one who asks.
    turn: Arc<tokio::sync::Mutex<()>>,
    waiting: AtomicI64,
}

#[derive(Debug)]
struct State {
    limits: Limits,
    grants: Vec<Held>,
    refused: Option<(Instant, Refusal)>,
    made: Instant,
    /// Taken since this second began, and in the one before.
    second: Instant,
    lately: i64,
    before: i64,
}

#[derive(Debug)]
struct Held {
    id: i64,
    amount: i64,
    /// Tickets that are out or were used.
    taken: i64,
    /// Those of them that are out.
    out: i64,
    /// What the store knows of.
    told: i64,
    /// When the windows began that it is of, and the last moment at which it may be used.
    windows: [i64; 3],
    usable_until: Instant,
    used: Instant,
    reported: Instant,
    /// What the machine's clock said more than the monotonic one, counted from when the till was made.
    ahead_us: i64,
    /// Less than was asked for.
    scarce: bool,
}

impl Held {
    /// What was used for good.
    fn spent(&self) -> i64 {
        self.taken - self.out
    }
}

/// Leave to begin one request. Dropped unused, it goes back.
#[derive(Debug)]
#[must_use]
pub struct Ticket {
    till: Option<Arc<Till>>,
    grant: i64,
}

impl Ticket {
    /// The request has begun: it counts.
    pub fn used(mut self) {
        if let Some(till) = self.till.take()
            && let Some(held) = till.state().grants.iter_mut().find(|held| held.id == self.grant)
        {
            held.out -= 1;
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(till) = self.till.take()
            // A grant that has been given back meanwhile has counted it.
            && let Some(held) = till.state().grants.iter_mut().find(|held| held.id == self.grant)
        {
            held.out -= 1;
            held.taken -= 1;
        }
    }
}

impl RequestCounts {
    /// No tenant's requests are counted yet. Looks after its tills for as long as it is there.
    pub fn new(source: Source) -> RequestCounts {
        let counts = RequestCounts(Arc::new(Shared { source, tills: RwLock::default() }));
        tokio::spawn(look_after(Arc::downgrade(&counts.0)));
        counts
    }

    /// From now on a tenant has these limits; none at all, and its requests are not counted.
    pub fn put(&self, number: u32, tenant: &str, limits: Limits) {
        let mut tills = self.0.tills.write().unwrap_or_else(PoisonError::into_inner);
        let at = number as usize;
        if tills.len() <= at {
            tills.resize(at + 1, None);
        }
        match &tills[at] {
            Some(till) => {
                let mut state = till.state();
                (state.limits, state.refused) = (limits, None);
            }
            None if limits.is_empty() => {}
            None => tills[at] = Some(Arc::new(Till::new(&self.0.source, tenant, limits))),
        }
    }

    /// Takes one request of a tenant; nothing if they are not counted.
    ///
    /// # Errors
    /// [`Refusal`]: it may not begin.
    pub async fn take(&self, number: u32) -> Result<Option<Ticket>, Refusal> {
        let till = self.0.tills.read().unwrap_or_else(PoisonError::into_inner).get(number as usize).cloned().flatten();
        match till {
            Some(till) => till.take().await,
            None => Ok(None),
        }
    }

    /// Gives back all that is not used, for good.
    pub async fn end(&self) {
        let tills = self.0.all();
        let mut reports = Vec::new();
        for till in &tills {
            let mut state = till.state();
            state.limits = Limits::default();
            reports.extend(state.grants.drain(..).map(|held| held.last_report()));
        }
        self.0.source.report_last(&reports).await;
    }
}

impl Shared {
    fn all(&self) -> Vec<Arc<Till>> {
        self.tills.read().unwrap_or_else(PoisonError::into_inner).iter().flatten().cloned().collect()
    }
}

impl Held {
    fn last_report(&self) -> ReportOf {
        ReportOf { id: self.id, spent: self.taken, expires_us: 0, closes: true }
    }
}

impl Till {
    fn new(source: &Source, tenant: &str, limits: Limits) -> Till {
        let state = State {
            limits,
            grants: Vec::new(),
            refused: None,
            made: Instant::now(),
            second: Instant::now(),
            lately: 0,
            before: 0,
        };
        Till {
            source: source.clone(),
            tenant: tenant.to_owned(),
            state: Mutex::new(state),
            turn: Arc::default(),
            waiting: AtomicI64::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing below panics between two changes that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn take(self: Arc<Self>) -> Result<Option<Ticket>, Refusal> {
        if let Some(taken) = self.taken_now() {
            return taken;
        }
        let _waits = Waits::begin(&self.waiting);
        loop {
            let turn = self.turn.clone().lock_owned().await;
            if let Some(taken) = self.taken_now() {
                return taken;
            }
            // Whoever waits may go away; what was granted for him is others' then.
            let till = self.clone();
            let asked = tokio::spawn(async move { till.ask(turn).await });
            if asked.await.is_err() {
                return Err(Refusal::Unknown);
            }
        }
    }

    /// What can be said without asking; nothing, if one has to ask.
    fn taken_now(self: &Arc<Self>) -> Option<Result<Option<Ticket>, Refusal>> {
        let (now, at_us) = (Instant::now(), now_us());
        let mut state = self.state();
        if state.limits.is_empty() {
            return Some(Ok(None));
        }
        let windows = windows_of(at_us);
        if let Some(grant) = state.take_from(now, windows) {
            let ticket = Ticket { till: Some(self.clone()), grant };
            if state.is_low(now, windows)
                && let Ok(turn) = self.turn.clone().try_lock_owned()
            {
                drop(state);
                let till = self.clone();
                tokio::spawn(async move { till.ask(turn).await });
            }
            return Some(Ok(Some(ticket)));
        }
        match state.refused {
            // In shadow mode nothing is refused, known or not.
            Some((until, _)) if now < until && state.limits.shadow => Some(Ok(None)),
            Some((until, refusal)) if now < until => match refusal {
                Refusal::Spent { until_us } if until_us <= at_us => None,
                refusal => Some(Err(refusal)),
            },
            _ => None,
        }
    }

    /// Asks for one more grant; the turn is the asker's.
    async fn ask(self: Arc<Self>, _turn: tokio::sync::OwnedMutexGuard<()>) {
        let (sent, at_us, limits, want, ahead_us, stepped) = {
            let now = Instant::now();
            let mut state = self.state();
            let (at_us, ahead_us, stepped) = state.stepped(now, now_us());
            let ahead = state.a_second(now).clamp(AHEAD_MIN, AHEAD_MAX);
            let wanted = self.waiting.load(Ordering::Relaxed).max(1).saturating_add(ahead);
            (now, at_us, state.limits, Want { wanted, least: 1, floor: 1 }, ahead_us, stepped)
        };
        if !stepped.is_empty() {
            // By the clock as it is set now they may be over, and the ask would close them with less than was used.
            self.source.report(&stepped).await;
        }
        let ask = self.source.ask(&self.tenant, Unit::Requests, want, at_us);
        let taken = self.source.take(&ask, &limits).await;
        let now = Instant::now();
        let mut state = self.state();
        match taken {
            Some(Taken::Answer(Answer::Granted { amount, .. })) => {
                state.refused = None;
                state.grants.push(Held {
                    id: ask.id,
                    amount,
                    taken: 0,
                    out: 0,
                    told: 0,
                    windows: windows_of(at_us),
                    usable_until: sent + (LIFE - SKEW),
                    used: now,
                    reported: sent,
                    ahead_us,
                    scarce: amount < want.wanted,
                });
            }
            Some(Taken::Answer(Answer::Spent { until_us, .. })) => {
                state.refused = Some((now + REFUSAL_KEPT, Refusal::Spent { until_us }));
            }
            // Two of one id, or one that has ended before it began: the next ask is another.
            Some(Taken::Closed | Taken::Foreign) | None => {
                state.refused = Some((now + REFUSAL_KEPT, Refusal::Unknown));
            }
        }
    }
}

impl State {
    /// The grant that one more was taken from.
    fn take_from(&mut self, now: Instant, windows: [i64; 3]) -> Option<i64> {
        let held = self.grants.iter_mut().find(|held| held.has_some(now, windows))?;
        held.taken += 1;
        held.out += 1;
        held.used = now;
        let grant = held.id;
        self.count(now);
        self.lately += 1;
        Some(grant)
    }

    /// The grants that were taken before the machine's clock was set, to be given back; with what it says now, and by how much more.
    fn stepped(&mut self, now: Instant, at_us: i64) -> (i64, i64, Vec<ReportOf>) {
        let ahead_us = at_us.saturating_sub(micros(now.saturating_duration_since(self.made)));
        let is_off = |held: &mut Held| held.ahead_us.abs_diff(ahead_us) > STEP_US;
        let stepped = self.grants.extract_if(.., is_off).map(|held| held.last_report()).collect();
        (at_us, ahead_us, stepped)
    }

    /// Whether the next grant is to be asked for before this one is empty. Where little is left nobody takes ahead.
    fn is_low(&self, now: Instant, windows: [i64; 3]) -> bool {
        let usable = || self.grants.iter().filter(|held| now < held.usable_until && held.windows == windows);
        let (left, of) = usable().fold((0, 0), |(left, of), held| (left + held.amount - held.taken, of + held.amount));
        left < of / 4 && self.grants.len() < GRANTS_MAX && !usable().any(|held| held.scarce)
    }

    fn count(&mut self, now: Instant) {
        if now >= self.second + Duration::from_secs(1) {
            // After a pause nothing was taken in the second before.
            self.before = if now < self.second + Duration::from_secs(2) { self.lately } else { 0 };
            (self.second, self.lately) = (now, 0);
        }
    }

    /// What is taken in a second.
    fn a_second(&mut self, now: Instant) -> i64 {
        self.count(now);
        self.lately.max(self.before)
    }

    /// What is to be reported now. Grants that are given back are no longer here.
    fn reports(&mut self, now: Instant, at_us: i64) -> Vec<ReportOf> {
        let (windows, counted) = (windows_of(at_us), !self.limits.is_empty());
        let mut reports = Vec::new();
        self.grants.retain_mut(|held| {
            let unused = now.saturating_duration_since(held.used);
            let kept = if held.scarce { KEPT_SCARCE } else { KEPT };
            let full = held.taken == held.amount && held.out == 0;
            if full || unused >= kept || now >= held.usable_until || held.windows != windows || !counted {
                reports.push(held.last_report());
                return false;
            }
            if held.spent() > held.told && now >= held.reported + REPORT_INTERVAL {
                let expires_us = at_us + micros(LIFE);
                reports.push(ReportOf { id: held.id, spent: held.spent(), expires_us, closes: false });
            }
            true
        });
        reports
    }
}

impl Held {
    fn has_some(&self, now: Instant, windows: [i64; 3]) -> bool {
        self.taken < self.amount && now < self.usable_until && self.windows == windows
    }
}

fn windows_of(at_us: i64) -> [i64; 3] {
    Period::ALL.map(|period| period.begin(at_us))
}

/// One more waits for as long as this is there.
struct Waits<'a>(&'a AtomicI64);

impl<'a> Waits<'a> {
    fn begin(waiting: &'a AtomicI64) -> Waits<'a> {
        waiting.fetch_add(1, Ordering::Relaxed);
        Waits(waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Reports, extends and gives back, until the tills are gone.
async fn look_after(shared: Weak<Shared>) {
    // What could not be given back yet. It ends by itself, and so is not kept for longer than that.
    let mut back: Vec<(Instant, ReportOf)> = Vec::new();
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let Some(shared) = shared.upgrade() else { return };
        let sent = Instant::now();
        back.retain(|(since, _)| sent < *since + LIFE + SKEW + SKEW);
        let mut open = Vec::new();
        for till in shared.all() {
            for report in till.state().reports(sent, now_us()) {
                match report.closes {
                    true => back.push((sent, report)),
                    false => open.push((till.clone(), report)),
                }
            }
        }
        let reports: Vec<ReportOf> = open.iter().map(|(_, report)| *report).chain(back.iter().map(|b| b.1)).collect();
        if reports.is_empty() {
            continue;
        }
        let Some(reported) = shared.source.report(&reports).await else { continue };
        back.clear();
        for ((till, report), reported) in open.into_iter().zip(reported) {
            let mut state = till.state();
            let Some(at) = state.grants.iter().position(|held| held.id == report.id) else { continue };
            if !reported.open {
                // Somebody else's clock was past its end. What it had left is others' by now.
                state.grants.remove(at);
                continue;
            }
            let held = &mut state.grants[at];
            (held.told, held.reported, held.usable_until) = (report.spent, sent, sent + (LIFE - SKEW));
        }
    }
}

#[cfg(test)]
mod tests;
