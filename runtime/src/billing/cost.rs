//! Money in exact fractions of a millionth.

use std::ops::AddAssign;

/// Nanoseconds in an hour, and the millionths of a multiplier: what a product of time, price and multiplier is divided by.
const WHOLE: u128 = 3_600_000_000_000 * 1_000_000;

/// An amount that is not rounded: whole millionths of the currency, and parts of one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    micros: u128,
    /// Below [`WHOLE`].
    parts: u128,
}

impl Cost {
    /// Of device time, at a price for an hour, times a multiplier in millionths. What is below zero costs nothing.
    pub fn of(device_ns: i64, micros_per_device_hour: i64, price_ppm: u64) -> Cost {
        let positive = |value: i64| u128::from(value.max(0).unsigned_abs());
        let product = positive(device_ns) * positive(micros_per_device_hour);
        let ppm = u128::from(price_ppm);
        // The product has 126 bits, so the multiplier goes to the quotient and to the rest of it, which has 62.
        let rest = product % WHOLE * ppm;
        Cost { micros: (product / WHOLE).saturating_mul(ppm).saturating_add(rest / WHOLE), parts: rest % WHOLE }
    }

    /// Rounded down to millionths of the currency; the greatest there is where that is not enough.
    pub fn micros(self) -> i64 {
        i64::try_from(self.micros).unwrap_or(i64::MAX)
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Cost) {
        let parts = self.parts + other.parts;
        self.micros = self.micros.saturating_add(other.micros).saturating_add(parts / WHOLE);
        self.parts = parts % WHOLE;
    }
}
