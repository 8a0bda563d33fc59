//! `tether doctor`: what of this host, its interfaces and the ways to backends keeps Tether from working, or from working well.
//!
//! * [`facts`]: what there is to know, as data
//! * [`gather`]: asks the kernel and the network for it, and judges nothing
//! * [`judge`]: makes findings of it: pure
//! * `probe`: the packets by which backends are asked what cannot be seen from here
//!
//! It changes nothing, and needs no daemon.

pub mod facts;
pub mod gather;
pub mod judge;
mod probe;

use schemars::JsonSchema;
use serde::Serialize;

/// How one thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// It could not be found out; the remedy says how to.
    Unknown,
    /// It works, but not well, or not for everybody.
    Warning,
    /// It does not work.
    Failure,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Finding {
    /// What was looked at: a word that stays the same from version to version.
    pub check: &'static str,
    /// On what: an interface, a backend, a service; nothing for the host itself.
    pub subject: String,
    /// How it stands.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do, if anything is to be done.
    pub remedy: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, subject: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            check,
            subject: subject.into(),
            state: State::Ok,
            found: found.into(),
            remedy: None,
        }
    }

    fn bad(
        state: State,
        check: &'static str,
        subject: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            state,
            remedy: Some(remedy.into()),
            ..Self::ok(check, subject, found)
        }
    }
}

/// All findings of one examination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Report {
    /// In the order of the way from the host to the backends.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The worst state of all.
    pub fn worst(&self) -> State {
        let states = self.findings.iter().map(|finding| finding.state);
        states.max().unwrap_or(State::Ok)
    }
}
