//! The operator's time, by what it went into.

use serde::{Deserialize, Deserializer, Serialize, de};

use super::record::Text;

/// What an operator's time went into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OperatorKind {
    /// Loading models.
    Load,
    /// Requests of the operator's own: canaries and warm-up.
    Own,
    /// Computing again what a preemption or a lost device took.
    Redo,
    /// What metered tenants' rows took above their grants.
    Overrun,
    /// Rows that failed.
    Failed,
    /// Wall time of a step in which the device did not compute.
    Gap,
    /// The device had no executor.
    Absent,
    /// What none of the others says.
    Other,
    /// Lost in a crash.
    Lost,
    /// Between a crash and the next start.
    Down,
}

impl OperatorKind {
    /// All of them, in the order of [`OperatorTimes`].
    pub const ALL: [OperatorKind; 10] = [
        OperatorKind::Load,
        OperatorKind::Own,
        OperatorKind::Redo,
        OperatorKind::Overrun,
        OperatorKind::Failed,
        OperatorKind::Gap,
        OperatorKind::Absent,
        OperatorKind::Other,
        OperatorKind::Lost,
        OperatorKind::Down,
    ];

    /// As it is stored.
    pub fn name(self) -> &'static str {
        match self {
            OperatorKind::Load => "load",
            OperatorKind::Own => "own",
            OperatorKind::Redo => "redo",
            OperatorKind::Overrun => "overrun",
            OperatorKind::Failed => "failed",
            OperatorKind::Gap => "gap",
            OperatorKind::Absent => "absent",
            OperatorKind::Other => "other",
            OperatorKind::Lost => "lost",
            OperatorKind::Down => "down",
        }
    }
}

/// The operator's time by kind, in nanoseconds. Written as the list of its kinds that are not zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OperatorTimes([i64; OperatorKind::ALL.len()]);

impl OperatorTimes {
    /// Of one kind.
    pub fn get(&self, kind: OperatorKind) -> i64 {
        self.0[kind as usize]
    }

    /// Of one kind, to be changed.
    pub fn get_mut(&mut self, kind: OperatorKind) -> &mut i64 {
        &mut self.0[kind as usize]
    }

    /// All of it, which 128 bits hold whatever a row claims.
    pub fn total(&self) -> i128 {
        self.0.iter().map(|ns| i128::from(*ns)).sum()
    }

    /// Whether no kind has less than in `before`.
    pub(super) fn is_since(&self, before: &OperatorTimes) -> bool {
        self.0.iter().zip(&before.0).all(|(now, before)| now >= before)
    }
}

impl Serialize for OperatorTimes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let kinds = OperatorKind::ALL.into_iter().map(|kind| (kind.name(), self.get(kind)));
        serializer.collect_seq(kinds.filter(|(_, ns)| *ns != 0))
    }
}

impl<'de> Deserialize<'de> for OperatorTimes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let pairs = Vec::<(Text<'de>, i64)>::deserialize(deserializer)?;
        let mut times = OperatorTimes::default();
        let mut last = None;
        for (name, ns) in pairs {
            let kind = OperatorKind::ALL.into_iter().find(|kind| kind.name() == name.as_ref());
            let kind = kind.ok_or_else(|| de::Error::custom(format!("an unknown operator account, {name:?}")))?;
            // In one order and without zeros, each state has one form.
            if ns == 0 || last.is_some_and(|last| last >= kind) {
                return Err(de::Error::custom("operator accounts out of order"));
            }
            last = Some(kind);
            *times.get_mut(kind) = ns;
        }
        Ok(times)
    }
}
