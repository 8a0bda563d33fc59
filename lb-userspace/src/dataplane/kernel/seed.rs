//! The fleet's seed that is kept with pinned maps: read, replaced, while no daemon uses them.

use std::{os::fd::AsFd as _, path::Path};

use lb_common::maps::{INSTANCE, Instance};

use super::{
    error::Error,
    instance::random,
    pins::{MAPS, Pins},
    shapes::{check_version, map_memory, open},
};
use crate::dataplane::array::Array;

/// A seed of Maglev tables.
pub type FleetSeed = [u64; 4];

/// A seed that nobody knows, from the kernel's generator.
///
/// # Errors
/// When the kernel gives none.
pub fn new_fleet_seed() -> Result<FleetSeed, Error> {
    random()
}

/// The seed that is kept in a pin directory. May be asked for while a daemon runs.
///
/// # Errors
/// When there are no maps, or not of this version.
pub fn fleet_seed(bpffs: &Path) -> Result<FleetSeed, Error> {
    Ok(instance(&bpffs.join(MAPS))?.get(0).fleet_seed)
}

/// Replaces the seed that is kept in a pin directory. The next daemon builds its tables of it; flows that are recorded stay where they are.
///
/// # Errors
/// When a daemon uses the directory, there are no maps, or not of this version.
pub fn set_fleet_seed(bpffs: &Path, seed: FleetSeed) -> Result<(), Error> {
    let missing = || Error::NoInstance {
        path: bpffs.to_owned(),
    };
    // Held, so that no daemon reads the half of it.
    let pins = Pins::open_existing(bpffs)?.ok_or_else(missing)?;
    let instance = instance(&pins.maps())?;
    let whole = Instance {
        fleet_seed: seed,
        ..instance.get(0)
    };
    instance.set(0, &whole);
    Ok(())
}

fn instance(directory: &Path) -> Result<Array<Instance>, Error> {
    if !directory.is_dir() {
        return Err(Error::NoInstance {
            path: directory.to_owned(),
        });
    }
    check_version(directory)?;
    map_memory(open(directory, INSTANCE)?.fd().as_fd())
}
