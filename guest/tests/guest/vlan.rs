//! VLAN devices: the VIP's packets come by one way, with tags or without, and leave by the way of the route to the backends.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use lab::address::{mac_of, vip};
use lab::namespace::Namespace;
use lab::packet_socket::Capture;
use lab::stage::Stage;
use lab::topology::{BALANCER_PORT, Lab, Place, Topology, UPLINK};
use lab::wait;
use lb_common::net::IpVersion;

use crate::ground::{SOON, assert_native, converse, lacking};

/// A link between balancer and router in a VLAN, or in one within another: the tags, the outermost first.
#[derive(Clone, Copy)]
struct Link {
    /// What its devices' names begin with.
    name: &'static str,
    /// Standard and VLAN.
    tags: &'static [(&'static str, u16)],
    /// Its addresses are 10.0.N.0/24.
    network: u8,
}

/// The lab's own link.
const UNTAGGED: Link = Link {
    name: "",
    tags: &[],
    network: 2,
};
/// One VLAN.
const TAGGED: Link = Link {
    name: "t",
    tags: &[("802.1q", 100)],
    network: 4,
};
/// A VLAN in another.
const QINQ: Link = Link {
    name: "q",
    tags: &[("802.1ad", 100), ("802.1q", 200)],
    network: 5,
};

/// Makes the devices of a link on `parent`. Gives the last one's name.
fn devices(host: &Namespace, parent: &str, link: Link) -> Result<String> {
    let mut device = parent.to_owned();
    for (place, (standard, vlan)) in link.tags.iter().enumerate() {
        let name = format!("{}{place}", link.name);
        host.ip(&format!(
            "link add link {device} name {name} type vlan proto {standard} id {vlan}\nlink set {name} up"
        ))
        .with_context(|| lacking("VLAN devices"))?;
        device = name;
    }
    Ok(device)
}

/// A lab in which the VIP's packets come to the balancer by one link, and its own routes lead over another. Gives the router's devices of both.
fn build(place: Place, come: Link, leave: Link) -> Result<(Lab, [String; 2])> {
    let lab = Topology::new(place).build()?;
    let (balancer, router) = (lab.balancer(), lab.router());
    // A tag would travel beside the frame, where no program sees it: as on a card that strips tags.
    for (host, interface) in [(router, BALANCER_PORT), (balancer, UPLINK)] {
        host.sh(&format!(
            "ethtool -K {interface} txvlan off tx-vlan-stag-hw-insert off"
        ))?;
    }
    let mut ends = vec![];
    for link in [come, leave] {
        if link.tags.is_empty() {
            ends.push("segment".to_owned());
        } else if ends.is_empty() || link.network != come.network {
            let device = devices(balancer, UPLINK, link)?;
            balancer.ip(&format!(
                "address add 10.0.{}.2/24 dev {device}",
                link.network
            ))?;
            let device = devices(router, "segment", link)?;
            router.ip(&format!(
                "address add 10.0.{}.1/24 dev {device}",
                link.network
            ))?;
            ends.push(device);
        } else {
            ends.push(ends[0].clone());
        }
    }
    router.ip(&format!(
        "route replace 10.0.0.0/24 via 10.0.{}.2",
        come.network
    ))?;
    balancer.ip(&format!(
        "route replace default via 10.0.{}.1",
        leave.network
    ))?;
    Ok((lab, ends.try_into().ok().context("two links")?))
}

/// The packets for the VIP that a capture has, bare or encapsulated.
fn to_vip(capture: &Capture, encapsulated: bool) -> Vec<impl Ord + std::fmt::Debug> {
    let segments = capture.segments();
    let mut seqs: Vec<_> = segments
        .iter()
        .filter(|s| s.ip.destination == vip(IpVersion::V4) && s.outer.is_some() == encapsulated)
        .map(|s| (s.ip.source, s.tcp.source, s.tcp.seq, s.tcp.ack, s.tcp.flags))
        .collect();
    seqs.sort_unstable();
    seqs.dedup();
    seqs
}

fn ipip(come: Link, leave: Link, seed: u64) -> Result<()> {
    let (lab, [come_by, leave_by]) = build(Place::Farm, come, leave)?;
    let stage = Stage::on(lab, seed, |_| {})?;
    assert_native(&stage)?;
    let coming = Capture::start(stage.lab.router(), &come_by)?;
    let leaving = Capture::start(stage.lab.router(), &leave_by)?;
    let _connections = converse(&stage)?;
    // What a VLAN device shows had its tags, or was given them. Each packet came bare and left in another header.
    wait::until(
        "every packet that came by one way leaves by the other",
        SOON,
        || {
            let (came, left) = (to_vip(&coming, false), to_vip(&leaving, true));
            (!came.is_empty() && came == left).then_some(())
        },
    )?;
    if come_by != leave_by && come_by != "segment" {
        assert!(
            to_vip(&coming, true).is_empty(),
            "nothing left by where it came"
        );
    }
    for segment in leaving.stop() {
        if let Some(outer) = segment.outer {
            assert_eq!(outer.source, IpAddr::from([10, 0, leave.network, 2]));
        }
    }
    stage.close();
    Ok(())
}

#[test]
fn ipip_leaves_by_the_vlan_that_it_came_by() -> Result<()> {
    ipip(TAGGED, TAGGED, 51)
}

#[test]
fn ipip_leaves_by_a_vlan_with_what_came_without() -> Result<()> {
    ipip(UNTAGGED, TAGGED, 52)
}

#[test]
fn ipip_leaves_without_a_tag_with_what_came_by_a_vlan() -> Result<()> {
    ipip(TAGGED, UNTAGGED, 53)
}

#[test]
fn ipip_leaves_by_a_vlan_within_another() -> Result<()> {
    ipip(QINQ, QINQ, 54)
}

#[test]
fn ipip_leaves_by_two_vlans_with_what_came_by_one() -> Result<()> {
    ipip(TAGGED, QINQ, 55)
}

/// Backends whose addresses are on `leave` itself, as mode `l2` needs.
fn l2(come: Link, leave: Link, seed: u64) -> Result<()> {
    let (lab, _) = build(Place::Segment, come, leave)?;
    let address = |index: usize| IpAddr::from([10, 0, leave.network, 11 + index as u8]);
    let mut captures = vec![];
    for (index, backend) in lab.backends().iter().enumerate() {
        let device = devices(backend, UPLINK, leave)?;
        if !leave.tags.is_empty() {
            backend.ip(&format!("address add {}/24 dev {device}", address(index)))?;
        }
        captures.push(Capture::start(backend, &device)?);
    }
    let stage = Stage::on(lab, seed, |config| {
        for (index, backend) in config.backends.iter_mut().enumerate() {
            backend.address = address(index);
        }
    })?;
    assert_native(&stage)?;
    let connections = converse(&stage)?;
    let mut opened = 0;
    for (index, capture) in captures.into_iter().enumerate() {
        // Its card's, whatever device is on top of it.
        let mac = mac_of(stage.lab.topology().backend_address(u8::try_from(index)?));
        for segment in capture.stop() {
            if segment.ip.destination == vip(IpVersion::V4) {
                assert_eq!((segment.outer, segment.mac_destination), (None, mac));
                opened += usize::from(segment.tcp.flags == lab::frame::flags::SYN);
            }
        }
    }
    assert!(
        opened >= connections.len(),
        "every SYN came by the backends' VLAN: {opened}"
    );
    stage.close();
    Ok(())
}

#[test]
fn l2_leaves_by_the_vlan_that_it_came_by() -> Result<()> {
    l2(TAGGED, TAGGED, 56)
}

#[test]
fn l2_leaves_by_two_vlans_with_what_came_without() -> Result<()> {
    l2(UNTAGGED, QINQ, 57)
}

#[test]
fn l2_leaves_without_a_tag_with_what_came_by_a_vlan() -> Result<()> {
    l2(TAGGED, UNTAGGED, 58)
}
