//! VLAN tags by frames made for it, which need no VLAN device: whatever tags a packet comes with, it leaves with those of the way to its backend, which
//! here are none; and what is answered goes back with the tags that it came with.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};
use lab::address::{Family, mac_of, spoofed};
use lab::frame::{Build, Segment, Tag, flags};
use lab::packet_socket::{Capture, inject};
use lab::stage::Stage;
use lab::topology::{BALANCER_PORT, Place, Topology, backend_name};

const SOON: Duration = Duration::from_secs(15);
const FIRST_PORT: u16 = 40_000;
const FIRST_ACK: u32 = 0x5000_0000;

/// Tags that packets come with: none, one with a priority, and one within another.
const CAME: [&[Tag]; 3] = [
    &[],
    &[Tag {
        protocol: 0x8100,
        control: 0xe064,
    }],
    &[
        Tag {
            protocol: 0x88a8,
            control: 0x0064,
        },
        Tag {
            protocol: 0x8100,
            control: 0x20c8,
        },
    ],
];

/// A stage, and what passes between its balancer and the router.
struct Leg {
    stage: Stage,
    capture: Capture,
    /// The client, of a prefix to which the router has no way, so that nobody answers what backends say.
    client: IpAddr,
}

impl Leg {
    fn set(place: Place, family: Family, seed: u64) -> Result<Self> {
        let stage = Stage::set(Topology::new(place).in_family(family), seed, |_| {})?;
        let capture = Capture::start(stage.lab.router(), BALANCER_PORT)?;
        let client = match spoofed(family.vip()).0 {
            IpAddr::V4(prefix) => IpAddr::V4((prefix.to_bits() + 1).into()),
            IpAddr::V6(prefix) => IpAddr::V6((prefix.to_bits() + 1).into()),
        };
        Ok(Self {
            stage,
            capture,
            client,
        })
    }

    fn seq(port: u16) -> u32 {
        0x1000_0000 + u32::from(port)
    }

    /// Sends a segment of the client's, as the router would, but for its tags.
    fn send(&self, port: u16, tags: &[Tag], bits: u8, ack: u32, payload: &[u8]) -> Result<()> {
        let lab = &self.stage.lab;
        let seq = Self::seq(port);
        let build = Build {
            mac_destination: mac_of(lab.topology().balancer_address()),
            mac_source: lab.router_mac("segment")?,
            source: SocketAddr::new(self.client, port),
            destination: self.stage.target(),
            seq: if bits & flags::SYN == 0 { seq + 1 } else { seq },
            ack,
            flags: bits,
        };
        inject(
            lab.router(),
            BALANCER_PORT,
            vec![build.tagged(tags, payload)],
        )
    }

    fn wait_for(&self, what: &str, wanted: impl Fn(&Segment) -> bool) -> Result<Segment> {
        self.capture.wait_for(what, SOON, wanted)
    }

    /// Opens a flow with a SYN that has these tags. Gives what left for it.
    fn open(&self, port: u16, tags: &[Tag]) -> Result<Segment> {
        let balancer = mac_of(self.stage.lab.topology().balancer_address());
        let is_its = |s: &Segment| s.tcp.seq == Self::seq(port) && s.tcp.flags == flags::SYN;
        self.send(port, tags, flags::SYN, 0, b"")?;
        let came = self.wait_for("the SYN comes", |s| {
            is_its(s) && s.mac_destination == balancer
        })?;
        assert_eq!(came.tags, tags);
        self.wait_for("the SYN leaves", |s| is_its(s) && s.mac_source == balancer)
    }
}

fn leaves_with_the_tags_of_its_way(place: Place, family: Family, seed: u64) -> Result<()> {
    let leg = Leg::set(place, family, seed)?;
    for (port, tags) in (FIRST_PORT..).zip(CAME) {
        let left = leg.open(port, tags)?;
        assert!(left.tags.is_empty(), "{left:?}");
        assert_eq!(left.outer.is_some(), place == Place::Farm);
        assert!(left.outer.is_none_or(|outer| outer.checksum_ok), "{left:?}");
        assert!(left.ip.checksum_ok && left.tcp_checksum_ok, "{left:?}");
        assert_eq!(left.ip.ttl, 63);
        let is_as_it_came = left.ip.source == leg.client && left.tcp.source == port;
        assert_eq!(is_as_it_came, place != Place::Hidden, "{left:?}");
    }
    let status = leg
        .stage
        .tether
        .wait_status("all are counted", SOON, |status| {
            status.packets("opened") >= CAME.len() as u64
        })?;
    assert_eq!(status.packets("opened"), CAME.len() as u64);
    leg.stage.close();
    Ok(())
}

#[test]
fn l2_takes_off_the_tags_that_a_packet_came_with() -> Result<()> {
    leaves_with_the_tags_of_its_way(Place::Segment, Family::V4, 601)
}

#[test]
fn l2_takes_off_the_tags_that_a_packet_came_with_in_ipv6() -> Result<()> {
    leaves_with_the_tags_of_its_way(Place::Segment, Family::V6, 602)
}

#[test]
fn ipip_takes_off_the_tags_that_a_packet_came_with() -> Result<()> {
    leaves_with_the_tags_of_its_way(Place::Farm, Family::V4, 603)
}

#[test]
fn ipip_takes_off_the_tags_that_a_packet_came_with_in_ipv6() -> Result<()> {
    leaves_with_the_tags_of_its_way(Place::Farm, Family::V6, 604)
}

#[test]
fn nat_takes_off_the_tags_that_a_packet_came_with() -> Result<()> {
    leaves_with_the_tags_of_its_way(Place::Hidden, Family::V4, 605)
}

#[test]
fn nat_takes_off_the_tags_that_a_packet_came_with_in_ipv6() -> Result<()> {
    leaves_with_the_tags_of_its_way(Place::Hidden, Family::V6, 606)
}

#[test]
fn dnat_takes_off_the_tags_that_a_packet_came_with() -> Result<()> {
    leaves_with_the_tags_of_its_way(Place::Behind, Family::V4, 607)
}

#[test]
fn dnat_takes_off_the_tags_that_a_packet_came_with_in_ipv6() -> Result<()> {
    leaves_with_the_tags_of_its_way(Place::Behind, Family::V6, 608)
}

/// A flow of a dead backend: each of its segments is answered, with its own tags.
fn a_reset_has_the_tags_of_its_cause(place: Place, family: Family, seed: u64) -> Result<()> {
    let leg = Leg::set(place, family, seed)?;
    let stage = &leg.stage;
    let topology = stage.lab.topology();
    let left = leg.open(FIRST_PORT, CAME[1])?;
    leg.send(FIRST_PORT, CAME[1], flags::ACK, FIRST_ACK, b"")?;
    let home = (0..topology.backends)
        .find(|index| {
            let address = topology.backend_address(*index);
            match left.outer {
                Some(outer) => outer.destination == address,
                None => left.mac_destination == mac_of(address),
            }
        })
        .context("a backend has the flow")?;
    let name = backend_name(home);
    stage.lab.darken(home)?;
    stage.tether.wait_status("it is dead", SOON, |status| {
        status.health(&name) == "down" && status.serving(&name) == "none"
    })?;

    let router = stage.lab.router_mac("segment")?;
    for (ack, tags) in (FIRST_ACK + 1..).zip(CAME) {
        leg.send(FIRST_PORT, tags, flags::ACK | flags::PSH, ack, b"data")?;
        let reset = leg.wait_for("the segment draws a RST", |s| {
            s.tcp.has(flags::RST) && s.tcp.seq == ack && s.mac_destination == router
        })?;
        assert_eq!(reset.tags, tags);
        let ends = [
            SocketAddr::new(reset.ip.source, reset.tcp.source),
            SocketAddr::new(reset.ip.destination, reset.tcp.destination),
        ];
        let client = SocketAddr::new(leg.client, FIRST_PORT);
        assert_eq!(ends, [stage.target(), client]);
        assert_eq!(reset.outer, None);
        assert!(reset.ip.checksum_ok && reset.tcp_checksum_ok, "{reset:?}");
    }
    leg.stage.close();
    Ok(())
}

#[test]
fn a_reset_of_l2_has_the_tags_of_its_cause() -> Result<()> {
    a_reset_has_the_tags_of_its_cause(Place::Segment, Family::V4, 609)
}

#[test]
fn a_reset_of_ipip_has_the_tags_of_its_cause_in_ipv6() -> Result<()> {
    a_reset_has_the_tags_of_its_cause(Place::Farm, Family::V6, 610)
}
