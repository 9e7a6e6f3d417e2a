//! What a plan allows, and what a tenant's overrides change of it.
//!
//! Every field may be absent: in a plan that means no limit (or the engine's default), in overrides it means the plan's value. The
//! greatest value of a range is as good as no limit, which is how an override lifts one.

use serde::{Deserialize, Serialize};

/// A value out of its range, or two that contradict each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct LimitError {
    /// The field's name, as in JSON.
    pub field: &'static str,
    /// What is wrong.
    pub message: String,
}

/// Names the type, its fields with their ranges, and what is done with each field in turn: all from one list, so that none is
/// forgotten.
macro_rules! limits {
    ($($(#[doc = $doc:literal])* $field:ident: $type:ty = $least:tt..=$most:expr;)*) => {
        /// Limits; see the module. Unknown fields are refused.
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Limits {
            $($(#[doc = $doc])* #[serde(skip_serializing_if = "Option::is_none")] pub $field: Option<$type>,)*
            /// The pool of devices that are reserved for it.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub pool: Option<String>,
            /// It uses its pool's devices only.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub pool_only: Option<bool>,
            /// Everything is counted and recorded, and nothing is refused.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub shadow: Option<bool>,
        }

        impl Limits {
            /// A plan's limits with a tenant's overrides in their place.
            pub fn effective(plan: &Limits, overrides: &Limits) -> Limits {
                Limits {
                    $($field: overrides.$field.or(plan.$field),)*
                    pool: overrides.pool.clone().or_else(|| plan.pool.clone()),
                    pool_only: overrides.pool_only.or(plan.pool_only),
                    shadow: overrides.shadow.or(plan.shadow),
                }
            }

            fn check_ranges(&self) -> Result<(), LimitError> {
                $(if let Some(value) = self.$field && !($least..=$most).contains(&value) {
                    let message = format!("must be {} to {}, and is {value}", $least, $most);
                    return Err(LimitError { field: stringify!($field), message });
                })*
                Ok(())
            }
        }
    };
}

/// The database's whole numbers have a sign.
const MOST: u64 = i64::MAX as u64;
/// A window with less device time than one step can take would never let anything run.
const WINDOW_NS_MIN: u64 = 100_000_000;
/// The longest target.
const DAY_US: u64 = 86_400_000_000;
/// Blocks of 32 positions on one device.
const BLOCKS_MOST: u32 = 1 << 30;

limits! {
    /// Device time in a month of the calendar (UTC), in nanoseconds at the rate of the device's class.
    device_ns_per_month: u64 = WINDOW_NS_MIN..=MOST;
    /// In a day.
    device_ns_per_day: u64 = WINDOW_NS_MIN..=MOST;
    /// In an hour.
    device_ns_per_hour: u64 = WINDOW_NS_MIN..=MOST;
    /// Requests in a month of the calendar.
    requests_per_month: u64 = 1..=MOST;
    /// In a day.
    requests_per_day: u64 = 1..=MOST;
    /// In an hour.
    requests_per_hour: u64 = 1..=MOST;
    /// Requests in any minute.
    requests_per_minute: u32 = 1..=u32::MAX;
    /// Tokens of prompts and completions in any minute.
    tokens_per_minute: u64 = 1..=MOST;
    /// Requests that run at a time.
    running_max: u32 = 1..=1_000_000;
    /// Requests that wait at a time.
    queue_len_max: u32 = 1..=1_000_000;
    /// Connections at a time.
    connections_max: u32 = 1..=1_000_000;
    /// People of the tenant; the platform enforces it.
    users_max: u32 = 1..=u32::MAX;
    /// Bytes stored; the platform enforces it.
    storage_bytes_max: u64 = 0..=MOST;
    /// Agents; the platform enforces it.
    agents_max: u32 = 0..=u32::MAX;
    /// KV blocks that no other tenant can take from it.
    kv_blocks_floor: u32 = 0..=BLOCKS_MOST;
    /// KV blocks it may hold.
    kv_blocks_ceiling: u32 = 1..=BLOCKS_MOST;
    /// Cached KV blocks that no other tenant can take from it.
    cache_blocks_floor: u32 = 0..=BLOCKS_MOST;
    /// KV blocks that stay cached at most when nothing of it runs on them.
    cache_blocks_ceiling: u32 = 0..=BLOCKS_MOST;
    /// From arrival to the first token; what is not expected to keep it is refused.
    ttft_target_us: u64 = 1..=DAY_US;
    /// From a token to the next.
    itl_target_us: u64 = 1..=DAY_US;
    /// Its share of each device against the others'.
    weight: u32 = 1..=10_000;
    /// The most urgent priority class that its requests count as; 0 is the most urgent of all.
    priority_ceiling: u8 = 0..=9;
    /// How far an hour or a day may go over its limit, in hundredths of it, while the windows around it last; and the same of the
    /// minutes' rates.
    burst_percent: u32 = 0..=1_000;
    /// How much of a window's limit the next one gets on top when it was left over, in hundredths of it.
    carry_over_percent: u32 = 0..=100;
    /// From where on the tenant is warned, in hundredths of a limit.
    soft_limit_percent: u32 = 1..=100;
}

impl Limits {
    /// Every value is in its range and none contradicts another. To be asked of a plan, of overrides, and of what they are together.
    pub fn check(&self) -> Result<(), LimitError> {
        self.check_ranges()?;
        let error = |field, message: String| Err(LimitError { field, message });
        let bounds = [
            ("kv_blocks_floor", self.kv_blocks_floor, "kv_blocks_ceiling", self.kv_blocks_ceiling),
            ("cache_blocks_floor", self.cache_blocks_floor, "cache_blocks_ceiling", self.cache_blocks_ceiling),
        ];
        for (field, floor, of, ceiling) in bounds {
            if let (Some(floor), Some(ceiling)) = (floor, ceiling)
                && floor > ceiling
            {
                return error(field, format!("is {floor}, above {of}, which is {ceiling}"));
            }
        }
        let windows = [
            ("device_ns_per_hour", self.device_ns_per_hour, "device_ns_per_day", self.device_ns_per_day),
            ("device_ns_per_day", self.device_ns_per_day, "device_ns_per_month", self.device_ns_per_month),
            ("device_ns_per_hour", self.device_ns_per_hour, "device_ns_per_month", self.device_ns_per_month),
            ("requests_per_hour", self.requests_per_hour, "requests_per_day", self.requests_per_day),
            ("requests_per_day", self.requests_per_day, "requests_per_month", self.requests_per_month),
            ("requests_per_hour", self.requests_per_hour, "requests_per_month", self.requests_per_month),
        ];
        for (field, short, of, long) in windows {
            if let (Some(short), Some(long)) = (short, long)
                && short > long
            {
                return error(field, format!("is {short}, above {of}, which is {long}"));
            }
        }
        if let Some(pool) = &self.pool
            && (pool.is_empty() || pool.len() > 64)
        {
            return error("pool", "must be 1 to 64 bytes long".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(text: &str) -> Result<Limits, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn overrides_win_and_what_they_lack_is_the_plans() {
        let plan = read(r#"{"weight":4,"running_max":8,"pool":"gold","shadow":true}"#).unwrap();
        let over = read(r#"{"weight":9,"shadow":false}"#).unwrap();
        let both = Limits::effective(&plan, &over);
        assert_eq!(both, read(r#"{"weight":9,"running_max":8,"pool":"gold","shadow":false}"#).unwrap());
        assert_eq!(Limits::effective(&plan, &Limits::default()), plan);
    }

    #[test]
    fn unknown_and_mistyped_fields_are_refused_by_name() {
        assert!(read(r#"{"wieght":1}"#).unwrap_err().to_string().contains("wieght"));
        for bad in [r#"{"weight":-1}"#, r#"{"weight":1.5}"#, r#"{"shadow":1}"#, r#"{"device_ns_per_day":1e30}"#] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_out_of_range_or_contradicts_is_named() {
        for (text, field) in [
            (r#"{"weight":0}"#, "weight"),
            (r#"{"weight":10001}"#, "weight"),
            (r#"{"device_ns_per_month":9223372036854775808}"#, "device_ns_per_month"),
            (r#"{"device_ns_per_hour":99999999}"#, "device_ns_per_hour"),
            (r#"{"priority_ceiling":10}"#, "priority_ceiling"),
            (r#"{"soft_limit_percent":0}"#, "soft_limit_percent"),
            (r#"{"kv_blocks_floor":9,"kv_blocks_ceiling":8}"#, "kv_blocks_floor"),
            (r#"{"device_ns_per_hour":200000000,"device_ns_per_day":100000000}"#, "device_ns_per_hour"),
            (r#"{"requests_per_hour":11,"requests_per_day":10}"#, "requests_per_hour"),
            (r#"{"requests_per_hour":11,"requests_per_month":10}"#, "requests_per_hour"),
            (r#"{"requests_per_day":11,"requests_per_month":10}"#, "requests_per_day"),
            (r#"{"pool":""}"#, "pool"),
        ] {
            assert_eq!(read(text).unwrap().check().unwrap_err().field, field, "{text}");
        }
        let open =
            r#"{"device_ns_per_month":9223372036854775807,"weight":10000,"kv_blocks_floor":8,"kv_blocks_ceiling":8}"#;
        read(open).unwrap().check().unwrap();
    }

    #[test]
    fn what_is_written_is_read_back() {
        let text = r#"{"device_ns_per_month":36000000000000,"weight":2,"pool":"gold","pool_only":true}"#;
        assert_eq!(serde_json::to_string(&read(text).unwrap()).unwrap(), text);
        assert_eq!(serde_json::to_string(&Limits::default()).unwrap(), "{}");
    }
}
