//! Commands on a terminal, as people have them: colours, unless nobody wants any, what they say while they wait, and `tether top`.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use lab::config::{Config, SERVICE};
use lab::peer::crowd;
use lab::stage::Stage;
use lab::terminal::Terminal;
use lab::tether::CONFIG_PATH;
use lab::topology::{Place, Topology};

/// What colours and movements begin with (ECMA-48, 5.4).
const ESCAPE: &str = "\x1b[";
/// Xterm's own: to a screen beside the one that was there, and back.
const TO_ANOTHER_SCREEN: &str = "\x1b[?1049h";
const BACK: &str = "\x1b[?1049l";
/// By this a line is changed in its place.
const ERASED: &str = "\r\x1b[2K";

#[test]
fn colours_are_for_terminals_and_for_who_wants_them() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Segment), 731, |_| {})?;
    let shown = |variables: &[(&str, &str)]| -> Result<String> {
        let mut terminal = Terminal::start(stage.lab.balancer(), &["services"], variables)?;
        let (status, text) = terminal.wait_to_end()?;
        assert!(status.success() && text.contains("chat"), "{text}");
        Ok(text)
    };
    let usual = shown(&[])?;
    for code in ["\x1b[1m", "\x1b[32mok\x1b[0m"] {
        assert!(usual.contains(code), "{usual:?}");
    }
    for unwanted in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let plain = shown(&[unwanted])?;
        assert!(!plain.contains('\x1b'), "{unwanted:?}: {plain:?}");
    }
    // One that is empty says nothing.
    assert!(shown(&[("NO_COLOR", "")])?.contains(ESCAPE));
    assert!(!stage.tether.succeed(&["services"])?.contains(ESCAPE));
    stage.close();
    Ok(())
}

#[test]
fn the_log_has_colours_where_they_are_wanted() -> Result<()> {
    let lab = Topology::new(Place::Segment).build()?;
    let host = lab.balancer();
    host.write(CONFIG_PATH, &Config::new(lab.topology()).text())?;
    let has_colours = |variables: &[(&str, &str)]| -> Result<bool> {
        let daemon = Terminal::start(host, &["run", "--config", CONFIG_PATH], variables)?;
        daemon.wait_to_show(" ready")?;
        Ok(daemon.text().contains(ESCAPE))
    };
    assert!(has_colours(&[])?);
    assert!(!has_colours(&[("NO_COLOR", "1")])?);
    assert!(!has_colours(&[("TERM", "dumb")])?);
    Ok(())
}

#[test]
fn top_shows_what_there_is_and_leaves_the_terminal_as_it_was() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Segment), 732, |_| {})?;
    let connections = stage.clients.open(20, stage.plan(), |_| {})?;
    let mut top = Terminal::start(stage.lab.balancer(), &["top"], &[])?;
    for text in [
        "generation",
        "BACKEND",
        "chat/b1",
        "chat/b2",
        "chat/b3",
        "quit",
    ] {
        top.wait_to_show(text)?;
    }
    // Another order.
    top.press("ss")?;
    top.wait_to_show("bits")?;
    top.press("v")?;
    top.wait_to_show("SERVICE")?;
    top.press("q")?;
    let (status, text) = top.wait_to_end()?;
    assert!(status.success(), "{text:?}");
    let (_, after) = text
        .split_once(TO_ANOTHER_SCREEN)
        .context("a screen of its own")?;
    let (_, after) = after.rsplit_once(BACK).context("the one before")?;
    assert!(!after.contains("chat"), "{after:?}");
    assert_eq!(crowd::breaks(&connections), [""; 0]);
    stage.close();
    Ok(())
}

/// What a command says while it waits: there, and taken away by now.
fn said_meanwhile(terminal: &Terminal, line: &str) -> Result<()> {
    let shown = terminal.text();
    ensure!(shown.contains(&format!("{ERASED}{line}")), "{shown:?}");
    let left = shown.rsplit(ERASED).next().unwrap_or_default();
    ensure!(!left.contains(line), "{line:?} is left in {shown:?}");
    Ok(())
}

/// Commands that wait say so on a terminal, and nothing of it to a program.
#[test]
fn commands_that_wait_say_so_on_a_terminal_only() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Farm), 106, |_| {})?;
    let host = stage.lab.balancer();
    let vip = stage.target().to_string();
    let explain = ["explain", "192.0.2.7:40000", vip.as_str()];
    for (arguments, meanwhile, answer) in [
        (
            &explain[..],
            "the kernel's verifier looks at the program",
            format!("-> {vip}"),
        ),
        (
            &["doctor"][..],
            "looking at this host, and asking backends",
            "could not be found out".to_owned(),
        ),
        (
            &["upgrade-check"][..],
            "the kernel's verifier looks at this program",
            "kept: ".to_owned(),
        ),
    ] {
        let mut terminal = Terminal::start(host, arguments, &[])?;
        terminal.wait_to_show(&answer)?;
        terminal.wait_to_end()?;
        said_meanwhile(&terminal, meanwhile)?;
        let piped = stage.tether.output(arguments)?;
        for said in [piped.stdout, piped.stderr] {
            let said = String::from_utf8(said)?;
            ensure!(
                !said.contains(meanwhile) && !said.contains('\x1b'),
                "{arguments:?}: {said:?}"
            );
        }
    }

    let terminal = Terminal::start(host, &["events", "--flows", "--service", SERVICE], &[])?;
    terminal.wait_to_show("watching for events of flows")?;
    let connections = stage.clients.open(4, stage.plan(), |_| {})?;
    terminal.wait_to_show("(opened)")?;
    said_meanwhile(&terminal, "watching for events of flows")?;
    drop(terminal);

    let file = std::env::temp_dir().join(format!("tether-shown-{}.pcapng", std::process::id()));
    let path = file.to_str().context("a path of text")?;
    let mut terminal = Terminal::start(
        host,
        &[
            "capture",
            "--write",
            path,
            "--service",
            SERVICE,
            "--packets",
            "4",
        ],
        &[],
    )?;
    terminal.wait_to_show("packets so far: ")?;
    let more = stage.clients.open(4, stage.plan(), |_| {})?;
    terminal.wait_to_show("4 packets written")?;
    let (status, text) = terminal.wait_to_end()?;
    ensure!(status.success(), "{status}: {text}");
    said_meanwhile(&terminal, "packets so far: ")?;
    fs::remove_file(&file)?;
    assert_eq!(crowd::breaks(connections.iter().chain(&more)), [""; 0]);
    stage.close();
    Ok(())
}
