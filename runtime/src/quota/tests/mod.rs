//! Grants against clocks that step, and against the world of [`simulation`].
#![allow(clippy::unwrap_used)]

mod simulation;

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// Instants at which windows end in every way: hours, days, months of each length, a leap day, a leap century and one
/// that is none.
const BOUNDARIES: [&str; 8] = ["2024-02", "2024-03", "2023-03", "2026-01", "2000-03", "2100-03", "2026-05", "1970-01"];

fn spent(grants: &Grants, period: Period) -> i64 {
    grants.windows().iter().filter(|(key, _)| key.2 == period).map(|(_, window)| window.spent).sum()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// A replica whose clock steps forwards and backwards over ends of months spends what it is given, and reports
    /// late and doubled.
    #[test]
    fn each_nanosecond_is_in_one_window_of_each_period(
        boundary in 0usize..BOUNDARIES.len(),
        steps in proptest::collection::vec((-40i64..40, 0u32..3, 1i64..2_000_000_000, 0i64..=100), 1..80),
        amounts in proptest::array::uniform3(proptest::option::of(1_000_000_000i64..20_000_000_000)),
    ) {
        let limits = Limits { amounts, burst_percent: 20, carry_percent: 50, ..Limits::default() };
        let mut at_us = calendar::month_begins_us(BOUNDARIES[boundary]).unwrap();
        let mut grants = Grants::new(1_000_000);
        let (mut device_time, mut by_window) = (0, BTreeMap::new());
        for (id, (minutes, longer, wanted, percent)) in (1..).zip(steps) {
            // Minutes, hours, or half days.
            at_us += minutes * 60_000_000 * [1, 17, 719][longer as usize];
            let ask = Ask {
                id,
                tenant: "acme".into(),
                unit: Unit::DeviceNs,
                replica: "one".into(),
                epoch: 1,
                want: Want { wanted, least: 1, floor: 1 },
                at_us,
                expires_us: at_us + 5_000_000,
            };
            let Taken::Answer(Answer::Granted { amount, .. }) = grants.take(&ask, &limits) else { continue };
            let used = amount * percent / 100;
            device_time += used;
            for period in Period::ALL {
                let begins = period.begin(at_us);
                prop_assert!(begins <= at_us && at_us < period.end(begins));
                *by_window.entry((period, begins)).or_insert(0) += used;
            }
            grants.extend(id, used / 2, ask.expires_us);
            grants.give_back(id, used);
            grants.extend(id, used / 2, ask.expires_us);
        }
        for period in Period::ALL {
            prop_assert_eq!(spent(&grants, period), device_time);
        }
        for ((_, _, period, begins), window) in grants.windows() {
            prop_assert_eq!(window.spent, by_window.get(&(*period, *begins)).copied().unwrap_or(0));
            prop_assert_eq!(window.granted, window.spent, "all grants were given back");
            prop_assert!(window.granted <= limits.allowed(*period, window.brought));
        }
    }
}
