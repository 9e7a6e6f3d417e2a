//! What is done to rows is found, and named.

use proptest::prelude::*;

use super::rig::{Rng, history};
use crate::ledger::*;

/// Flips bits of one byte of one column of a row.
fn flip(row: &mut Row<'static>, rng: &mut Rng) {
    let bits = 1 + rng.below(127) as u8;
    loop {
        match rng.below(13) {
            0 => return row.hash.0[rng.below(32)] ^= bits,
            column @ 1..=6 => {
                let numbers = [
                    &mut row.epoch,
                    &mut row.seq,
                    &mut row.at_us,
                    &mut row.device_ns,
                    &mut row.prompt_tokens,
                    &mut row.completion_tokens,
                ];
                let number = numbers.into_iter().nth(column - 1).unwrap();
                *number ^= i64::from(bits) << (8 * rng.below(8));
                return;
            }
            column => {
                let texts =
                    [&mut row.kind, &mut row.tenant, &mut row.request, &mut row.model, &mut row.key, &mut row.body];
                let text = texts.into_iter().nth(column - 7).unwrap();
                let mut bytes = text.as_bytes().to_vec();
                if bytes.is_empty() {
                    continue;
                }
                let at = rng.below(bytes.len());
                bytes[at] ^= bits;
                // What is no text any more is refused where the store's rows are read.
                if let Ok(changed) = String::from_utf8(bytes) {
                    *text = changed.into();
                    return;
                }
            }
        }
    }
}

/// Makes the hashes of a chain anew, as one could who may write the store.
fn forge(rows: &mut [Row<'static>], epoch: i64) {
    let mut head = Hash::NONE;
    for row in rows.iter_mut().filter(|row| row.epoch == epoch) {
        row.hash = row.hash_after(head, &mut Vec::new());
        head = row.hash;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_flipped_byte_is_found_and_its_row_named(seed: u64) {
        let whole = history(seed, 3, 100).rows;
        let mut rng = Rng(seed);
        for _ in 0..20 {
            let mut rows = whole.clone();
            let at = rng.below(rows.len());
            flip(&mut rows[at], &mut rng);
            let bad = verify(rows.iter().cloned()).unwrap_err();
            prop_assert_eq!(bad.index, at as u64, "{}", &bad);
            let same_place = rows[at].epoch == whole[at].epoch && rows[at].seq == whole[at].seq;
            if same_place {
                prop_assert_eq!((bad.epoch, bad.seq), (whole[at].epoch, whole[at].seq), "{}", &bad);
            }
        }
    }

    #[test]
    fn rows_that_are_missing_doubled_or_moved_are_found(seed: u64) {
        let whole = history(seed, 3, 100).rows;
        let mut rng = Rng(seed);
        let at = rng.below(whole.len() - 1);
        let (epoch, seq) = (whole[at].epoch, whole[at].seq);
        let mut missing = whole.clone();
        missing.remove(at);
        let bad = verify(missing).unwrap_err();
        prop_assert_eq!((bad.epoch, bad.seq), (epoch, seq), "{}", &bad);
        let mut doubled = whole.clone();
        doubled.insert(at, whole[at].clone());
        prop_assert_eq!(verify(doubled).unwrap_err().index, at as u64 + 1);
        let mut moved = whole.clone();
        moved.swap(at, at + 1);
        prop_assert_eq!(verify(moved).unwrap_err().index, at as u64);
    }

    #[test]
    fn a_bill_that_was_changed_with_all_hashes_is_found_by_the_sums(seed: u64) {
        let mut rows = history(seed, 3, 100).rows;
        let mut rng = Rng(seed);
        let bills: Vec<usize> = (0..rows.len()).filter(|at| rows[*at].kind == "settle").collect();
        prop_assume!(!bills.is_empty());
        let at = bills[rng.below(bills.len())];
        let mut record = rows[at].record().unwrap();
        let Record::Settle(settle) = &mut record else { unreachable!() };
        prop_assume!(!settle.split.is_empty());
        settle.split[0].ns += 1;
        let (total, body) = (settle.total(), record.to_row().body);
        (rows[at].device_ns, rows[at].body) = (total, body);
        let epoch = rows[at].epoch;
        forge(&mut rows, epoch);
        // After a crash the bill may be for time that no checkpoint has seen, and then it is as good as any other.
        if let Err(bad) = verify(rows.iter().cloned()) {
            prop_assert!(bad.epoch == epoch && bad.index >= at as u64, "{}", &bad);
        } else {
            let device_checked_after = rows[at..].iter().any(|row| row.epoch == epoch && row.kind == "checkpoint"
                && row.body.contains(&serde_json::to_string(&first_device(&rows[at])).unwrap()));
            prop_assert!(!device_checked_after);
        }
    }

    #[test]
    fn a_ledger_made_anew_or_cut_short_does_not_match_what_was_noted(seed: u64) {
        let whole = history(seed, 2, 60).rows;
        let mut rng = Rng(seed);
        let at = rng.below(whole.len());
        let epoch = whole[at].epoch;
        let noted = Head { epoch, seq: whole[at].seq, hash: whole[at].hash };
        let check = |rows: &[Row<'static>]| {
            let mut verifier = Verifier::new();
            verifier.expect("the anchor", [noted]);
            rows.iter().try_for_each(|row| verifier.row(row))?;
            verifier.finish()
        };
        prop_assert!(check(&whole).is_ok());
        let mut anew = whole.clone();
        let first = anew.iter().position(|row| row.epoch == epoch).unwrap();
        anew[first].at_us += 1;
        forge(&mut anew, epoch);
        let bad = check(&anew).unwrap_err();
        prop_assert_eq!((bad.epoch, bad.seq), (noted.epoch, noted.seq));
        prop_assert_eq!(*bad.fault, Fault::Noted { noted: "the anchor" });
        let cut: Vec<Row<'static>> =
            whole.iter().filter(|row| row.epoch != epoch || row.seq < noted.seq).cloned().collect();
        let bad = check(&cut).unwrap_err();
        prop_assert_eq!((bad.epoch, bad.seq), (noted.epoch, noted.seq));
        prop_assert_eq!(*bad.fault, Fault::Missing { last: noted.seq });
    }
}

fn first_device(row: &Row<'_>) -> String {
    let body: serde_json::Value = serde_json::from_str(&row.body).unwrap();
    body["split"][0][0].as_str().unwrap().to_owned()
}

#[test]
fn a_request_is_settled_once_over_all_epochs() {
    let settle = Settle {
        tenant: "a".into(),
        request: "1".into(),
        model: "m".into(),
        key: "k".into(),
        plan: "p".into(),
        split: vec![],
        prompt_tokens: 1,
        completion_tokens: 1,
        stop: "stop".into(),
        name: "".into(),
    };
    let mut rows = Vec::new();
    for epoch in 1..=2 {
        let mut chain = Chain::new(epoch);
        rows.push(chain.append(1, &Record::Open(Open { replica: "one".into(), previous: None })));
        rows.push(chain.append(2, &Record::Settle(settle.clone())));
    }
    let bad = verify(rows).unwrap_err();
    assert_eq!((bad.epoch, bad.seq), (2, 2));
    assert_eq!(*bad.fault, Fault::SettledTwice { tenant: "a".into(), request: "1".into() });
}

#[test]
fn anchors_are_a_chain() {
    let head = |seq| Head { epoch: 1, seq, hash: Hash([seq as u8; 32]) };
    let first = Anchor::new(Hash::NONE, 1, 20_000, vec![head(5), head(3)]);
    let second = Anchor::new(first.hash, 2, 20_001, vec![head(9)]);
    let mut anchors = [first, second];
    assert_eq!(first_bad_anchor(&anchors), None);
    anchors[0].heads[0].seq += 1;
    assert_eq!(first_bad_anchor(&anchors), Some(1));
    anchors[0].hash = anchors[0].hash_after(Hash::NONE);
    assert_eq!(first_bad_anchor(&anchors), Some(2));
    let [_, last] = anchors;
    assert_eq!(first_bad_anchor(&[last]), Some(1), "none is missing");
}
