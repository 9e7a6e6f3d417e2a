//! Statements in the store.

use std::collections::BTreeSet;

use super::{
    error::LedgerError,
    month::{Month, MonthFault, hash_of},
    row::Hash,
    signing::PublicKey,
    verify::{Head, Start},
};
use crate::{
    quota::calendar,
    store::{Row as StoreRow, Store, Tx, args},
};

/// A month's statement as it is stored, with a signature that counts for the key that it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// What it says.
    pub month: Month,
    /// The text that is signed.
    pub text: String,
    /// Of the text.
    pub hash: Hash,
    /// Whose signature it is.
    pub signer: PublicKey,
    /// Of the text: 64 bytes.
    pub signature: Vec<u8>,
    /// When it was made.
    pub closed_us: i64,
    /// When its rows were given up, which they are from then on, one by one.
    pub archived_us: Option<i64>,
}

impl Statement {
    /// Reads a text and checks its signature.
    pub(super) fn read(text: String, signer: PublicKey, signature: Vec<u8>) -> Result<Statement, MonthFault> {
        let month = Month::from_text(&text, &signature, &signer)?;
        Ok(Statement { month, hash: hash_of(&text), text, signer, signature, closed_us: 0, archived_us: None })
    }

    /// When the month begins.
    pub fn begins_us(&self) -> i64 {
        calendar::Period::Month.before(self.month.ends_us)
    }

    fn fault(&self, fault: MonthFault) -> LedgerError {
        LedgerError::Month { month: self.month.month.clone(), fault }
    }
}

/// The number of the month that begins then: 202611 of 2026-11.
pub(super) fn number_of(month_us: i64) -> i64 {
    let date = calendar::date(calendar::day_of(month_us));
    date.year * 100 + i64::from(date.month)
}

fn name_of(number: i64) -> String {
    format!("{:04}-{:02}", number / 100, number % 100)
}

const COLUMNS: [&str; 3] = [
    "SELECT month, body, hash, signer, signature, closed_us, archived_us FROM months ORDER BY month",
    "SELECT month, body, hash, signer, signature, closed_us, archived_us FROM months ORDER BY month DESC LIMIT 1",
    "SELECT month, body, hash, signer, signature, closed_us, archived_us FROM months WHERE month = $1",
];

fn statement(row: &StoreRow) -> Result<Statement, LedgerError> {
    let mut fields = row.fields();
    let (number, text, hash) = (fields.int()?, fields.text()?, Hash(fields.hash("months")?));
    let (signer, signature) = (fields.text()?, fields.bytes()?);
    let fault = |fault| LedgerError::Month { month: name_of(number), fault };
    let signer = PublicKey::from_hex(&signer).ok_or(MonthFault::Signature).map_err(fault)?;
    let read = Statement::read(text, signer, signature).map_err(fault)?;
    if read.hash != hash || read.month.month != name_of(number) || number_of(read.begins_us()) != number {
        return Err(fault(MonthFault::Place));
    }
    Ok(Statement { closed_us: fields.int()?, archived_us: fields.int_or_none()?, ..read })
}

/// All statements, each checked to follow the one before.
pub async fn statements(store: &Store) -> Result<Vec<Statement>, LedgerError> {
    all(&mut store.read().await?).await
}

pub(super) async fn all(tx: &mut Tx) -> Result<Vec<Statement>, LedgerError> {
    let all: Vec<Statement> = tx.rows(COLUMNS[0], &[]).await?.iter().map(statement).collect::<Result<_, _>>()?;
    let mut before = None;
    for statement in &all {
        statement.month.follows(before).map_err(|fault| statement.fault(fault))?;
        before = Some(statement.text.as_str());
    }
    Ok(all)
}

/// The statement of the last month that was closed, if there is one.
pub async fn last_month(store: &Store) -> Result<Option<Statement>, LedgerError> {
    last(&mut store.read().await?).await
}

pub(super) async fn last(tx: &mut Tx) -> Result<Option<Statement>, LedgerError> {
    tx.row(COLUMNS[1], &[]).await?.as_ref().map(statement).transpose()
}

/// The statement of the month that begins then.
pub async fn month_of(tx: &mut Tx, month_us: i64) -> Result<Option<Statement>, LedgerError> {
    tx.row(COLUMNS[2], args![number_of(month_us)]).await?.as_ref().map(statement).transpose()
}

/// Whether somebody who is trusted has signed each of them.
pub(super) fn are_signed_by(statements: &[Statement], keys: &[PublicKey]) -> Result<(), LedgerError> {
    let keys: BTreeSet<PublicKey> = keys.iter().copied().collect();
    match statements.iter().find(|statement| !keys.contains(&statement.signer)) {
        Some(other) => Err(other.fault(MonthFault::Signer(other.signer.to_string()))),
        None => Ok(()),
    }
}

/// Where verifying begins after a month: at the beginning, if there is none.
pub(super) fn starts(from: Option<&Month>) -> Result<Vec<Start>, LedgerError> {
    let fault = |month: &Month, fault| LedgerError::Month { month: month.month.clone(), fault };
    from.map(|month| month.starts().map_err(|of| fault(month, of))).transpose().map(Option::unwrap_or_default)
}

/// Where verifying an epoch begins after a month.
pub(super) fn start_of(epoch: i64, from: Option<&Month>) -> Result<Start, LedgerError> {
    let known = starts(from)?.into_iter().find(|start| start.head.epoch == epoch);
    Ok(known.unwrap_or_else(|| Start { head: Head { epoch, seq: 0, hash: Hash::NONE }, book: Default::default() }))
}
