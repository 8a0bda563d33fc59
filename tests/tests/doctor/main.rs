//! `tether doctor`: a lab where all is well, and one thing after another broken in it. Each has to be seen, and seen no more once it is mended.
//!
//! What no lab has is looked at by the unit tests of `lb_userspace::doctor::judge` alone: an interpreter of BPF (`jit`), LRO (a part of `offloads`), queues of
//! cards (`queues`), and a driver that puts headers and data apart (`header-split`).

mod host;
mod interface;

use std::fmt;
use std::net::IpAddr;
use std::process::Output;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lab::address::{Family, Network};
use lab::config::SERVICE;
use lab::stage::Stage;
use lab::tether;
use lab::topology::{Place, Topology, UPLINK};
use lab::two_links::{self, SECOND};
use lab::wait;
use lb_common::net::IpVersion;
use nix::sys::signal::Signal;
use serde_json::Value;

/// Each examination takes a second or two, and the kernel takes its time to find a neighbour gone.
const SOON: Duration = Duration::from_secs(30);

/// A line of the report.
#[derive(Clone, PartialEq, Eq)]
struct Line {
    check: String,
    subject: String,
    state: String,
    text: String,
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} {}: {}",
            self.state, self.check, self.subject, self.text
        )
    }
}

/// What the doctor says, and whether its exit status calls it a failure.
fn examine(stage: &Stage, more: &[&str]) -> Result<(Vec<Line>, bool)> {
    let output = stage
        .tether
        .output(&[&["doctor", "--json"], more].concat())?;
    read(output)
}

/// What a doctor has said, and whether its exit status calls it a failure.
fn read(output: Output) -> Result<(Vec<Line>, bool)> {
    let text = String::from_utf8(output.stdout)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let report: Value = serde_json::from_str(&text).with_context(|| format!("{text}{said}"))?;
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let lines = report["findings"].as_array().context("findings")?;
    let lines = lines.iter().map(|line| Line {
        check: word(&line["check"]),
        subject: word(&line["subject"]),
        state: word(&line["state"]),
        text: format!("{} -> {}", word(&line["found"]), word(&line["remedy"])),
    });
    Ok((lines.collect(), output.status.code() == Some(1)))
}

/// Waits until the line about `check` of `subject` is in `state`, and holds that the exit status agrees with all lines.
fn see(stage: &Stage, check: &str, subject: &str, state: &str) -> Result<Line> {
    see_with(stage, &[], check, subject, state)
}

/// The same with more arguments.
fn see_with(stage: &Stage, more: &[&str], check: &str, subject: &str, state: &str) -> Result<Line> {
    let (lines, _) = wait::until_seen(
        &format!("{check} of {subject:?} is {state}"),
        SOON,
        || examine(stage, more),
        |(lines, failed)| {
            assert_eq!(
                *failed,
                lines.iter().any(|line| line.state == "failure"),
                "{lines:?}"
            );
            lines
                .iter()
                .any(|line| line.check == check && line.subject == subject && line.state == state)
        },
    )?;
    line_of(&lines, check, subject).context("it was there")
}

/// The line about `check` of `subject`, if there is one.
fn line_of(lines: &[Line], check: &str, subject: &str) -> Option<Line> {
    let mut lines = lines.iter();
    lines
        .find(|line| line.check == check && line.subject == subject)
        .cloned()
}

/// Lines that are neither well nor of a kind that no network namespace can tell.
fn trouble(lines: &[Line]) -> Vec<&Line> {
    // net.core.bpf_jit_enable is the first namespace's, and the other end of a veth another's; a veth pair merges nothing that a lab could turn off on
    // both kernels alike.
    let untold =
        |line: &&Line| !(["jit", "peer"].contains(&&*line.check) && line.state == "unknown");
    lines
        .iter()
        .filter(|line| line.state != "ok")
        .filter(untold)
        .collect()
}

fn is_well(stage: &Stage) -> Result<()> {
    let (lines, failed) = examine(stage, &[])?;
    assert_eq!(trouble(&lines), Vec::<&Line>::new());
    assert!(!failed);
    Ok(())
}

fn b1() -> String {
    format!("{SERVICE}/b1")
}

/// An address with its full length.
fn alone(address: IpAddr) -> String {
    let length = if address.is_ipv4() { 32 } else { 128 };
    format!("{address}/{length}")
}

#[test]
fn what_is_broken_on_an_l2_segment_is_seen() -> Result<()> {
    on_a_segment(Family::V4, 701)
}

#[test]
fn what_is_broken_on_an_l2_segment_in_ipv6_is_seen() -> Result<()> {
    on_a_segment(Family::V6, 707)
}

fn on_a_segment(family: Family, seed: u64) -> Result<()> {
    let topology = Topology::new(Place::Segment).in_family(family);
    let stage = Stage::set(topology, seed, |_| {})?;
    is_well(&stage)?;
    let balancer = stage.lab.balancer();
    let backend = &stage.lab.backends()[0];

    if family.vip() == IpVersion::V4 {
        // Whoever answers ARP for the VIP takes it away.
        backend.sysctl("net/ipv4/conf/all/arp_ignore", "0")?;
        let line = see(&stage, "arp", SERVICE, "failure")?;
        assert!(
            line.text.contains("b1") && line.text.contains("arp_ignore=1"),
            "{line:?}"
        );
        backend.sysctl("net/ipv4/conf/all/arp_ignore", "1")?;
        see(&stage, "arp", SERVICE, "ok")?;
    }

    // A backend without the VIP.
    let vip = stage.config.vip;
    backend.ip(&format!("address del {} dev lo", alone(vip)))?;
    let line = see(&stage, "vip", &b1(), "failure")?;
    assert!(
        line.text.contains(&format!("ip address add {vip} dev lo")),
        "{line:?}"
    );
    backend.ip(&format!("address add {vip} dev lo"))?;
    see(&stage, "vip", &b1(), "ok")?;

    // One that nobody can resolve.
    stage.lab.darken(0)?;
    balancer.ip(&format!(
        "neigh flush to {}",
        stage.lab.topology().backend_address(0)
    ))?;
    see(&stage, "neighbour", &b1(), "failure")?;
    stage.lab.brighten(0)?;
    see(&stage, "neighbour", &b1(), "ok")?;

    // Another program of traffic control.
    balancer.sh("tc qdisc add dev eth0 clsact")?;
    balancer.sh("tc filter add dev eth0 ingress protocol all prio 3 u32 match u32 0 0")?;
    let line = see(&stage, "tc", UPLINK, "warning")?;
    assert!(line.text.contains("u32"), "{line:?}");
    balancer.sh("tc qdisc del dev eth0 clsact")?;
    see(&stage, "tc", UPLINK, "ok")?;

    // The way is too narrow.
    balancer.ip("link set eth0 mtu 1400")?;
    see(&stage, "mtu", &b1(), "warning")?;
    balancer.ip("link set eth0 mtu 1600")?;
    see(&stage, "mtu", &b1(), "ok")?;
    is_well(&stage)?;
    stage.close();
    Ok(())
}

#[test]
fn what_is_broken_behind_a_tunnel_is_seen() -> Result<()> {
    behind_a_tunnel(Family::V4, 1440, 702)
}

#[test]
fn what_is_broken_behind_a_tunnel_in_ipv6_is_seen() -> Result<()> {
    behind_a_tunnel(Family::V6, 1400, 708)
}

/// `advmss`: what a backend is to be told where the way carries 1,500 bytes.
fn behind_a_tunnel(family: Family, advmss: u16, seed: u64) -> Result<()> {
    let topology = Topology::new(Place::Farm).in_family(family);
    let stage = Stage::set(topology, seed, |_| {})?;
    is_well(&stage)?;
    let backend = &stage.lab.backends()[0];

    tether::succeed(backend, &["decap", "--interface", UPLINK, "--detach"])?;
    let line = see(&stage, "decapsulation", &b1(), "failure")?;
    assert!(line.text.contains("tether decap"), "{line:?}");
    tether::succeed(backend, &["decap", "--interface", UPLINK])?;
    see(&stage, "decapsulation", &b1(), "ok")?;

    // Without the VIP, the backend drops what it has unwrapped.
    let vip = stage.config.vip;
    backend.ip(&format!("address del {} dev lo", alone(vip)))?;
    see(&stage, "decapsulation", &b1(), "failure")?;
    backend.ip(&format!("address add {vip} dev lo"))?;
    see(&stage, "decapsulation", &b1(), "ok")?;

    // A link beyond the router that carries no more than the internet's.
    let address = alone(topology.backend_address(0));
    backend.ip("link set eth0 mtu 1500")?;
    stage.lab.router().ip(&format!(
        "link set b1 mtu 1500\nroute add {address} dev farm mtu lock 1500"
    ))?;
    let line = see(&stage, "mtu", &b1(), "warning")?;
    assert!(line.text.contains(&format!("advmss {advmss}")), "{line:?}");
    stage.lab.router().ip(&format!(
        "route del {address} dev farm\nlink set b1 mtu 1600"
    ))?;
    backend.ip("link set eth0 mtu 1600")?;
    // What the balancer's kernel has learned of the path it would believe for ten minutes.
    let version = family.backends() as u32;
    let balancer = stage.lab.balancer();
    balancer.sh(&format!("ip -{version} route flush cache"))?;
    see(&stage, "mtu", &b1(), "ok")?;
    is_well(&stage)?;
    stage.close();
    Ok(())
}

/// What comes in by the one is routed back by the other.
#[test]
fn strict_reverse_paths_of_two_interfaces_are_seen() -> Result<()> {
    let lab = two_links::build(Place::Farm, Family::V4)?;
    let _open = two_links::open(&lab)?;
    let stage = Stage::on(lab, 706, |config| {
        config.interfaces = vec![UPLINK, SECOND];
    })?;
    let set = |interface: &str, value: &str| {
        let key = format!("net/ipv4/conf/{interface}/rp_filter");
        stage.lab.balancer().sysctl(&key, value)
    };
    for interface in ["all", UPLINK, SECOND] {
        set(interface, "0")?;
    }
    see(&stage, "rp_filter", UPLINK, "ok")?;
    see(&stage, "rp_filter", SECOND, "ok")?;

    set(SECOND, "1")?;
    let line = see(&stage, "rp_filter", SECOND, "warning")?;
    assert!(
        line.text.contains("strict") && line.text.contains("net.ipv4.conf.eth1.rp_filter=2"),
        "{line:?}"
    );
    see(&stage, "rp_filter", UPLINK, "ok")?;
    // What is said is enough.
    set(SECOND, "2")?;
    see(&stage, "rp_filter", SECOND, "ok")?;

    // That of all interfaces counts for each.
    set("all", "1")?;
    see(&stage, "rp_filter", UPLINK, "warning")?;
    see(&stage, "rp_filter", SECOND, "ok")?;
    set("all", "0")?;
    see(&stage, "rp_filter", UPLINK, "ok")?;
    stage.close();
    Ok(())
}

#[test]
fn what_is_broken_where_addresses_are_translated_is_seen() -> Result<()> {
    where_addresses_are_translated(Family::V4, 703)
}

#[test]
fn what_is_broken_where_addresses_are_translated_in_ipv6_is_seen() -> Result<()> {
    where_addresses_are_translated(Family::V6, 709)
}

fn where_addresses_are_translated(family: Family, seed: u64) -> Result<()> {
    let topology = Topology::new(Place::Hidden).in_family(family);
    let stage = Stage::set(topology, seed, |_| {})?;
    is_well(&stage)?;
    let balancer = stage.lab.balancer();
    let version = family.vip() as u32;
    let forwarding = format!("net/ipv{version}/conf/eth0/forwarding");
    balancer.sysctl(&forwarding, "0")?;
    let line = see(&stage, "forwarding", UPLINK, "failure")?;
    assert!(
        line.text
            .contains(&format!("net.ipv{version}.conf.eth0.forwarding=1")),
        "{line:?}"
    );
    balancer.sysctl(&forwarding, "1")?;
    see(&stage, "forwarding", UPLINK, "ok")?;
    let snat = topology.snat_address();
    balancer.ip(&format!("address del {} dev eth0", alone(snat)))?;
    // It would send there for as long as it remembers, which may be most of a minute.
    stage.lab.router().ip("neighbour flush all")?;
    let subject = format!("{SERVICE} {snat}");
    see(&stage, "snat", &subject, "warning")?;
    see(&stage, "replies", &b1(), "failure")?;
    // In IPv6 as the topology has it: nothing that the host itself sends has it for a source.
    let more = if snat.is_ipv4() {
        ""
    } else {
        "nodad preferred_lft 0"
    };
    balancer.ip(&format!("address add {} dev eth0 {more}", alone(snat)))?;
    see(&stage, "replies", &b1(), "ok")?;
    if family.vip() == IpVersion::V4 {
        // The host's own connections to a backend come from it, and take ports that flows may have, unless the kernel gives none of those to them.
        let backend = topology.backend_address(0);
        let gateway = Network::Segment.gateway(family.vip());
        let route = format!("{} via {gateway}", alone(backend));
        balancer.ip(&format!("route add {route} src {snat}"))?;
        let line = see(&stage, "snat", &subject, "warning")?;
        assert!(line.text.contains(&backend.to_string()), "{line:?}");
        let reserved = "net/ipv4/ip_local_reserved_ports";
        balancer.sysctl(reserved, "1024-65535")?;
        let line = see(&stage, "snat", &subject, "ok")?;
        assert!(line.text.contains("connects from too"), "{line:?}");
        balancer.sysctl(reserved, "\n")?;
        see(&stage, "snat", &subject, "warning")?;
        balancer.ip(&format!("route del {route}"))?;
        see(&stage, "snat", &subject, "ok")?;
    }
    is_well(&stage)?;
    stage.close();

    // `dnat`: a backend whose default gateway is another.
    let topology = Topology::new(Place::Behind).in_family(family);
    let stage = Stage::set(topology, seed + 100, |_| {})?;
    is_well(&stage)?;
    let backend = &stage.lab.backends()[0];
    let router = Network::Segment.gateway(family.vip());
    backend.ip(&format!("route replace default via {router}"))?;
    let line = see(&stage, "replies", &b1(), "warning")?;
    assert!(line.text.contains("default gateway"), "{line:?}");
    stage.close();
    Ok(())
}

#[test]
fn it_works_without_a_daemon_and_names_who_is_in_the_way() -> Result<()> {
    let mut stage = Stage::set(Topology::new(Place::Segment), 705, |_| {})?;
    // A file that the daemon has refused keeps nobody from looking at what it has.
    let balancer = stage.lab.balancer();
    balancer.write(tether::CONFIG_PATH, "interfaces = 7\n")?;
    stage.tether.signal(Signal::SIGHUP)?;
    let line = see(&stage, "daemon", "", "failure")?;
    assert!(line.text.contains("refused its configuration"), "{line:?}");
    see(&stage, "xdp", UPLINK, "ok")?;
    see(&stage, "vip", &b1(), "ok")?;
    balancer.write(tether::CONFIG_PATH, &stage.config.text())?;
    stage.tether.signal(Signal::SIGHUP)?;
    see(&stage, "daemon", "", "ok")?;

    stage.tether.terminate()?;
    stage.tether.succeed(&["cleanup"])?;
    let config = ["--config", tether::CONFIG_PATH];
    let (lines, failed) = examine(&stage, &config)?;
    assert!(!failed, "{lines:?}");
    let of = |lines: &[Line], check: &str| {
        let found = lines.iter().find(|line| line.check == check).cloned();
        found.with_context(|| format!("nothing about {check}"))
    };
    assert_eq!(of(&lines, "daemon")?.state, "unknown");
    assert_eq!(of(&lines, "start")?.state, "ok");
    assert_eq!(of(&lines, "vip")?.state, "ok");
    let xdp = of(&lines, "xdp")?;
    assert!(
        xdp.state == "ok" && xdp.text.contains("not attached"),
        "{xdp:?}"
    );

    // Somebody else's program.
    tether::succeed(stage.lab.balancer(), &["decap", "--interface", UPLINK])?;
    let (lines, failed) = examine(&stage, &config)?;
    assert!(failed);
    let xdp = of(&lines, "xdp")?;
    assert!(
        xdp.state == "failure" && xdp.text.contains("decap"),
        "{xdp:?}"
    );
    tether::succeed(
        stage.lab.balancer(),
        &["decap", "--interface", UPLINK, "--detach"],
    )?;

    // What is configured is not there.
    let text = stage.config.text().replace("\"eth0\"", "\"eth7\"");
    stage.lab.balancer().write("/run/other.toml", &text)?;
    let (lines, failed) = examine(&stage, &["--config", "/run/other.toml"])?;
    assert!(failed);
    let absent = line_of(&lines, "interface", "eth7").context("nothing about eth7")?;
    assert!(
        absent.state == "failure" && absent.text.contains("`ip link`"),
        "{absent:?}"
    );
    let wrong = stage
        .tether
        .output(&["doctor", "--config", "/run/absent.toml"])?;
    assert_eq!(wrong.status.code(), Some(2));
    stage.close();
    Ok(())
}
