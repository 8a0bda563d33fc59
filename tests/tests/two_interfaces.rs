//! A balancer with two interfaces: what comes in by one leaves by the other.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use lab::address::{Family, Network, mac_of};
use lab::frame::flags;
use lab::packet_socket::Capture;
use lab::peer::crowd;
use lab::stage::Stage;
use lab::status::{Attachment, Status};
use lab::topology::{BALANCER_PORT, Lab, Place, UPLINK};
use lab::two_links::{SECOND, SECOND_PORT, build, open, second_address};
use lab::wait;
use lb_common::net::IpVersion;

const CONNECTIONS: usize = 100;
const SOON: Duration = Duration::from_secs(10);

fn counted(status: &Status, reason: &str) -> u64 {
    status.reasons[reason].packets
}

fn goes_in_by_one_and_out_by_the_other(
    mode: &'static str,
    family: Family,
    seed: u64,
) -> Result<()> {
    let lab = build(Place::Farm, family)?;
    let _open = open(&lab)?;
    let stage = Stage::on(lab, seed, |config| {
        config.mode = mode;
        config.interfaces = vec![UPLINK, SECOND];
    })?;
    let status = stage.tether.status()?;
    let native = |interface: &str| Attachment {
        interface: interface.into(),
        mode: "native".into(),
    };
    assert_eq!(status.attachments, [native(UPLINK), native(SECOND)]);
    assert_eq!(status.closed_egress, []);

    let vip = stage.config.vip;
    let first = Capture::start(stage.lab.router(), BALANCER_PORT)?;
    let second = Capture::start(stage.lab.router(), SECOND_PORT)?;
    let connections = stage.clients.open(CONNECTIONS, stage.plan(), |_| {})?;
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    let to_vip = |capture: &Capture| {
        let mut keys: Vec<_> = capture
            .segments()
            .iter()
            .filter(|s| s.ip.destination == vip)
            .map(|s| (s.ip.source, s.tcp.source, s.tcp.seq, s.tcp.ack, s.tcp.flags))
            .collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    };
    wait::until("every packet that came has left", SOON, || {
        let (came, left) = (to_vip(&first), to_vip(&second));
        (came.len() >= 4 * CONNECTIONS && came == left).then_some(())
    })?;
    let is_encapsulated = mode == "ipip";
    for segment in first.stop() {
        assert_eq!(segment.outer, None, "nothing left by where it came");
    }
    for segment in second.stop().iter().filter(|s| s.ip.destination == vip) {
        assert_eq!(segment.outer.is_some(), is_encapsulated);
        let backends = (0..3).map(|index| mac_of(stage.lab.topology().backend_address(index)));
        assert!(
            backends
                .into_iter()
                .any(|mac| mac == segment.mac_destination),
            "no router in between: {segment:?}"
        );
        if segment.tcp.flags == flags::SYN {
            assert_eq!(segment.ip.ttl, 62, "the router's, and the balancer's");
        }
    }

    // The clients' packets now come by the other interface: the same flows go on, and leave by it again.
    let version = family.vip();
    stage.lab.router().ip(&format!(
        "route replace {} via {}",
        Network::Vips.prefix(version),
        second_address(version)
    ))?;
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    assert_eq!(crowd::breaks(&connections), [""; 0]);
    let status = stage
        .tether
        .wait_status("every flow is counted", SOON, |status| {
            counted(status, "opened") == CONNECTIONS as u64
        })?;
    assert_eq!(counted(&status, "no_egress"), 0);
    stage.close();
    Ok(())
}

#[test]
fn ipip_leaves_by_the_interface_of_the_backends() -> Result<()> {
    goes_in_by_one_and_out_by_the_other("ipip", Family::V4, 21)
}

#[test]
fn ipip_leaves_by_the_interface_of_the_backends_in_ipv6() -> Result<()> {
    goes_in_by_one_and_out_by_the_other("ipip", Family::V6, 24)
}

#[test]
fn l2_leaves_by_the_interface_of_the_backends() -> Result<()> {
    goes_in_by_one_and_out_by_the_other("l2", Family::V4, 22)
}

#[test]
fn l2_leaves_by_the_interface_of_the_backends_in_ipv6() -> Result<()> {
    goes_in_by_one_and_out_by_the_other("l2", Family::V6, 25)
}

/// The balancer's address on the backends' side that they see in the place of clients'.
fn add_snat_address(lab: &Lab, version: IpVersion) -> Result<IpAddr> {
    let snat = Network::Farm.host(version, 100);
    let only = match version {
        IpVersion::V4 => "/32",
        IpVersion::V6 => "/128",
    };
    let options = match version {
        IpVersion::V4 => "",
        IpVersion::V6 => "nodad preferred_lft 0",
    };
    lab.balancer()
        .ip(&format!("address add {snat}{only} dev {SECOND} {options}"))?;
    Ok(snat)
}

/// Backends see an address of the interface on their side, or have the balancer there for a router: so their replies come in by it, and leave by that of
/// the clients.
fn translates_between_them(mode: &'static str, family: Family, seed: u64) -> Result<()> {
    let lab = build(Place::Hidden, family)?;
    let version = family.vip();
    let snat = if mode == "nat" {
        Some(add_snat_address(&lab, version)?)
    } else {
        let balancer = second_address(version);
        for backend in lab.backends() {
            backend.ip(&format!("route replace default via {balancer}"))?;
        }
        None
    };
    let _open = open(&lab)?;
    let stage = Stage::on(lab, seed, |config| {
        config.interfaces = vec![UPLINK, SECOND];
        config.mode = mode;
        config.snat = snat.into_iter().collect();
    })?;
    let vip = stage.config.vip;
    let backends: Vec<_> = (0..3)
        .map(|index| stage.lab.topology().backend_address(index))
        .collect();
    let first = Capture::start(stage.lab.router(), BALANCER_PORT)?;
    let second = Capture::start(stage.lab.router(), SECOND_PORT)?;
    let connections = stage.clients.open(CONNECTIONS, stage.plan(), |_| {})?;
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    let keys = |capture: &Capture, from: &[IpAddr], to: &[IpAddr]| {
        let mut keys: Vec<_> = capture
            .segments()
            .iter()
            .filter(|s| from.contains(&s.ip.source) && to.contains(&s.ip.destination))
            .map(|s| (s.tcp.seq, s.tcp.ack, s.tcp.flags, s.tcp.payload.clone()))
            .collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    };
    let clients = stage.lab.sources();
    let seen_by_backends = match snat {
        Some(snat) => vec![snat],
        None => clients.to_vec(),
    };
    wait::until("every packet that came has left, both ways", SOON, || {
        let requests = [
            keys(&first, clients, &[vip]),
            keys(&second, &seen_by_backends, &backends),
        ];
        let replies = [
            keys(&second, &backends, &seen_by_backends),
            keys(&first, &[vip], clients),
        ];
        let all = |[came, left]: &[Vec<_>; 2]| came.len() >= 3 * CONNECTIONS && came == left;
        (all(&requests) && all(&replies)).then_some(())
    })?;
    assert_eq!(crowd::breaks(&connections), [""; 0]);
    let status = stage.tether.status()?;
    for reason in ["no_egress", "no_route_back", "untranslated"] {
        assert_eq!(counted(&status, reason), 0, "{reason}");
    }
    stage.close();
    Ok(())
}

#[test]
fn nat_sends_replies_by_the_interface_of_the_clients() -> Result<()> {
    translates_between_them("nat", Family::V4, 26)
}

#[test]
fn nat_sends_replies_by_the_interface_of_the_clients_in_ipv6() -> Result<()> {
    translates_between_them("nat", Family::V6, 27)
}

#[test]
fn dnat_sends_replies_by_the_interface_of_the_clients() -> Result<()> {
    translates_between_them("dnat", Family::V4, 29)
}

#[test]
fn dnat_sends_replies_by_the_interface_of_the_clients_in_ipv6() -> Result<()> {
    translates_between_them("dnat", Family::V6, 30)
}

#[test]
fn an_interface_that_takes_no_frames_is_named_and_used_once_it_does() -> Result<()> {
    // The router's end has neither a program nor GRO, so the kernel would drop all that is redirected to ours.
    let lab = build(Place::Farm, Family::V4)?;
    let stage = Stage::on(lab, 23, |config| config.interfaces = vec![UPLINK, SECOND])?;
    let status = stage.tether.wait_status("it is named", SOON, |status| {
        status
            .closed_egress
            .iter()
            .any(|egress| egress.interface == SECOND && egress.reason.contains("ethtool -K"))
    })?;
    assert_eq!(status.closed_egress.len(), 1);
    let listing = stage.tether.succeed(&["status"])?;
    assert!(listing.contains("leaves by eth1: "), "{listing}");

    let unanswered = stage.clients.open_one(stage.plan());
    assert!(unanswered.is_err(), "nobody can answer what is dropped");
    let status = stage.tether.wait_status("it is counted", SOON, |status| {
        counted(status, "no_egress") > 0
    })?;
    assert_eq!(counted(&status, "opened"), 0);

    let _open = open(&stage.lab)?;
    stage
        .tether
        .wait_status("it is open", SOON, |status| status.closed_egress.is_empty())?;
    let connections = stage.clients.open(CONNECTIONS, stage.plan(), |_| {})?;
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    stage.close();
    Ok(())
}

#[test]
fn an_interface_that_is_gone_is_named_and_the_other_goes_on() -> Result<()> {
    let lab = build(Place::Farm, Family::V4)?;
    let _open = open(&lab)?;
    let stage = Stage::on(lab, 28, |config| config.interfaces = vec![UPLINK, SECOND])?;
    stage.lab.balancer().ip(&format!("link del {SECOND}"))?;
    let status = stage
        .tether
        .wait_status("it is named", 2 * SOON, |status| {
            !status.detached.is_empty()
        })?;
    let attached: Vec<_> = status
        .attachments
        .iter()
        .map(|one| &one.interface)
        .collect();
    assert_eq!(attached, [UPLINK]);
    let [gone] = &status.detached[..] else {
        panic!("{:?}", status.detached)
    };
    assert_eq!(gone.interface, SECOND);
    let listing = stage.tether.succeed(&["status"])?;
    assert!(
        listing.contains("NOT ATTACHED to eth1: ") && listing.contains("attached to eth0 ("),
        "{listing}"
    );
    assert!(
        stage
            .tether
            .metrics()?
            .contains("tether_detached{interface=\"eth1\"} 1")
    );
    // The backends are reached through the router now, by the interface that is left.
    stage
        .tether
        .wait_status("another way is found", SOON, |status| {
            let mut backends = status.services.iter().flat_map(|service| &service.backends);
            backends.all(|backend| backend.neighbour == "resolved" && backend.serving == "new")
        })?;
    let connections = stage.clients.open(CONNECTIONS, stage.plan(), |_| {})?;
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    stage.close();
    Ok(())
}
