//! What the kernel says over rtnetlink, read: pure.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use lb_common::{headers::ETHERTYPE_VLAN, net::VlanTag};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{
        InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType,
        LinkMessage,
    },
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia},
    tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};
use rtnetlink::packet_core::NetlinkPayload;

use super::{
    super::way::{Entry, EntryState, Kind, Link, Route, Vlan},
    Event,
};

/// Index of the loopback interface of every network namespace.
const LOOPBACK: u32 = 1;

pub(super) fn event(payload: NetlinkPayload<RouteNetlinkMessage>) -> Option<Event> {
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

/// An address that a host speaks from, and its interface.
pub(super) fn speaking(message: &AddressMessage) -> Option<(u32, IpAddr)> {
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

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

pub(super) fn read_route(message: &RouteMessage) -> Route {
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

pub(super) fn read_link(message: &LinkMessage) -> Link {
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
pub(super) fn read_filter(message: &TcMessage) -> Option<String> {
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

pub(super) fn read_entry(message: &NeighbourMessage) -> Entry {
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
    use rtnetlink::packet_core::NetlinkMessage;

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
