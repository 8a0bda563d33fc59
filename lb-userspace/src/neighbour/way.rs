//! From a route, a link and a neighbour's entry to a next hop, and when to report it: pure.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use lb_common::{
    backend::NextHop,
    headers::VLAN_LEN,
    net::{IpVersion, VlanTag},
};

/// How long a way must be lost before that is reported: routes are often taken away and put back a moment later.
pub const CONFIRMATION: Duration = Duration::from_secs(1);

/// The kernel's choice of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// It ends at this host.
    pub local: bool,
    /// It leads to one host.
    pub unicast: bool,
    /// Index of the egress interface.
    pub interface: u32,
    /// The router; none if the destination is on the link.
    ///
    /// It may be of the other version of IP (RFC 5549): the neighbour is then asked for by that one's means.
    pub gateway: Option<IpAddr>,
    /// The router has an address that is neither IPv4 nor IPv6.
    pub foreign_gateway: bool,
    /// This host's address on that route.
    pub source: Option<IpAddr>,
    /// The route's own MTU in bytes, where it has one.
    pub mtu: Option<u32>,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Name.
    pub name: String,
    /// MAC, if it is an Ethernet interface.
    pub mac: Option<[u8; 6]>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Up, with a carrier.
    pub up: bool,
    /// What it is a VLAN of, if it is one.
    pub vlan: Option<Vlan>,
    /// What sort of link it is.
    pub kind: Kind,
    /// Index of the bridge or bond that it is a port of.
    pub master: Option<u32>,
}

/// Sorts of links, as far as they tell where a backend is: see [`super::local`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// One end of a veth pair, whose other end is in another network namespace.
    VethElsewhere,
    /// A bridge.
    Bridge,
    /// A tap, as virtual machines have them.
    Tap,
    /// Anything else.
    #[default]
    Other,
}

/// What makes a link a VLAN device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vlan {
    /// Index of the link below; none if that is in another network namespace.
    pub parent: Option<u32>,
    /// The tag that it puts on frames.
    pub tag: VlanTag,
}

/// The most VLAN devices on top of each other that a way may lead through: the tags that a [`NextHop`] has room for.
pub const MOST_TAGS: usize = 2;

/// What a neighbour's entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryState {
    /// The MAC is known and has not been doubted.
    Valid,
    /// The MAC is known and being confirmed.
    Probing,
    /// The operator set it, or the link knows no neighbours: it says nothing of the host's life.
    Fixed,
    /// The MAC is being asked for.
    Incomplete,
    /// Nobody answered.
    Failed,
}

impl EntryState {
    /// Whether the entry's MAC can be used.
    pub fn has_mac(self) -> bool {
        matches!(self, Self::Valid | Self::Probing | Self::Fixed)
    }
}

/// A neighbour's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it says.
    pub state: EntryState,
    /// MAC, if it has a valid one.
    pub mac: Option<[u8; 6]>,
    /// Time since the neighbour was last heard of, in steps of 10 ms.
    pub confirmed_ago: Duration,
}

/// Why there is no next hop.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// No route.
    #[error("there is no route to it ({0}); see `ip route get`")]
    NoRoute(String),
    /// The route is a blackhole, a broadcast, or the like.
    #[error("its route leads to no host; see `ip route get`")]
    NotUnicast,
    /// It is on this host, and what it sends back could not be translated.
    #[error("it is on this host: {0}")]
    NoLocalReplies(String),
    /// It is on this host, which does not forward to it.
    #[error(
        "it is on this host, which does not forward what comes in by {interface}: run `sysctl -w net.ipv{}.conf.{interface}.forwarding=1`, and write it to \
         /etc/sysctl.d so that it lasts", *version as u32
    )]
    NotForwarded {
        /// Of the packets.
        version: IpVersion,
        /// Where clients' packets come in.
        interface: String,
    },
    /// The route's interface went away.
    #[error("its interface (index {0}) is gone")]
    LinkGone(u32),
    /// The route's interface is down.
    #[error("its interface {0} is down or has no carrier")]
    LinkDown(String),
    /// The route's interface is no Ethernet.
    #[error("its interface {0} has no Ethernet address; route it over an Ethernet interface")]
    NotEthernet(String),
    /// A VLAN device whose parent is elsewhere.
    #[error(
        "its interface {0} is a VLAN of an interface in another network namespace; run tether in that namespace"
    )]
    ForeignParent(String),
    /// More VLANs in each other than there is room for.
    #[error(
        "its interface {0} is a VLAN in more than one other; route it over an interface with two tags at most"
    )]
    TooManyTags(String),
    /// The router has an address that is neither IPv4 nor IPv6.
    #[error("its router has no IP address; give the route an IP gateway")]
    ForeignGateway,
    /// This host has no address to send from.
    #[error("this host has no address on interface {0} to send from; add one")]
    NoSource(String),
    /// The neighbour has been asked.
    #[error("its next hop {0} has not answered {question} yet", question = question(.0))]
    Asked(IpAddr),
    /// The neighbour did not answer.
    #[error("its next hop {0} does not answer {question} on interface {1}", question = question(.0))]
    Silent(IpAddr, String),
    /// The kernel could not be asked.
    #[error("the kernel could not be asked for its route ({0})")]
    Unasked(String),
}

/// By what the MAC of a neighbour is asked for.
fn question(neighbour: &IpAddr) -> &'static str {
    match neighbour {
        IpAddr::V4(_) => "ARP",
        IpAddr::V6(_) => "neighbour solicitations",
    }
}

/// Who is asked for a MAC: the egress interface and the address on it.
pub type Via = (u32, IpAddr);

/// The way to one address: what was last known and reported.
#[derive(Clone, Debug, Default)]
pub struct Way {
    /// The neighbour that packets are handed to, and its MAC as far as known.
    via: Option<Via>,
    mac: Option<[u8; 6]>,
    /// The links below the egress interface, if that is a VLAN device.
    below: Vec<u32>,
    reported: Option<Option<NextHop>>,
    lost_since: Option<Instant>,
    /// What was last in the way.
    obstacle: Option<Obstacle>,
    /// What was last told of that.
    told: Option<Obstacle>,
}

impl Way {
    /// The neighbour that packets are handed to.
    pub fn via(&self) -> Option<Via> {
        self.via
    }

    /// The MAC that is in use.
    pub fn mac(&self) -> Option<[u8; 6]> {
        self.mac
    }

    /// Whether it leads through a link.
    pub fn crosses(&self, interface: u32) -> bool {
        self.via.is_some_and(|via| via.0 == interface) || self.below.contains(&interface)
    }

    /// The next hop as it was last reported.
    pub fn hop(&self) -> Option<NextHop> {
        self.reported.flatten()
    }

    /// What is in the way, if anything is that was not told before. To be waiting for an answer is no news.
    pub fn news(&mut self) -> Option<&Obstacle> {
        let news = self
            .obstacle
            .as_ref()
            .filter(|now| !matches!(now, Obstacle::Asked(_)) && self.told.as_ref() != Some(now))?;
        self.told = Some(news.clone());
        Some(news)
    }

    /// Whether it has to be looked at again soon: lost and not reported yet, or never resolved.
    pub fn is_open(&self) -> bool {
        self.obstacle.is_some()
    }

    /// The way to a backend that is this host itself.
    pub fn end_here(&mut self) -> NextHop {
        (self.via, self.mac) = (None, None);
        self.below.clear();
        // What came in is no longer than the host takes.
        NextHop::local(u16::MAX)
    }

    /// From the route and the interface to a backend on this host, that the host's own stack hands packets to.
    ///
    /// # Errors
    /// When the interface is down.
    pub fn resolve_here(
        &mut self,
        address: IpAddr,
        route: &Route,
        link: &Link,
    ) -> Result<NextHop, Obstacle> {
        self.via = Some((route.interface, route.gateway.unwrap_or(address)));
        self.mac = None;
        self.below.clear();
        if !link.up {
            return Err(Obstacle::LinkDown(link.name.clone()));
        }
        let mtu = route.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu));
        Ok(NextHop::local(u16::try_from(mtu).unwrap_or(u16::MAX)))
    }

    /// From the route, the interface, the links that it is a VLAN of (the nearest first), and the neighbour's entry to the next hop.
    ///
    /// A neighbour that stopped answering keeps the MAC it had: a hiccup of ARP or NDP must not cut flows, and whether the host is dead is
    /// for the health checks to say.
    ///
    /// # Errors
    /// What is in the way.
    pub fn resolve(
        &mut self,
        address: IpAddr,
        route: &Route,
        link: &Link,
        below: &[(u32, Link)],
        entry: Option<&Entry>,
    ) -> Result<NextHop, Obstacle> {
        let via = (route.interface, route.gateway.unwrap_or(address));
        if self.via != Some(via) {
            self.via = Some(via);
            self.mac = None;
        }
        if let Some(mac) = entry.and_then(|entry| entry.mac) {
            self.mac = Some(mac);
        }
        self.below = below.iter().map(|(index, _)| *index).collect();
        if !link.up {
            return Err(Obstacle::LinkDown(link.name.clone()));
        }
        let source_mac = link
            .mac
            .ok_or_else(|| Obstacle::NotEthernet(link.name.clone()))?;
        let source = route
            .source
            .ok_or_else(|| Obstacle::NoSource(link.name.clone()))?;
        let Some(destination) = self.mac else {
            return Err(match entry.map(|entry| entry.state) {
                Some(EntryState::Failed) => Obstacle::Silent(via.1, link.name.clone()),
                _ => Obstacle::Asked(via.1),
            });
        };
        let mut tags = [VlanTag::NONE; MOST_TAGS];
        let devices = std::iter::once(link).chain(below.iter().map(|(_, link)| link));
        // The device that the route names puts its tag next to the packet.
        let inside_out: Vec<_> = devices.filter_map(|link| link.vlan).collect();
        for (tag, vlan) in tags.iter_mut().zip(inside_out.iter().rev()) {
            *tag = vlan.tag;
        }
        let mut mtu = route.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu));
        if let Some((_, physical)) = below.last() {
            // A frame with one tag may be longer by that than the MTU says; the kernel sends none with two that is longer by both.
            let more_tags = inside_out.len().saturating_sub(1) * VLAN_LEN;
            mtu = mtu.min(physical.mtu.saturating_sub(more_tags as u32));
        }
        Ok(NextHop {
            destination,
            source: source_mac,
            ifindex: below.last().map_or(route.interface, |(index, _)| *index),
            tags,
            // No packet is longer than this.
            mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
            // The rest is of the mode, which only the resolver knows.
            ..NextHop::default()
        }
        .from_source(source))
    }

    /// Takes in what was found, and says what to report, if anything.
    pub fn judge(
        &mut self,
        now: Instant,
        found: Result<NextHop, Obstacle>,
    ) -> Option<Option<NextHop>> {
        let report = match found {
            Ok(hop) => {
                self.lost_since = None;
                (self.obstacle, self.told) = (None, None);
                Some(hop)
            }
            Err(obstacle) => {
                let waits = matches!(obstacle, Obstacle::Asked(_) | Obstacle::Unasked(_));
                let is_unasked = matches!(obstacle, Obstacle::Unasked(_));
                self.obstacle = Some(obstacle);
                match self.reported {
                    // It says nothing of the way: who takes a known one away for it cuts all flows on it.
                    Some(Some(_)) if is_unasked => return None,
                    // The first report of all: nothing is lost by waiting for the answer to come or not to come.
                    None if waits => return None,
                    Some(Some(_)) => {
                        let since = *self.lost_since.get_or_insert(now);
                        if now.duration_since(since) < CONFIRMATION {
                            return None;
                        }
                        None
                    }
                    _ => None,
                }
            }
        };
        if self.reported == Some(report) {
            return None;
        }
        self.reported = Some(report);
        Some(report)
    }
}

/// Whether a prefix covers an address.
pub fn covers(prefix: IpAddr, length: u8, address: IpAddr) -> bool {
    let differing = match (prefix, address) {
        (IpAddr::V4(prefix), IpAddr::V4(address)) => {
            u128::from(prefix.to_bits() ^ address.to_bits()) << 96
        }
        (IpAddr::V6(prefix), IpAddr::V6(address)) => prefix.to_bits() ^ address.to_bits(),
        _ => return false,
    };
    differing.leading_zeros() >= u32::from(length)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    const BACKEND: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 11));
    const ROUTER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 1));
    const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 2));
    const MAC: [u8; 6] = [2, 0, 10, 0, 2, 11];

    fn route() -> Route {
        Route {
            local: false,
            unicast: true,
            interface: 7,
            gateway: None,
            foreign_gateway: false,
            source: Some(SOURCE),
            mtu: None,
        }
    }

    fn link() -> Link {
        Link {
            name: "eth0".into(),
            mac: Some([2, 0, 0, 0, 0, 1]),
            mtu: 1_500,
            up: true,
            vlan: None,
            kind: Kind::Other,
            master: None,
        }
    }

    /// A VLAN device on the interface with index 3 and MTU 1500.
    fn vlan(protocol: u16, id: u16) -> Link {
        Link {
            name: format!("eth0.{id}"),
            mac: Some([2, 0, 0, 0, 0, 2]),
            vlan: Some(Vlan {
                parent: Some(3),
                tag: VlanTag::new(protocol, id),
            }),
            ..link()
        }
    }

    fn entry(state: EntryState) -> Entry {
        Entry {
            state,
            mac: state.has_mac().then_some(MAC),
            confirmed_ago: Duration::ZERO,
        }
    }

    fn resolved() -> (Way, NextHop) {
        let mut way = Way::default();
        let hop = way
            .resolve(
                BACKEND,
                &route(),
                &link(),
                &[],
                Some(&entry(EntryState::Valid)),
            )
            .unwrap();
        assert_eq!(way.judge(Instant::now(), Ok(hop)), Some(Some(hop)));
        (way, hop)
    }

    #[test]
    fn a_neighbour_on_the_link_is_its_own_next_hop() {
        let (way, hop) = resolved();
        assert_eq!(way.via(), Some((7, BACKEND)));
        assert_eq!(
            (hop.destination, hop.source, hop.ifindex),
            (MAC, [2, 0, 0, 0, 0, 1], 7)
        );
        assert_eq!(
            (hop.mtu, hop.source_address(IpVersion::V4)),
            (1_500, SOURCE)
        );
    }

    #[test]
    fn a_routed_backend_is_reached_by_its_router_and_the_smaller_mtu_counts() {
        let mut way = Way::default();
        let route = Route {
            gateway: Some(ROUTER),
            mtu: Some(1_400),
            ..route()
        };
        let hop = way
            .resolve(
                BACKEND,
                &route,
                &link(),
                &[],
                Some(&entry(EntryState::Probing)),
            )
            .unwrap();
        assert_eq!((way.via(), hop.mtu), (Some((7, ROUTER)), 1_400));
    }

    #[test]
    fn an_ipv6_backend_is_reached_from_an_ipv6_address() {
        let backend = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 2, 0, 0, 0, 0x11));
        let source = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 2, 0, 0, 0, 2));
        let route = Route {
            source: Some(source),
            ..route()
        };
        let mut way = Way::default();
        let mut resolve = |entry| way.resolve(backend, &route, &link(), &[], entry);
        let asked = resolve(None).unwrap_err().to_string();
        let failed = entry(EntryState::Failed);
        let silent = resolve(Some(&failed)).unwrap_err().to_string();
        assert!(
            asked.contains("has not answered neighbour solicitations yet"),
            "{asked}"
        );
        assert!(
            silent.contains("does not answer neighbour solicitations on interface eth0"),
            "{silent}"
        );
        let valid = entry(EntryState::Valid);
        let hop = resolve(Some(&valid)).unwrap();
        assert_eq!(hop.source_address(IpVersion::V6), source);
        assert_eq!(way.via(), Some((7, backend)));
    }

    /// RFC 5549: the neighbour is asked for by its own version of IP, and the packet is from an address of the backend's.
    #[test]
    fn an_ipv4_route_by_an_ipv6_router_is_a_way() {
        let router = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));
        let route = Route {
            gateway: Some(router),
            ..route()
        };
        let mut way = Way::default();
        let hop = way
            .resolve(
                BACKEND,
                &route,
                &link(),
                &[],
                Some(&entry(EntryState::Valid)),
            )
            .unwrap();
        assert_eq!(way.via(), Some((7, router)));
        assert_eq!(hop.source_address(IpVersion::V4), SOURCE);
    }

    #[test]
    fn over_a_vlan_device_the_hop_is_by_its_parent_with_its_tag() {
        let mut way = Way::default();
        let entry = entry(EntryState::Valid);
        let below = [(3, link())];
        let hop = way
            .resolve(BACKEND, &route(), &vlan(0x8100, 100), &below, Some(&entry))
            .unwrap();
        assert_eq!((hop.ifindex, hop.mtu, hop.tag_count()), (3, 1_500, 1));
        assert_eq!(hop.tags, [VlanTag::new(0x8100, 100), VlanTag::NONE]);
        assert_eq!(hop.source, [2, 0, 0, 0, 0, 2], "the VLAN device's own MAC");
        // Who is asked is known to the VLAN device, whoever carries the question.
        assert_eq!(way.via(), Some((7, BACKEND)));
        assert!(way.crosses(7) && way.crosses(3) && !way.crosses(4));
        let untagged = way
            .resolve(BACKEND, &route(), &link(), &[], Some(&entry))
            .unwrap();
        assert_eq!((untagged.ifindex, untagged.tag_count()), (7, 0));
        assert!(!way.crosses(3));
    }

    #[test]
    fn over_two_vlan_devices_the_outer_tag_is_that_of_the_lower_one() {
        let below = [(5, vlan(0x88a8, 100)), (3, link())];
        let entry = entry(EntryState::Valid);
        let resolve = |below: &[(u32, Link)]| {
            Way::default().resolve(BACKEND, &route(), &vlan(0x8100, 200), below, Some(&entry))
        };
        let hop = resolve(&below).unwrap();
        assert_eq!((hop.ifindex, hop.tag_count()), (3, 2));
        assert_eq!(
            hop.tags,
            [VlanTag::new(0x88a8, 100), VlanTag::new(0x8100, 200)]
        );
        assert_eq!(hop.mtu, 1_496, "the second tag takes its bytes of the MTU");
        let roomy = Link {
            mtu: 1_600,
            ..link()
        };
        let below = [below[0].clone(), (3, roomy)];
        assert_eq!(resolve(&below).unwrap().mtu, 1_500);
    }

    #[test]
    fn a_known_mac_outlives_a_failed_entry_but_not_a_change_of_router() {
        let (mut way, hop) = resolved();
        for entry in [
            None,
            Some(&entry(EntryState::Failed)),
            Some(&entry(EntryState::Incomplete)),
        ] {
            assert_eq!(way.resolve(BACKEND, &route(), &link(), &[], entry), Ok(hop));
        }
        let moved = Route {
            gateway: Some(ROUTER),
            ..route()
        };
        assert_eq!(
            way.resolve(BACKEND, &moved, &link(), &[], None),
            Err(Obstacle::Asked(ROUTER))
        );
    }

    #[test]
    fn a_way_is_reported_lost_only_when_it_stays_lost() {
        let (mut way, hop) = resolved();
        let start = Instant::now();
        let lost = || Err(Obstacle::NoRoute("network is unreachable".into()));
        assert_eq!(way.judge(start, lost()), None);
        assert_eq!(way.judge(start + CONFIRMATION / 2, lost()), None);
        assert_eq!(way.judge(start + CONFIRMATION / 2, Ok(hop)), None);
        assert_eq!(way.judge(start + CONFIRMATION, lost()), None);
        assert_eq!(way.judge(start + CONFIRMATION * 2, lost()), Some(None));
        assert_eq!(way.judge(start + CONFIRMATION * 9, lost()), None);
        assert_eq!(
            way.judge(start + CONFIRMATION * 9, Ok(hop)),
            Some(Some(hop))
        );
    }

    #[test]
    fn what_the_kernel_could_not_be_asked_takes_no_known_way_away() {
        let (mut way, hop) = resolved();
        let start = Instant::now();
        assert_eq!(way.judge(start, Ok(hop)), None);
        let unasked = || Err(Obstacle::Unasked("no usable answer".into()));
        for seconds in [0, 1, 2, 3_600] {
            let now = start + CONFIRMATION * seconds;
            assert_eq!(way.judge(now, unasked()), None, "{seconds} s");
        }
        assert!(way.is_open() && way.news().is_some());
        // What it says when it can be asked again counts from then on.
        let later = start + CONFIRMATION * 3_601;
        let lost = || Err(Obstacle::NoRoute("network is unreachable".into()));
        assert_eq!(way.judge(later, lost()), None);
        assert_eq!(way.judge(later + CONFIRMATION, lost()), Some(None));
    }

    #[test]
    fn the_first_report_waits_for_arp_and_for_nothing_else() {
        let now = Instant::now();
        let mut way = Way::default();
        assert_eq!(way.judge(now, Err(Obstacle::Asked(BACKEND))), None);
        assert_eq!(
            way.judge(now, Err(Obstacle::Silent(BACKEND, "eth0".into()))),
            Some(None)
        );
        assert_eq!(way.judge(now, Err(Obstacle::Asked(BACKEND))), None);
        assert_eq!(
            Way::default().judge(now, Err(Obstacle::NotUnicast)),
            Some(None)
        );
    }

    #[test]
    fn an_obstacle_is_told_once_until_it_is_overcome() {
        let (mut way, hop) = resolved();
        let now = Instant::now();
        let silent = || Err(Obstacle::Silent(BACKEND, "eth0".into()));
        way.judge(now, silent());
        assert!(way.news().is_some());
        // The kernel starts over again and again while nobody answers.
        way.judge(now, Err(Obstacle::Asked(BACKEND)));
        assert_eq!(way.news(), None);
        way.judge(now, silent());
        assert_eq!(way.news(), None);
        way.judge(now, Err(Obstacle::NotUnicast));
        assert!(way.news().is_some());
        way.judge(now, Ok(hop));
        way.judge(now, Err(Obstacle::NotUnicast));
        assert!(way.news().is_some());
    }

    #[test]
    fn every_obstacle_of_the_link_is_told_apart() {
        let found = |route: Route, link: Link| {
            Way::default().resolve(BACKEND, &route, &link, &[], Some(&entry(EntryState::Valid)))
        };
        assert_eq!(
            found(
                route(),
                Link {
                    up: false,
                    ..link()
                }
            ),
            Err(Obstacle::LinkDown("eth0".into()))
        );
        assert_eq!(
            found(
                route(),
                Link {
                    mac: None,
                    ..link()
                }
            ),
            Err(Obstacle::NotEthernet("eth0".into()))
        );
        assert_eq!(
            found(
                Route {
                    source: None,
                    ..route()
                },
                link()
            ),
            Err(Obstacle::NoSource("eth0".into()))
        );
    }

    #[test]
    fn prefixes_cover_what_they_should() {
        let covers = |prefix: &str, length, address: &str| {
            covers(prefix.parse().unwrap(), length, address.parse().unwrap())
        };
        assert!(covers("10.0.2.0", 24, "10.0.2.11") && !covers("10.0.2.0", 24, "10.0.3.11"));
        assert!(covers("0.0.0.0", 0, "10.0.2.11") && !covers("0.0.0.0", 0, "2001:db8::1"));
        assert!(covers("10.0.2.11", 32, "10.0.2.11") && !covers("10.0.2.11", 32, "10.0.2.1"));
        assert!(covers("2001:db8:1::", 48, "2001:db8:1:ffff::1"));
        assert!(!covers("2001:db8:1::", 48, "2001:db8:2::1"));
        assert!(covers("::", 0, "2001:db8::1") && !covers("::", 0, "10.0.2.11"));
        assert!(
            covers("2001:db8::1", 128, "2001:db8::1") && !covers("2001:db8::1", 128, "2001:db8::2")
        );
    }
}
