//! Floods at the generator's full rate upon connections that talk: none breaks, and new ones are opened meanwhile. `cargo xtask torture --floods` is the long one.

use std::time::Duration;

use anyhow::Result;
use lab::address::Family;
use lab::flood::Kind;
use lab::topology::Place;
use lab::torture::{self, Deluge};

fn nobody_is_cut(place: Place, family: Family, kinds: &[Kind]) -> Result<()> {
    let deluge = Deluge {
        place,
        family,
        connections: 200,
        each: Duration::from_secs(2),
        kinds: kinds.to_vec(),
    };
    let flooded = torture::flood(&deluge, |line| eprintln!("{line}"))?;
    assert!(flooded.is_good(), "{flooded:#?}");
    Ok(())
}

#[test]
fn no_flood_cuts_a_connection_or_keeps_new_ones_out() -> Result<()> {
    nobody_is_cut(Place::Farm, Family::V4, &Kind::ALL)
}

#[test]
fn no_flood_takes_the_ports_of_a_service_that_limits_sources() -> Result<()> {
    nobody_is_cut(Place::Hidden, Family::V6, &[Kind::Syn, Kind::Handshake])
}
