//! What somebody else may undo while the daemon runs, and is put right again: the program's attachment, the pins, and what the state directory
//! holds.

use std::{io, path::Path, time::Duration};

use tokio::{
    net::UnixListener,
    sync::{mpsc, watch},
};

use super::lock::{self, StateDir};
use crate::{
    admin,
    dataplane::kernel::{self, Kernel, Renewal, Seen, XdpMode},
    status::{AttachMode, Attachment, Attachments, Detached},
};

/// Time between two looks.
pub(super) const EVERY: Duration = Duration::from_secs(5);

/// All that is seen to.
pub(super) struct Upkeep<'a> {
    pub(super) kernel: &'a mut Kernel,
    pub(super) state: &'a mut StateDir,
    /// To the status.
    pub(super) attachments: &'a watch::Sender<Attachments>,
    /// To the admin API.
    pub(super) listeners: &'a mpsc::Sender<UnixListener>,
    /// Who may read there.
    pub(super) readers: admin::Readers,
    /// Why interfaces could not be seen to, as of the latest look; what fails again and again is said once.
    pub(super) trouble: Option<String>,
    /// As of the latest look.
    pub(super) is_open: bool,
    /// Whether those who may read get through to the socket, as of the latest look.
    pub(super) is_admitted: bool,
}

impl Upkeep<'_> {
    /// Attaches the program for the first time in this daemon's life.
    ///
    /// # Errors
    /// When an interface cannot have it.
    pub(super) fn attach(&mut self) -> Result<(), kernel::Error> {
        let attached = tokio::task::block_in_place(|| self.kernel.attach())?;
        let attached = attached
            .into_iter()
            .map(|one| attachment(one.interface, one.mode));
        self.attachments.send_replace(Attachments {
            attached: attached.collect(),
            detached: vec![],
        });
        Ok(())
    }

    /// Sees to it that the program is still attached: an interface may have been recreated, or somebody may have detached the
    /// program. The status shows where it is, and where it is not.
    pub(super) fn attach_again(&mut self) {
        let trouble = match tokio::task::block_in_place(|| self.kernel.attach_again()) {
            Ok(Renewal {
                is_pinned_again,
                interfaces,
                replies,
            }) => {
                if is_pinned_again {
                    tracing::warn!(
                        "the pin directory was removed, or maps in it; they are pinned again"
                    );
                }
                self.publish(interfaces);
                replies.map(|error| {
                    format!(
                        "replies of backends on this host are not translated everywhere: {error}"
                    )
                })
            }
            Err(error) => {
                let error = error.to_string();
                // Where it is attached is not to be seen.
                self.attachments.send_if_modified(|held| {
                    let attached = std::mem::take(&mut held.attached);
                    let is_news = !attached.is_empty();
                    held.detached
                        .extend(attached.into_iter().map(|one| Detached {
                            interface: one.interface,
                            reason: error.clone(),
                        }));
                    is_news
                });
                Some(error)
            }
        };
        if let Some(error) = trouble.as_ref().filter(|_| self.trouble.is_none()) {
            tracing::error!(%error, "the interfaces cannot be seen to; trying again");
        }
        self.trouble = trouble;
    }

    /// Tells what each interface was found to be, and says what is news.
    fn publish(&self, interfaces: Vec<(String, Seen)>) {
        let mut now = Attachments::default();
        let before = self.attachments.borrow().clone();
        for (interface, seen) in interfaces {
            match seen {
                Seen::Still(mode) => now.attached.push(attachment(interface, mode)),
                Seen::Again(attached) => {
                    tracing::warn!(
                        interface,
                        "the program was detached, or the interface recreated; it is attached again"
                    );
                    now.attached.push(attachment(interface, attached.mode));
                }
                Seen::Not(error) => {
                    if !before.detached.iter().any(|one| one.interface == interface) {
                        tracing::error!(interface, %error, "the program is not attached, and no traffic is served there; trying again");
                    }
                    now.detached.push(Detached {
                        interface,
                        reason: error.to_string(),
                    });
                }
            }
        }
        if now != before {
            self.attachments.send_replace(now);
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

    /// Sees to it that `admin_group` gets through to the admin socket, which a reload of systemd's unit takes from it.
    pub(super) fn admit_again(&mut self) {
        match self.readers.admit_again(&self.state.socket()) {
            Ok(was_taken) => {
                if was_taken {
                    tracing::info!(
                        "the admin socket was taken from admin_group, and is given back"
                    );
                }
                self.is_admitted = true;
            }
            // It is opened again at the next look.
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            Err(error) => {
                if self.is_admitted {
                    tracing::error!(%error, "members of admin_group cannot use the admin socket; trying again");
                }
                self.is_admitted = false;
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

fn attachment(interface: String, mode: XdpMode) -> Attachment {
    Attachment {
        interface,
        mode: match mode {
            XdpMode::Native => AttachMode::Native,
            XdpMode::Generic => AttachMode::Generic,
        },
    }
}
