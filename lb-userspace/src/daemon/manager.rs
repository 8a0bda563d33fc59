//! What a service manager is told: that the daemon serves (sd_notify(3)). One that has not asked is told nothing.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

/// The variable that names the socket of a service manager who wants to be told.
const SOCKET: &str = "NOTIFY_SOCKET";
/// What that takes for the end of the start.
const READY: &[u8] = b"READY=1";

/// Tells the service manager that the start is over. Where that fails the daemon goes on: it serves all the same.
pub(super) fn tell_ready() {
    if let Err(error) = tell(std::env::var_os(SOCKET)) {
        tracing::warn!(%error, "the service manager could not be told that the daemon is ready, and may end it for that");
    }
}

fn tell(socket: Option<OsString>) -> io::Result<()> {
    let Some(name) = socket else {
        return Ok(());
    };
    UnixDatagram::unbound()?
        .send_to_addr(READY, &address(&name)?)
        .map(drop)
}

/// A path, or after an `@` a name that is in no file system.
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(listener: &UnixDatagram) -> Vec<u8> {
        let mut said = [0; 64];
        let length = listener.recv(&mut said).unwrap();
        said[..length].to_vec()
    }

    #[test]
    fn a_manager_is_told_by_a_path_and_by_a_name_without_a_file() {
        let own = format!("tether-manager-{}", std::process::id());
        let path = std::env::temp_dir().join(&own);
        let listener = UnixDatagram::bind(&path).unwrap();
        tell(Some(path.clone().into())).unwrap();
        assert_eq!(heard(&listener), READY);
        std::fs::remove_file(&path).unwrap();

        let name = SocketAddr::from_abstract_name(&own).unwrap();
        let listener = UnixDatagram::bind_addr(&name).unwrap();
        tell(Some(format!("@{own}").into())).unwrap();
        assert_eq!(heard(&listener), READY);
    }

    #[test]
    fn nobody_is_told_who_has_not_asked_and_one_who_is_gone_is_an_error() {
        tell(None).unwrap();
        let gone = std::env::temp_dir().join(format!("tether-no-manager-{}", std::process::id()));
        tell(Some(gone.into())).unwrap_err();
    }
}
