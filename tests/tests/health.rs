//! A backend that refuses new work keeps its flows; clients of one whose host is gone are told by a RST.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lab::address::{Family, Network};
use lab::config::{Check, Config};
use lab::frame::{Segment, flags};
use lab::packet_socket::Capture;
use lab::peer::backend::Answer;
use lab::peer::client::{Break, Connection, Plan};
use lab::peer::crowd;
use lab::stage::Stage;
use lab::tether;
use lab::topology::{CLIENT_PORT, Place, Topology, UPLINK};
use lab::wait;
use lb_common::net::IpVersion;

const SOON: Duration = Duration::from_secs(15);
const PACE: Duration = Duration::from_millis(250);

/// b1 is made to refuse and to come round again: its flows never notice, and nothing new reaches it in between.
fn refuses(
    family: Family,
    check: Check,
    refuse: impl Fn(&Stage) -> Result<()>,
    relent: impl Fn(&Stage) -> Result<()>,
) -> Result<()> {
    let topology = Topology::new(Place::Farm).in_family(family);
    let stage = Stage::set(topology, 31, |config| config.check = check)?;
    let connections = stage.clients.open(90, stage.plan().talking(PACE), |_| {})?;
    let held = crowd::on(&connections, "b1").len();
    assert!(held > 10, "{held} on b1");

    refuse(&stage)?;
    let status = stage
        .tether
        .wait_status("b1 is refusing", SOON, |s| s.health("b1") == "refusing")?;
    assert_eq!(
        (status.serving("b1"), status.health("b2")),
        ("existing-only", "up")
    );
    let newcomers = stage.clients.open(60, stage.plan(), |_| {})?;
    assert_eq!(crowd::on(&newcomers, "b1").len(), 0);
    // Well beyond `fall` checks: something answers there, so it must not become `down`.
    wait::holds("b1 is refusing, not down", Duration::from_secs(4), || {
        Ok(stage.tether.status()?.health("b1") == "refusing")
    })?;
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    assert_eq!(crowd::on(&connections, "b1").len(), held);

    relent(&stage)?;
    stage
        .tether
        .wait_status("b1 serves again", SOON, |s| s.serving("b1") == "new")?;
    let newcomers = stage.clients.open(60, stage.plan(), |_| {})?;
    assert!(!crowd::on(&newcomers, "b1").is_empty());
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    assert_eq!(crowd::breaks(&connections), [""; 0]);
    stage.close();
    Ok(())
}

#[test]
fn a_closed_listener_is_refusing() -> Result<()> {
    refuses(
        Family::V4,
        Check::Tcp,
        |s| s.backends[0].close_listeners(),
        |s| s.backends[0].open_listeners(),
    )
}

#[test]
fn a_closed_listener_is_refusing_in_ipv6() -> Result<()> {
    refuses(
        Family::V6,
        Check::Tcp,
        |s| s.backends[0].close_listeners(),
        |s| s.backends[0].open_listeners(),
    )
}

#[test]
fn a_full_accept_queue_is_refusing() -> Result<()> {
    refuses(
        Family::V4,
        Check::Tcp,
        |s| s.backends[0].stop_accepting(),
        |s| s.backends[0].accept_again(),
    )
}

#[test]
fn a_wrong_status_is_refusing() -> Result<()> {
    refuses(
        Family::V4,
        Check::Http,
        |s| {
            s.backends[0].answer(Answer::Status(503));
            Ok(())
        },
        |s| {
            s.backends[0].answer(Answer::Status(200));
            Ok(())
        },
    )
}

#[test]
fn a_check_without_an_answer_is_refusing() -> Result<()> {
    refuses(
        Family::V4,
        Check::Http,
        |s| {
            s.backends[0].answer(Answer::Hang);
            Ok(())
        },
        |s| {
            s.backends[0].answer(Answer::Status(200));
            Ok(())
        },
    )
}

/// b2's link dies. Those of its clients that speak get one valid RST and are elsewhere at once; those that are silent until it
/// is back never notice; everyone else talks on.
fn goes_dark(place: Place, family: Family) -> Result<()> {
    let stage = Stage::set(Topology::new(place).in_family(family), 32, |_| {})?;
    let connections = stage
        .clients
        .open(150, stage.plan().reconnecting(), |_| {})?;
    let theirs = crowd::on(&connections, "b2");
    let (speaking, silent) = theirs.split_at(theirs.len() / 2);
    assert!(speaking.len() > 10, "{} on b2", theirs.len());
    let others: Vec<_> = connections
        .iter()
        .filter(|c| c.backend().as_deref() != Some("b2"))
        .collect();
    crowd::set_pace(others.iter().copied(), Some(PACE));

    stage.lab.darken(1)?;
    let status = stage
        .tether
        .wait_status("b2 is down", SOON, |s| s.health("b2") == "down")?;
    assert_eq!((status.health("b1"), status.health("b3")), ("up", "up"));
    stage
        .tether
        .wait_status("b2 serves none", SOON, |s| s.serving("b2") == "none")?;

    let capture = Capture::start(stage.lab.router(), CLIENT_PORT)?;
    crowd::set_pace(speaking.iter().copied(), Some(PACE));
    wait::until("who spoke is elsewhere", SOON, || {
        speaking
            .iter()
            .all(|c| c.backend().is_some_and(|b| b != "b2"))
            .then_some(())
    })?;
    let segments = capture.stop();
    for connection in speaking {
        let history = connection.history();
        let [first, second] = history.lives.as_slice() else {
            anyhow::bail!("not two lives: {history:?}");
        };
        let end = first.end.as_ref().context("the first life ended")?;
        assert_eq!(end.why, Some(Break::Reset));
        let sent = end.unanswered.context("a message drew the reset")?;
        assert!(
            second.opened - sent < Duration::from_secs(1),
            "{:?}",
            second.opened - sent
        );

        let mine =
            |s: &&Segment| s.ip.source == first.local.ip() && s.tcp.source == first.local.port();
        let asked = segments
            .iter()
            .find(mine)
            .context("the message is on the wire")?;
        let resets: Vec<_> = segments
            .iter()
            .filter(|s| {
                s.ip.destination == first.local.ip() && s.tcp.destination == first.local.port()
            })
            .collect();
        // Each in answer to one packet: no ACK flag, the number that the client expects, from the VIP's port.
        let reset = resets.first().context("no RST on the wire")?;
        assert_eq!(reset.tcp.flags, flags::RST, "{reset:?}");
        assert_eq!(
            (reset.ip.source, reset.tcp.source),
            (stage.config.vip, stage.config.port)
        );
        assert_eq!(reset.tcp.seq, asked.tcp.ack);
        assert!(reset.ip.checksum_ok && reset.tcp_checksum_ok);
    }
    assert!(silent.iter().all(|c| c.backend().as_deref() == Some("b2")));

    stage.lab.brighten(1)?;
    stage
        .tether
        .wait_status("b2 serves again", SOON, |s| s.serving("b2") == "new")?;
    assert_eq!(crowd::echo_all(silent.iter().copied()), [""; 0]);
    assert_eq!(crowd::breaks(silent.iter().copied()), [""; 0]);
    let newcomers = stage.clients.open(60, stage.plan(), |_| {})?;
    assert!(!crowd::on(&newcomers, "b2").is_empty());
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    assert_eq!(crowd::breaks(others.iter().copied()), [""; 0]);
    stage.close();
    Ok(())
}

#[test]
fn a_dark_routed_backend_is_down_and_its_clients_are_reset() -> Result<()> {
    goes_dark(Place::Farm, Family::V4)
}

#[test]
fn a_dark_routed_backend_is_down_and_its_clients_are_reset_in_ipv6() -> Result<()> {
    goes_dark(Place::Farm, Family::V6)
}

#[test]
fn a_dark_routed_ipv6_backend_is_down_and_its_ipv4_clients_are_reset() -> Result<()> {
    goes_dark(Place::Farm, Family::V4InV6)
}

#[test]
fn a_dark_backend_of_nat_is_down_and_its_clients_are_reset() -> Result<()> {
    goes_dark(Place::Hidden, Family::V4)
}

#[test]
fn a_dark_backend_of_dnat_is_down_and_its_clients_are_reset_in_ipv6() -> Result<()> {
    goes_dark(Place::Behind, Family::V6)
}

#[test]
fn a_dark_backend_on_the_link_is_down_and_its_clients_are_reset() -> Result<()> {
    goes_dark(Place::Segment, Family::V4)
}

#[test]
fn a_dark_backend_on_the_link_is_down_and_its_clients_are_reset_in_ipv6() -> Result<()> {
    goes_dark(Place::Segment, Family::V6)
}

/// b2 goes dark in a service that treats flows of the dead in another way than by resetting them. Its connections.
fn goes_dark_in(stage: &Stage, number: usize) -> Result<Vec<Connection>> {
    let mut plan = stage.plan();
    plan.patience = Duration::from_secs(60);
    plan.reconnect = true;
    let connections = stage.clients.open(number, plan, |_| {})?;
    let held = crowd::on(&connections, "b2").len();
    assert!(held > 5, "{held} on b2");
    stage.lab.darken(1)?;
    let status = stage
        .tether
        .wait_status("b2 is down", SOON, |s| s.health("b2") == "down")?;
    assert_eq!(
        (status.serving("b2"), status.serving("b1")),
        ("none", "new")
    );
    Ok(connections)
}

#[test]
fn flows_of_a_dead_backend_are_kept_until_it_is_back() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Farm), 34, |config| {
        config.lines = "on_down = \"keep\"\n".into();
    })?;
    let connections = goes_dark_in(&stage, 60)?;
    crowd::set_pace(&connections, Some(PACE));
    let newcomers = stage.clients.open(30, stage.plan(), |_| {})?;
    assert!(crowd::on(&newcomers, "b2").is_empty());
    wait::holds("nobody is cut off", Duration::from_secs(3), || {
        Ok(crowd::breaks(&connections).is_empty())
    })?;
    stage.lab.brighten(1)?;
    crowd::wait_for_echoes(&connections, 3, Duration::from_secs(60), |_| {})?;
    assert_eq!(crowd::breaks(&connections), [""; 0]);
    assert_eq!(stage.tether.status()?.packets("backend_dead"), 0);
    stage.close();
    Ok(())
}

#[test]
fn flows_of_a_dead_backend_go_where_the_table_sends_them() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Farm), 35, |config| {
        config.lines = "on_down = \"rehash\"\n".into();
    })?;
    let connections = goes_dark_in(&stage, 60)?;
    let held = crowd::on(&connections, "b2").len() as u64;
    wait::until_seen(
        "all flows of b2 are forgotten",
        SOON,
        || stage.tether.flow_ends("rehashed"),
        |&ends| ends == held,
    )?;
    let others: Vec<_> = connections
        .iter()
        .filter(|c| c.backend().as_deref() != Some("b2"))
        .collect();
    crowd::set_pace(&connections, Some(PACE));
    // These backends know nothing of the connections that come to them, and say so.
    wait::until(
        "everyone is served elsewhere",
        Duration::from_secs(60),
        || {
            let served = |c: &Connection| {
                let history = c.history();
                let echoes = history.current().is_some_and(|life| life.echoes > 0);
                echoes && c.backend().is_some_and(|name| name != "b2")
            };
            connections.iter().all(served).then_some(())
        },
    )?;
    assert_eq!(crowd::breaks(others.iter().copied()), [""; 0]);
    let status = stage
        .tether
        .wait_status("flows are adopted", SOON, |s| s.packets("adopted") > 0)?;
    assert_eq!(status.packets("backend_dead"), 0, "tether resets nobody");
    stage.close();
    Ok(())
}

/// b2's host dies in a service that tells its clients over a time: some of those who speak are reset soon, some late, and each of them once.
#[test]
fn clients_of_a_dead_backend_are_told_over_the_time_that_is_set() -> Result<()> {
    const OVER: Duration = Duration::from_secs(6);
    let stage = Stage::set(Topology::new(Place::Farm), 36, |config| {
        config.lines = "reset_over = \"6s\"\n".into();
    })?;
    let mut plan = stage.plan();
    plan.patience = Duration::from_secs(60);
    plan.reconnect = true;
    let connections = stage.clients.open(240, plan, |_| {})?;
    let theirs = crowd::on(&connections, "b2");
    let held = theirs.len();
    assert!(held > 40, "{held} on b2");
    stage.lab.darken(1)?;
    stage
        .tether
        .wait_status("b2 serves none", SOON, |s| s.serving("b2") == "none")?;
    let told = Instant::now();
    // Each says something, and TCP says it again after 0.2 s, 0.6 s, 1.4 s, 3 s and 6.2 s if there is no answer: until it is its turn.
    crowd::set_pace(&connections, Some(PACE));
    wait::until("its clients are elsewhere", Duration::from_secs(60), || {
        theirs
            .iter()
            .all(|c| c.backend().is_some_and(|b| b != "b2"))
            .then_some(())
    })?;
    let mut ends = vec![];
    for connection in &theirs {
        let history = connection.history();
        let breaks: Vec<_> = history.breaks().collect();
        let [(life, Break::Reset)] = breaks[..] else {
            anyhow::bail!("not one reset: {breaks:?}");
        };
        let end = life.end.as_ref().context("it broke")?;
        ends.push(end.at.saturating_duration_since(told));
    }
    ends.sort_unstable();
    let last = ends[held - 1];
    assert!(last >= OVER / 2, "the last after {last:?}");
    assert!(
        last < OVER + Duration::from_secs(9),
        "the last after {last:?}"
    );
    let soon = ends.iter().filter(|end| **end < OVER * 3 / 4).count();
    assert!(
        soon * 5 > held && soon * 5 < held * 4,
        "{soon} of {held} within three quarters of the time"
    );
    let broken = connections
        .iter()
        .filter(|c| c.history().breaks().count() > 0);
    assert_eq!(broken.count(), held, "others never noticed");
    stage.close();
    Ok(())
}

/// When every backend seems gone, it may well be this machine: nobody is reset, neither while they fall one after the other nor when they rise, and who waits
/// is served when they are back, whichever is found to be so first.
#[test]
fn when_all_go_dark_nobody_is_reset() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Farm), 33, |_| {})?;
    let mut plan = stage.plan();
    plan.patience = Duration::from_secs(60);
    plan.reconnect = true;
    let connections = stage.clients.open(60, plan.talking(PACE), |_| {})?;
    let capture = Capture::start(stage.lab.router(), CLIENT_PORT)?;
    for index in 0..3 {
        stage.lab.darken(index)?;
    }
    // They talk all the while, so that whoever is reset before the last has fallen is seen to be.
    stage
        .tether
        .wait_status("the service fails open", SOON, |s| s.services[0].fail_open)?;
    let before = capture.segments().len();
    let spoke = |s: &Segment| s.ip.destination == stage.config.vip && !s.tcp.payload.is_empty();
    let sources = || {
        let since = capture.segments().into_iter().skip(before);
        let spoke = since.filter(spoke);
        spoke
            .map(|s| (s.ip.source, s.tcp.source))
            .collect::<std::collections::BTreeSet<_>>()
    };
    wait::until("everyone has spoken", SOON, || {
        (sources().len() == 60).then_some(())
    })?;
    assert_eq!(crowd::breaks(&connections), [""; 0]);
    // When they come back, the first that is up ends fail-open, before the others are known to be.
    for index in 0..3 {
        stage.lab.brighten(index)?;
    }
    crowd::wait_for_echoes(&connections, 1, Duration::from_secs(60), |_| {})?;
    stage.tether.wait_status("all are up", SOON, |status| {
        ["b1", "b2", "b3"].iter().all(|b| status.health(b) == "up")
    })?;
    let seen = capture.stop();
    let is_reset = |s: &&Segment| s.ip.source == stage.config.vip && s.tcp.has(flags::RST);
    assert_eq!(seen.iter().find(is_reset), None);
    assert_eq!(crowd::breaks(&connections), [""; 0]);
    stage.close();
    Ok(())
}

/// First fewer pass their check than the service wants, then nobody does: new clients are served as if all were well, but by nobody whom the operator drains.
#[test]
fn a_check_that_nobody_passes_keeps_the_service_open() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Farm), 39, |config| {
        config.check = Check::Http;
        config.lines = "min_healthy = 2\n".into();
    })?;
    let connections = stage.clients.open(90, stage.plan().talking(PACE), |_| {})?;
    let held = crowd::spread(&connections);
    stage.tether.succeed(&["drain", "chat/b3"])?;
    let status = stage.tether.wait_status("b3 drains", SOON, |status| {
        status.serving("b3") == "existing-only"
    })?;
    assert!(!status.services[0].fail_open, "two are enough");
    let mut newcomers = vec![];
    for (index, refusing) in ["b1", "b2"].into_iter().enumerate() {
        stage.backends[index].answer(Answer::Status(503));
        let status = stage
            .tether
            .wait_status("its check fails", SOON, |status| {
                status.health(refusing) == "refusing" && status.services[0].fail_open
            })?;
        assert_eq!(
            ["b1", "b2", "b3"].map(|name| status.serving(name)),
            ["new", "new", "existing-only"],
            "{refusing} is refusing"
        );
        let opened = stage.clients.open(60, stage.plan(), |_| {})?;
        let spread = crowd::spread(&opened);
        assert_eq!(spread.keys().collect::<Vec<_>>(), ["b1", "b2"]);
        newcomers.extend(opened);
    }
    stage
        .tether
        .wait_status("they are counted", SOON, |status| {
            status.services[0].fail_open_flows >= newcomers.len() as u64
        })?;
    for backend in &stage.backends[..2] {
        backend.answer(Answer::Status(200));
    }
    stage.tether.wait_status("both are up", SOON, |status| {
        !status.services[0].fail_open && status.health("b1") == "up" && status.health("b2") == "up"
    })?;
    assert_eq!(crowd::echo_all(&newcomers), [""; 0]);
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    assert_eq!(crowd::breaks(&connections), [""; 0]);
    assert_eq!(crowd::spread(&connections), held);
    stage.close();
    Ok(())
}

/// Other objects are made of a service's backends then, and what their checks have found out stays true: nobody is unknown, and nobody is flooded by being
/// the first who is known.
#[test]
fn a_service_with_another_mode_or_vip_serves_from_all_its_backends_at_once() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Segment), 38, |_| {})?;
    let other_vip = Network::Vips.host(IpVersion::V4, 2);
    for host in stage.lab.backends() {
        tether::succeed(host, &["decap", "--interface", UPLINK])?;
        host.ip(&format!("address add {other_vip} dev lo"))?;
    }
    let connections = stage.clients.open(60, stage.plan().talking(PACE), |_| {})?;
    let mut config = stage.config.clone();
    config.mode = "ipip";
    assert_all_serve(&stage, &config)?;
    config.vip = other_vip;
    assert_all_serve(&stage, &config)?;
    crowd::wait_for_echoes(&connections, 3, SOON, |_| {})?;
    assert_eq!(crowd::breaks(&connections), [""; 0]);
    stage.close();
    Ok(())
}

/// With another configuration all three backends are up and take new flows.
fn assert_all_serve(stage: &Stage, config: &Config) -> Result<()> {
    let status = stage.tether.reload(&config.text())?;
    let backends = status.services.iter().flat_map(|service| &service.backends);
    let wanted: Vec<_> = backends
        .filter(|backend| !backend.removed)
        .map(|backend| (backend.health.as_str(), backend.serving.as_str()))
        .collect();
    assert_eq!(wanted, [("up", "new"); 3]);
    assert!(status.services.iter().all(|service| !service.fail_open));
    let plan = Plan::new(SocketAddr::new(config.vip, config.port));
    let newcomers = stage.clients.open(60, plan, |_| {})?;
    let spread = crowd::spread(&newcomers);
    assert_eq!(spread.len(), 3, "{spread:?}");
    Ok(())
}
