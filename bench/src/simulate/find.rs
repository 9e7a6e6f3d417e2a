//! How many devices a load takes.

use serde::Serialize;

use super::{
    answer::{Answer, Targets},
    load::Load,
};

/// The most devices that are tried.
pub const DEVICES_MAX: u16 = 64;

/// One number of devices, and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Try {
    /// How many.
    pub devices: u16,
    /// The worst tenant's 99th percentile of the time to the first token, in milliseconds; none if more than one in a hundred of its
    /// requests was refused.
    pub ttft_p99: Option<f64>,
    /// The same of the time between two tokens.
    pub itl_p99: Option<f64>,
    /// Requests refused.
    pub refused: u64,
    /// Device time of steps over all time of all devices.
    pub utilisation: f64,
    /// Every tenant has what it is to have.
    pub meets: bool,
}

impl Try {
    fn of(answer: &Answer, targets: &Targets) -> Try {
        let asked = || answer.tenants.iter().filter(|tenant| tenant.asked > 0);
        let ttft = asked().map(|tenant| tenant.ttft_p99_of_asked).collect::<Option<Vec<f64>>>();
        Try {
            devices: answer.devices,
            ttft_p99: ttft.map(|all| all.into_iter().fold(0.0, f64::max)),
            itl_p99: asked().filter_map(|tenant| tenant.itl).map(|itl| itl.p99).reduce(f64::max),
            refused: answer.total.refused,
            utilisation: answer.total.utilisation,
            meets: answer.misses(targets).is_empty(),
        }
    }
}

/// The least number of devices on which every tenant has what it is to have, with the answer there, and every number that was tried, in
/// ascending order. Numbers are doubled until one does, then halved: more devices are taken to be no worse.
pub fn find_devices(load: &Load, targets: &Targets) -> (Option<Answer>, Vec<Try>) {
    let mut tries: Vec<Try> = Vec::new();
    let mut best: Option<Answer> = None;
    let (mut too_few, mut devices) = (0, 1);
    loop {
        let answer = load.play(devices);
        let attempt = Try::of(&answer, targets);
        let meets = attempt.meets;
        tries.push(attempt);
        if meets {
            best = Some(answer);
        } else {
            too_few = devices;
        }
        devices = match &best {
            None if devices == DEVICES_MAX => break,
            None => (2 * devices).min(DEVICES_MAX),
            Some(best) if best.devices - too_few <= 1 => break,
            Some(best) => too_few + (best.devices - too_few) / 2,
        };
    }
    tries.sort_by_key(|attempt| attempt.devices);
    (best, tries)
}

#[cfg(test)]
mod tests {
    use super::super::{
        costs::tests::costs,
        load::LoadOptions,
        trace::tests::{request, trace},
    };
    use super::*;

    /// 40 texts a second of 60 tokens each, about 2.3 devices full of single rows.
    fn load() -> Load {
        let lines: String = (0..400).map(|n| request(n * 25_000_000, n as usize % 2, 60, 60)).collect();
        Load::recorded("t", &trace(&lines), &costs(4_000, 1_000), &LoadOptions::default()).unwrap()
    }

    #[test]
    fn the_least_number_that_will_do_is_found() {
        let load = load();
        let targets = Targets { ttft_p99: Some(150.0), itl_p99: None };
        let (best, tries) = find_devices(&load, &targets);
        let best = best.unwrap();
        assert!(best.devices > 1, "one device is not enough for this test to say anything");
        assert!(best.misses(&targets).is_empty());
        assert!(!load.play(best.devices - 1).misses(&targets).is_empty());
        assert!(tries.is_sorted_by(|a, b| a.devices < b.devices));
        assert!(tries.iter().all(|attempt| attempt.meets == (attempt.devices >= best.devices)), "{tries:?}");
    }

    #[test]
    fn targets_that_no_number_meets_are_said_to_be_none() {
        let (best, tries) = find_devices(&load(), &Targets { ttft_p99: Some(0.001), itl_p99: None });
        assert_eq!(best, None);
        assert_eq!(tries.iter().map(|t| t.devices).collect::<Vec<_>>(), [1, 2, 4, 8, 16, 32, 64]);
    }
}
