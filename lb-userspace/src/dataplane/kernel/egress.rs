//! The interfaces that packets may leave by, other than the one that they came in by: the device map, and who is let into it.
//!
//! The kernel lets any interface in, and drops what is redirected to one whose driver cannot send it, without a word that anybody would
//! hear. So only those are let in that can; what would go to another is counted by the program, with a reason of its own. Whether they send frames of
//! several buffers too, which few have to, `tether doctor` looks at (`egress-buffers`).

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Once,
};

use super::{bpf, device, device::XdpState, features};

/// Lets interfaces into the device map.
#[derive(Debug)]
pub struct Egress {
    map: OwnedFd,
    /// Those that packets come in by.
    interfaces: Vec<String>,
    undecided: Once,
}

/// Why packets that came in by another interface cannot leave by this one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Its driver does not send frames of XDP programs, or not as it is set up.
    #[error(
        "its driver takes no frames from XDP as it is set up, so what comes in by another interface and would leave here is dropped and counted as no_egress; \
         many drivers do once a program is attached: add it to `interfaces` (of a veth pair, the peer needs a program, or `ethtool -K PEER gro on`; a bridge \
         cannot: route over one of its ports)"
    )]
    Driver,
    /// The kernel could not be asked, or refuses.
    #[error(
        "the kernel does not let it be redirected to ({0}), so what comes in by another interface and would leave here is dropped and counted as no_egress"
    )]
    Kernel(String),
}

impl Egress {
    /// For the device map of a program that is attached to these interfaces.
    pub(super) fn new(map: OwnedFd, interfaces: Vec<String>) -> Self {
        Self {
            map,
            interfaces,
            undecided: Once::new(),
        }
    }

    /// Lets an interface in, or keeps it out if it takes no frames. To be asked again from time to time: that changes with what is attached.
    ///
    /// # Errors
    /// When it is kept out and that matters: some packets come in by another interface.
    pub fn admit(&self, ifindex: u32) -> Result<(), Refusal> {
        let refusal = match self.takes_frames(ifindex) {
            Ok(true) => match bpf::set_device(self.map.as_fd(), ifindex, ifindex) {
                Ok(()) => return Ok(()),
                Err(error) => Refusal::Kernel(error.to_string()),
            },
            Ok(false) => Refusal::Driver,
            Err(error) => Refusal::Kernel(error.to_string()),
        };
        if let Err(error) = bpf::remove(self.map.as_fd(), ifindex) {
            return Err(Refusal::Kernel(error.to_string()));
        }
        if self.is_only_ingress(ifindex) {
            Ok(())
        } else {
            Err(refusal)
        }
    }

    fn takes_frames(&self, ifindex: u32) -> io::Result<bool> {
        // In generic mode the stack sends what is redirected, by whatever there is.
        let mut modes = self.interfaces.iter().filter_map(|name| {
            let state = device::xdp(device::index(name)?).ok()??;
            Some(matches!(state, XdpState::Generic(_)))
        });
        if modes.next().is_some_and(|generic| generic) && modes.all(|generic| generic) {
            return Ok(true);
        }
        let told = features::takes_redirected(ifindex)?;
        if told.is_none() {
            self.undecided.call_once(|| {
                tracing::info!(
                    "this kernel does not tell which interfaces take frames from XDP programs on others (Linux 6.3 does); should packets be lost there, `ethtool -S` \
                     of the driver and the tracepoint xdp:xdp_redirect_err show it"
                );
            });
        }
        Ok(told.unwrap_or(true))
    }

    /// Whether all packets come in by this interface, so that none is redirected to it. (On a bond they come in by its ports.)
    fn is_only_ingress(&self, ifindex: u32) -> bool {
        match &self.interfaces[..] {
            [only] => {
                device::index(only) == Some(ifindex)
                    && !device::nature(ifindex).is_ok_and(|nature| nature.is_bond)
            }
            _ => false,
        }
    }
}
