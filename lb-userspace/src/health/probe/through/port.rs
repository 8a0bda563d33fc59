//! A port of this host's that a check's connection has: held in the kernel by a socket that drops whatever comes.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use lb_common::net::IpVersion;
use socket2::{Socket, Type};

use super::{domain, ear::Ear, filter::DROP, inbox::Inbox, tcp::Segment};

/// The port.
#[derive(Debug)]
pub(in crate::health::probe) struct Port {
    /// It listens, so that the kernel finds it, and answers nothing, since its filter comes first.
    _holder: Socket,
    own: SocketAddr,
    inbox: Arc<Inbox>,
    ear: Arc<Ear>,
}

impl Port {
    /// Takes a port of an address of this host, as the kernel gives them out, for checks of a VIP.
    ///
    /// # Errors
    /// When there is none, or it cannot be listened to.
    pub(super) fn open(ear: Arc<Ear>, own: IpAddr, vip: SocketAddr) -> io::Result<Self> {
        let holder = Socket::new(domain(IpVersion::of(own)), Type::STREAM, None)?;
        drop_all(&holder)?;
        holder.bind(&SocketAddr::new(own, 0).into())?;
        holder.listen(1)?;
        let own = holder.local_addr()?.as_socket();
        let own = own.ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))?;
        let inbox = ear.listen(own, vip)?;
        Ok(Self {
            _holder: holder,
            own,
            inbox,
            ear,
        })
    }

    /// The address and the port.
    pub(super) fn own(&self) -> SocketAddr {
        self.own
    }

    /// A connection begins: what came before is forgotten.
    pub(super) fn begin(&self) {
        self.inbox.open();
    }

    /// It is over: nothing is kept that comes until the next.
    pub(super) fn end(&self) {
        self.inbox.close();
    }

    /// The next segment from the VIP.
    pub(super) async fn next(&self) -> Segment {
        self.inbox.next().await
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.ear.forget(self.own);
    }
}

/// Has a socket receive nothing.
///
/// # Errors
/// The kernel's.
pub(super) fn drop_all(socket: &Socket) -> io::Result<()> {
    socket.attach_filter(&[DROP])
}
