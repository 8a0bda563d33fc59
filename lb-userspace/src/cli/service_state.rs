//! What is to be said of a service in a word, wherever it is a row.

use crate::inventory::ServiceRow;

/// Of all that is so, what matters most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ServiceState {
    Error,
    Removed,
    FailOpen,
    Full,
    NoBackend,
    ResetsOff,
    Ok,
}

impl ServiceState {
    pub(super) fn of(row: &ServiceRow) -> Self {
        if row.error.is_some() {
            Self::Error
        } else if row.removed {
            Self::Removed
        } else if row.fail_open {
            Self::FailOpen
        } else if row.full {
            Self::Full
        } else if row.backends.new == 0 {
            Self::NoBackend
        } else if row.resets_suspended.is_some() {
            Self::ResetsOff
        } else {
            Self::Ok
        }
    }

    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Removed => "removed",
            Self::FailOpen => "FAIL-OPEN",
            Self::Full => "FULL",
            Self::NoBackend => "no backend",
            Self::ResetsOff => "resets off",
            Self::Ok => "ok",
        }
    }
}
