//! 802.1Q: the VIP's packets come tagged, and leave with the same tag.

use anyhow::{Context as _, Result};
use lab::namespace::Namespace;
use lab::packet_socket::Capture;
use lab::stage::Stage;
use lab::topology::{BALANCER, BALANCER_PORT, Place, Topology, UPLINK, VIP, mac_of, mac_text};
use lab::wait;

use crate::ground::{SOON, assert_native, converse, lacking};

/// The tag.
const VLAN: u16 = 100;
/// The router's device for it, on its bridge to the balancer.
const ROUTER_DEVICE: &str = "segment.100";
/// A backend's device for it.
const BACKEND_DEVICE: &str = "eth0.100";

/// Makes a VLAN device.
fn add_device(host: &Namespace, parent: &str, name: &str) -> Result<()> {
    host.ip(&format!(
        "link add link {parent} name {name} type vlan id {VLAN}\nlink set {name} up"
    ))
    .with_context(|| lacking("VLAN devices"))
}

/// From here on the router sends the VIP's packets to the balancer with a tag.
fn tag(stage: &Stage) -> Result<()> {
    let router = stage.lab.router();
    add_device(router, "segment", ROUTER_DEVICE)?;
    // The tag would travel beside the frame, where no program sees it: as on a card that strips tags.
    router.sh(&format!("ethtool -K {BALANCER_PORT} txvlan off"))?;
    stage
        .lab
        .balancer()
        .sh(&format!("ethtool -K {UPLINK} txvlan off"))?;
    router.ip(&format!(
        "neighbour add {BALANCER} lladdr {} dev {ROUTER_DEVICE} nud permanent
         route replace 10.0.0.0/24 via {BALANCER} dev {ROUTER_DEVICE} onlink",
        mac_text(mac_of(BALANCER)),
    ))
}

#[test]
fn ipip_sends_tagged_packets_back_with_their_tag() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Farm), 51, |_| {})?;
    tag(&stage)?;
    assert_native(&stage)?;
    let tagged = Capture::start(stage.lab.router(), ROUTER_DEVICE)?;
    let _connections = converse(&stage)?;
    // What the device shows had the tag, or was given it. Each packet came bare and left in another header.
    wait::until("every packet with a tag leaves with it", SOON, || {
        let segments = tagged.segments();
        let to_vip = |encapsulated: bool| {
            let mut seqs: Vec<_> = segments
                .iter()
                .filter(|s| s.ip.destination == VIP && s.outer.is_some() == encapsulated)
                .map(|s| (s.ip.source, s.tcp.source, s.tcp.seq, s.tcp.ack, s.tcp.flags))
                .collect();
            seqs.sort_unstable();
            seqs.dedup();
            seqs
        };
        let (came, left) = (to_vip(false), to_vip(true));
        (!came.is_empty() && came == left).then_some(())
    })?;
    for segment in tagged.stop() {
        if let Some(outer) = segment.outer {
            assert_eq!(outer.source, BALANCER);
            assert_eq!(segment.mac_source, mac_of(BALANCER));
        }
    }
    stage.close();
    Ok(())
}

#[test]
fn l2_leaves_the_tag_on() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Segment), 52, |_| {})?;
    let mut captures = vec![];
    for backend in stage.lab.backends() {
        add_device(backend, UPLINK, BACKEND_DEVICE)?;
        captures.push(Capture::start(backend, BACKEND_DEVICE)?);
    }
    tag(&stage)?;
    assert_native(&stage)?;
    let connections = converse(&stage)?;
    let mut opened = 0;
    for (index, capture) in captures.into_iter().enumerate() {
        let address = stage.lab.topology().backend_address(u8::try_from(index)?);
        for segment in capture.stop() {
            assert_eq!((segment.outer, segment.ip.destination), (None, VIP));
            assert_eq!(segment.mac_destination, mac_of(address));
            opened += usize::from(segment.tcp.flags == lab::frame::flags::SYN);
        }
    }
    assert!(
        opened >= connections.len(),
        "every SYN came with the tag: {opened}"
    );
    stage.close();
    Ok(())
}
