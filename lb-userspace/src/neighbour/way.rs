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

use crate::sysctl;

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
        "it is on this host, which does not forward what comes in by {interface}: run `sysctl -w {}=1`, and write it to /etc/sysctl.d so that it \
         lasts", sysctl::of_interface(*version, interface, "forwarding")
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
mod tests;
