//! Months: closed, signed, and verified from there.

use proptest::prelude::*;

use super::rig::{Rng, bills, epochs, history};
use crate::ledger::*;

/// Closes a month over the rows after the statement before, as a store would.
fn close(rows: &[Row<'static>], name: &str, ends_us: i64, previous: Option<(&str, &Month)>) -> Month {
    let starts = previous.map(|(_, month)| month.starts().unwrap()).unwrap_or_default();
    let mut closing = Closing::new(name, ends_us, previous);
    let closed_below = previous.map_or(1, |(_, month)| month.closed_below);
    for epoch in epochs(rows).into_iter().filter(|epoch| *epoch >= closed_below) {
        let rows = || rows.iter().filter(|row| row.epoch == epoch);
        let start = starts.iter().find(|start| start.head.epoch == epoch).cloned();
        let mut start =
            start.unwrap_or_else(|| Start { head: Head { epoch, seq: 0, hash: Hash::NONE }, book: Book::default() });
        let Some(cut) = rows().rfind(|row| row.at_us < ends_us).map(|row| row.seq) else { continue };
        if cut <= start.head.seq {
            continue;
        }
        let from = start.head.seq;
        for row in rows().filter(|row| row.seq > from && row.seq <= cut) {
            let record = row.record().unwrap();
            closing.row(row.at_us, &record);
            start.book.apply(row.at_us, &record).unwrap();
            start.head = Head { epoch, seq: row.seq, hash: row.hash };
        }
        closing.cut(start.head, &start.book);
    }
    closing.finish()
}

/// The rows of a month as they are exported.
fn file(rows: &[Row<'static>], month: &Month, previous: Option<(&str, &Month)>, key: &SigningKey) -> String {
    let signed = |text: &str| Signed {
        statement: text.to_owned(),
        signer: key.public().to_string(),
        signature: key.sign(text).iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    let (this, before) = (signed(&month.to_text()), previous.map(|(text, _)| signed(text)));
    let head = ArchiveHead { object: "ledger.month".into(), month: this, previous: before };
    let cut = |month: &Month, epoch| match month.chains.iter().find(|end| end.epoch == epoch) {
        Some(end) => end.seq,
        None if epoch < month.closed_below => i64::MAX,
        None => 0,
    };
    let (mut lines, mut count) = (vec![serde_json::to_string(&head).unwrap()], 0);
    for row in rows {
        let after = previous.map_or(0, |(_, month)| cut(month, row.epoch));
        if row.seq > after && row.seq <= cut(month, row.epoch) {
            let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            let row = crate::billing::ExportedRow {
                epoch: row.epoch,
                seq: row.seq,
                at_us: row.at_us,
                kind: row.kind.to_string(),
                tenant: some(&row.tenant),
                request: some(&row.request),
                model: some(&row.model),
                key: some(&row.key),
                device_ns: row.device_ns,
                prompt_tokens: row.prompt_tokens,
                completion_tokens: row.completion_tokens,
                body: row.body.to_string(),
                hash: row.hash.to_string(),
            };
            lines.push(serde_json::to_string(&row).unwrap());
            count += 1;
        }
    }
    lines.push(format!("{{\"object\":\"end\",\"rows\":{count}}}\n"));
    lines.join("\n")
}

/// Verifies what comes after a statement.
fn verify_from(rows: &[Row<'static>], month: &Month) -> Result<Verified, BadRow> {
    let starts = month.starts().unwrap();
    let mut verifier = Verifier::new();
    verifier.start_from(starts.iter().cloned());
    for row in rows {
        let start = starts.iter().find(|start| start.head.epoch == row.epoch);
        let archived = start.is_some_and(|start| row.seq <= start.head.seq) || row.epoch < month.closed_below;
        if !archived {
            verifier.row(row)?;
        }
    }
    verifier.finish()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_bill_is_in_one_month_and_verifying_goes_on_from_it(seed: u64) {
        let rows = history(seed, 4, 150).rows;
        let mut rng = Rng(seed);
        let (first, last) = (rows.iter().map(|r| r.at_us).min().unwrap(), rows.iter().map(|r| r.at_us).max().unwrap());
        let mut ends: Vec<i64> = (0..3).map(|_| first + rng.below((last - first) as usize) as i64).collect();
        ends.sort_unstable();
        ends.push(last + 1);
        let key = SigningKey::from_seed(&[seed as u8; 32]);
        let mut previous: Option<(String, Month)> = None;
        let (mut charged, mut requests) = (0, 0);
        for (n, end) in ends.into_iter().enumerate() {
            let before = previous.as_ref().map(|(text, month)| (text.as_str(), month));
            let month = close(&rows, &format!("2026-{n:02}"), end, before);
            let text = month.to_text();
            let signature = key.sign(&text);
            let read = Month::from_text(&text, &signature, &key.public()).unwrap();
            prop_assert_eq!(&read, &month);
            prop_assert_eq!(read.follows(previous.as_ref().map(|(text, _)| text.as_str())), Ok(()));
            prop_assert!(verify_from(&rows, &read).is_ok());
            charged += month.usage.iter().map(|usage| usage.sums()[1]).sum::<i64>();
            requests += month.usage.iter().map(|usage| usage.sums()[0]).sum::<i64>();
            previous = Some((text, month));
        }
        let bills = bills(&rows);
        prop_assert_eq!((requests, charged), (bills.len() as i64, bills.values().sum::<i64>()));
    }

    #[test]
    fn the_file_of_a_month_is_whole_and_a_flipped_byte_in_it_is_found(seed: u64) {
        let rows = history(seed, 3, 60).rows;
        let mut rng = Rng(seed);
        let key = SigningKey::from_seed(&[seed as u8; 32]);
        let mut previous: Option<(String, Month)> = None;
        let last = rows.iter().map(|row| row.at_us).max().unwrap();
        for (name, end) in [("2026-10", rows[rng.below(rows.len())].at_us), ("2026-11", last + 1)] {
            let before = previous.as_ref().map(|(text, month)| (text.as_str(), month));
            let month = close(&rows, name, end, before);
            let file = file(&rows, &month, before, &key);
            let checked = check_archive(file.as_bytes()).unwrap();
            prop_assert_eq!((&checked.month, checked.signer), (&month, key.public()));
            for _ in 0..8 {
                let mut changed = file.clone().into_bytes();
                let at = rng.below(changed.len());
                changed[at] ^= 1 << rng.below(7);
                // Spaces between words are no content, and a digit of a hash may be written in two ways.
                let found = check_archive(&changed[..]);
                prop_assert!(found.is_err() || found.unwrap() == checked, "byte {}", at);
            }
            let cut = file.len() - 1 - rng.below(file.len() - 1);
            prop_assert!(check_archive(&file.as_bytes()[..cut]).is_err() || cut == file.len() - 1);
            previous = Some((month.to_text(), month));
        }
    }

    #[test]
    fn a_statement_that_was_changed_is_refused(seed: u64) {
        let rows = history(seed, 2, 60).rows;
        let month = close(&rows, "2026-11", i64::MAX, None);
        let key = SigningKey::from_seed(&[1; 32]);
        let text = month.to_text();
        let mut signature = key.sign(&text);
        let mut rng = Rng(seed);
        let mut changed = text.clone().into_bytes();
        let at = rng.below(changed.len());
        changed[at] ^= 1;
        if let Ok(changed) = String::from_utf8(changed) {
            prop_assert_eq!(Month::from_text(&changed, &signature, &key.public()), Err(MonthFault::Signature));
        }
        let other = SigningKey::from_seed(&[2; 32]).public();
        prop_assert_eq!(Month::from_text(&text, &signature, &other), Err(MonthFault::Signature));
        signature[rng.below(64)] ^= 1;
        prop_assert_eq!(Month::from_text(&text, &signature, &key.public()), Err(MonthFault::Signature));
    }

    #[test]
    fn a_flipped_byte_after_a_statement_is_found(seed: u64) {
        let mut rows = history(seed, 3, 100).rows;
        let mut rng = Rng(seed);
        let end = rows[rng.below(rows.len())].at_us;
        let month = close(&rows, "2026-11", end, None);
        let cut = |row: &Row<'_>| {
            row.epoch < month.closed_below
                || month.chains.iter().any(|chain| chain.epoch == row.epoch && row.seq <= chain.seq)
        };
        let after: Vec<usize> = (0..rows.len()).filter(|at| !cut(&rows[*at])).collect();
        prop_assume!(!after.is_empty());
        let at = after[rng.below(after.len())];
        rows[at].at_us ^= 1;
        let bad = verify_from(&rows, &month).unwrap_err();
        prop_assert_eq!((bad.epoch, bad.seq), (rows[at].epoch, rows[at].seq));
    }
}

#[test]
fn a_signing_key_is_kept_in_a_file_of_its_owner() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.key");
    let key = SigningKey::create(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(SigningKey::from_file(&path).unwrap().public(), key.public());
    assert!(SigningKey::create(&path).is_err(), "never over another");
    std::fs::write(&path, "no key").unwrap();
    assert!(SigningKey::from_file(&path).is_err());
}

#[test]
fn signatures_are_those_of_rfc_8032() {
    // Section 7.1, test 1: the seed and its public key.
    let seed = Hash::from_hex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60").unwrap();
    let public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    assert_eq!(Hash(SigningKey::from_seed(&seed.0).public().0).to_string(), public);
}
