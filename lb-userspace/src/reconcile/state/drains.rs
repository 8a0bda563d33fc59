//! Drains by command: from when they are asked for until they end.

use std::{collections::BTreeSet, time::Duration};

use super::State;
use crate::{
    desired::{self, Change, Refusal},
    model::{Admin, Asked, BackendName, Drains},
    pace::Moment,
};

/// What was ordered of a backend from the DNS waits so long for an answer that has it again. Answers leave out what is not ready for a moment, or are
/// of one server that knows less than another; but in time an address is somebody else's.
const AWAITED: Duration = Duration::from_secs(3_600);

impl State {
    /// Drains a backend until [`State::undrain`], over restarts. `asked` is a deadline of this drain's own, from now on; without one that of its
    /// service counts, from when the drain began.
    ///
    /// # Errors
    /// When there is no such backend, or the drain cannot be remembered.
    pub fn drain(&mut self, name: &BackendName, asked: Option<Asked>) -> Result<(), Refusal> {
        self.configured(name)?;
        let mut ordered = self.ordered.clone();
        ordered.backends.insert(name.clone(), asked);
        self.set_ordered(ordered)
    }

    /// Takes back what was ordered of a backend, a deadline of its own with it. Told is why it takes no new flows all the same, if the configuration
    /// itself says so.
    ///
    /// # Errors
    /// When there is no such backend, it is drained with all others, nothing was ordered of one that the configuration itself wants out, or the end
    /// cannot be remembered; all stays as it was.
    pub fn undrain(&mut self, name: &BackendName) -> Result<Option<String>, Refusal> {
        let admin = match self.configured(name) {
            // The DNS has left it out.
            Err(_) if self.ordered.backends.contains_key(name) => Admin::Active,
            configured => configured?,
        };
        if admin == Admin::Active && self.ordered.all.is_some() {
            return Err(Refusal::Invalid(format!(
                "{name} is drained with all others; `tether undrain --all` ends that"
            )));
        }
        let stays = self.stays_out(name, admin);
        let mut ordered = self.ordered.clone();
        match (ordered.backends.remove(name), stays) {
            (None, Some(stays)) => Err(Refusal::Invalid(stays)),
            (_, stays) => {
                self.set_ordered(ordered)?;
                Ok(stays)
            }
        }
    }

    /// Why a backend takes no new flows whatever was ordered of it, if that is so: what says that, and what to do.
    fn stays_out(&self, name: &BackendName, admin: Admin) -> Option<String> {
        let word = match admin {
            Admin::Active => return None,
            Admin::Draining => "draining",
            Admin::Disabled => "disabled",
        };
        let file = self.config.path.display();
        let mut changes = self.changes.iter();
        let is_put = changes.any(|(of, change)| of == name && matches!(change, Change::Put(_)));
        Some(if is_put {
            format!(
                "{name} is not active: it was put with admin = \"{word}\" at runtime; put it anew, or `tether revert {name}` makes it what {file} says"
            )
        } else {
            format!(
                "{name} is not active in {file}: admin = \"{word}\"; set admin = \"active\" there and reload"
            )
        })
    }

    /// Makes these the drains that are ordered, once they are remembered. Nothing is done if they are both, beyond doubt.
    ///
    /// # Errors
    /// When they cannot be; all stays as it was.
    pub(in super::super) fn set_ordered(&mut self, ordered: Drains) -> Result<(), Refusal> {
        // What the file may hold of a command that was refused is to go, or a restart would forget that these are in force.
        if ordered == self.ordered && !self.is_doubtful {
            return Ok(());
        }
        self.save(&ordered, self.changes.clone())
            .map_err(|error| Refusal::Failed(self.not_remembered(&error)))?;
        self.ordered = ordered;
        self.want();
        self.accepted();
        Ok(())
    }

    /// Deadlines that were asked for since the last plan count from now on.
    pub(super) fn begin_asked(&mut self, now: Moment) {
        if self.ordered.begin(now) {
            self.want();
        }
    }

    /// Whether a backend is one from the DNS that the latest answer does not have.
    fn may_return(&self, name: &BackendName) -> bool {
        desired::may_return(&self.base, name)
    }

    /// Ends what was ordered of backends from the DNS that no answer has had for long.
    pub(super) fn give_up_awaiting(&mut self, now: Moment) {
        let drained = self.ordered.backends.keys();
        let changed = self.changes.iter().filter_map(|(name, change)| {
            let is_there = matches!(change, Change::Put(_));
            (!is_there).then_some(name)
        });
        let absent: BTreeSet<BackendName> = drained
            .chain(changed)
            .filter(|name| self.may_return(name) && desired::find(&self.config, name).is_none())
            .cloned()
            .collect();
        self.awaited.retain(|name, _| absent.contains(name));
        for name in absent {
            let since = *self.awaited.entry(name.clone()).or_insert_with(|| {
                tracing::info!(
                    backend = %name,
                    "the DNS no longer has it: what was ordered of it holds again if it returns within {} min",
                    AWAITED.as_secs() / 60
                );
                now
            });
            if now.since(since) < AWAITED {
                continue;
            }
            tracing::warn!(
                backend = %name,
                "the DNS has not had it for {} min, and what was ordered of it ends: should it return, it takes new flows as any other",
                AWAITED.as_secs() / 60
            );
            self.awaited.remove(&name);
            self.ordered.backends.remove(&name);
            self.changes.forget(&name);
            self.names_changed = true;
        }
    }

    /// A drain ends with its backend: one that is configured again later is as the configuration says. That of one from the DNS outlives an answer without it.
    pub(super) fn forget_drains(&mut self) {
        let mut ordered = std::mem::take(&mut self.ordered);
        ordered.backends.retain(|name, _| {
            let stays = self.configured(name).is_ok() || self.may_return(name);
            if !stays {
                tracing::warn!(
                    backend = %name,
                    "it is no longer in {}, or was removed at runtime, and the `tether drain` that was ordered for it ends with it: should it return, or have another \
                     name now, it takes new flows unless it is drained again",
                    self.config.path.display()
                );
            }
            stays
        });
        self.ordered = ordered;
    }
}
