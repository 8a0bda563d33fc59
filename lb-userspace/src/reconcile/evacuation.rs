//! All backends are drained together, so that this host can be taken out of service.

use super::state::State;
use crate::{
    desired::Refusal,
    model::{Asked, Evacuation},
};

impl State {
    /// Drains all backends, those that are yet to be configured among them, until [`State::undrain_all`], over restarts. `asked` is as for
    /// [`State::drain`].
    ///
    /// # Errors
    /// When that cannot be remembered.
    pub fn drain_all(&mut self, asked: Option<Asked>) -> Result<(), Refusal> {
        self.evacuate(Some(Evacuation { asked }))
    }

    /// Ends the drain of all backends. Those that are drained by their own names stay so.
    ///
    /// # Errors
    /// When that cannot be remembered.
    pub fn undrain_all(&mut self) -> Result<(), Refusal> {
        self.evacuate(None)
    }

    fn evacuate(&mut self, all: Option<Evacuation>) -> Result<(), Refusal> {
        let mut ordered = self.ordered.clone();
        ordered.all = all;
        self.set_ordered(ordered)
    }
}
