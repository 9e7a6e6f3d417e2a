//! Replicas and one store, with a net between them that loses, delays and doubles, clocks that differ, and replicas
//! that die.
//!
//! After every event it is checked that, for every window, `spent <= granted <= allowed` and that what is granted is
//! what open grants hold and closed ones spent; that no replica may use a grant that the store has closed; and that
//! what replicas really used of a window (which the store learns later, or never) is within it. In the end nobody
//! extends anything any more, and one ask after the time to live and the skews has everything back that was not
//! spent.
//!
//! `WEIR_PROOFS=full` plays 10,000 schedules, `WEIR_PROOFS_SEED=N` that one alone.

use std::{
    collections::{BTreeMap, BinaryHeap},
    time::Instant,
};

use crate::quota::*;

/// By which any two clocks differ at most.
const SKEW: i64 = 2_000_000;
const TIME_TO_LIVE: i64 = 5_000_000;
/// Replicas look after their grants this often.
const TICK: i64 = 250_000;
/// The longest step, which begins before its grant's end.
const STEP: i64 = 60_000;
const LENGTH: i64 = 90_000_000;
const TENANTS: [&str; 2] = ["acme", "beta"];

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `range.0`, below `range.1`.
    fn within(&mut self, range: (i64, i64)) -> i64 {
        range.0 + (self.next() % (range.1 - range.0).max(1) as u64) as i64
    }

    fn chance(&mut self, percent: i64) -> bool {
        self.within((0, 100)) < percent
    }
}

#[derive(Debug, Clone)]
enum Message {
    Take(Ask),
    Extend { id: i64, spent: i64, expires_us: i64 },
    GiveBack { id: i64, spent: i64 },
}

#[derive(Debug, Clone)]
enum Event {
    Tick { replica: usize, life: i64 },
    Restart { replica: usize },
    ToStore { replica: usize, life: i64, sent: i64, message: Message },
    Granted { life: i64, ask: Ask, amount: i64, usable_until: i64 },
    Extended { replica: usize, life: i64, id: i64, open: bool, usable_until: i64 },
}

/// A grant, as its replica sees it. All times are real ones: a monotonic clock differs from them by a constant.
#[derive(Debug)]
struct Held {
    tenant: usize,
    amount: i64,
    used: i64,
    usable_until: i64,
}

struct Replica {
    /// What its wall clock says more than is true.
    offset: i64,
    life: i64,
    held: BTreeMap<i64, Held>,
    /// Its net is cut until then.
    cut_until: i64,
    asked: i64,
}

/// A schedule being played.
struct World {
    rng: Rng,
    now: i64,
    /// Of the true clock, in microseconds since 1970, when `now` was zero.
    began_us: i64,
    queue: BinaryHeap<(std::cmp::Reverse<(i64, u64)>, usize)>,
    events: Vec<Option<Event>>,
    replicas: Vec<Replica>,
    store: Grants,
    limits: [Limits; 2],
    /// What was really used of each grant, by whoever holds or held it.
    used: BTreeMap<i64, i64>,
    asks: i64,
    stats: Stats,
}

#[derive(Debug, Default, Clone, Copy)]
struct Stats {
    events: u64,
    granted: u64,
    refused: u64,
    expired: u64,
    restarts: u64,
    late: i64,
    used: i64,
}

impl World {
    fn new(seed: u64, clocks: i64) -> World {
        let mut rng = Rng(seed);
        let months = ["2026-03", "2024-03", "2027-01", "2026-11"];
        let month = calendar::month_begins_us(months[rng.within((0, 4)) as usize]).unwrap();
        // Most schedules cross the end of a month, and so of a day and an hour.
        let began_us = month - rng.within((0, 120_000_000));
        let replicas = (0..rng.within((2, 5))).map(|_| Replica {
            offset: rng.within((-clocks / 2, clocks / 2 + 1)),
            life: 0,
            held: BTreeMap::new(),
            cut_until: 0,
            asked: 0,
        });
        let replicas = replicas.collect();
        let limits = [(); 2].map(|()| {
            let amounts = [(); 3].map(|()| rng.chance(60).then(|| rng.within((1, 40)) * 500_000_000));
            Limits { amounts, burst_percent: 25, carry_percent: 30, ..Limits::default() }
        });
        let mut world = World {
            rng,
            now: 0,
            began_us,
            queue: BinaryHeap::new(),
            events: Vec::new(),
            replicas,
            store: Grants::new(SKEW),
            limits,
            used: BTreeMap::new(),
            asks: 0,
            stats: Stats::default(),
        };
        for replica in 0..world.replicas.len() {
            let at = world.rng.within((0, TICK));
            world.at(at, Event::Tick { replica, life: 0 });
            if world.rng.chance(40) {
                let at = world.rng.within((0, LENGTH));
                world.at(at, Event::Restart { replica });
            }
        }
        world
    }

    fn at(&mut self, at: i64, event: Event) {
        let number = self.events.len();
        self.events.push(Some(event));
        self.queue.push((std::cmp::Reverse((at, number as u64)), number));
    }

    fn clock(&self, replica: usize) -> i64 {
        self.began_us + self.now + self.replicas[replica].offset
    }

    /// Sends something over the net: it may be lost, may come late, and may come twice.
    fn send(&mut self, replica: usize, event: &Event) {
        for _ in 0..=i64::from(self.rng.chance(5)) {
            let slow = if self.rng.chance(3) { 15_000_000 } else { 40_000 };
            let at = self.now + self.rng.within((200, slow));
            if self.replicas[replica].cut_until <= self.now && !self.rng.chance(3) {
                self.at(at, event.clone());
            }
        }
    }

    fn ask_store(&mut self, replica: usize, message: Message) {
        let (life, sent) = (self.replicas[replica].life, self.now);
        self.send(replica, &Event::ToStore { replica, life, sent, message });
    }

    fn tick(&mut self, replica: usize) {
        if self.rng.chance(1) && self.replicas[replica].cut_until <= self.now {
            self.replicas[replica].cut_until = self.now + self.rng.within((500_000, 60_000_000));
        }
        let expires_us = self.clock(replica) + TIME_TO_LIVE;
        // Steps on what it may still use; requests that are counted are steps of one.
        for (&id, held) in &mut self.replicas[replica].held {
            if self.now + STEP < held.usable_until && self.rng.chance(80) {
                let used = self.rng.within((0, 300_000_000)).min(held.amount - held.used);
                held.used += used;
                *self.used.entry(id).or_default() += used;
            }
        }
        let held: Vec<(i64, i64, i64, i64)> =
            self.replicas[replica].held.iter().map(|(id, h)| (*id, h.used, h.amount, h.usable_until)).collect();
        for (id, spent, amount, until) in held {
            if until < self.now - 1_000_000 || spent == amount || self.rng.chance(2) {
                self.replicas[replica].held.remove(&id);
                self.ask_store(replica, Message::GiveBack { id, spent });
            } else if self.rng.chance(40) {
                self.ask_store(replica, Message::Extend { id, spent, expires_us });
            }
        }
        for (tenant, name) in TENANTS.into_iter().enumerate() {
            let usable = self.replicas[replica].held.values().filter(|held| held.tenant == tenant).count();
            if usable < 2 && self.rng.chance(50) && self.replicas[replica].asked < self.now {
                self.asks += 1;
                self.replicas[replica].asked = self.now + 300_000;
                let ask = Ask {
                    id: self.asks,
                    tenant: name.into(),
                    unit: Unit::DeviceNs,
                    replica: replica.to_string(),
                    epoch: self.replicas[replica].life,
                    want: Want { wanted: 2_000_000_000, least: self.rng.within((1, 50_000_000)), floor: 1 },
                    at_us: self.clock(replica),
                    expires_us,
                };
                self.ask_store(replica, Message::Take(ask));
            }
        }
        if self.now < LENGTH {
            let life = self.replicas[replica].life;
            self.at(self.now + TICK, Event::Tick { replica, life });
        }
    }

    fn play(&mut self, event: Event) {
        match event {
            Event::Tick { replica, life } => {
                if self.replicas[replica].life == life {
                    self.tick(replica);
                }
            }
            // It dies with what it knew; what it had used since its last report is the operator's.
            Event::Restart { replica } => {
                self.stats.restarts += 1;
                self.replicas[replica].life += 1;
                self.replicas[replica].held.clear();
                let life = self.replicas[replica].life;
                self.at(self.now + 2_000_000, Event::Tick { replica, life });
            }
            Event::ToStore { replica, life, sent, message } => self.arrive(replica, life, sent, message),
            Event::Granted { life, ask, amount, usable_until } => {
                let replica = &mut self.replicas[ask.replica.parse::<usize>().unwrap()];
                // An answer that comes twice, or after the replica has used and given it back, is of a grant that it
                // knew.
                let known = self.used.contains_key(&ask.id);
                if replica.life == life && !known && self.now < usable_until {
                    let tenant = TENANTS.iter().position(|name| *name == ask.tenant).unwrap();
                    self.used.insert(ask.id, 0);
                    replica.held.insert(ask.id, Held { tenant, amount, used: 0, usable_until });
                }
            }
            Event::Extended { replica, life, id, open, usable_until } => {
                let replica = &mut self.replicas[replica];
                if replica.life != life {
                    return;
                }
                if !open {
                    replica.held.remove(&id);
                } else if let Some(held) = replica.held.get_mut(&id) {
                    held.usable_until = held.usable_until.max(usable_until);
                }
            }
        }
    }

    fn arrive(&mut self, replica: usize, life: i64, sent: i64, message: Message) {
        // The replica stops a skew before the end, by its monotonic clock and from when it asked.
        let usable_until = sent + TIME_TO_LIVE - SKEW;
        match message {
            Message::Take(ask) => {
                let tenant = TENANTS.iter().position(|name| *name == ask.tenant).unwrap();
                let open = self.open_grants();
                let taken = self.store.take(&ask, &self.limits[tenant]);
                match taken {
                    Taken::Answer(Answer::Granted { amount, .. }) => {
                        self.stats.granted += 1;
                        self.stats.expired += open.saturating_sub(self.open_grants() - 1);
                        self.send(replica, &Event::Granted { life, ask, amount, usable_until });
                    }
                    Taken::Answer(Answer::Spent { until_us, .. }) => {
                        assert!(until_us > ask.at_us, "spent until a moment that is over");
                        self.stats.refused += 1;
                    }
                    Taken::Closed => {}
                    Taken::Foreign => panic!("ids are never used twice"),
                }
            }
            Message::Extend { id, spent, expires_us } => {
                let reported = self.store.extend(id, spent, expires_us);
                self.stats.late += reported.late;
                let open = reported.open;
                self.send(replica, &Event::Extended { replica, life, id, open, usable_until });
            }
            Message::GiveBack { id, spent } => self.stats.late += self.store.give_back(id, spent).late,
        }
    }

    fn open_grants(&self) -> u64 {
        self.store.grants().values().filter(|grant| !grant.closed).count() as u64
    }

    fn check(&self) -> Result<(), String> {
        // A dozen windows at most.
        let mut sums: Vec<(&WindowKey, &Window, [i64; 3])> =
            self.store.windows().iter().map(|(key, window)| (key, window, [0; 3])).collect();
        for (id, grant) in self.store.grants() {
            let used = self.used.get(id).copied().unwrap_or(0);
            // What the store does not know of a closed grant is the operator's.
            let (held, used) = if grant.closed { (grant.spent, grant.spent) } else { (grant.amount, used) };
            for (key, _, sums) in &mut sums {
                if grant.windows[key.2 as usize] == key.3 && grant.tenant == key.0 {
                    for (sum, part) in sums.iter_mut().zip([held, grant.spent, used]) {
                        *sum += part;
                    }
                }
            }
        }
        for (key, window, [held, spent, used]) in sums {
            let tenant = TENANTS.iter().position(|name| *name == key.0).unwrap();
            let allowed = self.limits[tenant].allowed(key.2, window.brought);
            let whole = (window.granted, window.spent) == (held, spent);
            if !(whole && spent <= held && used <= window.granted && window.granted <= allowed) {
                return Err(format!("{key:?}: {window:?}, {held} held, {spent} spent, {used} used, {allowed} allowed"));
            }
        }
        for (number, replica) in self.replicas.iter().enumerate() {
            for (id, held) in &replica.held {
                let open = self.store.grants().get(id).is_some_and(|grant| !grant.closed);
                if !open && self.now < held.usable_until {
                    return Err(format!("replica {number} may use grant {id}, which was returned"));
                }
            }
        }
        Ok(())
    }

    /// Until everything has ended.
    fn run(&mut self) -> Result<Stats, String> {
        while let Some((std::cmp::Reverse((at, _)), number)) = self.queue.pop() {
            self.now = at;
            let event = self.events[number].take().unwrap();
            self.play(event);
            self.stats.events += 1;
            self.check().map_err(|what| format!("at {} us: {what}", self.now))?;
        }
        // The last message has come. Whoever asks now has the clock that is furthest behind.
        let behind = self.replicas.iter().map(|replica| replica.offset).min().unwrap();
        let last = self.now.max(LENGTH + 15_000_000);
        self.now = last + TIME_TO_LIVE + 2 * SKEW;
        TENANTS.iter().for_each(|tenant| self.store.expire(tenant, self.began_us + self.now + behind));
        self.check()?;
        if self.store.grants().values().any(|grant| !grant.closed) {
            return Err("a grant outlives its time".into());
        }
        if self.store.windows().values().any(|window| window.granted != window.spent) {
            return Err("something is granted that nobody holds".into());
        }
        self.stats.used = self.used.values().sum();
        Ok(self.stats)
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|number| number.parse().unwrap())
}

#[test]
fn nobody_spends_what_was_not_granted_whatever_the_net_does() {
    let full = std::env::var("WEIR_PROOFS").is_ok_and(|size| size == "full");
    let seeds = match number("WEIR_PROOFS_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..if full { 10_000 } else { 500 },
    };
    let (began, schedules) = (Instant::now(), seeds.end - seeds.start);
    let mut sum = Stats::default();
    for seed in seeds {
        let stats = World::new(seed, SKEW).run().unwrap_or_else(|what| panic!("seed {seed}, {what}"));
        sum.events += stats.events;
        sum.granted += stats.granted;
        sum.refused += stats.refused;
        sum.expired += stats.expired;
        sum.restarts += stats.restarts;
        sum.late += stats.late;
        sum.used += stats.used;
    }
    println!("figure=1.schedules value={schedules} violations=0 took={:.1}s {sum:?}", began.elapsed().as_secs_f64());
    if schedules >= 500 {
        // Else nothing was shown.
        assert!(sum.granted > 10_000 && sum.refused > 10_000 && sum.expired > 500 && sum.restarts > 100, "{sum:?}");
        assert!(sum.late > 0 && sum.late < sum.used / 20, "{sum:?}");
    }
}

#[test]
fn a_clock_outside_the_bound_is_noticed_by_the_checks() {
    let broken = (0..200).filter(|seed| World::new(*seed, 30 * SKEW).run().is_err()).count();
    assert!(broken > 0, "the checks would see it");
}
