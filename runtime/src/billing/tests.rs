#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::{
    quota::calendar,
    store::{ANY, Price},
};

/// November 2026.
const DAY: i64 = 20_758;

fn price(model: &str, plan: &str, class: &str, from_us: i64, micros_per_device_hour: i64) -> Price {
    let [model, plan, device_class] = [model, plan, class].map(str::to_owned);
    Price { model, plan, device_class, from_us, micros_per_device_hour }
}

fn row(day: i64, model: &str, key: &str, plan: &str, class: &str, device_ns: i64) -> UsageRow {
    let [tenant, model, key, plan, device_class] = ["acme", model, key, plan, class].map(str::to_owned);
    let sums = Sums { requests: 1, prompt_tokens: 3, completion_tokens: 5, device_ns };
    UsageRow { tenant, day, model, key, plan, device_class, sums }
}

const HOUR_NS: i64 = 3_600_000_000_000;

#[test]
fn an_hour_costs_its_price_times_the_multiplier() {
    for (ns, price, ppm, micros) in [
        (HOUR_NS, 2_500_000, 1_000_000, 2_500_000),
        (HOUR_NS, 2_500_000, 1_500_000, 3_750_000),
        (HOUR_NS, 2_500_000, 0, 0),
        // Rounded down: a millionth short of a millionth is nothing.
        (HOUR_NS - 1, 1, 1_000_000, 0),
        (HOUR_NS, 1, 999_999, 0),
        (HOUR_NS, 1, 1_000_000, 1),
        (HOUR_NS / 2, 3, 1_000_000, 1),
        (-HOUR_NS, 1_000_000, 1_000_000, 0),
        (i64::MAX, i64::MAX, 100_000_000, i64::MAX),
    ] {
        assert_eq!(Cost::of(ns, price, ppm).micros(), micros, "{ns} {price} {ppm}");
    }
}

#[test]
fn a_price_that_changes_within_the_month_splits_the_line_on_that_day() {
    let noon = calendar::day_begins_us(DAY + 9) + 43_200_000_000;
    let prices = [price(ANY, ANY, ANY, 0, 1_000_000), price(ANY, ANY, ANY, noon, 2_000_000)];
    let rates = Rates { prices: &prices, price_ppm: &BTreeMap::new() };
    let rows: Vec<UsageRow> = (0..30).map(|day| row(DAY + day, "m", "k", "own", "cpu", HOUR_NS)).collect();
    let month_us = calendar::month_begins_us("2026-11").unwrap();
    assert_eq!(calendar::day_of(month_us), DAY);
    let bill = Invoice::new("acme", month_us, &rows, &rates, 7, true);
    let lines: Vec<_> = bill.lines.iter().map(|line| (line.used.requests, line.amount_micros)).collect();
    // Nine days at the old price, and the tenth, within which it changed, at the new one.
    assert_eq!(lines, [(9, 9_000_000), (21, 42_000_000)]);
    assert_eq!((bill.used.device_ns, bill.amount_micros), (30 * HOUR_NS, 51_000_000));
}

#[test]
fn a_bill_has_its_own_months_rows_and_each_multiplier() {
    let prices = [price(ANY, ANY, ANY, 0, 1_000_000), price("dear", ANY, "h200", 0, 8_000_000)];
    let price_ppm = BTreeMap::from([("dear".to_owned(), 500_000), (ANY.to_owned(), 2_000_000)]);
    let rates = Rates { prices: &prices, price_ppm: &price_ppm };
    let mut rows = vec![
        row(DAY - 1, "dear", "k", "own", "h200", HOUR_NS),
        row(DAY, "dear", "k", "own", "h200", HOUR_NS),
        row(DAY, "dear", "l", "own", "cpu", HOUR_NS),
        row(DAY + 29, "cheap", "k", "own", "cpu", HOUR_NS),
        row(DAY + 30, "cheap", "k", "own", "cpu", HOUR_NS),
    ];
    rows.push(UsageRow { tenant: "rival".into(), ..rows[1].clone() });
    let month_us = calendar::day_begins_us(DAY);
    let bill = Invoice::new("acme", month_us, &rows, &rates, 7, false);
    let lines: Vec<_> =
        bill.lines.iter().map(|l| (l.model.as_str(), l.device_class.as_str(), l.amount_micros)).collect();
    assert_eq!(lines, [("cheap", "cpu", 2_000_000), ("dear", "cpu", 500_000), ("dear", "h200", 4_000_000)]);

    // What is kept is read back as it was.
    let text = serde_json::to_string(&bill).unwrap();
    assert_eq!(serde_json::from_str::<Invoice>(&text).unwrap(), bill);
}

#[test]
fn what_has_no_price_is_shown_and_costs_nothing() {
    let rates = Rates { prices: &[price("m", ANY, ANY, 0, 1)], price_ppm: &BTreeMap::new() };
    let rows = [row(DAY, "free", "k", "own", "cpu", HOUR_NS), row(DAY, "m", "k", "own", "cpu", HOUR_NS)];
    let bill = Invoice::new("acme", calendar::day_begins_us(DAY), &rows, &rates, 7, false);
    assert_eq!((bill.lines[0].micros_per_device_hour, bill.lines[0].amount_micros), (None, 0));
    assert_eq!((bill.lines.len(), bill.amount_micros), (2, 1));
    let mut usage = Usage::by(BTreeSet::new());
    rows.iter().for_each(|row| usage.add(row, &rates).unwrap());
    assert_eq!((usage.total().unpriced_ns, usage.total().cost.micros()), (HOUR_NS, 1));
}

#[test]
fn a_table_for_spreadsheets_has_no_formulas_and_ends_with_the_total() {
    let rates = Rates { prices: &[price(ANY, ANY, ANY, 0, 1_000_000)], price_ppm: &BTreeMap::new() };
    let rows = [row(DAY, "=1+1", "k", "a,\"b\"", "cpu", HOUR_NS)];
    let csv = Invoice::new("acme", calendar::day_begins_us(DAY), &rows, &rates, 7, false).csv();
    let lines: Vec<&str> = csv.split("\r\n").collect();
    let columns = lines[0].split(',').count();
    assert_eq!(lines[1], "1,acme,2026-11,'=1+1,\"a,\"\"b\"\"\",cpu,0,1000000,1000000,1,3,5,3600000000000,1000000");
    assert_eq!(lines[2], "total,acme,2026-11,,,,,,,1,3,5,3600000000000,1000000");
    assert_eq!(lines[2].split(',').count(), columns);
    assert_eq!(lines[3..], [""]);
}

#[test]
fn too_many_groups_are_refused() {
    let rates = Rates { prices: &[], price_ppm: &BTreeMap::new() };
    let mut usage = Usage::by(BTreeSet::from([Dimension::Key]));
    for number in 0..GROUPS_LEN_MAX {
        usage.add(&row(DAY, "m", &number.to_string(), "own", "cpu", 1), &rates).unwrap();
    }
    usage.add(&row(DAY + 1, "m", "7", "own", "cpu", 1), &rates).unwrap();
    assert_eq!(usage.add(&row(DAY, "m", "x", "own", "cpu", 1), &rates), Err(TooManyGroups));
}

fn rows() -> impl Strategy<Value = Vec<UsageRow>> {
    let one =
        (-1i64..32, 0..3usize, 0..3usize, 0..2usize, 0..2usize, 0i64..4 * HOUR_NS).prop_map(|(day, m, k, p, c, ns)| {
            row(DAY + day, ["m", "n", "o"][m], ["k", "l", ""][k], ["starter", "own"][p], ["cpu", "h200"][c], ns)
        });
    prop::collection::vec(one, 0..60)
}

fn prices() -> impl Strategy<Value = Vec<Price>> {
    let one = (0..4usize, 0..3usize, 0..3usize, 0i64..31, 0i64..100_000_000).prop_map(|(m, p, c, day, micros)| {
        let from_us = calendar::day_begins_us(DAY + day) - 1;
        price(["m", "n", ANY, ANY][m], ["starter", ANY, ANY][p], ["cpu", "h200", ANY][c], from_us, micros)
    });
    prop::collection::vec(one, 0..8)
}

proptest! {
    #[test]
    fn lines_are_what_was_used_and_sum_to_the_total(rows in rows(), prices in prices(), ppm in 0u64..100_000_001) {
        let price_ppm = BTreeMap::from([("m".to_owned(), ppm)]);
        let rates = Rates { prices: &prices, price_ppm: &price_ppm };
        let bill = Invoice::new("acme", calendar::day_begins_us(DAY), &rows, &rates, 7, true);
        let own: Vec<&UsageRow> = rows.iter().filter(|row| (DAY..DAY + 30).contains(&row.day)).collect();
        prop_assert_eq!(bill.used.device_ns, own.iter().map(|row| row.sums.device_ns).sum::<i64>());
        prop_assert_eq!(bill.used.requests, own.len() as i64);
        prop_assert_eq!(bill.amount_micros, bill.lines.iter().map(|line| line.amount_micros).sum::<i64>());
        for line in &bill.lines {
            // By hand, in one division.
            let price = line.micros_per_device_hour.unwrap_or(0);
            let product = i128::from(line.used.device_ns) * i128::from(price) * i128::from(line.price_ppm);
            prop_assert_eq!(i128::from(line.amount_micros), product / (3_600 * 1_000_000_000 * 1_000_000));
        }
        // No two lines are of the same model, plan, class and price.
        let names: BTreeSet<_> =
            bill.lines.iter().map(|l| (&l.model, &l.plan, &l.device_class, l.price_from_us, l.micros_per_device_hour)).collect();
        prop_assert_eq!(names.len(), bill.lines.len());
    }

    #[test]
    fn groups_sum_to_the_whole_however_they_are_made(rows in rows(), prices in prices(), mask in 0u8..64) {
        let rates = Rates { prices: &prices, price_ppm: &BTreeMap::new() };
        let by = Dimension::ALL.into_iter().enumerate().filter(|(bit, _)| mask >> bit & 1 == 1).map(|(_, d)| d).collect();
        let mut usage = Usage::by(by);
        for row in &rows {
            usage.add(row, &rates).unwrap();
        }
        let mut sum = UsageGroup::default();
        for (_, group) in usage.groups() {
            sum.sums += group.sums;
            sum.cost += group.cost;
            sum.unpriced_ns += group.unpriced_ns;
        }
        prop_assert_eq!(&sum, usage.total());
    }
}
