//! A tenant's share of one device.
//!
//! Fairness compares *virtual time*: device nanoseconds divided by weight (VTC, OSDI'24, with device time for tokens). It is kept
//! per device, because each device is shared on its own. A share's virtual time has two parts: what was measured, and what is
//! held for running work that was not measured yet (the whole rest of a prompt as soon as it starts). The first grows for good;
//! the second is replaced by measurement step by step, so a burst of long prompts cannot start at the price of short ones.
//!
//! *Lift.* A tenant that was not short of anything has no claim from the past: before it competes again its virtual time is
//! raised to the device's ([`crate::device::Device::clock`]), which follows the least virtual time among the tenants that
//! are short, and the greatest of all when nobody is. So idleness earns nothing, and what was used while nobody waited is
//! nobody's debt.

use crate::ids::Nanos;

/// Virtual nanoseconds with 32 fractional bits, so that division by the weight loses nothing that matters.
pub(crate) type Virtual = u128;

/// `time / weight`. Two 64-bit divisions, since one of 128 bits costs several times as much and every row needs it.
pub(crate) fn virtual_time(time: Nanos, weight: u32) -> Virtual {
    let weight = u64::from(weight.max(1));
    let (whole, rest) = (time.0 / weight, time.0 % weight);
    u128::from(whole) << 32 | u128::from((rest << 32) / weight)
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Share {
    /// Measured and paid, or lifted over.
    pub(crate) measured: Virtual,
    /// Held for what runs.
    pub(crate) held: Virtual,
    /// The tenant wanted more of the last step than it got.
    pub(crate) short: bool,
    /// Requests on the device that are not settled.
    pub(crate) live: u32,
    /// Of them, those that wait.
    pub(crate) waiting: u32,
    /// Device time that the waiting ones are expected to take.
    pub(crate) demand: Nanos,
    /// Whether the tenant is in the device's list of active ones.
    pub(crate) active: bool,
}

impl Share {
    /// What fairness compares.
    pub(crate) fn virtual_time(&self) -> Virtual {
        self.measured + self.held
    }

    /// Forgets the credit of a tenant that was not short.
    pub(crate) fn lift(&mut self, clock: Virtual) {
        if !self.short {
            self.measured = self.measured.max(clock.saturating_sub(self.held));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_time_is_the_exact_quotient_rounded_down() {
        for time in [0, 1, 7, 999_999_937, u64::MAX] {
            for weight in [1, 3, 1_000, u32::MAX] {
                let exact = (u128::from(time) << 32) / u128::from(weight);
                assert_eq!(virtual_time(Nanos(time), weight), exact);
            }
        }
    }
}
