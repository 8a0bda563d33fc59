//! What somebody else may undo while the daemon runs, and is put right again: the program's attachment, and what the state directory
//! holds.

use std::{io, path::Path, time::Duration};

use tokio::{
    net::UnixListener,
    sync::{mpsc, watch},
};

use super::lock::{self, StateDir};
use crate::{
    admin,
    dataplane::kernel::{self, Attached, Kernel, XdpMode},
    status::{AttachMode, Attachment},
};

/// Time between two looks.
pub(super) const EVERY: Duration = Duration::from_secs(5);

/// All that is seen to.
pub(super) struct Upkeep<'a> {
    pub(super) kernel: &'a mut Kernel,
    pub(super) state: &'a mut StateDir,
    /// To the status.
    pub(super) attachments: &'a watch::Sender<Vec<Attachment>>,
    /// To the admin API.
    pub(super) listeners: &'a mpsc::Sender<UnixListener>,
    /// Who may read there.
    pub(super) readers: admin::Readers,
    /// As of the latest look; what fails again and again is said once.
    pub(super) is_attached: bool,
    /// As of the latest look.
    pub(super) is_open: bool,
}

impl Upkeep<'_> {
    /// Attaches the program for the first time in this daemon's life.
    ///
    /// # Errors
    /// When an interface cannot have it.
    pub(super) fn attach(&mut self) -> Result<(), kernel::Error> {
        let attached = tokio::task::block_in_place(|| self.kernel.attach())?;
        self.attachments
            .send_replace(attached.iter().map(attachment).collect());
        self.is_attached = true;
        Ok(())
    }

    /// Sees to it that the program is still attached: an interface may have been recreated, or somebody may have detached the
    /// program. The status shows whether it is.
    pub(super) fn attach_again(&mut self) {
        let attached = tokio::task::block_in_place(|| {
            if self.kernel.is_attached()? {
                return Ok(None);
            }
            self.kernel.attach().map(Some)
        });
        match attached {
            Ok(None) => self.is_attached = true,
            Ok(Some(attached)) => {
                tracing::warn!(
                    "the program was detached, or an interface recreated; it is attached again"
                );
                self.attachments
                    .send_replace(attached.iter().map(attachment).collect());
                self.is_attached = true;
            }
            Err(error) => {
                if self.is_attached {
                    tracing::error!(%error, "the program is not attached, and no traffic is served there; trying again");
                    self.attachments.send_replace(vec![]);
                }
                self.is_attached = false;
            }
        }
    }

    /// Sees to it that the state directory is there, ours, and has the admin socket in it.
    pub(super) fn open_again(&mut self) {
        let socket = self.state.socket();
        match self.reopen(&socket) {
            Ok(false) => self.is_open = true,
            Ok(true) => {
                tracing::warn!(socket = %socket.display(), "the admin socket was removed; it is open again");
                self.is_open = true;
            }
            Err(error) => {
                if self.is_open {
                    tracing::error!(
                        socket = %socket.display(), %error,
                        "the admin socket was removed and cannot be opened again: `tether status` and `tether drain` do not work; trying again"
                    );
                }
                self.is_open = false;
            }
        }
    }

    /// True if it had to be opened.
    fn reopen(&mut self, socket: &Path) -> Result<bool, OpenError> {
        if self.state.retake()? {
            tracing::warn!("the state directory's lock was removed; it is made again, and locked");
        }
        // Whatever else is in its place is found out by opening.
        if socket.symlink_metadata().is_ok() && self.is_open {
            return Ok(false);
        }
        // If the API has not come to take the one before, it will be its turn at one of the next looks.
        let Ok(place) = self.listeners.try_reserve() else {
            return Ok(false);
        };
        place.send(admin::listen(socket, self.readers)?);
        Ok(true)
    }
}

/// Why the admin socket cannot be opened again.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error(transparent)]
    State(#[from] lock::Error),
    #[error(transparent)]
    Socket(#[from] io::Error),
}

fn attachment(attached: &Attached) -> Attachment {
    Attachment {
        interface: attached.interface.clone(),
        mode: match attached.mode {
            XdpMode::Native => AttachMode::Native,
            XdpMode::Generic => AttachMode::Generic,
        },
    }
}
