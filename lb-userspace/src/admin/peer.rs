//! Who may do what at the admin socket, by whom the kernel says that they are.

use std::{
    fs::{self, Permissions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{MetadataExt as _, PermissionsExt as _},
    },
    path::Path,
};

use anyhow::{Context as _, Result, anyhow};
use nix::unistd::{Gid, Group, chown};
use tokio::net::UnixStream;

/// What a peer may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Right {
    /// Everything: root, and the daemon's own user.
    Everything,
    /// Read: members of the readers' group.
    Read,
    /// Nothing.
    Nothing,
}

/// The group whose members may read, if there is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readers(Option<Gid>);

impl Readers {
    /// The group that the configuration at `path` names.
    ///
    /// # Errors
    /// When this host has no such group, or that cannot be found out.
    pub fn named(name: Option<&str>, path: &Path) -> Result<Self> {
        let Some(name) = name else {
            return Ok(Self::default());
        };
        let group = Group::from_name(name)
            .with_context(|| format!("{}: admin_group: the group {name:?} cannot be looked up", path.display()))?
            .ok_or_else(|| {
                anyhow!(
                    "{}: admin_group: this host has no group {name:?}; make it (`groupadd --system {name}`) or remove the key",
                    path.display()
                )
            })?;
        Ok(Self(Some(group.gid)))
    }

    /// The group of this id.
    pub fn of(gid: Gid) -> Self {
        Self(Some(gid))
    }

    /// What the peer of a connection may do.
    pub(super) fn right(self, stream: &UnixStream) -> Right {
        let Ok(peer) = stream.peer_cred() else {
            return Right::Nothing;
        };
        if peer.uid() == 0 || peer.uid() == nix::unistd::geteuid().as_raw() {
            return Right::Everything;
        }
        let Some(group) = self.0.map(Gid::as_raw) else {
            return Right::Nothing;
        };
        let is_member =
            peer.gid() == group || other_groups(stream).is_ok_and(|groups| groups.contains(&group));
        if is_member {
            Right::Read
        } else {
            Right::Nothing
        }
    }

    /// Lets the group reach a socket, which is its owner's alone else.
    ///
    /// # Errors
    /// When the socket cannot be given to the group; the message says what would let it.
    pub(super) fn admit(self, socket: &Path) -> io::Result<()> {
        let Some(group) = self.0 else {
            return fs::set_permissions(socket, Permissions::from_mode(0o600));
        };
        let directory = socket
            .parent()
            .map_or(Ok(()), |path| let_through(path, group));
        directory
            .and_then(|()| Ok(chown(socket, None, Some(group))?))
            .map_err(|error| {
                let text = format!(
                    "it cannot be given to admin_group: {error}; have the daemon run with that group among its own (SupplementaryGroups= in a systemd \
                     unit), or with CAP_CHOWN"
                );
                io::Error::new(error.kind(), text)
            })?;
        fs::set_permissions(socket, Permissions::from_mode(0o660))
    }

    /// Lets the group reach a socket again that has been taken from it since it was admitted. True if that was so.
    ///
    /// Systemd takes it: each command of a unit, those of a reload among them, has all of its `RuntimeDirectory` given to the unit's own user and
    /// group first.
    ///
    /// # Errors
    /// When the socket is not there, or cannot be given to the group.
    pub fn admit_again(self, socket: &Path) -> io::Result<bool> {
        let Some(group) = self.0 else {
            return Ok(false);
        };
        let found = fs::metadata(socket)?;
        let is_theirs = found.gid() == group.as_raw() && found.mode() & 0o060 == 0o060;
        let directory = socket.parent();
        if is_theirs && directory.map_or(Ok(true), |path| lets_through(path, group))? {
            return Ok(false);
        }
        self.admit(socket)?;
        Ok(true)
    }
}

/// Lets a group pass through the socket's directory, unless anybody may: that one is somebody's, and open on purpose.
fn let_through(directory: &Path, group: Gid) -> io::Result<()> {
    if lets_through(directory, group)? {
        return Ok(());
    }
    chown(directory, None, Some(group))?;
    let mode = (fs::metadata(directory)?.mode() & 0o7707) | 0o010;
    fs::set_permissions(directory, Permissions::from_mode(mode))
}

/// Whether a group may pass through a directory.
fn lets_through(directory: &Path, group: Gid) -> io::Result<bool> {
    let found = fs::metadata(directory)?;
    let passes = found.mode() & 0o010 != 0 && found.gid() == group.as_raw();
    Ok(found.mode() & 0o001 != 0 || passes)
}

/// The groups of a connection's peer beside its first, as they were when it connected.
fn other_groups(stream: &UnixStream) -> io::Result<Vec<libc::gid_t>> {
    // The most that Linux lets a process have.
    const MOST: usize = 65_536;
    let mut groups = vec![0 as libc::gid_t; 32];
    loop {
        let mut bytes = size_of_val(groups.as_slice()) as libc::socklen_t;
        // SAFETY: the kernel writes at most `bytes` bytes to the buffer, which has so many, and the size to `bytes`.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut bytes,
            )
        };
        if result == 0 {
            groups.truncate(bytes as usize / size_of::<libc::gid_t>());
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || groups.len() >= MOST {
            return Err(error);
        }
        groups.resize(MOST, 0);
    }
}
