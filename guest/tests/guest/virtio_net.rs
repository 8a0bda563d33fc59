//! A network card with a driver: the guest's two virtio cards, wired to each other.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use lab::address::{self, mac_of, mac_text};
use lab::namespace::Namespace;
use lab::stage::Stage;
use lab::topology::{BALANCER_PORT, Lab, Place, Topology, UPLINK};
use lab::wait;
use lab_guest::CARDS;
use lb_common::net::IpVersion;

use crate::ground::{SOON, assert_native, converse, lacking, plugged, unplug};

/// The interface of a card, in the namespace that the machine started with. Its name and its address may have been changed.
fn interface(card: &str) -> Option<String> {
    let entries = fs::read_dir("/sys/class/net").ok()?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.into_iter().find(|name| {
        let said = Command::new("ethtool").args(["-P", name]).output();
        said.is_ok_and(|said| String::from_utf8_lossy(&said.stdout).contains(card))
    })
}

/// Moves a card to `host`. It comes back some time after the lab has ended.
fn insert(card: &str, host: &Namespace, name: &str) -> Result<()> {
    let interface = wait::until("the card is free", SOON, || interface(card))
        .with_context(|| lacking(&format!("network card with the address {card}")))?;
    let output = Command::new("ip")
        .args(["link", "set", &interface, "name", name, "netns"])
        .arg(host.net_path())
        .output()?;
    ensure!(
        output.status.success(),
        "move {interface} to {}: {}",
        host.name(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    // As on the lab's other links that carry encapsulation.
    host.ip(&format!("link set {name} mtu 1600"))
}

/// Puts the wired cards in the place of the link between balancer and router.
fn wire(lab: &Lab) -> Result<()> {
    unplug(lab)?;
    insert(CARDS[0], lab.balancer(), UPLINK)?;
    insert(CARDS[1], lab.router(), BALANCER_PORT)?;
    lab.balancer().ip(&format!(
        "link set {UPLINK} address {}",
        mac_text(mac_of(address::balancer(IpVersion::V4)))
    ))?;
    lab.router()
        .ip(&format!("link set {BALANCER_PORT} master segment up"))?;
    plugged(lab)
}

fn runs_in_the_driver(place: Place, seed: u64) -> Result<()> {
    let lab = Topology::new(place).build()?;
    wire(&lab)?;
    let stage = Stage::on(lab, seed, |_| {})?;
    assert_native(&stage)?;
    let driver = stage.lab.balancer().sh(&format!("ethtool -i {UPLINK}"))?;
    assert!(driver.contains("driver: virtio_net\n"), "{driver}");
    let _connections = converse(&stage)?;
    stage.close();
    Ok(())
}

#[test]
fn ipip_runs_in_the_driver() -> Result<()> {
    runs_in_the_driver(Place::Farm, 71)
}

#[test]
fn l2_runs_in_the_driver() -> Result<()> {
    runs_in_the_driver(Place::Segment, 72)
}
