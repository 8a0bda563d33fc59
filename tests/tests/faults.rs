//! Faults that a user can cause: each is told with what it is about and what to do, and nothing is left behind.

use std::fs::File;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result};
use lab::address::Family;
use lab::config::Config;
use lab::passing;
use lab::stage::Stage;
use lab::tether::{self, CONFIG_PATH, PINS, said};
use lab::topology::{Lab, Place, Topology, UPLINK};

/// A lab without a daemon, and a configuration that is right for it.
fn ground() -> Result<(Lab, Config)> {
    let lab = Topology::new(Place::Farm).build()?;
    let config = Config::new(lab.topology());
    Ok((lab, config))
}

/// Has the daemon run on the balancer, by `with` another command, until it ends.
fn run(lab: &Lab, config: &str, with: &[&str]) -> Result<Output> {
    lab.balancer().write(CONFIG_PATH, config)?;
    let program = tether::program()?;
    let words = with.iter().map(std::ffi::OsStr::new);
    let mut words = words.chain([program.as_os_str()]);
    let mut command = Command::new(words.next().context("a program")?);
    command.args(words).args(["run", "--config", CONFIG_PATH]);
    lab.balancer().output(command)
}

#[track_caller]
fn assert_told(output: &Output, parts: &[&str]) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in parts {
        assert!(said.contains(part), "no {part:?}: {said}");
    }
}

/// No program is on the interface, and nothing is pinned.
fn assert_nothing_left(lab: &Lab) -> Result<()> {
    let link = lab.balancer().sh(&format!("ip link show dev {UPLINK}"))?;
    assert!(!link.contains("xdp"), "{link}");
    let mut list = Command::new("ls");
    list.arg(format!("{PINS}/maps"));
    let listed = lab.balancer().output(list)?;
    assert!(!listed.status.success(), "{listed:?}");
    Ok(())
}

#[test]
fn a_missing_capability_is_named() -> Result<()> {
    let (lab, config) = ground()?;
    for (without, missing) in [
        ("-bpf,-sys_admin", "CAP_BPF"),
        ("-perfmon,-sys_admin", "CAP_PERFMON"),
        ("-net_admin", "CAP_NET_ADMIN"),
        ("-net_admin,-sys_admin", "CAP_NET_ADMIN"),
        ("-all,+net_raw", "CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF"),
    ] {
        let without = format!("--bounding-set={without}");
        let output = run(&lab, &config.text(), &["setpriv", &without])?;
        let told = format!("{missing} missing: ");
        let needs = "CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and CAP_NET_RAW";
        assert_told(&output, &[&told, needs]);
        let more = format!(", {told}");
        assert!(!said(&output).contains(&more), "{}", said(&output));
        assert_nothing_left(&lab)?;
    }
    Ok(())
}

#[test]
fn a_missing_bpffs_is_told_with_how_to_mount_one() -> Result<()> {
    let (lab, config) = ground()?;
    let text = format!("bpffs = \"/run/tether-pins\"\n{}", config.text());
    let output = run(&lab, &text, &[])?;
    assert_told(
        &output,
        &["/run", "mount -t bpf bpf /sys/fs/bpf", "`bpffs`"],
    );
    assert_nothing_left(&lab)
}

#[test]
fn an_absent_interface_is_named() -> Result<()> {
    let (lab, mut config) = ground()?;
    config.interfaces = vec![UPLINK, "eth7"];
    let output = run(&lab, &config.text(), &[])?;
    assert_told(&output, &["interface eth7", "`ip link`", "`interfaces`"]);
    let link = lab.balancer().sh(&format!("ip link show dev {UPLINK}"))?;
    assert!(!link.contains("xdp"), "{link}");
    Ok(())
}

#[test]
fn a_vip_that_two_services_have_is_told_at_both() -> Result<()> {
    let (lab, config) = ground()?;
    let text = config.text();
    let (_, service) = text.split_once("[[service]]").context("a service")?;
    let twice = format!(
        "{text}\n[[service]]{}",
        service.replace("\"chat\"", "\"talk\"")
    );
    let output = run(&lab, &twice, &[])?;
    let said = said(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    for part in ["talk", "chat", "10.0.0.1", "; "] {
        assert!(said.contains(part), "no {part:?}: {said}");
    }
    assert_nothing_left(&lab)
}

#[test]
fn a_port_in_use_is_told_with_the_key_that_changes_it() -> Result<()> {
    let (lab, config) = ground()?;
    let _taken = lab
        .balancer()
        .run(|| std::net::TcpListener::bind("127.0.0.1:9477"))?;
    let output = run(&lab, &config.text(), &[])?;
    assert_told(
        &output,
        &["127.0.0.1:9477", "`listen` in [metrics]", "in use"],
    );
    let kept = lab.balancer().list("/run/tether")?;
    assert_eq!(kept, ["lock"], "nobody answers at the socket");
    assert_nothing_left(&lab)
}

/// A start beside another program at the uplink is refused in these words, too, and that one stays as it is.
fn assert_refused_beside_another(lab: &Lab, config: &Config, words: &[&str]) -> Result<()> {
    let show = format!("ip link show dev {UPLINK}");
    let before = lab.balancer().sh(&show)?;
    let output = run(lab, &config.text(), &[])?;
    let refused = "interface eth0: another XDP program is attached";
    assert_told(&output, &[&[refused], words].concat());
    assert_eq!(before, lab.balancer().sh(&show)?);
    Ok(())
}

#[test]
fn another_xdp_program_is_refused_with_the_choices_and_left_alone() -> Result<()> {
    let (lab, config) = ground()?;
    tether::succeed(lab.balancer(), &["decap", "--interface", UPLINK])?;
    assert_refused_beside_another(
        &lab,
        &config,
        &[
            "decap",
            "ip link set dev eth0 xdp off",
            "bpftool link",
            "take eth0 out of `interfaces`",
        ],
    )
}

/// One that has the name of Cilium's is told with what Cilium has to be told, or it would attach it again.
#[test]
fn ciliums_xdp_program_is_refused_and_left_alone() -> Result<()> {
    let (lab, config) = ground()?;
    let _attached = passing::pass_all_as(c"cil_xdp_entry", lab.balancer(), UPLINK)?;
    assert_refused_beside_another(
        &lab,
        &config,
        &[
            "cil_xdp_entry",
            "set its `loadBalancer.acceleration` to `disabled`",
            "`devices`",
        ],
    )
}

#[test]
fn a_second_daemon_and_another_user_are_refused() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Farm).in_family(Family::V4), 57, |_| {})?;
    let balancer = stage.lab.balancer();
    let second = balancer.output(tether::command(&["run", "--config", CONFIG_PATH])?)?;
    let pid = stage.tether.pid()?.to_string();
    assert_told(&second, &["/run/tether", &pid]);
    // Nobody in particular asks.
    let program = tether::program()?;
    let mut other = Command::new("setpriv");
    other.args(["--reuid=61001", "--regid=61001", "--clear-groups"]);
    let other = balancer.output({
        other.arg(&program).args(["status"]);
        other
    })?;
    assert_told(&other, &["admin.sock", "root", "admin_group"]);
    assert_eq!(stage.tether.status()?.serving("b1"), "new");
    stage.close();
    Ok(())
}

#[test]
fn where_no_daemon_runs_it_is_told_how_to_start_one() -> Result<()> {
    let (lab, _) = ground()?;
    let output = lab.balancer().output(tether::command(&["status"])?)?;
    assert_told(
        &output,
        &[
            "/run/tether/admin.sock",
            "tether run --config FILE",
            "--socket",
        ],
    );
    Ok(())
}

/// As on a full disk: what was asked for is nowhere, so it is a failure, and told in a line.
#[test]
fn an_output_that_takes_nothing_is_told() -> Result<()> {
    for arguments in [
        &["completions", "bash"] as &[&str],
        &["man"],
        &["man", "seed-show"],
        &["check", "--schema"],
        &["upgrade-check", "--layouts"],
    ] {
        let mut command = tether::command(arguments)?;
        command
            .stdin(Stdio::null())
            .stdout(File::options().write(true).open("/dev/full")?);
        let output = command.output()?;
        assert_told(&output, &["tether: standard output: ", "No space left"]);
        let said = said(&output);
        assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
    }
    Ok(())
}

/// Half of it would be in the way of the next start, or of nobody's knowledge.
#[test]
fn a_cleanup_that_cannot_say_a_word_is_complete() -> Result<()> {
    let mut stage = Stage::set(Topology::new(Place::Farm), 58, |_| {})?;
    stage.tether.terminate()?;
    let balancer = stage.lab.balancer();
    let mut command = tether::command(&["cleanup"])?;
    command
        .stdin(Stdio::null())
        .stdout(File::options().write(true).open("/dev/full")?)
        .stderr(Stdio::piped());
    let output = balancer.spawn(command)?.wait_with_output()?;
    assert_told(&output, &["standard output"]);
    assert_nothing_left(&stage.lab)?;
    assert_eq!(balancer.list("/run/tether")?, [""; 0]);
    stage.close();
    Ok(())
}
