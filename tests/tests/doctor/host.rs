//! The host: its kernel, the rights of the daemon, what maps are pinned in, what the kernel tracks, and whether replies of backends on it are translated.

use std::ffi::OsStr;
use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};
use lab::config::{Config, SERVICE};
use lab::peer::backend::Backend;
use lab::pods::{self, Behind};
use lab::stage::Stage;
use lab::tether::{self, CONFIG_PATH};
use lab::topology::{Lab, Place, Topology, UPLINK};
use lb_common::net::IpVersion;

use crate::{Line, b1, examine, line_of, read, see, see_with};

/// A configuration beside the daemon's own.
const OTHER: &str = "/run/other.toml";
/// What the kernel says of the connections that it tracks, without the last word.
const TRACKED: &str = "/proc/sys/net/netfilter/nf_conntrack";

/// What the doctor says on the balancer of a configuration, run by `with` another command.
fn told_by(lab: &Lab, config: &str, with: &[&str]) -> Result<Vec<Line>> {
    lab.balancer().write(OTHER, config)?;
    let program = tether::program()?;
    let words = with.iter().map(OsStr::new);
    let mut words = words.chain([program.as_os_str()]);
    let mut command = Command::new(words.next().context("a program")?);
    command
        .args(words)
        .args(["doctor", "--json", "--config", OTHER]);
    let (lines, failed) = read(lab.balancer().output(command)?)?;
    assert_eq!(
        failed,
        lines.iter().any(|line| line.state == "failure"),
        "{lines:?}"
    );
    Ok(lines)
}

/// The line about `check` of `subject`, which has to be in `state` and to say all `parts`.
#[track_caller]
fn assert_told(lines: &[Line], check: &str, subject: &str, state: &str, parts: &[&str]) {
    let line = line_of(lines, check, subject);
    let line = line.unwrap_or_else(|| panic!("nothing about {check} of {subject:?}: {lines:?}"));
    assert_eq!(line.state, state, "{line:?}");
    for part in parts {
        assert!(line.text.contains(part), "no {part:?}: {line:?}");
    }
}

#[test]
fn an_old_kernel_is_seen_and_a_compiler_too() -> Result<()> {
    let mut stage = Stage::set(Topology::new(Place::Segment), 711, |_| {})?;
    let release = stage.lab.balancer().sh("uname -r")?;
    let line = see(&stage, "kernel", "", "ok")?;
    assert!(line.text.contains(release.trim()), "{line:?}");
    // To a program of that personality any Linux calls itself 2.6.
    let aged = ["setarch", "x86_64", "--uname-2.6"];
    let lines = told_by(&stage.lab, &stage.config.text(), &aged)?;
    assert_told(
        &lines,
        "kernel",
        "",
        "failure",
        &["Linux 2.6.", "6.1 or later"],
    );

    // No lab can turn the compiler off: it is the machine's, whose own namespace tells, which this test runs in.
    let enabled = fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").unwrap_or_default();
    let state = if enabled.trim() == "0" {
        "warning"
    } else {
        "ok"
    };
    see(&stage, "jit", "", state)?;
    // Without a program, whose own size would tell, nobody can say.
    stage.tether.terminate()?;
    stage.tether.succeed(&["cleanup"])?;
    let (lines, _) = examine(&stage, &["--config", CONFIG_PATH])?;
    let parts = ["net.core.bpf_jit_enable", "should be 1"];
    assert_told(&lines, "jit", "", "unknown", &parts);
    stage.close();
    Ok(())
}

#[test]
fn rights_that_are_missing_are_named() -> Result<()> {
    let mut stage = Stage::set(Topology::new(Place::Segment), 712, |_| {})?;
    see(&stage, "capabilities", "", "ok")?;

    // The daemon's count, whatever rights the doctor has.
    stage.tether.terminate()?;
    stage.tether.restart_without("net_raw")?;
    stage.wait_serving()?;
    let groups = "net/ipv4/ping_group_range";
    stage.lab.balancer().sysctl(groups, "1 0")?;
    let line = see(&stage, "capabilities", "", "warning")?;
    for part in [
        "CAP_NET_RAW missing",
        "no ICMP echoes",
        "give the daemon CAP_NET_RAW",
    ] {
        assert!(line.text.contains(part), "no {part:?}: {line:?}");
    }
    // Whom the kernel lets send echoes all the same lacks less.
    stage.lab.balancer().sysctl(groups, "0 2147483647")?;
    let line = see(&stage, "capabilities", "", "warning")?;
    assert!(
        line.text.contains("a deadline has closed") && !line.text.contains("no ICMP echoes"),
        "{line:?}"
    );
    stage.tether.terminate()?;
    stage.tether.restart_with_least_rights()?;
    stage.wait_serving()?;
    see(&stage, "capabilities", "", "ok")?;

    // Without a daemon, those of who asks; and nobody could start one with them.
    stage.tether.terminate()?;
    stage.tether.succeed(&["cleanup"])?;
    for (without, missing) in [
        ("-bpf,-sys_admin", "CAP_BPF missing"),
        ("-perfmon,-sys_admin", "CAP_PERFMON missing"),
        ("-net_admin", "CAP_NET_ADMIN missing"),
        (
            "-all,+net_raw",
            "CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF missing",
        ),
    ] {
        let without = format!("--bounding-set={without}");
        let text = stage.config.text();
        let lines = told_by(&stage.lab, &text, &["setpriv", &without])?;
        let remedy = "give the daemon CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and CAP_NET_RAW";
        assert_told(&lines, "capabilities", "", "failure", &[missing, remedy]);
        assert_told(&lines, "start", "", "unknown", &[missing, "as root"]);
    }
    // What is asked of backends takes a right of its own.
    let text = stage.config.text();
    let lines = told_by(&stage.lab, &text, &["setpriv", "--bounding-set=-net_raw"])?;
    assert_told(
        &lines,
        "vip",
        &b1(),
        "unknown",
        &["could not be asked", "CAP_NET_RAW"],
    );
    stage.close();
    Ok(())
}

#[test]
fn pins_that_are_on_no_bpffs_are_seen() -> Result<()> {
    let lab = Topology::new(Place::Segment).build()?;
    let config = Config::new(lab.topology()).text();
    let pinned_in = |directory: &str| format!("bpffs = \"{directory}\"\n{config}");
    let elsewhere = "/run/pins/tether";
    let lines = told_by(&lab, &pinned_in(elsewhere), &[])?;
    let remedy = ["mount -t bpf bpf /sys/fs/bpf", "`bpffs`"];
    assert_told(&lines, "bpffs", elsewhere, "failure", &remedy);
    assert_told(&lines, "start", "", "unknown", &["/run"]);

    lab.balancer().sh("mkdir /run/pins")?;
    lab.balancer().sh("mount -t bpf bpf /run/pins")?;
    let lines = told_by(&lab, &pinned_in(elsewhere), &[])?;
    assert_told(&lines, "bpffs", elsewhere, "ok", &["mounted"]);
    assert_told(&lines, "start", "", "ok", &[]);

    // A file is no directory, and has none in it.
    let within = format!("{OTHER}/tether");
    let lines = told_by(&lab, &pinned_in(&within), &[])?;
    assert_told(
        &lines,
        "bpffs",
        &within,
        "unknown",
        &["could not be looked at"],
    );
    Ok(())
}

#[test]
fn backends_on_this_host_are_examined_with_what_tracks_and_translates_them() -> Result<()> {
    let topology = Topology {
        backends: 0,
        ..Topology::new(Place::Farm)
    };
    let lab = topology.build()?;
    let pods = pods::add(&lab, 1, Behind::Veth)?;
    let _server = Backend::start(&pods[0].host)?;
    let mut stage = Stage::on(lab, 713, |config| {
        config.backends.push(pods[0].spec(IpVersion::V4));
    })?;
    let line = see(&stage, "local", UPLINK, "ok")?;
    assert!(line.text.contains("is translated"), "{line:?}");
    let pod = format!("{SERVICE}/{}", pods[0].host.name());
    let line = see(&stage, "neighbour", &pod, "ok")?;
    assert!(line.text.contains("on this host, by veth1"), "{line:?}");
    see(&stage, "forwarding", UPLINK, "ok")?;

    // The kernel's table of connections, whose size is the machine's: so it is told here that it is full.
    let balancer = stage.lab.balancer();
    let most = balancer.sh(&format!("cat {TRACKED}_max"))?;
    let line = see(&stage, "conntrack", "", "ok")?;
    let of = format!(" of {} entries in use", most.trim());
    assert!(line.text.contains(&of), "{line:?}");
    balancer.write("/run/count", &most)?;
    balancer.sh(&format!("mount --bind /run/count {TRACKED}_count"))?;
    let line = see(&stage, "conntrack", "", "warning")?;
    assert!(
        line.text.contains(&format!("{}{of}", most.trim()))
            && line.text.contains("raise net.netfilter.nf_conntrack_max"),
        "{line:?}"
    );
    balancer.sh(&format!("umount {TRACKED}_count"))?;
    see(&stage, "conntrack", "", "ok")?;

    // A daemon that is gone has left its program, and one that has cleaned up has not.
    stage.tether.kill()?;
    let config = ["--config", CONFIG_PATH];
    let (lines, _) = examine(&stage, &config)?;
    assert_told(&lines, "local", UPLINK, "ok", &["is translated"]);
    stage.tether.succeed(&["cleanup"])?;
    let (lines, _) = examine(&stage, &config)?;
    let parts = ["is not translated", "start the daemon"];
    assert_told(&lines, "local", UPLINK, "unknown", &parts);
    stage.close();
    Ok(())
}

/// A daemon that has not attached the program for what backends here send back: here because it does not know yet, by a file that it has not read, that they
/// are here.
#[test]
fn replies_that_a_daemon_does_not_translate_are_seen() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Segment), 714, |_| {})?;
    let (lines, _) = examine(&stage, &[])?;
    assert_eq!(line_of(&lines, "local", UPLINK), None, "nobody is here");
    let text = format!("local_interfaces = [\"{UPLINK}\"]\n{}", stage.config.text());
    stage.lab.balancer().write(OTHER, &text)?;
    let line = see_with(&stage, &["--config", OTHER], "local", UPLINK, "failure")?;
    assert!(
        line.text.contains("is not translated") && line.text.contains("its log says why"),
        "{line:?}"
    );
    stage.close();
    Ok(())
}
