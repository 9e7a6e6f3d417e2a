//! What the next start writes into an epoch that has not ended: the bills and the time that a crash kept from it.
//!
//! A request that the last checkpoints know of and that has no bill gets one, of what they say and no more: so nobody
//! is charged above what its request was seen to take, and who began after them is charged nothing. Everything else
//! from the last checkpoint on is the operator's: `lost` until the last word of the epoch, less what its bills say of
//! that time, and `down` from there until now. How long that was is read from the machine's clock, for no other
//! survives; one that stepped back makes it shorter, never negative.
//!
//! The rows are a function of the rows before and of the moment. If the recovery itself is cut short, what it wrote
//! counts, and the next one writes the rest; in a closed epoch there is no rest.

use super::{
    book::{Book, Stage},
    record::{Lost, Record, Settle, Share},
};

/// Why a request stopped that a crash ended.
pub const STOPPED_BY_CRASH: &str = "crash";

/// The rows that close an epoch whose rows so far made `book`: nothing if it is closed or has no row.
pub fn recover(book: &Book, now_us: i64) -> Vec<Record<'static>> {
    if matches!(book.stage, Stage::Unborn | Stage::Closed) {
        return Vec::new();
    }
    let mut records = Vec::new();
    for (tenant, request, unsettled) in book.unsettled() {
        let class = |device: &str| book.devices.get(device).map(|account| account.class.clone()).unwrap_or_default();
        let share = |(device, ns): (&String, &i64)| Share {
            device: device.clone().into(),
            class: class(device.as_str()).into(),
            ns: *ns,
        };
        let split = unsettled.split.iter().map(share).collect();
        records.push(Record::Recovered(Settle {
            tenant: tenant.to_owned().into(),
            request: request.to_owned().into(),
            model: unsettled.model.clone().into(),
            key: unsettled.key.clone().into(),
            plan: unsettled.plan.clone().into(),
            split,
            prompt_tokens: 0,
            completion_tokens: 0,
            stop: STOPPED_BY_CRASH.into(),
            name: "".into(),
        }));
    }
    let nanos = |from: i64, until: i64| until.saturating_sub(from).max(0).saturating_mul(1_000);
    for (device, account) in book.devices() {
        if account.lost {
            continue;
        }
        // A device without a checkpoint was there for its bills at the least.
        let checkpoint_us = account.checkpoint_us.unwrap_or(book.alive_us);
        let lost = nanos(checkpoint_us, book.alive_us).saturating_sub(account.ahead).max(0);
        let down = nanos(book.alive_us, now_us);
        records.push(Record::Lost(Lost { device: device.to_owned().into(), lost, down }));
    }
    records.push(Record::Close);
    records
}
