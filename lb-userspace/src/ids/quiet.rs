//! The proof that nothing names an id any more, so that it may be given to another.

/// How far the proof has come that the flow table holds no entry of an object, and will not get one.
///
/// An entry may move while it is scanned, so one scan proves nothing: it takes two full ones, each begun after a grace period in which
/// packets that had read a slot or an entry have ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quiet {
    /// Named, or not yet known not to be.
    #[default]
    Unproven,
    /// A grace period is due: then the scan that counts may begin. True if it is the second.
    Settling(bool),
    /// Waits until so many scans are complete. True if it is for the second.
    Scanning(bool, u64),
    /// Nothing names it.
    Proven,
}

impl Quiet {
    /// What is known now: whether a slot or anything else but the flow table names it, how many entries the last complete scan found, and how
    /// many scans are complete.
    #[must_use]
    pub fn seen(self, named: bool, entries: u64, scans: u64) -> Self {
        match self {
            _ if named || entries > 0 => Self::Unproven,
            Self::Unproven => Self::Settling(false),
            Self::Scanning(false, until) if scans >= until => Self::Settling(true),
            Self::Scanning(true, until) if scans >= until => Self::Proven,
            same => same,
        }
    }

    /// A grace period has passed that began after the last [`Quiet::seen`]; `scans` were complete when it ended.
    #[must_use]
    pub fn settled(self, scans: u64) -> Self {
        match self {
            // The scan under way began before, so it is the next one that counts.
            Self::Settling(second) => Self::Scanning(second, scans + 2),
            same => same,
        }
    }

    /// Whether it waits for a grace period.
    pub fn is_settling(self) -> bool {
        matches!(self, Self::Settling(_))
    }

    /// Whether nothing names it.
    pub fn is_proven(self) -> bool {
        self == Self::Proven
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_two_scans_that_begin_after_grace_periods() {
        let mut quiet = Quiet::default().seen(false, 0, 10);
        assert!(quiet.is_settling());
        quiet = quiet.seen(false, 0, 11);
        assert!(
            quiet.is_settling(),
            "scans before the grace period count for nothing"
        );
        quiet = quiet.settled(11).seen(false, 0, 12);
        assert!(
            !quiet.is_settling(),
            "scan 12 began before the grace period ended"
        );
        quiet = quiet.seen(false, 0, 13);
        assert!(quiet.is_settling());
        quiet = quiet.settled(13).seen(false, 0, 14);
        assert!(!quiet.is_proven());
        assert!(quiet.seen(false, 0, 15).is_proven());
    }

    #[test]
    fn an_entry_or_a_slot_begins_the_proof_anew() {
        let scanning = Quiet::default().seen(false, 0, 0).settled(0);
        assert_eq!(scanning.seen(false, 1, 2), Quiet::Unproven);
        assert_eq!(scanning.seen(true, 0, 2), Quiet::Unproven);
        assert_eq!(Quiet::Proven.seen(false, 1, 9), Quiet::Unproven);
    }
}
