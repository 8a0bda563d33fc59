//! WebSocket clients reach their backends through the XDP program, and the frames on the wire are what the mode says.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lab::frame::{Segment, flags};
use lab::packet_socket::Capture;
use lab::peer::client;
use lab::peer::crowd;
use lab::stage::Stage;
use lab::status::Attachment;
use lab::topology::{
    BALANCER, BALANCER_PORT, CLIENT_PORT, Place, Topology, UPLINK, VIP, backend_name, mac_of,
};
use lab::wait;

const CONNECTIONS: usize = 300;
const SOON: Duration = Duration::from_secs(10);

/// What the balancer did with one packet: as it came, and as it left.
struct Steered {
    came: Segment,
    left: Segment,
}

/// Opens connections, lets each echo, and returns what passed the balancer's link meanwhile, packet by packet. On the way it
/// checks everything that both modes have in common.
fn steer(stage: &Stage) -> Result<Vec<Steered>> {
    let capture = Capture::start(stage.lab.router(), BALANCER_PORT)?;
    let answers = Capture::start(stage.lab.router(), CLIENT_PORT)?;
    let connections = stage.clients.open(CONNECTIONS, stage.plan(), |_| {})?;
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    assert_eq!(crowd::breaks(&connections), [""; 0]);

    let spread = crowd::spread(&connections);
    for backend in &stage.backends {
        let share = spread.get(backend.name()).copied().unwrap_or(0);
        assert!(share >= CONNECTIONS / 5, "an uneven spread: {spread:?}");
        assert_eq!(usize::try_from(backend.open())?, share);
    }
    stage
        .tether
        .wait_status("every flow is counted at its backend", SOON, |status| {
            spread.iter().all(|(name, share)| {
                let flows = status.backend(name).map(|backend| backend.flows);
                flows.is_some_and(|flows| flows.young + flows.pin == *share as u64)
            })
        })?;
    let status = stage.tether.status()?;
    let native = Attachment {
        interface: UPLINK.into(),
        mode: "native".into(),
    };
    assert_eq!(status.attachments, [native]);

    // The backends answer clients directly.
    let vip_speaks = |s: &Segment| s.ip.source == VIP;
    assert!(answers.stop().iter().any(vip_speaks));
    // Every packet that came has left, once the last of them has.
    let (came, left) = wait::until("every packet to the VIP leaves again", SOON, || {
        let mut came = BTreeMap::new();
        let mut left = BTreeMap::new();
        for segment in capture.segments() {
            assert!(
                !vip_speaks(&segment),
                "a reply passed the balancer: {segment:?}"
            );
            if segment.ip.destination != VIP {
                continue;
            }
            let tcp = &segment.tcp;
            let key = (
                segment.ip.source,
                tcp.source,
                tcp.seq,
                tcp.ack,
                tcp.flags,
                tcp.payload.len(),
            );
            let from_balancer = segment.mac_source == mac_of(BALANCER);
            if from_balancer { &mut left } else { &mut came }.insert(key, segment);
        }
        (came.keys().eq(left.keys()) && !came.is_empty()).then_some((came, left))
    })?;

    let mut homes = BTreeMap::new();
    for connection in &connections {
        let life = connection.history().lives.remove(0);
        homes.insert((*life.local.ip(), life.local.port()), life.backend);
    }
    let steered: Vec<_> = came
        .into_values()
        .zip(left.into_values())
        .map(|(came, left)| Steered { came, left })
        .collect();
    assert!(
        steered.len() >= 4 * CONNECTIONS,
        "SYN, ACK, request, message: {}",
        steered.len()
    );
    for Steered { came, left } in &steered {
        assert_eq!(came.mac_destination, mac_of(BALANCER));
        assert_eq!((came.outer, came.ip.ttl), (None, 63));
        assert_eq!(left.ip.ttl, 62, "the TTL is one less");
        assert!(left.ip.checksum_ok, "{left:?}");
        assert_eq!(left.ip.length, came.ip.length);
        assert_eq!(
            (left.ip.source, left.ip.destination),
            (came.ip.source, came.ip.destination)
        );
        assert_eq!(left.tcp, came.tcp, "TCP is not touched");
    }
    // Each packet of a flow went where the flow's client heard a name from.
    for Steered { left, .. } in &steered {
        let home = homes
            .get(&(left.ip.source, left.tcp.source))
            .context("an unknown flow")?;
        let (index, _) = stage.backend(home)?;
        let address = stage.lab.topology().backend_address(index);
        match left.outer {
            Some(outer) => assert_eq!(outer.destination, address),
            None => assert_eq!(left.mac_destination, mac_of(address)),
        }
    }
    Ok(steered)
}

#[test]
fn ipip_encapsulates_to_the_next_hop() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Farm), 11, |_| {})?;
    let gateway = stage.lab.router_mac("segment")?;
    for Steered { left, .. } in steer(&stage)? {
        let outer = left.outer.context("not encapsulated")?;
        assert_eq!((outer.source, outer.checksum_ok), (BALANCER, true));
        assert_eq!(outer.length, left.ip.length + 20);
        assert!(outer.ttl > 1);
        assert_eq!(left.mac_destination, gateway);
    }
    stage.close();
    Ok(())
}

#[test]
fn ipip_reaches_backends_on_the_link_too() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Segment), 12, |config| {
        config.mode = "ipip"
    })?;
    for Steered { left, .. } in steer(&stage)? {
        let outer = left.outer.context("not encapsulated")?;
        assert_eq!(
            left.mac_destination,
            mac_of(outer.destination),
            "no router in between"
        );
    }
    stage.close();
    Ok(())
}

#[test]
fn l2_rewrites_macs_alone() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Segment), 13, |_| {})?;
    for Steered { left, .. } in steer(&stage)? {
        assert_eq!(left.outer, None);
        assert_eq!(left.mac_source, mac_of(BALANCER));
    }
    stage.close();
    Ok(())
}

#[test]
fn what_is_not_for_the_vip_reaches_the_host() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Farm), 14, |_| {})?;
    // Nobody listens on the balancer: its own stack answers with a RST, and to one that is not a service's too.
    let plan = client::Plan::new(std::net::SocketAddrV4::new(BALANCER, 80));
    let error = stage
        .clients
        .open_one(plan)
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(error.contains("refused"), "{error}");
    // And what the balancer asks of others is answered: its health checks see every backend up.
    let status = stage.tether.status()?;
    for index in 0..3 {
        assert_eq!(status.health(&backend_name(index)), "up");
    }
    // No flow was made for it.
    assert_eq!(
        status.flows.embryo + status.flows.young + status.flows.pin,
        0
    );
    let capture = Capture::start(stage.lab.router(), BALANCER_PORT)?;
    let error = stage
        .clients
        .open_one(plan)
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(error.contains("refused"), "{error}");
    capture.wait_for("the balancer's own RST", SOON, |s| {
        s.ip.source == BALANCER && s.tcp.has(flags::RST) && s.ip.ttl == 64
    })?;
    stage.close();
    Ok(())
}
