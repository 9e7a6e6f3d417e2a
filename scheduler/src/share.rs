//! A tenant's share of the devices.
//!
//! Fairness compares *virtual time*: device nanoseconds divided by weight (VTC, OSDI'24, with device time for tokens), summed over all
//! devices, so that a tenant whose work happens to be on a busy device has first claim on the next place elsewhere. It has
//! two parts: what was measured, and what is held for running work that was not measured yet (the whole rest of a prompt as soon as it
//! starts, but no more than [`crate::Config::hold_max`] in all). The first grows for good; the second is replaced by measurement step by
//! step, so a burst of long prompts cannot start at the price of short ones.
//!
//! *Lift.* A tenant that was not short of anything, on any device, has no claim from the past: before it competes again its virtual time is
//! raised to the device's ([`crate::device::Device::clock`]), which follows what was measured of the tenant with the least virtual
//! time among those that are short of that device, and when nobody is, the greatest of all, as far as those allow that are short
//! elsewhere and came from there with what they are owed. Who is short, and how the least of them is found without
//! asking all, is [`crate::standing`]'s matter. So idleness earns nothing, and what was used while nobody
//! waited is nobody's debt. The clock is the device's and not the node's: where two devices serve different tenants, one may be far
//! ahead of the other, and who joins the first must not start with the second's past.

use core::mem::offset_of;

use crate::ids::Nanos;

/// Virtual nanoseconds with 32 fractional bits, so that division by the weight loses nothing that matters.
pub(crate) type Virtual = u128;

/// `time / weight`. In 64 bits, since a division of 128 costs several times as much and every row needs some: one for less than four
/// seconds, two for more.
#[inline]
pub(crate) fn virtual_time(time: Nanos, weight: u32) -> Virtual {
    let weight = u64::from(weight.max(1));
    if time.0 >> 32 == 0 {
        return u128::from((time.0 << 32) / weight);
    }
    let (whole, rest) = (time.0 / weight, time.0 % weight);
    u128::from(whole) << 32 | u128::from((rest << 32) / weight)
}

/// Whole nanoseconds of it.
pub(crate) fn whole(time: Virtual) -> u64 {
    u64::try_from(time >> 32).unwrap_or(u64::MAX)
}

#[derive(Clone, Debug, Default)]
#[repr(align(64))]
pub(crate) struct Share {
    /// The tenant wanted more of the device's last step than it got.
    pub(crate) short: bool,
    /// Requests on the device that are not settled.
    pub(crate) live: u32,
    /// Of them, those that wait.
    pub(crate) waiting: u32,
    /// Device time that the waiting ones are expected to take.
    pub(crate) demand: Nanos,
    /// The tenant's weight.
    pub(crate) weight: u32,
}

/// A tenant's virtual time, over all devices. What is compared comes first: see [`crate::tenant::Account`].
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub(crate) struct Service {
    /// Measured and paid, or lifted over.
    measured: Virtual,
    /// Held for what runs.
    held: Virtual,
    /// The most of it that counts.
    held_max: Virtual,
    /// Everything measured, lifts left out: what the tenant was served.
    served: Virtual,
    /// The greatest virtual time under which it is filed anywhere; see [`crate::standing`].
    filed: Virtual,
    /// Devices of whose last step it wanted more than it got.
    short_on: u32,
    /// It is in the list of those whose virtual time fell below that.
    pub(crate) lowered: bool,
}

impl Service {
    /// Bytes at its beginning that [`Service::virtual_time`] looks at.
    pub(crate) const COMPARED: usize = offset_of!(Service, served);

    /// What fairness compares.
    #[inline]
    pub(crate) fn virtual_time(&self) -> Virtual {
        self.measured + self.held.min(self.held_max)
    }

    /// What was measured, or lifted over.
    pub(crate) fn measured(&self) -> Virtual {
        self.measured
    }

    /// Forgets the credit of a tenant that was not short anywhere.
    pub(crate) fn lift(&mut self, clock: Virtual) {
        if self.short_on == 0 {
            self.measured = self.measured.max(clock.saturating_sub(self.held.min(self.held_max)));
        }
    }

    /// Whether it wanted more of some device's last step than it got.
    pub(crate) fn is_short(&self) -> bool {
        self.short_on > 0
    }

    /// So much was measured.
    pub(crate) fn add_measured(&mut self, time: Virtual) {
        self.measured += time;
        self.served += time;
    }

    /// Everything that was ever measured.
    pub(crate) fn served(&self) -> Virtual {
        self.served
    }

    /// How much of what is held counts from now on.
    pub(crate) fn set_held_max(&mut self, held_max: Virtual) {
        self.held_max = held_max;
    }

    /// What is held for one of its requests changes.
    pub(crate) fn change_held(&mut self, before: Virtual, after: Virtual) {
        self.held = self.held - before + after;
    }

    /// It is filed under its present time.
    pub(crate) fn file(&mut self) -> Virtual {
        let time = self.virtual_time();
        self.filed = self.filed.max(time);
        time
    }

    /// It is filed anew everywhere.
    pub(crate) fn file_anew(&mut self) {
        self.lowered = false;
        self.filed = 0;
    }

    /// Whether it may be filed somewhere under more than its present time.
    pub(crate) fn is_filed_above(&self) -> bool {
        self.virtual_time() < self.filed
    }

    pub(crate) fn held(&self) -> Virtual {
        self.held
    }

    pub(crate) fn short_on(&self) -> u32 {
        self.short_on
    }
}

impl Share {
    /// Notes whether the tenant is short of this device.
    pub(crate) fn note_short(&mut self, service: &mut Service, short: bool) {
        match (core::mem::replace(&mut self.short, short), short) {
            (false, true) => service.short_on += 1,
            (true, false) => service.short_on -= 1,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_time_is_the_exact_quotient_rounded_down() {
        for time in [0, 1, 7, 999_999_937, u64::from(u32::MAX), 1 << 32, u64::MAX] {
            for weight in [1, 3, 1_000, u32::MAX] {
                let exact = (u128::from(time) << 32) / u128::from(weight);
                assert_eq!(virtual_time(Nanos(time), weight), exact);
            }
        }
    }
}
