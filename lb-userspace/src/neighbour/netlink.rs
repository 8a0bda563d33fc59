//! Questions to the kernel about routes, links and neighbours, over rtnetlink: the only place that builds or reads its messages.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use futures::{Stream, StreamExt as _, TryStreamExt as _, channel::mpsc::UnboundedReceiver};
use lb_common::{
    headers::ETHERTYPE_VLAN,
    net::{IpVersion, VlanTag},
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{
        InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType,
        LinkMessage,
    },
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
    },
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteType, RouteVia,
    },
    tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};
use rtnetlink::{
    Handle, MulticastGroup,
    packet_core::{
        NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
    },
};

use super::way::{Entry, EntryState, Kind, Link, Route, Vlan};

/// The kernel answers within microseconds; an answer that cannot be decoded never comes.
const PATIENCE: Duration = Duration::from_secs(2);

/// Index of the loopback interface of every network namespace.
const LOOPBACK: u32 = 1;

/// Why a question went without a usable answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel said no.
    #[error("{0}")]
    Refused(#[source] io::Error),
    /// The netlink socket is closed.
    #[error("the netlink socket is closed")]
    Closed,
    /// No answer, or none that could be understood.
    #[error("the kernel gave no usable answer")]
    NoAnswer,
}

impl Error {
    /// The kernel's error number, if it gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused(error) => error.raw_os_error(),
            Self::Closed | Self::NoAnswer => None,
        }
    }
}

/// What changed in the kernel, as far as next hops are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A route to this prefix came, changed or went.
    Route(IpAddr, u8),
    /// A link came, changed or went.
    Link(u32),
    /// A neighbour's entry came, changed or went; its MAC if it has a valid one.
    Neighbour(u32, IpAddr, Option<[u8; 6]>),
    /// Anything may have changed: events were lost, or the change concerns no single route.
    Anything,
}

/// Messages of the multicast groups that next hops depend on.
#[derive(Debug)]
pub struct Events(
    UnboundedReceiver<(
        NetlinkMessage<RouteNetlinkMessage>,
        rtnetlink::sys::SocketAddr,
    )>,
);

impl Events {
    /// The next event; none when the socket is closed.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            let (message, _) = self.0.next().await?;
            if let Some(event) = event(message.payload) {
                return Some(event);
            }
        }
    }

    /// The next event that is already there.
    pub fn ready(&mut self) -> Option<Event> {
        loop {
            let (message, _) = self.0.try_recv().ok()?;
            if let Some(event) = event(message.payload) {
                return Some(event);
            }
        }
    }
}

fn event(payload: NetlinkPayload<RouteNetlinkMessage>) -> Option<Event> {
    match payload {
        NetlinkPayload::Overrun(_) => Some(Event::Anything),
        NetlinkPayload::InnerMessage(message) => match message {
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
                let prefix = route
                    .attributes
                    .iter()
                    .find_map(|attribute| match attribute {
                        RouteAttribute::Destination(prefix) => ip(prefix),
                        _ => None,
                    });
                let prefix = match route.header.address_family {
                    AddressFamily::Inet => prefix.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
                    AddressFamily::Inet6 => prefix.unwrap_or(Ipv6Addr::UNSPECIFIED.into()),
                    _ => return None,
                };
                Some(Event::Route(prefix, route.header.destination_prefix_length))
            }
            RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
                Some(Event::Link(link.header.index))
            }
            RouteNetlinkMessage::NewNeighbour(neighbour) => {
                let entry = read_entry(&neighbour);
                neighbour_address(&neighbour)
                    .map(|address| Event::Neighbour(neighbour.header.ifindex, address, entry.mac))
            }
            RouteNetlinkMessage::DelNeighbour(neighbour) => neighbour_address(&neighbour)
                .map(|address| Event::Neighbour(neighbour.header.ifindex, address, None)),
            RouteNetlinkMessage::NewAddress(_)
            | RouteNetlinkMessage::DelAddress(_)
            | RouteNetlinkMessage::NewRule(_)
            | RouteNetlinkMessage::DelRule(_) => Some(Event::Anything),
            _ => None,
        },
        _ => None,
    }
}

/// A connection to the kernel's routing tables, of the network namespace of the thread that made it.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: Handle,
}

impl Netlink {
    /// Opens a connection for questions.
    ///
    /// # Errors
    /// When the socket is not to be had.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn connect() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Opens a connection for questions that tells of changes too.
    ///
    /// # Errors
    /// When the socket is not to be had.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn subscribe() -> io::Result<(Self, Events)> {
        let (connection, handle, events) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv6Rule,
        ])?;
        tokio::spawn(connection);
        Ok((Self { handle }, Events(events)))
    }

    /// The route to an address, as the kernel would choose it now.
    ///
    /// # Errors
    /// `ENETUNREACH` and the like if there is none.
    pub async fn route(&self, address: IpAddr) -> Result<Route, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = address.into();
        message.header.destination_prefix_length = match address {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        };
        message
            .attributes
            .push(RouteAttribute::Destination(address.into()));
        match self
            .ask_one(RouteNetlinkMessage::GetRoute(message), 0)
            .await?
        {
            Some(RouteNetlinkMessage::NewRoute(route)) => Ok(read_route(&route)),
            _ => Err(Error::NoAnswer),
        }
    }

    /// Whether the route to an address is for that one alone, and no prefix.
    ///
    /// # Errors
    /// As [`Netlink::route`].
    pub async fn is_host_route(&self, address: IpAddr) -> Result<bool, Error> {
        let mut message = RouteMessage::default();
        let whole = match address {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        };
        message.header.address_family = address.into();
        message.header.destination_prefix_length = whole;
        // The route as it stands in the table, and not as it is for this address.
        message.header.flags = RouteFlags::FibMatch;
        message
            .attributes
            .push(RouteAttribute::Destination(address.into()));
        match self
            .ask_one(RouteNetlinkMessage::GetRoute(message), 0)
            .await?
        {
            Some(RouteNetlinkMessage::NewRoute(route)) => {
                Ok(route.header.destination_prefix_length == whole)
            }
            _ => Err(Error::NoAnswer),
        }
    }

    /// A link, by its index.
    ///
    /// # Errors
    /// `ENODEV` if there is none.
    pub async fn link(&self, interface: u32) -> Result<Link, Error> {
        let mut message = LinkMessage::default();
        message.header.index = interface;
        match self
            .ask_one(RouteNetlinkMessage::GetLink(message), 0)
            .await?
        {
            Some(RouteNetlinkMessage::NewLink(link)) => Ok(read_link(&link)),
            _ => Err(Error::NoAnswer),
        }
    }

    /// All links, by their index.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn links(&self) -> Result<HashMap<u32, Link>, Error> {
        let links = all(self.handle.link().get().execute()).await?;
        Ok(links
            .iter()
            .map(|link| (link.header.index, read_link(link)))
            .collect())
    }

    /// Whether the kernel can ask neighbours of IPv6 on a link. It asks from a link-local address, and sends nothing while there is none that is known
    /// to be nobody else's (`ndisc_send_ns`): so for two seconds after a link has come up.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn can_solicit(&self, interface: u32) -> Result<bool, Error> {
        let mut request = self.handle.address().get();
        request.message_mut().header.family = AddressFamily::Inet6;
        // Kernels may answer with those of all links.
        let addresses = all(request.set_link_index_filter(interface).execute()).await?;
        let unusable = AddressHeaderFlags::Tentative
            | AddressHeaderFlags::Optimistic
            | AddressHeaderFlags::Dadfailed;
        Ok(addresses.iter().any(|AddressMessage { header, .. }| {
            header.scope == AddressScope::Link && !header.flags.intersects(unusable)
        }))
    }

    /// This host's addresses of one version of IP that it can speak from to hosts beyond a link, each with its interface: neither those of its loopback interface, nor those that are
    /// deprecated or not yet known to be nobody else's.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn addresses(&self, version: IpVersion) -> Result<Vec<(u32, IpAddr)>, Error> {
        let mut request = self.handle.address().get();
        request.message_mut().header.family = match version {
            IpVersion::V4 => AddressFamily::Inet,
            IpVersion::V6 => AddressFamily::Inet6,
        };
        let addresses = all(request.execute()).await?;
        Ok(addresses.iter().filter_map(speaking).collect())
    }

    /// The filters of traffic control on a link, ingress and egress: a name for each.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn filters(&self, interface: u32) -> Result<Vec<String>, Error> {
        let mut names = Vec::new();
        for egress in [false, true] {
            let handle = self.handle.clone();
            let mut filters = handle.traffic_filter(interface as i32);
            let request = filters.get();
            let request = if egress {
                request.egress()
            } else {
                request.ingress()
            };
            let mut answers = Box::pin(request.execute());
            let all = async {
                while let Some(answer) = answers.next().await {
                    match answer {
                        Ok(filter) => names.extend(read_filter(&filter)),
                        // Without a qdisc that has filters there are none.
                        Err(rtnetlink::Error::NetlinkError(_)) => return Ok(()),
                        Err(_) => return Err(Error::NoAnswer),
                    }
                }
                Ok(())
            };
            match tokio::time::timeout(PATIENCE, all).await {
                Ok(result) => result?,
                Err(_) => return Err(Error::NoAnswer),
            }
        }
        Ok(names)
    }

    /// A neighbour's entry, if there is one.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn entry(&self, interface: u32, address: IpAddr) -> Result<Option<Entry>, Error> {
        let message = neighbour(interface, address);
        match self
            .ask_one(RouteNetlinkMessage::GetNeighbour(message), 0)
            .await
        {
            Ok(Some(RouteNetlinkMessage::NewNeighbour(entry))) => Ok(Some(read_entry(&entry))),
            Ok(_) => Err(Error::NoAnswer),
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Uses a neighbour as if a packet were sent to it: resolves it if it is not, and has a stale entry confirmed in the
    /// kernel's own time. Makes the entry if there is none.
    ///
    /// # Errors
    /// When the kernel refuses, as for an interface that is down.
    pub async fn use_neighbour(&self, interface: u32, address: IpAddr) -> Result<(), Error> {
        let mut message = neighbour(interface, address);
        message.header.flags = NeighbourFlags::Use;
        self.ask_one(
            RouteNetlinkMessage::NewNeighbour(message),
            NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE,
        )
        .await
        .map(drop)
    }

    /// Has an entry with a MAC confirmed at once: the kernel asks at intervals of a second (`retrans_time_ms`), three times
    /// (`ucast_solicit`), and calls the entry failed a second after that. An entry merely used would first be trusted for five seconds
    /// (`delay_first_probe_time`).
    ///
    /// # Errors
    /// `EINVAL` if the entry has no MAC, `ENOENT` if there is no entry.
    pub async fn probe_neighbour(&self, interface: u32, address: IpAddr) -> Result<(), Error> {
        let mut message = neighbour(interface, address);
        message.header.state = NeighbourState::Probe;
        self.ask_one(
            RouteNetlinkMessage::NewNeighbour(message),
            NLM_F_ACK | NLM_F_REPLACE,
        )
        .await
        .map(drop)
    }

    async fn ask_one(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Option<RouteNetlinkMessage>, Error> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        let mut answers = self
            .handle
            .clone()
            .request(request)
            .map_err(|_| Error::Closed)?;
        match tokio::time::timeout(PATIENCE, answers.next()).await {
            Err(_) => Err(Error::NoAnswer),
            // The connection keeps an acknowledgement to itself, and ends the answers.
            Ok(None) => Ok(None),
            Ok(Some(answer)) => match answer.payload {
                NetlinkPayload::InnerMessage(message) => Ok(Some(message)),
                NetlinkPayload::Error(error) => Err(Error::Refused(error.to_io())),
                _ => Err(Error::NoAnswer),
            },
        }
    }
}

/// An address that a host speaks from, and its interface.
fn speaking(message: &AddressMessage) -> Option<(u32, IpAddr)> {
    let unusable = AddressHeaderFlags::Tentative
        | AddressHeaderFlags::Optimistic
        | AddressHeaderFlags::Dadfailed
        | AddressHeaderFlags::Deprecated;
    let header = &message.header;
    if header.index == LOOPBACK
        || header.flags.intersects(unusable)
        || matches!(header.scope, AddressScope::Host | AddressScope::Link)
    {
        return None;
    }
    let mut local = None;
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            // On a link with one host at each end the other one is the other side's.
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            _ => (),
        }
    }
    Some((header.index, local.or(address)?))
}

fn neighbour(interface: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = address.into();
    message.header.ifindex = interface;
    message
        .attributes
        .push(NeighbourAttribute::Destination(address.into()));
    message
}

fn neighbour_address(message: &NeighbourMessage) -> Option<IpAddr> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
                Some((*address).into())
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
                Some((*address).into())
            }
            _ => None,
        })
}

/// All answers to a question.
async fn all<T>(answers: impl Stream<Item = Result<T, rtnetlink::Error>>) -> Result<Vec<T>, Error> {
    let all = answers
        .map(|answer| match answer {
            Err(rtnetlink::Error::NetlinkError(error)) => Err(Error::Refused(error.to_io())),
            answer => answer.map_err(|_| Error::NoAnswer),
        })
        .try_collect();
    tokio::time::timeout(PATIENCE, all)
        .await
        .unwrap_or(Err(Error::NoAnswer))
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn read_route(message: &RouteMessage) -> Route {
    let mut route = Route {
        local: message.header.kind == RouteType::Local,
        unicast: message.header.kind == RouteType::Unicast,
        interface: 0,
        gateway: None,
        foreign_gateway: false,
        source: None,
        mtu: None,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(interface) => route.interface = *interface,
            RouteAttribute::Gateway(gateway) => route.gateway = ip(gateway),
            RouteAttribute::Via(RouteVia::Inet(gateway)) => route.gateway = Some((*gateway).into()),
            RouteAttribute::Via(RouteVia::Inet6(gateway)) => {
                route.gateway = Some((*gateway).into());
            }
            RouteAttribute::Via(_) => route.foreign_gateway = true,
            RouteAttribute::PrefSource(source) => route.source = ip(source),
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => (),
        }
    }
    route
}

fn read_link(message: &LinkMessage) -> Link {
    let mut link = Link {
        name: String::new(),
        mac: None,
        mtu: 0,
        up: message
            .header
            .flags
            .contains(LinkFlags::Up | LinkFlags::LowerUp),
        vlan: read_vlan(message),
        kind: Kind::Other,
        master: None,
    };
    let (mut kind, mut is_elsewhere) = (None, false);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Controller(index) => link.master = Some(*index),
            LinkAttribute::LinkNetNsId(_) => is_elsewhere = true,
            LinkAttribute::LinkInfo(infos) => {
                kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind),
                    _ => None,
                });
            }
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(address)
                if message.header.link_layer_type == LinkLayerType::Ether =>
            {
                link.mac = address.as_slice().try_into().ok();
            }
            _ => (),
        }
    }
    link.kind = match kind {
        Some(InfoKind::Veth) if is_elsewhere => Kind::VethElsewhere,
        Some(InfoKind::Bridge) => Kind::Bridge,
        // Those without an Ethernet address are tunnels.
        Some(InfoKind::Tun) if link.mac.is_some() => Kind::Tap,
        _ => Kind::Other,
    };
    link
}

/// The name of a filter: its program's, else its kind. The kernel describes each chain once more without a handle.
fn read_filter(message: &TcMessage) -> Option<String> {
    let mut name = None;
    for attribute in &message.attributes {
        match attribute {
            TcAttribute::Kind(kind) => {
                name.get_or_insert_with(|| kind.clone());
            }
            TcAttribute::Options(options) => {
                for option in options {
                    if let TcOption::Bpf(TcFilterBpfOption::ProgName(program)) = option {
                        name = Some(program.clone());
                    }
                }
            }
            _ => (),
        }
    }
    name.filter(|_| message.header.handle != TcHandle::UNSPEC)
}

/// What makes a link a VLAN device, if it is one.
fn read_vlan(message: &LinkMessage) -> Option<Vlan> {
    let (mut parent, mut is_elsewhere, mut data) = (None, false, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Link(index) => parent = Some(*index),
            LinkAttribute::LinkNetNsId(_) => is_elsewhere = true,
            LinkAttribute::LinkInfo(infos) => {
                data = infos.iter().find_map(|info| match info {
                    LinkInfo::Data(InfoData::Vlan(data)) => Some(data),
                    _ => None,
                });
            }
            _ => (),
        }
    }
    let (mut id, mut protocol) = (None, ETHERTYPE_VLAN);
    for attribute in data? {
        match attribute {
            InfoVlan::Id(found) => id = Some(*found),
            InfoVlan::Protocol(found) => protocol = (*found).into(),
            _ => (),
        }
    }
    Some(Vlan {
        parent: parent.filter(|_| !is_elsewhere),
        tag: VlanTag::new(protocol, id?),
    })
}

fn read_entry(message: &NeighbourMessage) -> Entry {
    let state = match message.header.state {
        NeighbourState::Reachable | NeighbourState::Stale | NeighbourState::Delay => {
            EntryState::Valid
        }
        NeighbourState::Probe => EntryState::Probing,
        NeighbourState::Permanent | NeighbourState::Noarp => EntryState::Fixed,
        NeighbourState::Failed => EntryState::Failed,
        _ => EntryState::Incomplete,
    };
    let mut entry = Entry {
        state,
        mac: None,
        confirmed_ago: Duration::MAX,
    };
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(address) if state.has_mac() => {
                entry.mac = address.as_slice().try_into().ok();
            }
            // In hundredths of a second, whatever the kernel's own clock ticks at (USER_HZ).
            NeighbourAttribute::CacheInfo(info) => {
                entry.confirmed_ago = Duration::from_millis(u64::from(info.confirmed) * 10);
            }
            _ => (),
        }
    }
    entry
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::VlanProtocol;

    use super::*;

    /// A link as it is read from the bytes of such a message.
    fn read(attributes: Vec<LinkAttribute>) -> Link {
        let mut message = LinkMessage::default();
        message.header.link_layer_type = LinkLayerType::Ether;
        message.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
        message.attributes = vec![
            LinkAttribute::IfName("eth0.100".into()),
            LinkAttribute::Mtu(1_500),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
        ];
        message.attributes.extend(attributes);
        let mut sent = NetlinkMessage::from(RouteNetlinkMessage::NewLink(message));
        sent.finalize();
        let mut bytes = vec![0; sent.buffer_len()];
        sent.serialize(&mut bytes);
        match NetlinkMessage::deserialize(&bytes).unwrap().payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(came)) => read_link(&came),
            other => panic!("{other:?}"),
        }
    }

    fn info(data: Vec<InfoVlan>) -> LinkAttribute {
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vlan),
            LinkInfo::Data(InfoData::Vlan(data)),
        ])
    }

    #[test]
    fn a_vlan_device_is_read_with_its_parent_and_its_tag() {
        for (protocol, ethertype) in [
            (VlanProtocol::Ieee8021Q, 0x8100),
            (VlanProtocol::Ieee8021Ad, 0x88a8),
        ] {
            let link = read(vec![
                LinkAttribute::Link(3),
                info(vec![InfoVlan::Protocol(protocol), InfoVlan::Id(100)]),
            ]);
            assert_eq!(
                link.vlan,
                Some(Vlan {
                    parent: Some(3),
                    tag: VlanTag::new(ethertype, 100)
                })
            );
            assert_eq!(
                (link.name.as_str(), link.mtu, link.up),
                ("eth0.100", 1_500, true)
            );
        }
    }

    #[test]
    fn a_parent_in_another_namespace_is_none_of_ours() {
        let link = read(vec![
            LinkAttribute::Link(3),
            LinkAttribute::LinkNetNsId(0),
            info(vec![InfoVlan::Id(100)]),
        ]);
        let vlan = link.vlan.unwrap();
        assert_eq!((vlan.parent, vlan.tag), (None, VlanTag::new(0x8100, 100)));
    }

    #[test]
    fn other_links_with_a_link_below_are_no_vlan_devices() {
        let veth = vec![LinkInfo::Kind(InfoKind::Veth)];
        let link = read(vec![LinkAttribute::Link(3), LinkAttribute::LinkInfo(veth)]);
        assert_eq!((link.vlan, link.kind), (None, Kind::Other));
        assert_eq!(read(vec![]).vlan, None);
    }

    #[test]
    fn what_leads_to_pods_is_told_from_the_rest() {
        let of = |kind, more: Vec<LinkAttribute>| {
            let mut attributes = vec![LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)])];
            attributes.extend(more);
            read(attributes)
        };
        let pod = of(
            InfoKind::Veth,
            vec![LinkAttribute::LinkNetNsId(0), LinkAttribute::Controller(9)],
        );
        assert_eq!((pod.kind, pod.master), (Kind::VethElsewhere, Some(9)));
        assert_eq!(of(InfoKind::Bridge, vec![]).kind, Kind::Bridge);
        assert_eq!(of(InfoKind::Tun, vec![]).kind, Kind::Tap);
        assert_eq!(of(InfoKind::Bond, vec![]).kind, Kind::Other);
        assert_eq!(
            (read(vec![]).kind, read(vec![]).master),
            (Kind::Other, None)
        );
    }
}
