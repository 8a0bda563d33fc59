//! VLAN devices: the VIP's packets come by one way, with tags or without, and leave by the way of the route to the backends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result};
use lab::address::{Family, Network, mac_of};
use lab::frame::Segment;
use lab::namespace::Namespace;
use lab::packet_socket::Capture;
use lab::peer::backend::{Backend, PORT};
use lab::peer::{crowd, raw};
use lab::pods::{self, Behind, conntrack};
use lab::stage::Stage;
use lab::topology::{BALANCER_PORT, Lab, Place, Topology, UPLINK};
use lab::wait;
use lb_common::net::IpVersion;

use crate::ground::{CONNECTIONS, SOON, assert_echo, assert_native, converse, lacking};

/// A link between balancer and router in a VLAN, or in one within another: the tags, the outermost first.
#[derive(Clone, Copy)]
struct Link {
    /// What its devices' names begin with.
    name: &'static str,
    /// Standard and VLAN.
    tags: &'static [(&'static str, u16)],
    /// Its addresses are 10.0.N.0/24 and fd00:10:0:N::/64, which no [`Network`] has but the lab's own link.
    network: u8,
}

impl Link {
    /// The address of a host on it: the router is 1, the balancer 2.
    const fn host(self, version: IpVersion, host: u8) -> IpAddr {
        match version {
            IpVersion::V4 => IpAddr::V4(Ipv4Addr::new(10, 0, self.network, host)),
            IpVersion::V6 => {
                let (network, host) = (self.network as u16, host as u16);
                IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0, network, 0, 0, 0, host))
            }
        }
    }

    /// Both addresses of a host.
    fn hosts(self, host: u8) -> [IpAddr; 2] {
        IpVersion::ALL.map(|version| self.host(version, host))
    }
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
    network: 6,
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
fn build(place: Place, family: Family, come: Link, leave: Link) -> Result<(Lab, [String; 2])> {
    let lab = Topology::new(place).in_family(family).build()?;
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
            balancer.join(&device, &link.hosts(2))?;
            let device = devices(router, "segment", link)?;
            router.join(&device, &link.hosts(1))?;
            ends.push(device);
        } else {
            ends.push(ends[0].clone());
        }
    }
    for version in IpVersion::ALL {
        router.ip(&format!(
            "route replace {} via {}",
            Network::Vips.prefix(version),
            come.host(version, 2)
        ))?;
        balancer.ip(&format!(
            "route replace default via {}",
            leave.host(version, 1)
        ))?;
    }
    Ok((lab, ends.try_into().ok().context("two links")?))
}

/// The packets for the VIP that a capture has, bare or encapsulated.
fn to_vip(capture: &Capture, vip: IpAddr, encapsulated: bool) -> Vec<impl Ord + std::fmt::Debug> {
    let segments = capture.segments();
    let mut seqs: Vec<_> = segments
        .iter()
        .filter(|s| s.ip.destination == vip && s.outer.is_some() == encapsulated)
        .map(|s| (s.ip.source, s.tcp.source, s.tcp.seq, s.tcp.ack, s.tcp.flags))
        .collect();
    seqs.sort_unstable();
    seqs.dedup();
    seqs
}

fn ipip(family: Family, come: Link, leave: Link, seed: u64) -> Result<()> {
    let (lab, [come_by, leave_by]) = build(Place::Farm, family, come, leave)?;
    let stage = Stage::on(lab, seed, |_| {})?;
    assert_native(&stage)?;
    let vip = stage.config.vip;
    let coming = Capture::start(stage.lab.router(), &come_by)?;
    let leaving = Capture::start(stage.lab.router(), &leave_by)?;
    let _connections = converse(&stage)?;
    // What a VLAN device shows had its tags, or was given them. Each packet came bare and left in another header.
    wait::until(
        "every packet that came by one way leaves by the other",
        SOON,
        || {
            let (came, left) = (to_vip(&coming, vip, false), to_vip(&leaving, vip, true));
            (!came.is_empty() && came == left).then_some(())
        },
    )?;
    if come_by != leave_by && come_by != "segment" {
        assert!(
            to_vip(&coming, vip, true).is_empty(),
            "nothing left by where it came"
        );
    }
    for segment in leaving.stop() {
        if let Some(outer) = segment.outer {
            assert_eq!(outer.source, leave.host(family.backends(), 2));
        }
    }
    stage.close();
    Ok(())
}

#[test]
fn ipip_leaves_by_the_vlan_that_it_came_by() -> Result<()> {
    ipip(Family::V4, TAGGED, TAGGED, 51)
}

#[test]
fn ipip_leaves_by_a_vlan_with_what_came_without() -> Result<()> {
    ipip(Family::V4, UNTAGGED, TAGGED, 52)
}

#[test]
fn ipip_leaves_without_a_tag_with_what_came_by_a_vlan() -> Result<()> {
    ipip(Family::V4, TAGGED, UNTAGGED, 53)
}

#[test]
fn ipip_leaves_by_a_vlan_within_another() -> Result<()> {
    ipip(Family::V4, QINQ, QINQ, 54)
}

#[test]
fn ipip_leaves_by_two_vlans_with_what_came_by_one() -> Result<()> {
    ipip(Family::V4, TAGGED, QINQ, 55)
}

#[test]
fn ipip_leaves_by_a_vlan_within_another_in_ipv6() -> Result<()> {
    ipip(Family::V6, QINQ, QINQ, 59)
}

/// Backends whose addresses are on `leave` itself, as mode `l2` needs.
fn l2(family: Family, come: Link, leave: Link, seed: u64) -> Result<()> {
    let (lab, _) = build(Place::Segment, family, come, leave)?;
    let address = |index: usize| leave.host(family.backends(), 11 + index as u8);
    let mut captures = vec![];
    for (index, backend) in lab.backends().iter().enumerate() {
        let device = devices(backend, UPLINK, leave)?;
        if !leave.tags.is_empty() {
            backend.join(&device, &[address(index)])?;
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
            if segment.ip.destination == stage.config.vip {
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
    l2(Family::V4, TAGGED, TAGGED, 56)
}

#[test]
fn l2_leaves_by_two_vlans_with_what_came_without() -> Result<()> {
    l2(Family::V4, UNTAGGED, QINQ, 57)
}

#[test]
fn l2_leaves_without_a_tag_with_what_came_by_a_vlan() -> Result<()> {
    l2(Family::V4, TAGGED, UNTAGGED, 58)
}

#[test]
fn l2_leaves_by_two_vlans_with_what_came_by_one_in_ipv6() -> Result<()> {
    l2(Family::V6, TAGGED, QINQ, 60)
}

/// What tells a segment from every other, whatever becomes of its addresses and ports.
type Key = (u32, u32, u8, Vec<u8>);

/// The segments between two addresses that a capture has.
fn between(
    capture: &Capture,
    from: impl Fn(IpAddr) -> bool,
    to: impl Fn(IpAddr) -> bool,
) -> Vec<Key> {
    let mut keys: Vec<Key> = capture
        .segments()
        .into_iter()
        .filter(|s| from(s.ip.source) && to(s.ip.destination))
        .map(|s| (s.tcp.seq, s.tcp.ack, s.tcp.flags, s.tcp.payload))
        .collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// Who takes part where addresses are translated.
struct Parties {
    clients: Vec<IpAddr>,
    vip: IpAddr,
    backends: Vec<IpAddr>,
    /// Whom backends take for their clients.
    sources: Vec<IpAddr>,
}

impl Parties {
    /// Whether a segment is one of a client's, or one to it.
    fn is_outside(&self, segment: &Segment) -> bool {
        [segment.ip.source, segment.ip.destination].contains(&self.vip)
    }

    /// Whether it is one of a backend's, or one to it, of a translated flow.
    fn is_inside(&self, segment: &Segment) -> bool {
        let ends = [segment.ip.source, segment.ip.destination];
        let has = |list: &[IpAddr]| ends.iter().any(|end| list.contains(end));
        has(&self.backends) && has(&self.sources)
    }

    /// Waits until all that came for the VIP has left by the other link, and all answers, which come by that, too.
    fn wait_translated(&self, coming: &Capture, leaving: &Capture) -> Result<()> {
        let is_client = |address: IpAddr| self.clients.contains(&address);
        let is_vip = |address: IpAddr| address == self.vip;
        let is_backend = |address: IpAddr| self.backends.contains(&address);
        let is_source = |address: IpAddr| self.sources.contains(&address);
        let is_all = |came: Vec<Key>, left: Vec<Key>| came.len() >= 3 * CONNECTIONS && came == left;
        wait::until("what came has left, both ways", SOON, || {
            let sent = is_all(
                between(coming, is_client, is_vip),
                between(leaving, is_source, is_backend),
            );
            let answered = is_all(
                between(leaving, is_backend, is_source),
                between(leaving, is_vip, is_client),
            );
            (sent && answered).then_some(())
        })
    }

    /// On two devices, each has seen nothing of what goes by the other.
    fn assert_apart(
        &self,
        (coming, come_by): (Capture, &str),
        (leaving, leave_by): (Capture, &str),
    ) {
        if come_by == leave_by {
            return;
        }
        assert_nothing_else(coming, come_by, |segment| {
            self.is_inside(segment) || segment.ip.source == self.vip
        });
        assert_nothing_else(leaving, leave_by, |segment| {
            segment.ip.destination == self.vip
        });
    }
}

/// Has the balancer know its router's MAC: what backends send is the kernel's to forward, and not the program's, until it does.
fn meet_the_router(stage: &Stage, leave: Link, version: IpVersion) {
    let router = SocketAddr::new(leave.host(version, 1), PORT);
    let refused = raw::connect(stage.lab.balancer(), router, SOON);
    assert!(refused.is_err());
}

/// Nothing of what is translated shows by a link but what is to be there. (The untagged link shows what its VLANs carry, too.)
fn assert_nothing_else(capture: Capture, device: &str, is_strange: impl Fn(&Segment) -> bool) {
    let segments = capture.stop();
    if device != "segment" {
        let strange = segments.iter().find(|segment| is_strange(segment));
        assert_eq!(strange, None, "by {device}");
    }
}

fn nat(family: Family, come: Link, leave: Link, seed: u64) -> Result<()> {
    let (lab, [come_by, leave_by]) = build(Place::Hidden, family, come, leave)?;
    let (topology, version) = (lab.topology(), family.vip());
    let snat = topology.snat_address();
    // Backends' answers come by the link that they were asked by.
    lab.router()
        .ip(&format!("route add {snat} via {}", leave.host(version, 2)))?;
    let stage = Stage::on(lab, seed, |_| {})?;
    assert_native(&stage)?;
    meet_the_router(&stage, leave, version);
    let parties = Parties {
        clients: topology.sources(),
        vip: topology.vip(),
        backends: (0..topology.backends)
            .map(|index| topology.backend_address(index))
            .collect(),
        sources: vec![snat],
    };
    let coming = Capture::start(stage.lab.router(), &come_by)?;
    let leaving = Capture::start(stage.lab.router(), &leave_by)?;
    let connections = converse(&stage)?;
    parties.wait_translated(&coming, &leaving)?;
    assert_echo(&connections);
    for segment in leaving.segments() {
        assert!(segment.ip.checksum_ok, "{segment:?}");
    }
    parties.assert_apart((coming, &come_by), (leaving, &leave_by));
    stage.close();
    Ok(())
}

#[test]
fn nat_goes_both_ways_by_a_vlan() -> Result<()> {
    nat(Family::V4, TAGGED, TAGGED, 71)
}

#[test]
fn nat_goes_both_ways_by_a_vlan_with_what_came_without() -> Result<()> {
    nat(Family::V4, UNTAGGED, TAGGED, 72)
}

#[test]
fn nat_goes_both_ways_without_a_tag_with_what_came_by_a_vlan() -> Result<()> {
    nat(Family::V4, TAGGED, UNTAGGED, 73)
}

#[test]
fn nat_goes_both_ways_by_a_vlan_within_another() -> Result<()> {
    nat(Family::V4, QINQ, QINQ, 74)
}

#[test]
fn nat_goes_both_ways_by_two_vlans_with_what_came_by_one_in_ipv6() -> Result<()> {
    nat(Family::V6, TAGGED, QINQ, 75)
}

/// Backends on `leave`, whose router the balancer is.
fn dnat(family: Family, come: Link, leave: Link, seed: u64) -> Result<()> {
    let (lab, [come_by, leave_by]) = build(Place::Behind, family, come, leave)?;
    let (topology, version) = (lab.topology(), family.vip());
    let address = |index: usize| leave.host(version, 11 + index as u8);
    let mut by_backend = vec![];
    for (index, backend) in lab.backends().iter().enumerate() {
        let device = devices(backend, UPLINK, leave)?;
        if !leave.tags.is_empty() {
            backend.join(&device, &[address(index)])?;
        }
        backend.ip(&format!(
            "route replace default via {}",
            leave.host(version, 2)
        ))?;
        by_backend.push(Capture::start(backend, &device)?);
    }
    let stage = Stage::on(lab, seed, |config| {
        for (index, backend) in config.backends.iter_mut().enumerate() {
            backend.address = address(index);
        }
    })?;
    assert_native(&stage)?;
    meet_the_router(&stage, leave, version);
    let clients = topology.sources();
    let parties = Parties {
        vip: topology.vip(),
        backends: (0..stage.backends.len()).map(address).collect(),
        sources: clients.clone(),
        clients,
    };
    let coming = Capture::start(stage.lab.router(), &come_by)?;
    let leaving = Capture::start(stage.lab.router(), &leave_by)?;
    let connections = converse(&stage)?;
    let is_client = |address: IpAddr| parties.clients.contains(&address);
    let is_backend = |address: IpAddr| parties.backends.contains(&address);
    let is_vip = |address: IpAddr| address == parties.vip;
    let all = |from_backends: bool| {
        let mut keys: Vec<Key> = by_backend
            .iter()
            .flat_map(|capture| {
                if from_backends {
                    between(capture, is_backend, is_client)
                } else {
                    between(capture, is_client, is_backend)
                }
            })
            .collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    };
    wait::until("what came has left, both ways", SOON, || {
        let (came, left) = (between(&coming, is_client, is_vip), all(false));
        let (answered, heard) = (all(true), between(&leaving, is_vip, is_client));
        let is_all = came.len() >= 3 * CONNECTIONS && answered.len() >= 3 * CONNECTIONS;
        (is_all && came == left && answered == heard).then_some(())
    })?;
    assert_echo(&connections);
    for segment in by_backend.into_iter().flat_map(Capture::stop) {
        assert!(!parties.is_outside(&segment), "{segment:?}");
        assert!(segment.ip.checksum_ok, "{segment:?}");
    }
    parties.assert_apart((coming, &come_by), (leaving, &leave_by));
    stage.close();
    Ok(())
}

#[test]
fn dnat_goes_both_ways_by_a_vlan_with_what_came_without() -> Result<()> {
    dnat(Family::V4, UNTAGGED, TAGGED, 76)
}

#[test]
fn dnat_goes_both_ways_by_a_vlan_within_another_in_ipv6() -> Result<()> {
    dnat(Family::V6, QINQ, QINQ, 77)
}

/// Backends on the balancer's own host: what a VLAN brings is left to the stack with its tags, and what they send goes out by a VLAN device.
fn pod(family: Family, link: Link, seed: u64) -> Result<()> {
    let (lab, [device, _]) = build(Place::Farm, family, link, link)?;
    let version = family.vip();
    let pods = pods::add(&lab, 2, Behind::Veth)?;
    let servers = pods
        .iter()
        .map(|pod| Backend::start(&pod.host))
        .collect::<Result<Vec<_>>>()?;
    let stage = Stage::on(lab, seed, |config| {
        config.backends = pods.iter().map(|pod| pod.spec(version)).collect();
    })?;
    assert_native(&stage)?;
    let status = stage.tether.status()?;
    for pod in &pods {
        let told = status.backend(pod.host.name()).context("it is listed")?;
        assert_eq!(told.neighbour, "local");
    }
    let seen = Capture::start(stage.lab.router(), &device)?;
    let connections = stage.clients.open(CONNECTIONS, stage.plan(), |_| {})?;
    assert_echo(&connections);
    let spread = crowd::spread(&connections);
    assert_eq!(spread.len(), pods.len(), "{spread:?}");
    let (vip, clients) = (stage.config.vip, stage.lab.sources());
    let (mut asked, mut answered) = (0, 0);
    for segment in seen.stop() {
        assert!(segment.ip.checksum_ok, "{segment:?}");
        // Clients know the VIP, and nothing else.
        if clients.contains(&segment.ip.source) {
            assert_eq!(segment.ip.destination, vip, "{segment:?}");
            asked += 1;
        }
        if clients.contains(&segment.ip.destination) {
            assert_eq!(segment.ip.source, vip, "{segment:?}");
            answered += 1;
        }
    }
    let least = 3 * CONNECTIONS;
    assert!(asked >= least && answered >= least, "{asked}, {answered}");
    let status = stage
        .tether
        .wait_status("what pods have sent is counted", SOON, |status| {
            status.packets("reply") > 0
        })?;
    assert_eq!(status.packets("untranslated"), 0);
    assert_eq!(conntrack(&stage.lab, "invalid")?, 0);
    assert!(servers.iter().all(|server| server.open() > 0));
    assert_eq!(crowd::breaks(&connections), [""; 0]);
    stage.close();
    Ok(())
}

#[test]
fn a_pod_answers_by_the_vlan_that_it_was_asked_by() -> Result<()> {
    pod(Family::V4, TAGGED, 78)
}

#[test]
fn a_pod_answers_by_a_vlan_within_another_in_ipv6() -> Result<()> {
    pod(Family::V6, QINQ, 79)
}
