//! `tether events`, of flows too, and `tether capture` while real connections go on, and what is left of them afterwards.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use lab::address::Family;
use lab::config::SERVICE;
use lab::namespace::Namespace;
use lab::peer::client::Close;
use lab::peer::crowd;
use lab::stage::Stage;
use lab::topology::{Place, Topology, UPLINK};
use lab::wait;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);
const PACE: Duration = Duration::from_millis(100);
const IN_PLACE: &str = "the program that watches is in its place";
const GONE: &str = "the program that watches is gone";

/// The id of the XDP program on the balancer's uplink.
fn program(balancer: &Namespace) -> Result<u64> {
    let mut command = Command::new("ip");
    command.args(["-json", "link", "show", "dev", UPLINK]);
    let text = String::from_utf8(balancer.output(command)?.stdout)?;
    let links: Value = serde_json::from_str(&text)?;
    let id = links[0]["xdp"]["prog"]["id"].as_u64();
    id.with_context(|| format!("no XDP program in {text}"))
}

fn wait_for_log(stage: &Stage, text: &str, times: usize) -> Result<()> {
    wait::until(text, SOON, || {
        (stage.tether.log().matches(text).count() >= times).then_some(())
    })
}

fn events(lines: &[String]) -> Result<Vec<Value>> {
    lines
        .iter()
        .map(|line| serde_json::from_str(line).with_context(|| line.clone()))
        .collect()
}

#[test]
fn flows_are_told_of_in_ipip() -> Result<()> {
    told("ipip", Family::V4, 101)
}

#[test]
fn flows_are_told_of_in_nat_in_ipv6() -> Result<()> {
    told("nat", Family::V6, 102)
}

fn told(mode: &str, family: Family, seed: u64) -> Result<()> {
    let topology = Topology::new(Place::of_mode(mode)).in_family(family);
    let stage = Stage::set(topology, seed, |_| {})?;
    let balancer = stage.lab.balancer();
    let plain = program(balancer)?;
    let old = stage.clients.open(20, stage.plan(), |_| {})?;
    let listener = stage
        .tether
        .begin(&["events", "--flows", "--json", "--service", SERVICE])?;
    wait_for_log(&stage, IN_PLACE, 1)?;
    ensure!(program(balancer)? != plain, "the same program runs");
    let new = stage.clients.open(10, stage.plan(), |_| {})?;
    let of = |kind: &str| -> Result<Vec<Value>> {
        let events = events(&listener.said())?;
        Ok(events
            .into_iter()
            .filter(|event| event["event"] == kind)
            .collect())
    };
    // Health checks of translated backends come by no VIP: all flows are the clients'.
    let opened = wait::until_seen(
        "ten flows are opened",
        SOON,
        || of("opened"),
        |o| o.len() >= 10,
    )?;
    let promoted = wait::until_seen(
        "ten flows are promoted",
        SOON,
        || of("promoted"),
        |p| p.len() >= 10,
    )?;
    for name in ["b1", "b2", "b3"] {
        let theirs = crowd::on(&new, name).len();
        for told in [&opened, &promoted] {
            let found = told.iter().filter(|event| event["backend"] == name).count();
            ensure!(found == theirs, "{found} of {theirs} on {name}: {told:?}");
        }
    }
    ensure!(
        opened.iter().all(|event| event["reason"] == "opened"),
        "{opened:?}"
    );
    new[0].close(Close::Orderly)?;
    let closed = wait::until_seen("one is closed", SOON, || of("closed"), |c| !c.is_empty())?;
    ensure!(
        closed[0]["cause"]
            .as_str()
            .is_some_and(|cause| cause.ends_with("-fin")),
        "{closed:?}"
    );
    stage.tether.succeed(&["drain", "--all"])?;
    stage.tether.wait_status("all drain", SOON, |status| {
        ["b1", "b2", "b3"]
            .iter()
            .all(|name| status.serving(name) == "existing-only")
    })?;
    ensure!(
        stage.clients.open_one(stage.plan().probing()).is_err(),
        "a drained host took a flow"
    );
    let refused = wait::until_seen("one is refused", SOON, || of("refused"), |r| !r.is_empty())?;
    ensure!(
        refused[0]["reason"] == "no_backend" && refused[0]["service"] == SERVICE,
        "{refused:?}"
    );

    // When nobody listens any more, the program of before is back, and no flow has noticed.
    drop(listener);
    wait_for_log(&stage, GONE, 1)?;
    ensure!(program(balancer)? == plain, "another program runs");
    assert_eq!(crowd::echo_all(&old), [""; 0]);
    assert_eq!(crowd::breaks(old.iter().chain(&new[1..])), [""; 0]);
    stage.close();
    Ok(())
}

/// A daemon that is killed while somebody listens leaves a program that forwards, and the next one puts its own in place.
#[test]
fn a_killed_daemon_leaves_no_watch() -> Result<()> {
    let topology = Topology::new(Place::Hidden).in_family(Family::V6);
    let mut stage = Stage::set(topology, 103, |_| {})?;
    let connections = stage.clients.open(20, stage.plan(), |_| {})?;
    let listener = stage.tether.begin(&["events", "--flows"])?;
    wait_for_log(&stage, IN_PLACE, 1)?;
    let watching = program(stage.lab.balancer())?;
    stage.tether.kill()?;
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    ensure!(
        program(stage.lab.balancer())? == watching,
        "somebody put another program there"
    );
    let late = stage.clients.open(5, stage.plan(), |_| {})?;
    drop(listener);
    stage.tether.restart()?;
    stage.wait_serving()?;
    let after = program(stage.lab.balancer())?;
    ensure!(after != watching, "the program that watches is still there");
    assert_eq!(crowd::echo_all(connections.iter().chain(&late)), [""; 0]);
    assert_eq!(crowd::breaks(connections.iter().chain(&late)), [""; 0]);
    stage.close();
    Ok(())
}

/// A packet of a pcapng file.
struct Captured {
    frame: Vec<u8>,
    comment: String,
}

/// Reads a pcapng file, by the draft and not by the writer: blocks, padded options, lengths at both ends.
fn read(bytes: &[u8]) -> Result<(Vec<String>, Vec<Captured>)> {
    let u16_at = |at: usize| -> Result<usize> {
        Ok(u16::from_le_bytes(bytes.get(at..at + 2).context("cut off")?.try_into()?).into())
    };
    let u32_at = |at: usize| -> Result<usize> {
        Ok(u32::from_le_bytes(bytes.get(at..at + 4).context("cut off")?.try_into()?) as usize)
    };
    let option = |mut at: usize, end: usize, wanted: usize| -> Result<Option<String>> {
        while at + 4 <= end && u16_at(at)? != 0 {
            let (code, length) = (u16_at(at)?, u16_at(at + 2)?);
            if code == wanted {
                let text = bytes.get(at + 4..at + 4 + length).context("cut off")?;
                return Ok(Some(String::from_utf8(text.to_vec())?));
            }
            at += 4 + length.next_multiple_of(4);
        }
        Ok(None)
    };
    let (mut interfaces, mut packets) = (vec![], vec![]);
    let mut at = 0;
    while at < bytes.len() {
        let (kind, length) = (u32_at(at)?, u32_at(at + 4)?);
        ensure!(
            length % 4 == 0 && u32_at(at + length - 4)? == length,
            "a block of {length} at {at}"
        );
        let end = at + length - 4;
        match kind {
            0x0a0d_0d0a => ensure!(at == 0 && u32_at(8)? == 0x1a2b_3c4d, "a section at {at}"),
            1 => interfaces.push(option(at + 16, end, 2)?.context("no name")?),
            5 => {}
            6 => {
                ensure!(
                    u32_at(at + 8)? < interfaces.len(),
                    "an interface that is not described"
                );
                let kept = u32_at(at + 20)?;
                let frame = bytes
                    .get(at + 28..at + 28 + kept)
                    .context("cut off")?
                    .to_vec();
                let options = at + 28 + kept.next_multiple_of(4);
                let comment = option(options, end, 1)?.context("no comment")?;
                packets.push(Captured { frame, comment });
            }
            other => bail!("a block of type {other:#x}"),
        }
        at += length;
    }
    Ok((interfaces, packets))
}

#[test]
fn packets_are_captured_with_their_verdicts() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Farm), 104, |_| {})?;
    let file = std::env::temp_dir().join(format!("tether-capture-{}.pcapng", std::process::id()));
    let path = file.to_str().context("a path of text")?.to_owned();
    let plain = program(stage.lab.balancer())?;
    let mut capture = stage.tether.begin(&[
        "capture",
        "--write",
        &path,
        "--service",
        SERVICE,
        "--packets",
        "40",
        "--seconds",
        "25",
    ])?;
    wait_for_log(&stage, IN_PLACE, 1)?;
    let plan = stage.plan().talking(PACE);
    let connections = stage.clients.open(20, plan, |_| {})?;
    let (status, said) = capture.wait_to_end(SOON)?;
    ensure!(
        status.success() && said.join("\n").contains("40 packets written"),
        "{said:?}"
    );
    let (interfaces, packets) = read(&fs::read(&file)?)?;
    assert_eq!(interfaces, [UPLINK]);
    assert_eq!(packets.len(), 40);
    let vip = stage.target();
    for packet in &packets {
        let segment = lab::frame::parse(&packet.frame).context("no segment")?;
        assert_eq!(
            (segment.ip.destination, segment.tcp.destination),
            (vip.ip(), vip.port())
        );
        let (reason, _) = packet.comment.split_once(':').context("no reason")?;
        ensure!(
            ["opened", "established"].contains(&reason),
            "{}",
            packet.comment
        );
        ensure!(
            packet.comment.contains("forwarded, chat/b"),
            "{}",
            packet.comment
        );
    }
    ensure!(
        packets
            .iter()
            .any(|packet| packet.comment.starts_with("opened")),
        "no SYN"
    );
    wait_for_log(&stage, GONE, 1)?;
    ensure!(
        program(stage.lab.balancer())? == plain,
        "another program runs"
    );

    // Only what is asked for, though all talk: of one backend, of one client, of a reason; and what never comes is a whole file too.
    let captured = |of: &[&str]| -> Result<Vec<Captured>> {
        let arguments = [&["capture", "--write", &path][..], of].concat();
        stage.tether.succeed(&arguments)?;
        Ok(read(&fs::read(&file)?)?.1)
    };
    let history = connections[0].history();
    let talker = history.current().context("it is open")?;
    let backend = format!("{SERVICE}/{}", talker.backend);
    let of_backend = captured(&["--backend", &backend, "--packets", "30"])?;
    assert_eq!(of_backend.len(), 30);
    let names_it = format!("established: forwarded, {backend}. ");
    for packet in &of_backend {
        ensure!(packet.comment.starts_with(&names_it), "{}", packet.comment);
    }
    let client = talker.local.ip().to_string();
    let of_client = captured(&["--client", &client, "--packets", "5"])?;
    assert_eq!(of_client.len(), 5);
    for packet in &of_client {
        let segment = lab::frame::parse(&packet.frame).context("no segment")?;
        assert_eq!(segment.ip.source, talker.local.ip());
    }
    let of_reason = captured(&["--reason", "established", "--packets", "5"])?;
    assert_eq!(of_reason.len(), 5);
    let nothing = captured(&["--reason", "no_backend", "--seconds", "1"])?;
    assert_eq!(nothing.len(), 0);
    // 2 is what is wrong by itself, as usage.
    for (arguments, code, remedy) in [
        (
            vec!["capture", "--write", &path, "--service", "none"],
            1,
            "tether services",
        ),
        (
            vec!["capture", "--write", &path, "--reason", "sorrow"],
            1,
            "no_backend",
        ),
        (
            vec!["events", "--flows", "--client", "10.0.0.0/99"],
            1,
            "10.0.0.0/8",
        ),
        (vec!["events", "--service", "chat"], 2, "--flows"),
        (vec!["top"], 1, "needs a terminal"),
    ] {
        let output = stage.tether.output(&arguments)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == Some(code) && said.contains(remedy),
            "{arguments:?}: {said}"
        );
    }
    fs::remove_file(&file)?;
    assert_eq!(crowd::breaks(&connections), [""; 0]);
    stage.close();
    Ok(())
}

#[test]
fn events_are_followed() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Farm), 96, |_| {})?;
    let tether = &stage.tether;
    let followed = tether.begin(&["events", "--follow"])?;
    followed.wait_to_say("", SOON)?;
    tether.succeed(&["drain", &format!("{SERVICE}/b1")])?;
    wait::until("the drain is told", SOON, || {
        let said = followed.said();
        said.iter()
            .any(|line| line.contains("chat/b1: drains"))
            .then_some(())
    })?;
    stage.lab.darken(1)?;
    wait::until("the dark backend is told", SOON, || {
        let said = followed.said();
        said.iter()
            .any(|line| line.contains("chat/b2: ") && line.contains("down"))
            .then_some(())
    })?;
    // What was is what was told while it came.
    let past = tether.succeed(&["events", "--json"])?;
    let texts: Vec<Value> = past
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    for (number, event) in texts.iter().enumerate() {
        ensure!(event["number"] == number, "{past}");
    }
    let bad = tether.succeed(&["events", "--level", "bad"])?;
    ensure!(bad.contains("chat/b2") && !bad.contains("chat/b1"), "{bad}");
    stage.close();
    Ok(())
}
