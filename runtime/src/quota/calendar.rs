//! Windows of the calendar, in UTC: hours, days and months, by the instant at which they begin.
//!
//! Instants are microseconds since 1970 without leap seconds, as machines count them, so every hour and every day has
//! the same length. Each instant is in exactly one window of each period: windows have no gaps, and their ends are
//! the beginnings of the next.

/// Microseconds in an hour.
const HOUR: i64 = 3_600_000_000;
/// Microseconds in a day.
const DAY: i64 = 24 * HOUR;

/// The length of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Period {
    /// Sixty minutes, from the full hour.
    Hour,
    /// From midnight.
    Day,
    /// From the first of a month.
    Month,
}

impl Period {
    /// All of them, the shortest first: the order in which rows are locked.
    pub const ALL: [Period; 3] = [Period::Hour, Period::Day, Period::Month];

    /// As it is stored.
    pub fn name(self) -> &'static str {
        match self {
            Period::Hour => "hour",
            Period::Day => "day",
            Period::Month => "month",
        }
    }

    /// When the window of this instant began.
    pub fn begin(self, at_us: i64) -> i64 {
        match self {
            Period::Hour => at_us.div_euclid(HOUR) * HOUR,
            Period::Day => at_us.div_euclid(DAY) * DAY,
            Period::Month => {
                let day = at_us.div_euclid(DAY);
                (day - i64::from(date(day).day) + 1) * DAY
            }
        }
    }

    /// The first instant after the window that began then.
    pub fn end(self, begins_us: i64) -> i64 {
        match self {
            Period::Hour => begins_us + HOUR,
            Period::Day => begins_us + DAY,
            // Every month is over 31 days after it began, and the next one is not.
            Period::Month => self.begin(begins_us + 31 * DAY),
        }
    }

    /// When the window before the one that began then began.
    pub fn before(self, begins_us: i64) -> i64 {
        self.begin(begins_us - 1)
    }
}

/// A day of the Gregorian calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Date {
    /// Such as 2026.
    pub year: i64,
    /// From 1.
    pub month: u32,
    /// From 1.
    pub day: u32,
}

/// Days since 1970 of an instant.
pub fn day_of(at_us: i64) -> i64 {
    at_us.div_euclid(DAY)
}

/// When a day since 1970 begins.
pub fn day_begins_us(day: i64) -> i64 {
    day * DAY
}

/// The date of a day since 1970. Years are counted from March, so that the leap day is the last; then 153 days are
/// five months, of which each begins `(153 m + 2) / 5` days after the first.
pub fn date(day: i64) -> Date {
    // Since 1 March of the year 0, in cycles of 400 years.
    let day = day + 719_468;
    let (cycle, of_cycle) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year = (of_cycle - of_cycle / 1_460 + of_cycle / 36_524 - of_cycle / 146_096) / 365;
    let of_year = of_cycle - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = (of_year - (153 * from_march + 2) / 5) as u32 + 1;
    let month = if from_march < 10 { from_march as u32 + 3 } else { from_march as u32 - 9 };
    Date { year: cycle * 400 + year + i64::from(month <= 2), month, day }
}

/// The month of an instant, such as `2026-11`.
pub fn month_name(at_us: i64) -> String {
    let date = date(day_of(at_us));
    format!("{:04}-{:02}", date.year, date.month)
}

/// When the month of this name begins; nothing if it is none.
pub fn month_begins_us(name: &str) -> Option<i64> {
    let (year, month) = name.split_once('-')?;
    if year.len() != 4 || month.len() != 2 || !name.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') {
        return None;
    }
    let (year, month): (i64, i64) = (year.parse().ok()?, month.parse().ok()?);
    if !(1..=12).contains(&month) {
        return None;
    }
    // The middle of a month is within it, however long the months before were: half a day in a month of drift at most.
    let middle = ((year - 1970) * 146_097 / 400 + (month - 1) * 61 / 2 + 14) * DAY;
    [-20, 0, 20].map(|days| Period::Month.begin(middle + days * DAY)).into_iter().find(|at| month_name(*at) == name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn months_begin_and_end_on_the_first_in_every_year() {
        // Walks the calendar by its rule, from 1970 to 2420, past a leap century and three that are none.
        let (mut day, mut begins) = (0, 0);
        for year in 1970..2420 {
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let lens = [31, 28 + i64::from(leap), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
            for (month, len) in (1..).zip(lens) {
                for of_month in 1..=len as u32 {
                    assert_eq!(date(day), Date { year, month, day: of_month });
                    assert_eq!(Period::Month.begin(day * DAY + DAY - 1), begins);
                    assert_eq!(Period::Day.begin(day * DAY + DAY - 1), day * DAY);
                    day += 1;
                }
                assert_eq!(Period::Month.end(begins), day * DAY);
                assert_eq!(Period::Month.before(day * DAY), begins);
                assert_eq!(month_begins_us(&month_name(begins)), Some(begins));
                begins = day * DAY;
            }
        }
    }

    #[test]
    fn names_that_are_no_month_have_no_beginning() {
        for name in ["2026-13", "2026-00", "2026-1", "26-01", "2026", "", "2026-1x", "-026-01", "2026-+1"] {
            assert_eq!(month_begins_us(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn each_instant_is_in_one_window(at in -60_000_000_000_000_000i64..60_000_000_000_000_000) {
            for period in Period::ALL {
                let begins = period.begin(at);
                prop_assert!(begins <= at && at < period.end(begins));
                prop_assert_eq!(period.begin(begins), begins);
                prop_assert_eq!(period.begin(period.end(begins) - 1), begins);
                prop_assert_eq!(period.begin(period.end(begins)), period.end(begins), "the next begins where it ends");
                prop_assert_eq!(period.end(period.before(begins)), begins);
            }
        }
    }
}
