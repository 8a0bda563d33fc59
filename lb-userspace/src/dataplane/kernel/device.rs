//! What the kernel says about an interface: index, XDP program, offloads, queues. It changes nothing.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoKind, InfoPortKind, LinkAttribute, LinkInfo, LinkMessage, LinkXdp, XdpAttached},
};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use super::netlink::Socket;

/// The XDP program of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpState {
    /// None.
    None,
    /// One in native mode, by its id.
    Native(u32),
    /// One in generic mode, by its id.
    Generic(u32),
    /// Offloaded to hardware, or several at once; the id of one.
    Other(u32),
}

impl XdpState {
    /// Id of the program.
    pub fn program(self) -> Option<u32> {
        match self {
            Self::None => None,
            Self::Native(id) | Self::Generic(id) | Self::Other(id) => Some(id),
        }
    }
}

/// The index of an interface; none if there is none of that name in this network namespace.
pub fn index(interface: &str) -> Option<u32> {
    nix::net::if_::if_nametoindex(interface).ok()
}

/// The XDP program of the interface with this index; none if there is no such interface.
///
/// # Errors
/// When the kernel cannot be asked over netlink.
pub fn xdp(ifindex: u32) -> io::Result<Option<XdpState>> {
    let link = match get_link(ifindex) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
        link => link?,
    };
    let attributes = link
        .attributes
        .into_iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Xdp(attributes) => Some(attributes),
            _ => None,
        })
        .unwrap_or_default();
    Ok(Some(state_of(&attributes)))
}

fn state_of(attributes: &[LinkXdp]) -> XdpState {
    let attached = attributes.iter().find_map(|attribute| match attribute {
        LinkXdp::Attached(attached) => Some(*attached),
        _ => None,
    });
    let program = attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkXdp::ProgId(id)
            | LinkXdp::DrvProgId(id)
            | LinkXdp::SkbProgId(id)
            | LinkXdp::HwProgId(id) => Some(*id),
            _ => None,
        })
        .unwrap_or(0);
    match attached {
        None | Some(XdpAttached::None) => XdpState::None,
        Some(XdpAttached::Driver) => XdpState::Native(program),
        Some(XdpAttached::SocketBuffer) => XdpState::Generic(program),
        Some(_) => XdpState::Other(program),
    }
}

/// What sort of interface one is, as far as attaching is concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nature {
    /// It is a bond.
    pub is_bond: bool,
    /// It is a port of the bond with this index.
    pub port_of_bond: Option<u32>,
    /// It is a VLAN device on top of the interface with this index.
    pub vlan_on: Option<u32>,
}

/// What sort of interface this is.
///
/// # Errors
/// When the kernel cannot be asked over netlink.
pub fn nature(ifindex: u32) -> io::Result<Nature> {
    Ok(nature_of(&get_link(ifindex)?.attributes))
}

fn nature_of(attributes: &[LinkAttribute]) -> Nature {
    let (mut kind, mut port_kind, mut master, mut parent) = (None, None, None, None);
    for attribute in attributes {
        match attribute {
            LinkAttribute::Controller(index) => master = Some(*index),
            LinkAttribute::Link(index) => parent = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(found) => kind = Some(found),
                        LinkInfo::PortKind(found) => port_kind = Some(found),
                        _ => (),
                    }
                }
            }
            _ => (),
        }
    }
    Nature {
        is_bond: kind == Some(&InfoKind::Bond),
        port_of_bond: master.filter(|_| port_kind == Some(&InfoPortKind::Bond)),
        vlan_on: parent.filter(|_| kind == Some(&InfoKind::Vlan)),
    }
}

/// The names of an interface's ports, if it is a bond.
pub fn ports_of_bond(name: &str) -> Vec<String> {
    let ports = std::fs::read_to_string(format!("/sys/class/net/{name}/bonding/slaves"));
    let ports = ports.unwrap_or_default();
    ports.split_whitespace().map(str::to_owned).collect()
}

/// The name of an interface, or its index where it has none here.
pub fn name(ifindex: u32) -> String {
    nix::net::if_::if_indextoname(ifindex).map_or_else(
        |_| format!("index {ifindex}"),
        |name| name.to_string_lossy().into_owned(),
    )
}

fn get_link(ifindex: u32) -> io::Result<LinkMessage> {
    let socket = Socket::open(SockProtocol::NetlinkRoute)?;
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetLink(message));
    request.header.flags = NLM_F_REQUEST;
    request.finalize();
    let mut buffer = vec![0; request.buffer_len()];
    request.serialize(&mut buffer);
    socket.send(&buffer)?;
    // An interface with many virtual functions has a long description; the kernel sends it in one piece.
    let mut buffer = vec![0; 1 << 18];
    let reply = socket.receive(&mut buffer)?;
    let reply =
        NetlinkMessage::<RouteNetlinkMessage>::deserialize(reply).map_err(io::Error::other)?;
    match reply.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => Ok(link),
        NetlinkPayload::Error(error) => Err(error.to_io()),
        other => Err(io::Error::other(format!(
            "unexpected answer of type {} to RTM_GETLINK",
            other.message_type()
        ))),
    }
}

/// Which of the offloads that merge packets are on: "GRO", "LRO", both; none if none is.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn merging(interface: &str) -> io::Result<Option<&'static str>> {
    let Offloads { gro, lro } = offloads(interface)?;
    Ok(match (gro, lro) {
        (true, true) => Some("GRO and LRO"),
        (true, false) => Some("GRO"),
        (false, true) => Some("LRO"),
        (false, false) => None,
    })
}

/// Offloads that merge packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offloads {
    /// By the kernel.
    pub gro: bool,
    /// By the card.
    pub lro: bool,
}

/// Which of the offloads that merge packets are on.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn offloads(interface: &str) -> io::Result<Offloads> {
    const ETHTOOL_GFLAGS: u32 = 0x25;
    const ETHTOOL_GGRO: u32 = 0x2b;
    const ETH_FLAG_LRO: u32 = 1 << 15;
    let value = |command| {
        let mut value = [command, 0];
        ethtool(interface, &mut value).map(|()| value[1])
    };
    Ok(Offloads {
        gro: value(ETHTOOL_GGRO)? != 0,
        lro: value(ETHTOOL_GFLAGS)? & ETH_FLAG_LRO != 0,
    })
}

/// Queue pairs of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queues {
    /// In use.
    pub combined: u32,
    /// That the device has.
    pub maximum: u32,
}

impl Queues {
    /// Whether virtio_net, on `cpus` CPUs, would dereference a null pointer on XDP_TX: more queue pairs in use than CPUs and too few
    /// left for one XDP queue for each CPU. Seen on Linux 6.1, 6.12, 6.18 and 7.2.
    pub fn crash_virtio(self, cpus: u32) -> bool {
        self.combined > cpus && self.combined.saturating_add(cpus) > self.maximum
    }
}

/// Queue pairs of an interface that is driven by virtio_net; none of any other.
///
/// # Errors
/// When the kernel cannot be asked, other than that the driver has nothing to tell.
pub fn virtio_queues(interface: &str) -> io::Result<Option<Queues>> {
    match driver(interface)? {
        Some(name) if name == "virtio_net" => queues(interface),
        _ => Ok(None),
    }
}

/// The driver's name, if it tells.
///
/// # Errors
/// As [`virtio_queues`].
pub fn driver(interface: &str) -> io::Result<Option<String>> {
    const ETHTOOL_GDRVINFO: u32 = 0x3;
    // struct ethtool_drvinfo: the command, then the driver's name in 32 bytes.
    let mut info = [0u32; 49];
    info[0] = ETHTOOL_GDRVINFO;
    if !told(ethtool(interface, &mut info))? {
        return Ok(None);
    }
    let name: Vec<u8> = info[1..9]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect();
    let name = CStr::from_bytes_until_nul(&name).ok();
    Ok(name.and_then(|name| name.to_str().ok()).map(str::to_owned))
}

/// Queue pairs of an interface, if its driver tells.
///
/// # Errors
/// As [`virtio_queues`].
pub fn queues(interface: &str) -> io::Result<Option<Queues>> {
    const ETHTOOL_GCHANNELS: u32 = 0x3c;
    // struct ethtool_channels: command; maxima of rx, tx, other, combined; counts of the same.
    let mut channels = [0u32; 9];
    channels[0] = ETHTOOL_GCHANNELS;
    Ok(told(ethtool(interface, &mut channels))?.then_some(Queues {
        combined: channels[8],
        maximum: channels[4],
    }))
}

/// Whether a driver has told; false if it has nothing to tell.
fn told(answer: io::Result<()>) -> io::Result<bool> {
    match answer {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENODEV)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// One call of the ethtool ioctl, on a structure of 32-bit words that begins with its command.
fn ethtool(interface: &str, data: &mut [u32]) -> io::Result<()> {
    const SIOCETHTOOL: libc::Ioctl = 0x8946;
    let socket: OwnedFd = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let mut name = [0 as libc::c_char; libc::IFNAMSIZ];
    if interface.len() >= name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    let mut request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_data: data.as_mut_ptr().cast(),
        },
    };
    // SAFETY: the request names an interface and points to a structure that is as large as its command, in its first word, demands:
    // so all callers in this file have it.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &mut request) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_has_an_index_and_can_be_asked() {
        let index = index("lo").unwrap();
        assert!(xdp(index).unwrap().is_some());
        merging("lo").unwrap();
        assert_eq!(virtio_queues("lo").unwrap(), None);
    }

    #[test]
    fn an_absent_interface_is_none() {
        assert_eq!(index("no-such-if"), None);
        assert_eq!(xdp(u32::MAX >> 1).unwrap(), None);
    }

    #[test]
    fn virtio_crashes_only_with_more_queues_than_cpus_and_none_to_spare() {
        let queues = |combined, maximum| Queues { combined, maximum };
        assert!(queues(4, 4).crash_virtio(2));
        assert!(queues(3, 4).crash_virtio(2));
        assert!(!queues(4, 6).crash_virtio(2));
        assert!(!queues(2, 4).crash_virtio(2));
        assert!(!queues(2, 2).crash_virtio(2));
    }

    #[test]
    fn ports_of_bonds_and_vlan_devices_are_told_from_their_like() {
        let told = |kind: Option<InfoKind>, port: Option<InfoPortKind>| {
            let infos = kind
                .map(LinkInfo::Kind)
                .into_iter()
                .chain(port.map(LinkInfo::PortKind));
            nature_of(&[
                LinkAttribute::Link(3),
                LinkAttribute::LinkInfo(infos.collect()),
                LinkAttribute::Controller(9),
            ])
        };
        let nothing = Nature::default();
        assert_eq!(nature_of(&[]), nothing);
        assert_eq!(
            told(Some(InfoKind::Veth), Some(InfoPortKind::Bridge)),
            nothing
        );
        let port = Nature {
            port_of_bond: Some(9),
            ..nothing
        };
        assert_eq!(told(Some(InfoKind::Veth), Some(InfoPortKind::Bond)), port);
        assert_eq!(
            told(None, Some(InfoPortKind::Bond)),
            port,
            "a card has no kind"
        );
        let bond = Nature {
            is_bond: true,
            ..nothing
        };
        assert_eq!(told(Some(InfoKind::Bond), None), bond);
        let vlan = Nature {
            vlan_on: Some(3),
            ..nothing
        };
        assert_eq!(told(Some(InfoKind::Vlan), None), vlan);
    }

    #[test]
    fn a_program_is_told_with_its_mode() {
        let state = |attached, id| state_of(&[LinkXdp::Attached(attached), LinkXdp::ProgId(id)]);
        assert_eq!(state(XdpAttached::Driver, 7), XdpState::Native(7));
        assert_eq!(state(XdpAttached::SocketBuffer, 7), XdpState::Generic(7));
        assert_eq!(state(XdpAttached::Multiple, 7), XdpState::Other(7));
        assert_eq!(state(XdpAttached::None, 0), XdpState::None);
        assert_eq!(state_of(&[]), XdpState::None);
    }
}
