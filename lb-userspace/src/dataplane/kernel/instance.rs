//! An instance's maps, pinned: created whole, or adopted.

use std::{io, os::fd::AsFd};

use lb_common::{
    hash::Seed,
    maps::{ABI_VERSION, Instance},
};

use super::{
    bpf,
    error::Error,
    load::Prepared,
    pins::Pins,
    shapes::{self, create_maps},
};
use crate::{chain::chain, dataplane::maps::Capacity, failpoint};

/// Creates an instance's maps, pinned.
///
/// # Errors
/// When the kernel refuses; then nothing stays behind, or it is logged.
pub fn create(pins: &Pins, capacity: Capacity) -> Result<Prepared, Error> {
    let instance = new_instance()?;
    let staging = pins.stage_maps()?;
    let created = create_maps(&capacity).and_then(|maps| {
        for (name, map) in &maps {
            let path = staging.join(name);
            bpf::pin(map.as_fd(), &path).map_err(Error::file(&path, "pinning a map"))?;
            failpoint::pass(failpoint::Place::MapPinned);
        }
        let prepared = Prepared::with_maps(capacity, instance, &maps)?;
        // Word by word from the last, so the version, which vouches for the seeds, is written after them.
        prepared.maps().instance.set(0, &instance);
        failpoint::pass(failpoint::Place::MapsComplete);
        pins.publish_maps()?;
        failpoint::pass(failpoint::Place::MapsPublished);
        Ok(prepared)
    });
    if created.is_err()
        && let Err(error) = pins.discard_staged()
    {
        tracing::error!(
            error = chain(&error),
            "maps that are not complete stay behind"
        );
    }
    created
}

/// Adopts an instance's pinned maps, for programs that guard and measure as in `wanted`. Those of what clients send again are never pinned: they are made
/// anew, if that is to be counted.
///
/// # Errors
/// When they are of another version, incomplete, or not what this version makes.
pub fn adopt(pins: &Pins, wanted: &Capacity) -> Result<Prepared, Error> {
    let (maps, capacity, instance) = shapes::open_pinned(&pins.maps())?;
    let capacity = capacity.guarding(wanted.guards).measuring(wanted.measures);
    Prepared::with_maps(capacity, instance, &maps)
}

/// A new instance with seeds that nobody knows.
fn new_instance() -> Result<Instance, Error> {
    let random: [u64; 7] = random()?;
    Ok(Instance {
        abi_version: ABI_VERSION,
        reserved: 0,
        flow_seed: Seed::new([random[0], random[1], random[2]]),
        fleet_seed: [random[3], random[4], random[5], random[6]],
    })
}

/// Words from the kernel's generator.
pub(super) fn random<const N: usize>() -> Result<[u64; N], Error> {
    let mut words = [0u64; N];
    // SAFETY: the buffer is ours, of this size. Up to 256 bytes are given whole once the generator is initialised, for which the
    // call waits.
    let got = unsafe { libc::getrandom(words.as_mut_ptr().cast(), size_of_val(&words), 0) };
    if got == size_of_val(&words) as isize {
        Ok(words)
    } else {
        Err(Error::Bpf {
            doing: "drawing random seeds",
            source: io::Error::last_os_error(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_instances_share_no_seed() {
        let (one, other) = (new_instance().unwrap(), new_instance().unwrap());
        assert_ne!(one.flow_seed, other.flow_seed);
        assert_ne!(one.fleet_seed, other.fleet_seed);
    }
}
