//! What an hour costs a tenant.

use std::collections::BTreeMap;

use crate::{
    quota::calendar,
    store::{ANY, Price},
};

/// One, in millionths.
const ONE_PPM: u64 = 1_000_000;

/// All prices, and one tenant's multipliers.
#[derive(Debug, Clone, Copy)]
pub struct Rates<'a> {
    /// All there are.
    pub prices: &'a [Price],
    /// By model, or for every model that is not named; one where absent.
    pub price_ppm: &'a BTreeMap<String, u64>,
}

impl<'a> Rates<'a> {
    /// The price that counts on a day since 1970, if there is one: the one that has begun by the day's end.
    pub fn price(&self, model: &str, plan: &str, class: &str, day: i64) -> Option<&'a Price> {
        Price::find(self.prices, model, plan, class, calendar::day_begins_us(day + 1) - 1)
    }

    /// The multiplier.
    pub fn ppm(&self, model: &str) -> u64 {
        let named = self.price_ppm.get(model).or_else(|| self.price_ppm.get(ANY));
        named.copied().unwrap_or(ONE_PPM)
    }
}
