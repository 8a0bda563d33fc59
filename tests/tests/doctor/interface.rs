//! Interfaces: carrier, drivers and what they can do, what merges packets, and the ways out.

use anyhow::Result;
use lab::address::Family;
use lab::stage::Stage;
use lab::topology::{Place, Topology, UPLINK};
use lab::two_links::{self, SECOND, SECOND_PORT};

use crate::{examine, line_of, see, see_with};

/// A configuration beside the daemon's own.
const OTHER: &str = "/run/other.toml";

#[test]
fn an_interface_without_a_carrier_and_one_that_takes_no_frames_are_seen() -> Result<()> {
    let lab = two_links::build(Place::Farm, Family::V4)?;
    let open = two_links::open(&lab)?;
    // It leads to the backends, and is not in `interfaces`.
    let stage = Stage::on(lab, 721, |_| {})?;
    see(&stage, "egress", SECOND, "ok")?;
    drop(open);
    let line = see(&stage, "egress", SECOND, "failure")?;
    assert!(
        line.text.contains("leads to backends") && line.text.contains("add eth1 to `interfaces`"),
        "{line:?}"
    );
    let _open = two_links::open(&stage.lab)?;
    see(&stage, "egress", SECOND, "ok")?;

    // One that is in it needs no such look.
    let both = format!("interfaces = [\"{UPLINK}\", \"{SECOND}\"]");
    let alone = format!("interfaces = [\"{UPLINK}\"]");
    let text = stage.config.text().replace(&alone, &both);
    stage.lab.balancer().write(OTHER, &text)?;
    let other = ["--config", OTHER];
    see_with(&stage, &other, "interface", SECOND, "ok")?;
    let (lines, _) = examine(&stage, &other)?;
    assert_eq!(line_of(&lines, "egress", SECOND), None, "{lines:?}");

    let router = stage.lab.router();
    router.ip(&format!("link set {SECOND_PORT} down"))?;
    let line = see_with(&stage, &other, "interface", SECOND, "failure")?;
    for part in [
        "driver veth, MTU 1600",
        "without a carrier",
        "ip link set eth1 up",
    ] {
        assert!(line.text.contains(part), "no {part:?}: {line:?}");
    }
    see_with(&stage, &other, "interface", UPLINK, "ok")?;
    router.ip(&format!("link set {SECOND_PORT} up"))?;
    see_with(&stage, &other, "interface", SECOND, "ok")?;
    stage.close();
    Ok(())
}

/// A bridge has no native XDP, and a tap has it for frames of one buffer only.
#[test]
fn what_drivers_cannot_do_is_seen() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Segment), 722, |_| {})?;
    let balancer = stage.lab.balancer();
    balancer.ip("link add br9 mtu 4000 type bridge
         link set br9 up
         tuntap add dev tap9 mode tap
         link set tap9 mtu 4000 up")?;
    balancer.sh("ethtool -K br9 gro on")?;
    let text = stage.config.text().replace(
        "interfaces = [\"eth0\"]",
        "interfaces = [\"eth0\", \"br9\", \"tap9\"]",
    );
    balancer.write(OTHER, &text)?;
    let other = ["--config", OTHER];

    let line = see_with(&stage, &other, "offloads", "br9", "failure")?;
    assert!(
        line.text.contains("GRO merges packets")
            && line.text.contains("ethtool -K br9 gro off lro off"),
        "{line:?}"
    );
    let line = see_with(&stage, &other, "xdp", "br9", "warning")?;
    assert!(
        line.text.contains("no native XDP") && line.text.contains("docs/hardware.md"),
        "{line:?}"
    );
    let line = see_with(&stage, &other, "driver-mtu", "tap9", "warning")?;
    assert!(
        line.text.contains("MTU 4000") && line.text.contains("ip link set tap9 mtu 3502"),
        "{line:?}"
    );
    let (lines, _) = examine(&stage, &other)?;
    // Any MTU is right for who has no native XDP to refuse.
    assert_eq!(line_of(&lines, "driver-mtu", "br9"), None, "{lines:?}");
    // GRO of one that is attached natively merges behind the program.
    for interface in [UPLINK, "tap9"] {
        let offloads = line_of(&lines, "offloads", interface);
        assert_eq!(offloads.map(|line| line.state), Some("ok".to_owned()));
    }
    // A veth has queues, but no pairs of them that could be told of.
    assert_eq!(line_of(&lines, "queues", UPLINK), None, "{lines:?}");
    // Its other end is another host's, which nobody sees from here.
    let peer = see(&stage, "peer", UPLINK, "unknown")?;
    for part in ["tether decap --interface PEER", "ethtool -K PEER tx off"] {
        assert!(peer.text.contains(part), "no {part:?}: {peer:?}");
    }
    for interface in ["br9", "tap9"] {
        assert_eq!(line_of(&lines, "peer", interface), None, "{lines:?}");
    }

    balancer.sh("ethtool -K br9 gro off")?;
    see_with(&stage, &other, "offloads", "br9", "ok")?;
    balancer.ip("link set tap9 mtu 3502")?;
    let (lines, _) = examine(&stage, &other)?;
    assert_eq!(line_of(&lines, "driver-mtu", "tap9"), None, "{lines:?}");
    stage.close();
    Ok(())
}
