//! A bucket that fills at a rate, as a value: whoever asks says what time it is.
//!
//! What is kept is how much is missing from a full bucket, in the unit in which a microsecond fills in a whole number, so
//! that nothing is ever rounded: `amount * 60_000_000`. A bucket that nobody has touched is full, whatever its size, so a
//! limit that is changed needs no migration: what is missing stays missing.
//!
//! From full, a bucket lets its size through at once and its rate after that. So in a minute after a pause up to
//! twice its size can pass, and over any longer time the rate holds.

use std::time::Duration;

/// Microseconds in the time that rates are of.
const MINUTE_US: u128 = 60_000_000;

/// How fast a bucket fills, and how much it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate {
    /// At least one.
    per_minute: u64,
    /// At least one.
    size: u64,
}

impl Rate {
    /// So many in a minute, and a bucket of that and `burst_percent` more.
    pub(super) fn per_minute(amount: u64, burst_percent: u32) -> Rate {
        let amount = amount.max(1);
        let size = u128::from(amount) * (100 + u128::from(burst_percent)) / 100;
        Rate { per_minute: amount, size: u64::try_from(size).unwrap_or(u64::MAX) }
    }

    /// What passes at once, from full.
    pub(super) fn size(self) -> u64 {
        self.size
    }

    /// How long it takes to fill so much, rounded up to microseconds.
    fn time(self, missing: u128) -> Duration {
        let micros = missing.div_ceil(u128::from(self.per_minute));
        Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
    }

    fn full(self) -> u128 {
        u128::from(self.size) * MINUTE_US
    }
}

/// How full it was when somebody last looked.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bucket {
    missing: u128,
    at_us: u64,
}

/// What a bucket shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Level {
    pub(super) limit: u64,
    pub(super) remaining: u64,
    /// Until it is full again, if nothing more is taken.
    pub(super) reset: Duration,
}

impl Bucket {
    /// Takes `amount` out, or says when it can be had. More than the bucket holds can be had when it is full, and leaves a
    /// debt that has to fill first.
    pub(super) fn take(&mut self, rate: Rate, amount: u64, now_us: u64) -> Result<(), Duration> {
        self.fill(rate, now_us);
        let wanted = u128::from(amount) * MINUTE_US;
        let over = (self.missing + wanted.min(rate.full())).saturating_sub(rate.full());
        if over > 0 {
            return Err(rate.time(over));
        }
        self.missing += wanted;
        Ok(())
    }

    /// Takes `amount` out in any case, and says whether it was there; no more than an empty bucket remains of it.
    pub(super) fn count(&mut self, rate: Rate, amount: u64, now_us: u64) -> bool {
        if self.take(rate, amount, now_us).is_ok() {
            self.missing = self.missing.min(rate.full());
            return true;
        }
        self.missing = (self.missing + u128::from(amount) * MINUTE_US).min(rate.full());
        false
    }

    /// Puts `actual` in the place of what was taken as an estimate.
    pub(super) fn correct(&mut self, taken: u64, actual: u64) {
        let (taken, actual) = (u128::from(taken) * MINUTE_US, u128::from(actual) * MINUTE_US);
        self.missing = (self.missing + actual).saturating_sub(taken);
    }

    /// As it is at this moment.
    pub(super) fn level(&mut self, rate: Rate, now_us: u64) -> Level {
        self.fill(rate, now_us);
        let remaining = rate.full().saturating_sub(self.missing) / MINUTE_US;
        Level { limit: rate.size, remaining: remaining as u64, reset: rate.time(self.missing) }
    }

    fn fill(&mut self, rate: Rate, now_us: u64) {
        // Of two who ask at once the later may be heard first.
        let passed = now_us.saturating_sub(self.at_us);
        self.at_us = self.at_us.max(now_us);
        self.missing = self.missing.saturating_sub(u128::from(passed) * u128::from(rate.per_minute));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn micros(time: Duration) -> u64 {
        time.as_micros() as u64
    }

    #[test]
    fn its_size_passes_at_once_and_its_rate_after_that() {
        let (rate, mut bucket) = (Rate::per_minute(60, 0), Bucket::default());
        for _ in 0..60 {
            assert_eq!(bucket.take(rate, 1, 5), Ok(()));
        }
        let wait = bucket.take(rate, 1, 5).expect_err("empty");
        assert_eq!(micros(wait), SECOND);
        // The time that it names is true, to the microsecond.
        assert_eq!(bucket.take(rate, 1, 5 + SECOND - 1).map_err(micros), Err(1));
        assert_eq!(bucket.take(rate, 1, 5 + SECOND), Ok(()));
        assert!(bucket.take(rate, 1, 5 + SECOND).is_err());
        // A long pause fills it and no more.
        for _ in 0..60 {
            assert_eq!(bucket.take(rate, 1, 1000 * SECOND), Ok(()));
        }
        assert!(bucket.take(rate, 1, 1000 * SECOND).is_err());
    }

    #[test]
    fn what_it_shows_is_what_can_be_had() {
        let (rate, mut bucket) = (Rate::per_minute(7, 50), Bucket::default());
        let mut now = 0;
        for _ in 0..100 {
            for step in [0, 999, 1_234_567, 9_000_001, 60_000_000] {
                now += step;
                let level = bucket.level(rate, now);
                assert_eq!(level.limit, 10);
                let mut copy = bucket;
                assert!(level.remaining == 0 || copy.take(rate, level.remaining, now).is_ok());
                assert!(copy.take(rate, 1, now).is_err());
                let full = now + micros(level.reset);
                assert_eq!(bucket.level(rate, full).remaining, 10);
                now = full;
                assert_eq!(bucket.take(rate, 3, now), Ok(()));
            }
        }
    }

    #[test]
    fn more_than_it_holds_passes_when_it_is_full_and_leaves_a_debt() {
        let (rate, mut bucket) = (Rate::per_minute(100, 0), Bucket::default());
        assert_eq!(bucket.take(rate, 250, 0), Ok(()));
        assert_eq!(bucket.level(rate, 0).remaining, 0);
        // 150 of debt, and one more.
        assert_eq!(bucket.take(rate, 1, 0).map_err(|wait| wait.as_millis()), Err(90_600));
        assert_eq!(bucket.take(rate, 250, 0).map_err(|wait| wait.as_millis()), Err(150_000));
        assert_eq!(bucket.take(rate, 250, 150 * SECOND), Ok(()));
    }

    #[test]
    fn an_estimate_is_replaced_by_what_it_was() {
        let (rate, mut bucket) = (Rate::per_minute(1000, 0), Bucket::default());
        bucket.take(rate, 600, 0).expect("full");
        bucket.correct(600, 40);
        assert_eq!(bucket.level(rate, 0).remaining, 960);
        bucket.take(rate, 100, 0).expect("enough");
        bucket.correct(100, 2000);
        // 1,040 too much: back at nothing missing but 1,000 in 62.4 s, and full a minute later.
        assert_eq!(bucket.level(rate, 0), Level { limit: 1000, remaining: 0, reset: Duration::from_millis(122_400) });
        // What was given back while it filled makes it no more than full.
        let mut bucket = Bucket::default();
        bucket.take(rate, 600, 0).expect("full");
        assert_eq!(bucket.level(rate, 60 * SECOND).remaining, 1000);
        bucket.correct(600, 0);
        assert_eq!(bucket.level(rate, 60 * SECOND).remaining, 1000);
    }

    #[test]
    fn a_clock_that_is_read_out_of_order_fills_nothing_twice() {
        let (rate, mut bucket) = (Rate::per_minute(60, 0), Bucket::default());
        bucket.take(rate, 60, 10 * SECOND).expect("full");
        assert_eq!(bucket.level(rate, 9 * SECOND).remaining, 0);
        assert_eq!(bucket.level(rate, 11 * SECOND).remaining, 1);
        assert_eq!(bucket.level(rate, 10 * SECOND).remaining, 1);
        assert_eq!(bucket.level(rate, 11 * SECOND).remaining, 1);
    }

    #[test]
    fn a_changed_limit_keeps_what_is_missing() {
        let mut bucket = Bucket::default();
        bucket.take(Rate::per_minute(100, 0), 90, 0).expect("full");
        assert_eq!(bucket.level(Rate::per_minute(200, 0), 0).remaining, 110);
        assert_eq!(bucket.level(Rate::per_minute(50, 0), 0).remaining, 0);
    }

    #[test]
    fn who_is_only_watched_owes_nothing() {
        let (rate, mut bucket) = (Rate::per_minute(10, 0), Bucket::default());
        let there = (0..1000).filter(|_| bucket.count(rate, 7, 0)).count();
        assert_eq!(there, 1, "the second seven of ten would have been refused");
        assert_eq!(bucket.level(rate, 60 * SECOND).remaining, 10);
    }

    #[test]
    fn the_largest_numbers_fit() {
        let (rate, mut bucket) = (Rate::per_minute(u64::MAX, 1000), Bucket::default());
        assert_eq!(bucket.take(rate, u64::MAX, 0), Ok(()));
        bucket.correct(0, u64::MAX);
        assert!(bucket.take(rate, u64::MAX, u64::MAX).is_ok());
        assert!(bucket.take(Rate::per_minute(1, 0), 1, u64::MAX).is_err());
    }
}
