//! A port of this host's that a check's connection has: held in the kernel by a socket that drops whatever comes.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use lb_common::net::IpVersion;
use socket2::{SockFilter, Socket, Type};
use tokio::sync::mpsc;

use super::{domain, ear::Ear, tcp::Segment};

/// RET of a classic BPF program: so many bytes are taken.
const RETURN: u16 = 0x06;

/// The port.
#[derive(Debug)]
pub(in crate::health::probe) struct Port {
    /// It listens, so that the kernel finds it, and answers nothing, since its filter comes first.
    _holder: Socket,
    own: SocketAddr,
    heard: mpsc::Receiver<(SocketAddr, Segment)>,
    ear: Arc<Ear>,
}

impl Port {
    /// Takes a port of an address of this host, as the kernel gives them out.
    ///
    /// # Errors
    /// When there is none, or it cannot be listened to.
    pub(super) fn open(ear: Arc<Ear>, own: IpAddr) -> io::Result<Self> {
        let holder = Socket::new(domain(IpVersion::of(own)), Type::STREAM, None)?;
        drop_all(&holder)?;
        holder.bind(&SocketAddr::new(own, 0).into())?;
        holder.listen(1)?;
        let own = holder.local_addr()?.as_socket();
        let own = own.ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))?;
        let heard = ear.listen(own)?;
        Ok(Self {
            _holder: holder,
            own,
            heard,
            ear,
        })
    }

    /// The address and the port.
    pub(super) fn own(&self) -> SocketAddr {
        self.own
    }

    /// Forgets what came for the connection before.
    pub(super) fn forget_what_came(&mut self) {
        while self.heard.try_recv().is_ok() {}
    }

    /// The next segment from a VIP.
    pub(super) async fn next_from(&mut self, vip: SocketAddr) -> Segment {
        loop {
            match self.heard.recv().await {
                Some((from, segment)) if from == vip => return segment,
                Some(_) => {}
                // The ear lets go of nothing that is not given back.
                None => std::future::pending().await,
            }
        }
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
    socket.attach_filter(&[SockFilter::new(RETURN, 0, 0, 0)])
}
