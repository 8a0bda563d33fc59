//! A netlink socket for single questions to the kernel.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// The socket.
pub(super) struct Socket(OwnedFd);

impl Socket {
    /// Opens one, of rtnetlink or of generic netlink.
    ///
    /// # Errors
    /// When there are no file descriptors left.
    pub(super) fn open(protocol: SockProtocol) -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            protocol,
        )?;
        Ok(Self(socket))
    }

    /// Sends the kernel whole messages.
    ///
    /// # Errors
    /// What the kernel says of the datagram; what it says of the messages is in its answer.
    pub(super) fn send(&self, messages: &[u8]) -> io::Result<()> {
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.0.as_raw_fd(), messages, &kernel, MsgFlags::empty())?;
        Ok(())
    }

    /// Waits for the next piece of its answer, and gives as much of it as the buffer takes, which is lost beyond that.
    ///
    /// # Errors
    /// What keeps the kernel from answering.
    pub(super) fn receive<'b>(&self, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
        let length = recv(self.0.as_raw_fd(), buffer, MsgFlags::empty())?;
        Ok(&buffer[..length])
    }
}
