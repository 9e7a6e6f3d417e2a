//! What a tenant may use, and under which terms.

use std::time::Duration;

use super::TenantSpec;
use crate::quota::{Limits, Unit};

/// Device time that a tenant may use in each hour, day and month, which begin in UTC. Without any limit it is not metered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceQuota {
    /// In an hour.
    pub hour: Option<Duration>,
    /// In a day.
    pub day: Option<Duration>,
    /// In a month of the calendar.
    pub month: Option<Duration>,
}

/// Requests that a tenant may make in each hour, day and month, which begin in UTC. Without any limit they are not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestQuota {
    /// In an hour.
    pub hour: Option<u64>,
    /// In a day.
    pub day: Option<u64>,
    /// In a month of the calendar.
    pub month: Option<u64>,
}

/// What a plan says of its quotas beside their amounts. By default they are hard limits and nothing more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QuotaTerms {
    /// Of the limit of an hour or a day: what it may have on top, which the windows after it repay.
    pub burst_percent: u32,
    /// Of what a month left unused: what the next one has on top.
    pub carry_over_percent: u32,
    /// Of what is allowed: from where on the tenant is warned. Zero is nowhere.
    pub soft_limit_percent: u32,
    /// Everything is counted and told of, and nothing is refused.
    pub shadow: bool,
}

impl TenantSpec {
    /// What a tenant may use of a unit in each window; nothing where no window has a limit, and so nothing is counted.
    pub fn limits(&self, unit: Unit) -> Option<Limits> {
        let amounts = match unit {
            Unit::DeviceNs => {
                let DeviceQuota { hour, day, month } = self.quota;
                [hour, day, month].map(|time| Some(time?.as_nanos()))
            }
            Unit::Requests => {
                let RequestQuota { hour, day, month } = self.requests;
                [hour, day, month].map(|count| count.map(u128::from))
            }
        };
        let amounts = amounts.map(|amount| Some(i64::try_from(amount?).unwrap_or(i64::MAX)));
        (amounts != [None; 3]).then(|| self.terms.limits(amounts))
    }
}

impl QuotaTerms {
    fn limits(self, amounts: [Option<i64>; 3]) -> Limits {
        Limits {
            amounts,
            burst_percent: self.burst_percent,
            carry_percent: self.carry_over_percent,
            soft_percent: self.soft_limit_percent,
            shadow: self.shadow,
        }
    }
}
