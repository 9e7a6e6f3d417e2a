//! Random histories with crashes, against the truth.
#![allow(clippy::unwrap_used)]

mod months;
mod rig;
mod tamper;

use std::collections::BTreeMap;

use proptest::prelude::*;

use self::rig::{bills, book_of, epochs, history};
use super::*;

fn of_epoch<'a>(rows: &'a [Row<'static>], epoch: i64) -> Vec<Row<'a>> {
    rows.iter().filter(|row| row.epoch == epoch).cloned().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_account_adds_up_whenever_the_engine_dies(seed: u64) {
        let history = history(seed, 5, 200);
        let verified = verify(history.rows.iter().cloned()).unwrap();
        prop_assert_eq!(verified.rows, history.rows.len() as u64);
        for epoch in epochs(&history.rows) {
            let rows = of_epoch(&history.rows, epoch);
            let book = book_of(&rows);
            prop_assert_eq!(book.stage(), Stage::Closed);
            // The tenants' time from the bills alone, and not from the book.
            let mut tenants: BTreeMap<String, i64> = BTreeMap::new();
            for row in rows.iter().filter(|row| matches!(&*row.kind, "settle" | "recovered")) {
                let body: serde_json::Value = serde_json::from_str(&row.body).unwrap();
                for pair in body["split"].as_array().unwrap() {
                    *tenants.entry(pair[0].as_str().unwrap().to_owned()).or_default() += pair[2].as_i64().unwrap();
                }
            }
            for (name, account) in book.devices() {
                let tenants = tenants.get(name).copied().unwrap_or(0);
                let operator = i64::try_from(account.operator.total()).unwrap();
                prop_assert_eq!(account.wall, tenants + account.idle + operator);
                if let Some(devices) = history.truth.clean.get(&epoch) {
                    let device = &devices[name];
                    prop_assert_eq!(device.wall, account.wall);
                    prop_assert_eq!((device.idle, device.operator), (account.idle, account.operator));
                    prop_assert_eq!(device.tenants, tenants);
                }
            }
        }
    }

    #[test]
    fn nobody_is_charged_twice_or_above_the_work_done(seed: u64) {
        let history = history(seed, 5, 200);
        let bills = bills(&history.rows);
        for (id, ns) in &bills {
            prop_assert!(*ns <= history.truth.work[id], "{:?}", id);
        }
        for (id, ns) in &history.truth.acknowledged {
            prop_assert_eq!(bills.get(id), Some(ns), "{:?} was acknowledged", id);
        }
    }

    #[test]
    fn a_second_recovery_changes_nothing(seed: u64) {
        let history = history(seed, 3, 100);
        for epoch in epochs(&history.rows) {
            let book = book_of(&of_epoch(&history.rows, epoch));
            prop_assert_eq!(recover(&book, i64::MAX), Vec::new());
        }
    }

    #[test]
    fn a_row_says_what_was_written(seed: u64) {
        for row in history(seed, 2, 60).rows {
            let record = row.record().unwrap();
            let mut again = record.to_row();
            (again.epoch, again.seq, again.at_us, again.hash) = (row.epoch, row.seq, row.at_us, row.hash);
            prop_assert_eq!(&again, &row);
        }
    }
}

#[test]
fn histories_crash_and_recover_bills() {
    let (mut crashes, mut recovered, mut clean) = (0, 0, 0);
    for seed in 0..20 {
        let history = history(seed, 5, 200);
        crashes += history.truth.crashes;
        clean += history.truth.clean.len();
        recovered += history.rows.iter().filter(|row| row.kind == "recovered").count();
    }
    assert!(crashes > 50 && clean > 10 && recovered > 50, "{crashes} crashes, {clean} clean, {recovered} recovered");
}

#[test]
fn what_a_crash_took_is_the_operators_and_downtime_too() {
    let mut chain = Chain::new(1);
    let second = 1_000_000;
    let running = |ns| Running {
        tenant: "a".into(),
        request: "1".into(),
        model: "m".into(),
        key: "k".into(),
        plan: "p".into(),
        ns,
    };
    let settle = Settle {
        tenant: "a".into(),
        request: "2".into(),
        model: "m".into(),
        key: "k".into(),
        plan: "p".into(),
        split: vec![Share { device: "d".into(), class: "cpu".into(), ns: 300_000_000 }],
        prompt_tokens: 1,
        completion_tokens: 1,
        stop: "stop".into(),
        name: "".into(),
    };
    let checkpoint = Checkpoint {
        device: "d".into(),
        class: "cpu".into(),
        wall: 500,
        idle: 100,
        operator: OperatorTimes::default(),
        running: vec![running(400)],
    };
    let rows = [
        chain.append(0, &Record::Open(Open { replica: "one".into(), previous: None })),
        chain.append(second, &Record::Checkpoint(checkpoint)),
        chain.append(2 * second, &Record::Settle(settle)),
    ];
    let records = recover(&book_of(&rows), 5 * second);
    let [Record::Recovered(bill), Record::Lost(lost), Record::Close] = &records[..] else { panic!("{records:?}") };
    assert_eq!((bill.request.as_ref(), bill.plan.as_ref(), bill.total()), ("1", "p", 400));
    assert_eq!(bill.split[0].class.as_ref(), "cpu");
    assert_eq!((lost.lost, lost.down), (700_000_000, 3_000_000_000), "a second less the bill, and three");
}
