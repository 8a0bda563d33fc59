//! Connections of every age, talking and silent, through short storms of the torture lab. None may break but those whose backend's
//! host is killed, and these are told at once. `cargo xtask torture` is the long one.

use std::time::Duration;

use anyhow::Result;
use lab::address::Family;
use lab::topology::Place;
use lab::torture::{self, Forecast, Kind, Report, Schedule, Siege, Sieged};

const PACE: Duration = Duration::from_secs(1);

/// What a short storm is made of.
const QUICK: [Kind; 8] = [
    Kind::Drain,
    Kind::Reweight,
    Kind::Reload,
    Kind::BrokenReload,
    Kind::DaemonKill,
    Kind::NeighbourFlush,
    Kind::LinkFlap,
    Kind::SynFlood,
];

/// What another is made of, in which each of these happens.
const DEADLY: [Kind; 2] = [Kind::BackendKill, Kind::DaemonUpgrade];

fn weather(forecast: &Forecast) -> Result<()> {
    let outcome = torture::run(forecast, |line| eprintln!("{line}"))?;
    assert_eq!(outcome.complaints, [""; 0]);
    let report = Report::of(&[outcome]);
    let faults = report.faults(&forecast.kinds, forecast.least);
    assert_eq!(faults, [""; 0], "{report:?}");
    Ok(())
}

#[test]
fn no_connection_breaks_in_the_storm() -> Result<()> {
    weather(&Forecast {
        place: Place::Farm,
        family: Family::V4,
        connections: 500,
        pace: PACE,
        storm: Duration::from_secs(40),
        kinds: Kind::ALL.to_vec(),
        least: 1,
        pins: true,
    })
}

fn short(place: Place, family: Family) -> Result<()> {
    weather(&Forecast {
        place,
        family,
        connections: 500,
        pace: PACE,
        storm: Duration::from_secs(10),
        kinds: QUICK.to_vec(),
        least: 0,
        pins: false,
    })
}

/// One that is over as soon as a backend's host has been killed and the daemon been replaced.
fn deadly(place: Place, family: Family) -> Result<()> {
    weather(&Forecast {
        place,
        family,
        connections: 500,
        pace: PACE,
        storm: Duration::ZERO,
        kinds: DEADLY.to_vec(),
        least: 1,
        pins: false,
    })
}

#[test]
fn no_ipv6_connection_breaks_in_a_short_storm() -> Result<()> {
    short(Place::Farm, Family::V6)
}

#[test]
fn no_translated_connection_breaks_in_a_short_storm() -> Result<()> {
    short(Place::Hidden, Family::V4)
}

#[test]
fn no_ipv6_connection_of_dnat_breaks_in_a_short_storm() -> Result<()> {
    short(Place::Behind, Family::V6)
}

#[test]
fn no_connection_on_the_link_breaks_but_those_of_a_killed_host() -> Result<()> {
    deadly(Place::Segment, Family::V4)
}

#[test]
fn no_ipv6_connection_on_the_link_breaks_but_those_of_a_killed_host() -> Result<()> {
    deadly(Place::Segment, Family::V6)
}

#[test]
fn no_translated_ipv6_connection_breaks_but_those_of_a_killed_host() -> Result<()> {
    deadly(Place::Hidden, Family::V6)
}

#[test]
fn a_daemon_that_dies_at_any_moment_breaks_nothing() -> Result<()> {
    let siege = Siege {
        place: Place::Farm,
        family: Family::V4,
        kills: 8,
        each_place: false,
    };
    let sieged = torture::besiege(&siege, |line| eprintln!("{line}"))?;
    assert_eq!(sieged.complaints, [""; 0]);
    let Sieged {
        broken,
        failed,
        to_draining,
        ..
    } = sieged;
    assert_eq!((broken, failed, to_draining), (0, 0, 0), "{sieged:?}");
    assert!(!sieged.failpoints.is_empty(), "{sieged:?}");
    for order in ["a reload", "a drain", "a verdict"] {
        let mut orders = sieged.orders.keys();
        assert!(orders.any(|what| what.ends_with(order)), "{sieged:?}");
    }
    Ok(())
}

#[test]
fn a_pod_that_shuts_down_closes_its_connections_itself() -> Result<()> {
    let replayed = torture::replay(Place::Farm, Family::V4, 120, Schedule::SHORT, |line| {
        eprintln!("{line}");
    })?;
    assert!(replayed.is_good(), "{replayed:?}");
    Ok(())
}
