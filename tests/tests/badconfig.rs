//! A bad configuration is told with file, line, object and remedy, all of it at once, and changes nothing that runs.

use std::process::Output;
use std::time::Duration;

use anyhow::Result;
use lab::address::Family;
use lab::config::Config;
use lab::namespace::Namespace;
use lab::peer::crowd;
use lab::stage::Stage;
use lab::tether::{self, CONFIG_PATH, said};
use lab::topology::{Place, Topology};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(10);
/// Where the farm's second backend is, in IPv6.
const B2_IN_IPV6: &str = "fd00:10:0:3::c";

/// A configuration of one service on 10.0.0.1, before something is done to it.
fn good() -> String {
    good_in(Family::V4)
}

/// The same in any family.
fn good_in(family: Family) -> String {
    Config::new(Topology::new(Place::Farm).in_family(family)).text()
}

fn check(host: &Namespace, text: &str) -> Result<Output> {
    host.write(CONFIG_PATH, text)?;
    host.output(tether::command(&["check", "--config", CONFIG_PATH])?)
}

/// The number of the line that holds `mark`, from 1.
fn line_of(text: &str, mark: &str) -> usize {
    text.lines()
        .position(|line| line.contains(mark))
        .expect("the mark is in the text")
        + 1
}

/// Asserts that one complaint names the line of `mark` and each of `words`, and goes on after a semicolon with a remedy.
fn assert_complaint(output: &Output, text: &str, mark: &str, words: &[&str]) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    let place = format!("{CONFIG_PATH}:{}:", line_of(text, mark));
    let complaint = said.lines().find(|line| line.contains(&place));
    let complaint = complaint.unwrap_or_else(|| panic!("nothing about {place} in:\n{said}"));
    let rest = complaint.split_once(&place).map_or("", |(_, rest)| rest);
    let column = rest.split_once(": ").map_or("", |(column, _)| column);
    assert!(
        column.parse::<usize>().is_ok_and(|column| column > 0),
        "no column: {complaint}"
    );
    for word in words {
        assert!(rest.contains(word), "no {word:?}: {complaint}");
    }
    let remedy = rest.rsplit_once("; ").map_or("", |(_, remedy)| remedy);
    assert!(!remedy.trim().is_empty(), "no remedy: {complaint}");
}

#[test]
fn a_good_file_passes() -> Result<()> {
    let host = Namespace::new("check")?;
    for family in [Family::V4, Family::V6, Family::V4InV6] {
        let output = check(&host, &good_in(family))?;
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    }
    Ok(())
}

#[test]
fn each_mistake_is_told_with_its_place_and_remedy() -> Result<()> {
    let host = Namespace::new("check")?;
    let second_service = "\n[[service]]\nname = \"second\"\nvip = \"10.0.0.1\" # again\nport = 80\nmode = \"ipip\"\n\
                          [[service.backend]]\nname = \"x\"\naddress = \"10.0.3.99\"\n";
    let replaced = |from: &str, to: &str| {
        let text = good();
        assert!(text.contains(from), "{from:?} is in the file");
        text.replacen(from, to, 1)
    };
    // What is done to the file, what marks the line, what the message names.
    let cases: &[(&str, String, &str, &[&str])] = &[
        (
            "an unknown key",
            replaced("fall = 3", "fall = 3\nfal = 4"),
            "fal = 4",
            &["fal"],
        ),
        (
            "an unknown key at the top",
            format!("interface = \"eth0\"\n{}", good()),
            "interface = ",
            &["interface"],
        ),
        (
            "a duplicate VIP",
            good() + second_service,
            "# again",
            &["second", "10.0.0.1", "chat"],
        ),
        (
            "a port of 0",
            replaced("port = 80", "port = 0"),
            "port = 0",
            &["chat"],
        ),
        (
            "a port too large",
            replaced("port = 80", "port = 65536"),
            "port = 65536",
            &["65536"],
        ),
        (
            "an unknown mode",
            replaced("mode = \"ipip\"", "mode = \"ipsec\""),
            "mode = ",
            &["ipsec", "ipip"],
        ),
        (
            "a mode that needs more",
            replaced("mode = \"ipip\"", "mode = \"nat\""),
            "[[service]]",
            &["chat", "snat"],
        ),
        (
            "a backend in the wrong family",
            good_in(Family::V6).replacen(B2_IN_IPV6, "10.0.3.12", 1),
            "10.0.3.12",
            &["b2", "10.0.3.12"],
        ),
        (
            "an address that is none",
            replaced("\"10.0.3.12\"", "\"10.0.3.256\""),
            "10.0.3.256",
            &["10.0.3.256"],
        ),
        (
            "two backends of one name",
            replaced("name = \"b2\"", "name = \"b1\" # again"),
            "# again",
            &["b1"],
        ),
        (
            "a weight too large",
            replaced("weight = 100", "weight = 1001"),
            "weight = 1001",
            &["1001"],
        ),
        (
            "a duration that is none",
            replaced("interval = \"500ms\"", "interval = \"soon\""),
            "interval = ",
            &["soon"],
        ),
        (
            "another port at an ipip backend",
            replaced(
                "address = \"10.0.3.11\"",
                "address = \"10.0.3.11\"\nport = 8081",
            ),
            "port = 8081",
            &["b1", "8081"],
        ),
        (
            "a missing key",
            replaced("vip = \"10.0.0.1\"\n", ""),
            "[[service]]",
            &["vip"],
        ),
        ("no TOML", replaced("[limits]", "[limits"), "[limits", &[]),
    ];
    for (what, text, mark, words) in cases {
        println!("{what}");
        assert_complaint(&check(&host, text)?, text, mark, words);
        // The daemon says the same, and starts nothing.
        let run = host.output(tether::command(&["run", "--config", CONFIG_PATH])?)?;
        assert_complaint(&run, text, mark, words);
    }
    Ok(())
}

#[test]
fn all_mistakes_are_told_at_once() -> Result<()> {
    let host = Namespace::new("check")?;
    let text = good_in(Family::V6)
        .replacen("port = 80", "port = 0", 1)
        .replacen(B2_IN_IPV6, "10.0.3.12", 1)
        .replacen("weight = 100", "weight = 5000", 1);
    let output = check(&host, &text)?;
    for mark in ["port = 0", "10.0.3.12", "weight = 5000"] {
        assert_complaint(&output, &text, mark, &[]);
    }
    Ok(())
}

#[test]
fn an_unreadable_file_is_told_by_name() -> Result<()> {
    let host = Namespace::new("check")?;
    host.write("/run/binary.toml", "name = \"\u{0}\"")?;
    for path in ["/run/absent.toml", "/run", "/run/binary.toml"] {
        for command in ["check", "run"] {
            let output = host.output(tether::command(&[command, "--config", path])?)?;
            let said = said(&output);
            assert_eq!(output.status.code(), Some(2), "{command} {path}: {said}");
            assert!(said.contains(path) && said.contains("; "), "{said}");
        }
    }
    Ok(())
}

/// Puts a version of a ConfigMap, from 1, in the place of the one before, as kubelet does: written aside, then named by one rename.
/// [`CONFIG_PATH`] is to lead to `..data` beside it.
fn swap(host: &Namespace, version: u32, text: &str) -> Result<()> {
    let directory = format!("/run/..{version}");
    host.sh(&format!("mkdir {directory}"))?;
    host.write(&format!("{directory}/tether.toml"), text)?;
    host.sh(&format!("ln -s ..{version} /run/..data_tmp"))?;
    host.sh("mv -T /run/..data_tmp /run/..data")?;
    host.sh(&format!("rm -rf /run/..{}", version - 1)).map(drop)
}

#[test]
fn a_config_map_is_loaded_when_it_is_swapped_and_a_bad_one_is_told() -> Result<()> {
    let lab = Topology::new(Place::Farm).build()?;
    swap(lab.balancer(), 1, "")?;
    lab.balancer()
        .sh(&format!("ln -s ..data/tether.toml {CONFIG_PATH}"))?;
    // What the daemon is started with is written through the links.
    let stage = Stage::on(lab, 52, |_| {})?;
    let balancer = stage.lab.balancer();
    let pace = Duration::from_millis(250);
    let connections = stage.clients.open(60, stage.plan().talking(pace), |_| {})?;
    let in_force_after = |accepted: u64| {
        stage
            .tether
            .wait_status("the next version is in force", SOON, |status| {
                let generation = status.generation;
                generation.accepted > accepted && generation.applied == generation.accepted
            })
    };

    let less = stage.config.without("b1").text();
    let before = stage.tether.status()?;
    swap(balancer, 2, &less)?;
    let status = in_force_after(before.generation.accepted)?;
    assert_eq!(status.pid, before.pid);
    assert_eq!(status.serving("b1"), "existing-only");

    let bad = less.replacen("port = 80", "port = 0", 1);
    let place = format!("{CONFIG_PATH}:{}:", line_of(&bad, "port = 0"));
    swap(balancer, 3, &bad)?;
    let refused = stage
        .tether
        .wait_status("the bad version is refused", SOON, |status| {
            status.config.error.is_some()
        })?;
    let error = refused.config.error.clone().unwrap_or_default();
    assert!(error.contains(&place), "{error}");
    assert_eq!(refused.generation, status.generation);
    let newcomers = stage.clients.open(60, stage.plan(), |_| {})?;
    assert_eq!(crowd::on(&newcomers, "b1").len(), 0);

    swap(balancer, 4, &stage.config.text())?;
    let status = in_force_after(refused.generation.accepted)?;
    assert_eq!(status.config.error, None);
    stage
        .tether
        .wait_status("b1 is back", SOON, |s| s.serving("b1") == "new")?;
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    assert_eq!(crowd::breaks(&connections), [""; 0]);
    stage.close();
    Ok(())
}

#[test]
fn a_running_daemon_keeps_its_state() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Farm), 51, |_| {})?;
    let pace = Duration::from_millis(250);
    let connections = stage.clients.open(60, stage.plan().talking(pace), |_| {})?;
    let before = stage.tether.status()?;
    assert_eq!(before.config.error, None);

    let bad = stage
        .config
        .without("b1")
        .text()
        .replacen("port = 80", "port = 0", 1);
    let place = format!("{CONFIG_PATH}:{}:", line_of(&bad, "port = 0"));
    stage.lab.balancer().write(CONFIG_PATH, &bad)?;
    stage.tether.signal(Signal::SIGHUP)?;
    let status = stage
        .tether
        .wait_status("the file is refused", SOON, |s| s.config.error.is_some())?;
    let error = status.config.error.clone().unwrap_or_default();
    assert!(error.contains(&place), "{error}");
    assert_eq!(status.generation, before.generation);
    assert_eq!(status.pid, before.pid);
    assert_eq!(status.serving("b1"), "new");

    stage.lab.balancer().sh(&format!("rm {CONFIG_PATH}"))?;
    stage.tether.signal(Signal::SIGHUP)?;
    stage
        .tether
        .wait_status("the missing file is told", SOON, |s| {
            s.config
                .error
                .as_ref()
                .is_some_and(|e| e.contains(CONFIG_PATH) && !e.contains(&place))
        })?;
    let newcomers = stage.clients.open(60, stage.plan(), |_| {})?;
    assert!(crowd::spread(&newcomers).contains_key("b1"));
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    assert_eq!(crowd::breaks(&connections), [""; 0]);

    let status = stage.tether.reload(&stage.config.without("b1").text())?;
    assert_eq!(status.config.error, None);
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    assert_eq!(crowd::breaks(&connections), [""; 0]);
    stage.close();
    Ok(())
}
