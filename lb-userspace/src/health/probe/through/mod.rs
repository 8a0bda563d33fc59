//! Checks through the VIP: a connection to it whose packets reach one backend alone, by the way that a client's take there from this host on.
//!
//! The kernel would send packets to the VIP by its own routes: to this very host if it has the VIP, else to a router, and from there to whichever
//! backend the table picks; and it takes nothing in that comes from an address of its own. So the connection is made here ([`tcp`]), past this
//! host's own TCP and routes to the VIP:
//!
//! * **mode `ipip`**: a raw socket sends each packet to the backend's address, in an outer header from this host's address on that route, as the data path
//!   does
//! * **mode `l2`**: a packet socket sends each to the MAC of the backend's neighbour entry
//! * **what comes back** comes straight from the VIP to this host's address, and is heard at the link ([`ear`]), behind XDP, traffic control and nftables'
//!   `ingress` hook, and before any other rule
//! * **the port** is held by a socket that listens and drops all ([`port`]): nobody else gets it, and the kernel, which knows nothing of the connection, does not answer with
//!   a RST, which would go to the VIP by the kernel's routes
//!
//! Nothing of the host is changed. It takes `CAP_NET_RAW`.

mod ear;
mod filter;
mod inbox;
mod port;
mod tcp;

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use lb_common::{
    headers::{PROTO_IPIP, PROTO_IPV6},
    net::IpVersion,
};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    sync::{OnceCell, watch},
    time::timeout_at,
};

use self::{
    ear::Ear,
    port::Port,
    tcp::{Segment, State, Tcp, Timer},
};
use super::{super::track::Reply, Failure, Limit, classify};
use crate::{
    by_version::ByVersion,
    model::{Passage, ToVip},
    neighbour::{
        netlink::{Error, Netlink},
        way::Route,
    },
    packet::{self, ethertype, link_address},
};

/// Time for a host on the link to answer ARP or NDP.
const ROUND_TRIP: Duration = Duration::from_millis(30);
/// The TTL or hop limit: enough for a host that hands packets on to a guest of its own, and too little for one that lacks the VIP and forwards packets to
/// it by its routes. They would come back to a load balancer, and be answered by whichever backend it picks.
const HOPS: u8 = 2;
/// Bytes of a request that are read at once.
const READ_BYTES: usize = 4 << 10;

/// What all checks through VIPs share: opened when the first needs it.
#[derive(Debug, Default)]
pub(in crate::health) struct Passages {
    netlink: OnceCell<Netlink>,
    ears: Mutex<ByVersion<Option<Arc<Ear>>>>,
    wires: Mutex<Wires>,
    /// Those of all services: what is sent to one of them is a client's, and never a backend's answer.
    vips: Option<watch::Receiver<BTreeSet<IpAddr>>>,
}

/// Sockets that packets are sent by.
#[derive(Debug, Default)]
struct Wires {
    link: Option<Arc<Socket>>,
    /// By what is outside.
    tunnels: ByVersion<Option<Arc<Socket>>>,
}

impl Passages {
    async fn netlink(&self) -> io::Result<&Netlink> {
        self.netlink
            .get_or_try_init(|| async { Netlink::connect() })
            .await
    }

    /// On a host with these VIPs, from none of which it may be asked.
    pub(in crate::health) fn beside(vips: watch::Receiver<BTreeSet<IpAddr>>) -> Self {
        Self {
            vips: Some(vips),
            ..Self::default()
        }
    }

    fn has_vip(&self, address: IpAddr) -> bool {
        let vips = self.vips.as_ref();
        vips.is_some_and(|vips| vips.borrow().contains(&address))
    }

    fn ear(&self, version: IpVersion) -> io::Result<Arc<Ear>> {
        opened(&mut lock(&self.ears)[version], || Ear::open(version))
    }

    fn link(&self) -> io::Result<Arc<Socket>> {
        opened(&mut lock(&self.wires).link, || {
            // Without a protocol it receives nothing.
            let socket = Socket::new(Domain::PACKET, Type::DGRAM, None)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
    }

    fn tunnel(&self, outer: IpVersion) -> io::Result<Arc<Socket>> {
        opened(&mut lock(&self.wires).tunnels[outer], || {
            // In both versions of IP, who sends by it writes the header, and it receives what has this number for its protocol: nothing of this host's own tunnels, of which
            // a socket of their protocol would be handed every packet.
            let protocol = Some(libc::IPPROTO_RAW.into());
            let socket = Socket::new(domain(outer), Type::RAW, protocol)?;
            // A stranger may send such packets too.
            port::drop_all(&socket)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
    }
}

/// What is in a place, opened if it is not yet.
fn opened<T>(
    place: &mut Option<Arc<T>>,
    open: impl FnOnce() -> io::Result<T>,
) -> io::Result<Arc<T>> {
    if let Some(there) = place {
        return Ok(there.clone());
    }
    let new = Arc::new(open()?);
    *place = Some(new.clone());
    Ok(new)
}

/// Neither holds an invariant that a panic elsewhere could have broken.
fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

const fn domain(version: IpVersion) -> Domain {
    match version {
        IpVersion::V4 => Domain::IPV4,
        IpVersion::V6 => Domain::IPV6,
    }
}

/// The way through the VIP to one backend, to be taken again and again.
#[derive(Debug)]
pub(super) struct Through {
    passages: Arc<Passages>,
    to: ToVip,
    backend: IpAddr,
    /// Kept from check to check, so that what comes late of one finds no kernel that answers it.
    port: tokio::sync::Mutex<Option<Port>>,
}

impl Through {
    pub(super) fn new(passages: Arc<Passages>, to: ToVip, backend: IpAddr) -> Self {
        Self {
            passages,
            to,
            backend,
            port: tokio::sync::Mutex::new(None),
        }
    }

    /// The VIP and the service's port.
    pub(super) fn vip(&self) -> SocketAddr {
        self.to.vip
    }

    /// How its packets go, before the name of the backend.
    pub(super) fn by(&self) -> &'static str {
        match self.to.by {
            Passage::Tunnel => "in a tunnel to",
            Passage::Link => "by the MAC of",
        }
    }

    /// What may be wrong with a backend that gives no answer.
    pub(super) fn doubt(&self) -> &'static str {
        match self.to.by {
            Passage::Tunnel => "does it take the tunnel's header off, and does it have the VIP?",
            Passage::Link => "does it have the VIP?",
        }
    }

    /// The port of a check before, to be kept locked for as long as a check takes: there is one at a time.
    pub(super) async fn port(&self) -> tokio::sync::MutexGuard<'_, Option<Port>> {
        self.port.lock().await
    }

    /// A connection that is to be opened, with the port that is in its place, or a new one.
    pub(super) async fn line<'p>(
        &self,
        place: &'p mut Option<Port>,
        limit: Limit,
    ) -> Result<Line<'p>, Failure> {
        let Ok(way) = timeout_at(limit.deadline, self.way()).await else {
            return Err(Failure::unasked(format!(
                "the way to it was not found within {limit}"
            )));
        };
        let (route, own) = way?;
        let wire = self.wire(&route, limit).await?;
        drop(place.take_if(|port| port.own().ip() != own));
        let port = match place {
            Some(port) => port,
            None => place.insert(self.port_at(own).map_err(|error| unasked(&error))?),
        };
        port.begin();
        Ok(Line {
            wire,
            port,
            vip: self.to.vip,
            tcp: Tcp::new(fastrand::u32(..)),
            timer: Timer::default(),
        })
    }

    fn port_at(&self, own: IpAddr) -> io::Result<Port> {
        Port::open(self.passages.ear(IpVersion::of(own))?, own, self.to.vip)
    }

    async fn netlink(&self) -> Result<&Netlink, Failure> {
        let netlink = self.passages.netlink().await;
        netlink.map_err(|error| unasked(&error))
    }

    /// The route to the backend, and this host's address that it answers to.
    async fn way(&self) -> Result<(Route, IpAddr), Failure> {
        let netlink = self.netlink().await?;
        let route = netlink.route(self.backend).await;
        let route = route.map_err(|error| no_route(&error))?;
        if route.local || !route.unicast {
            return Err(Failure::unasked("there is no route to another host there"));
        }
        let own = self.own_address(netlink, &route).await?;
        Ok((route, own))
    }

    /// The address that the kernel itself would speak from on the route to the backend, or if they are of different versions of IP, to the VIP; if that is a VIP, another one.
    async fn own_address(&self, netlink: &Netlink, route: &Route) -> Result<IpAddr, Failure> {
        let vip = self.to.vip.ip();
        let version = IpVersion::of(vip);
        let is_vip = |address: IpAddr| address == vip || self.passages.has_vip(address);
        let first = if version == IpVersion::of(self.backend) {
            route.source
        } else {
            source_towards(netlink, vip).await
        };
        if let Some(own) = first.filter(|own| !is_vip(*own)) {
            return Ok(own);
        }
        let others = netlink.addresses(version).await;
        let others = others.map_err(|error| Failure::unasked(error.to_string()))?;
        choose(&others, route.interface, is_vip).ok_or_else(|| {
            Failure::unasked(format!(
                "this host has no address of IPv{} to ask from that is no VIP",
                version as u8
            ))
        })
    }

    /// How packets get to the backend.
    async fn wire(&self, route: &Route, limit: Limit) -> Result<Wire, Failure> {
        let vip = self.to.vip.ip();
        Ok(match self.to.by {
            Passage::Tunnel => {
                let source = route.source.ok_or_else(|| {
                    Failure::unasked("this host has no address on the route to it")
                })?;
                let socket = self.passages.tunnel(IpVersion::of(self.backend));
                Wire {
                    socket: socket.map_err(|error| unasked(&error))?,
                    to: SocketAddr::new(self.backend, 0).into(),
                    tunnel: Some(Tunnel {
                        source,
                        backend: self.backend,
                        inner: IpVersion::of(vip),
                    }),
                }
            }
            Passage::Link if route.gateway.is_some() || route.foreign_gateway => {
                return Err(Failure::unasked(
                    "the route to it leads through a router, and mode l2 needs it on the link",
                ));
            }
            Passage::Link => {
                let mac = timeout_at(limit.deadline, self.mac(route.interface)).await;
                // A check without the time to wait for the neighbour's answer has got none.
                let mac = mac.unwrap_or_else(|_| Err(nobody()))?;
                Wire {
                    socket: self.passages.link().map_err(|error| unasked(&error))?,
                    to: link_address(route.interface, ethertype(vip), mac),
                    tunnel: None,
                }
            }
        })
    }

    /// The MAC of the backend, which the kernel is told to ask for if it does not know it.
    async fn mac(&self, interface: u32) -> Result<[u8; 6], Failure> {
        let netlink = self.netlink().await?;
        let mut asked = false;
        loop {
            let entry = netlink.entry(interface, self.backend).await;
            let entry = entry.map_err(|error| Failure::unasked(error.to_string()))?;
            if let Some(mac) = entry.and_then(|entry| entry.mac) {
                return Ok(mac);
            }
            if asked {
                return Err(nobody());
            }
            asked = true;
            // A refusal shows as an entry that stays away.
            let _ = netlink.use_neighbour(interface, self.backend).await;
            tokio::time::sleep(ROUND_TRIP).await;
        }
    }
}

fn nobody() -> Failure {
    Failure {
        reply: Reply::Silent,
        came: "found nobody on the link who has the backend's address".into(),
    }
}

fn unasked(error: &io::Error) -> Failure {
    Failure::unasked(match error.raw_os_error() {
        Some(libc::EPERM) => {
            "a check through the VIP takes CAP_NET_RAW; give it to the daemon".to_owned()
        }
        _ => error.to_string(),
    })
}

fn no_route(error: &Error) -> Failure {
    match error {
        Error::Refused(error) => classify(error),
        Error::Closed | Error::NoAnswer => Failure::unasked(error.to_string()),
    }
}

/// This host's address on its route to a VIP that it does not have itself.
async fn source_towards(netlink: &Netlink, vip: IpAddr) -> Option<IpAddr> {
    let route = netlink.route(vip).await.ok()?;
    route.source.filter(|_| !route.local)
}

/// An address to ask from, of several with their interfaces: rather one of the interface by which packets leave.
fn choose(
    addresses: &[(u32, IpAddr)],
    interface: u32,
    is_vip: impl Fn(IpAddr) -> bool,
) -> Option<IpAddr> {
    addresses
        .iter()
        .filter(|(_, address)| !is_vip(*address))
        .min_by_key(|(at, _)| *at != interface)
        .map(|(_, address)| *address)
}

/// A socket, and where it sends.
#[derive(Debug)]
struct Wire {
    socket: Arc<Socket>,
    to: SockAddr,
    tunnel: Option<Tunnel>,
}

impl Wire {
    fn send(&self, packet: Vec<u8>) -> io::Result<()> {
        let packet = match &self.tunnel {
            None => packet,
            Some(tunnel) => tunnel.wrap(&packet),
        };
        match self.socket.send_to(&packet, &self.to) {
            // As good as lost on the way: it is repeated.
            Err(error)
                if error.kind() == io::ErrorKind::WouldBlock
                    || error.raw_os_error() == Some(libc::ENOBUFS) =>
            {
                Ok(())
            }
            sent => sent.map(drop),
        }
    }
}

/// What is around packets to a backend.
#[derive(Clone, Copy, Debug)]
struct Tunnel {
    source: IpAddr,
    backend: IpAddr,
    inner: IpVersion,
}

impl Tunnel {
    fn wrap(&self, packet: &[u8]) -> Vec<u8> {
        let protocol = match self.inner {
            IpVersion::V4 => PROTO_IPIP,
            IpVersion::V6 => PROTO_IPV6,
        };
        let mut wrapped = packet::header(self.source, self.backend, protocol, packet.len());
        wrapped.extend(packet);
        wrapped
    }
}

/// One connection through the VIP. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Line<'p> {
    wire: Wire,
    port: &'p Port,
    vip: SocketAddr,
    tcp: Tcp,
    timer: Timer,
}

impl Line<'_> {
    /// Opens it.
    ///
    /// # Errors
    /// As those of connect(2). An answer that does not come is waited for without end.
    pub(super) async fn open(&mut self) -> io::Result<()> {
        loop {
            self.send()?;
            match self.tcp.state() {
                State::Open => return Ok(()),
                State::Asking => self.hear().await,
                State::Refused => return Err(io::Error::from_raw_os_error(libc::ECONNREFUSED)),
                State::Reset => return Err(io::Error::from_raw_os_error(libc::ECONNRESET)),
            }
        }
    }

    /// Carries what comes and goes, until the other side resets it or nobody reads any more: `here` is then closed.
    ///
    /// # Errors
    /// When this host can send nothing any more. What came before has been carried then.
    pub(super) async fn carry(&mut self, here: DuplexStream) -> io::Result<()> {
        let (mut reader, mut writer) = tokio::io::split(here);
        let mut buffer = vec![0; READ_BYTES];
        let (mut is_read, mut is_shut) = (false, false);
        loop {
            let incoming = self.tcp.take();
            let sent = self.send();
            if writer.write_all(&incoming).await.is_err() {
                return Ok(());
            }
            sent?;
            if self.tcp.state() == State::Reset {
                return Ok(());
            }
            if self.tcp.is_done() && !is_shut {
                is_shut = true;
                if writer.shutdown().await.is_err() {
                    return Ok(());
                }
            }
            tokio::select! {
                read = reader.read(&mut buffer), if !is_read && self.tcp.has_room() => match read {
                    // Whoever asks has no more to say. The connection is ended with the check.
                    Ok(0) | Err(_) => is_read = true,
                    Ok(length) => self.tcp.give(&buffer[..length]),
                },
                () = self.hear() => (),
            }
        }
    }

    /// Waits for a segment and takes it in, or has sent again what was not acknowledged in time.
    async fn hear(&mut self) {
        let next = self.port.next();
        let now = Instant::now();
        match self.timer.due(&self.tcp, now) {
            None => self.tcp.receive(&next.await),
            Some(due) if due <= now => self.tcp.repeat(),
            Some(due) => match timeout_at(due.into(), next).await {
                Ok(segment) => self.tcp.receive(&segment),
                Err(_) => self.tcp.repeat(),
            },
        }
    }

    fn send(&mut self) -> io::Result<()> {
        while let Some(segment) = self.tcp.next_out() {
            self.wire.send(self.packet(&segment))?;
        }
        Ok(())
    }

    fn packet(&self, segment: &Segment) -> Vec<u8> {
        let tcp = packet::Tcp {
            flags: segment.flags,
            seq: segment.seq,
            ack: segment.ack,
            window: segment.window,
            ttl: HOPS,
            mss: segment.mss,
            data: &segment.data,
        };
        packet::segment(self.port.own(), self.vip, &tcp)
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        for segment in self.tcp.end() {
            // What does not get there leaves the backend with a connection that nobody answers for, until it gives up.
            let _ = self.wire.send(self.packet(&segment));
        }
        self.port.end();
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use lb_common::tcp::{ACK, SYN};

    use super::*;

    #[tokio::test]
    async fn what_came_before_this_host_could_not_send_is_delivered() {
        let vip = SocketAddr::new(Ipv4Addr::new(198, 51, 100, 1).into(), 80);
        let ear = Arc::new(Ear::open(IpVersion::V4).expect("tests of the network need root"));
        let port = Port::open(ear, Ipv4Addr::LOCALHOST.into(), vip).unwrap();
        let segment = |seq, flags, data: &[u8]| Segment {
            seq,
            ack: 1,
            flags,
            window: 1_000,
            mss: None,
            data: data.to_vec(),
        };
        let mut tcp = Tcp::new(0);
        assert!(tcp.next_out().is_some());
        tcp.receive(&segment(7, SYN | ACK, b""));
        tcp.receive(&segment(8, ACK, b"before"));
        let wire = Wire {
            socket: Arc::new(Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap()),
            // Of another version of IP than the socket: nothing can be sent there.
            to: SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 9).into(),
            tunnel: None,
        };
        let mut line = Line {
            wire,
            port: &port,
            vip,
            tcp,
            timer: Timer::default(),
        };
        let (mut near, far) = tokio::io::duplex(64);
        assert!(line.carry(far).await.is_err());
        let mut came = vec![];
        near.read_to_end(&mut came).await.unwrap();
        assert_eq!(came, b"before");
    }

    #[test]
    fn a_tunnels_header_says_what_is_inside_and_how_long_it_is() {
        let four = IpAddr::from([10, 0, 0, 1]);
        let six = IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]);
        // Where the protocol is, and its number.
        for (outer, inner, at, protocol) in [
            (four, IpVersion::V4, 9, 4),
            (six, IpVersion::V4, 6, 4),
            (six, IpVersion::V6, 6, 41),
        ] {
            let tunnel = Tunnel {
                source: outer,
                backend: outer,
                inner,
            };
            let wrapped = tunnel.wrap(&[7; 300]);
            let header = wrapped.len() - 300;
            assert_eq!(header, if outer.is_ipv4() { 20 } else { 40 });
            assert_eq!(wrapped[header..], [7; 300]);
            assert_eq!(wrapped[at], protocol);
            let (length_at, length) = if outer.is_ipv4() { (2, 320) } else { (4, 300) };
            let told = u16::from_be_bytes([wrapped[length_at], wrapped[length_at + 1]]);
            assert_eq!(told, length);
        }
    }

    #[test]
    fn a_check_is_asked_from_no_vip_and_rather_from_the_interface_that_it_leaves_by() {
        let at = |host| IpAddr::from([10, 0, 0, host]);
        let addresses = [(2, at(1)), (3, at(2)), (3, at(3)), (3, at(4))];
        let chosen = |interface, vips: &[u8]| {
            choose(&addresses, interface, |address| {
                vips.iter().any(|vip| at(*vip) == address)
            })
        };
        assert_eq!(chosen(3, &[]), Some(at(2)));
        assert_eq!(chosen(3, &[2, 3]), Some(at(4)));
        assert_eq!(chosen(3, &[2, 3, 4]), Some(at(1)), "of another interface");
        assert_eq!(chosen(4, &[1]), Some(at(2)));
        assert_eq!(chosen(3, &[1, 2, 3, 4]), None);
    }
}
