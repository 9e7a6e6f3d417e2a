//! What a device hour costs, by model, plan and class of device, from when on. Prices are added and never removed, so that an old bill
//! can be computed again.

use super::{
    Store, Tx,
    audit::Event,
    change::Change,
    error::StoreError,
    settings::json,
    value::{Row, args},
};

/// Stands for every model, plan or class.
pub const ANY: &str = "*";

/// A price.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// A served name, or [`ANY`].
    pub model: String,
    /// A plan, or [`ANY`].
    pub plan: String,
    /// A class of devices, or [`ANY`].
    pub device_class: String,
    /// From when on.
    pub from_us: i64,
    /// Millionths of the currency for 3,600 s of a device of that class.
    pub micros_per_device_hour: i64,
}

impl Price {
    /// How much it says about the three: more is closer. The model counts before the plan, the plan before the class.
    pub fn closeness(&self) -> u8 {
        let named = |part: &str, weight: u8| if part == ANY { 0 } else { weight };
        named(&self.model, 4) + named(&self.plan, 2) + named(&self.device_class, 1)
    }

    /// The price of `model` under `plan` on a device of `class` at `at_us`, out of all: the closest, and of those the latest
    /// that has begun.
    pub fn find<'p>(prices: &'p [Price], model: &str, plan: &str, class: &str, at_us: i64) -> Option<&'p Price> {
        let fits = |has: &str, wanted: &str| has == ANY || has == wanted;
        prices
            .iter()
            .filter(|p| fits(&p.model, model) && fits(&p.plan, plan) && fits(&p.device_class, class))
            .filter(|p| p.from_us <= at_us)
            .max_by_key(|p| (p.closeness(), p.from_us))
    }

    fn id(&self) -> String {
        format!("{}/{}/{}@{}", self.model, self.plan, self.device_class, self.from_us)
    }

    fn check(&self) -> Result<(), StoreError> {
        for (field, text) in [("model", &self.model), ("plan", &self.plan), ("device_class", &self.device_class)] {
            super::settings::check_name(field, text)?;
        }
        if self.micros_per_device_hour < 0 {
            return Err(StoreError::invalid("micros_per_device_hour", "must be at least 0"));
        }
        Ok(())
    }
}

fn price(row: &Row) -> Result<Price, StoreError> {
    let mut at = row.fields();
    Ok(Price {
        model: at.text()?,
        plan: at.text()?,
        device_class: at.text()?,
        from_us: at.int()?,
        micros_per_device_hour: at.int()?,
    })
}

impl Tx {
    /// All prices, 100,000 at most: bills need them whole.
    pub async fn prices(&mut self) -> Result<Vec<Price>, StoreError> {
        let sql = "SELECT model, plan, device_class, from_us, micros_per_device_hour FROM prices \
                   ORDER BY model, plan, device_class, from_us LIMIT 100000";
        self.rows(sql, args![]).await?.iter().map(price).collect()
    }
}

impl Store {
    /// See [`Tx::prices`].
    pub async fn prices(&self) -> Result<Vec<Price>, StoreError> {
        self.read().await?.prices().await
    }
}

impl Change {
    /// Sets a price. Bills of the time before `open_us` stand, so none begins there: a price is changed by another that begins
    /// later. One that begins at the same time gets this amount, and the log has both.
    pub async fn set_price(&mut self, price: &Price, open_us: i64) -> Result<(), StoreError> {
        price.check()?;
        if price.from_us < open_us {
            return Err(StoreError::invalid("from_us", "lies in a month whose bills stand"));
        }
        let p = price;
        let place = args![&p.model, &p.plan, &p.device_class, p.from_us];
        let sql = "SELECT model, plan, device_class, from_us, micros_per_device_hour FROM prices \
                   WHERE model = $1 AND plan = $2 AND device_class = $3 AND from_us = $4";
        let before = self.tx().row(sql, place).await?.as_ref().map(self::price).transpose()?;
        let sql = "INSERT INTO prices (model, plan, device_class, from_us, micros_per_device_hour) VALUES ($1, $2, $3, $4, $5) \
                   ON CONFLICT (model, plan, device_class, from_us) \
                   DO UPDATE SET micros_per_device_hour = excluded.micros_per_device_hour";
        let values = args![&p.model, &p.plan, &p.device_class, p.from_us, p.micros_per_device_hour];
        self.tx().execute(sql, values).await?;
        let told = json("price", price)?;
        let old = before.map(|before| json("price", &before)).transpose()?;
        let id = price.id();
        let event = Event::of("price.set", "price", &id).after(&told);
        self.record(old.iter().fold(event, |event, old| event.before(old))).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_price_that_has_begun_counts() {
        let of = |model: &str, plan: &str, class: &str, from_us, micros_per_device_hour| Price {
            model: model.into(),
            plan: plan.into(),
            device_class: class.into(),
            from_us,
            micros_per_device_hour,
        };
        let all = [
            of(ANY, ANY, ANY, 0, 1),
            of(ANY, "starter", ANY, 0, 2),
            of("m", ANY, ANY, 10, 3),
            of("m", ANY, ANY, 20, 4),
            of(ANY, "starter", "h200", 0, 5),
        ];
        let micros =
            |model, plan, class, at| Price::find(&all, model, plan, class, at).map(|p| p.micros_per_device_hour);
        assert_eq!(micros("x", "own", "cpu", 0), Some(1));
        assert_eq!(micros("x", "starter", "cpu", 0), Some(2));
        assert_eq!(micros("m", "starter", "cpu", 9), Some(2));
        assert_eq!(micros("m", "starter", "cpu", 10), Some(3));
        assert_eq!(micros("m", "starter", "h200", 25), Some(4));
        assert_eq!(micros("x", "starter", "h200", 25), Some(5));
        assert_eq!(micros("x", "own", "cpu", -1), None);
    }
}
