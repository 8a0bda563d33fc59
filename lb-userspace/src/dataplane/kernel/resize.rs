//! Other sizes for the flow tables of an instance whose maps are pinned, without a flow lost: see [`super::transfer`].
//!
//! The second set of maps has all in common with the first but what makes up the flow tables.

use std::{
    os::fd::AsFd as _,
    sync::{Arc, atomic::AtomicU64},
};

use lb_common::{maps as names, net::IpVersion};

use super::{
    attach,
    copier::Copier,
    error::Error,
    grace::GracePeriod,
    instance,
    load::{Loaded, Prepared},
    local, migrate,
    pins::Pins,
    rescue,
    shapes::{self, Opened, create_tables},
    transfer::{Origin, Transfer},
};
use crate::dataplane::maps::{Capacity, Maps};

pub use super::transfer::{Step, flows_in};

/// Opens pinned maps, with flow tables as large as in `wanted`; and completes or undoes what a killed process has left. If other sizes than the
/// pinned ones are wanted and not to be had, the pinned ones stay, and the reason is given too.
///
/// # Errors
/// When pinned maps are not what this version can use, the kernel refuses the program, or links could not be switched.
pub(super) fn open(
    pins: &Pins,
    wanted: &Capacity,
    grace: &GracePeriod,
    observe: &mut dyn FnMut(Step),
) -> Result<(Loaded, Option<Error>), Error> {
    let complete = finish(pins, grace, wanted.guards, observe)?;
    if shapes::pinned_version(&pins.maps())? != names::ABI_VERSION {
        return migrate::open(pins, wanted, grace, observe);
    }
    let (held, capacity, instance) = shapes::open_pinned(&pins.maps())?;
    let capacity = capacity.guarding(wanted.guards).measuring(wanted.measures);
    let mut refused = None;
    let resized = resized(&capacity, wanted);
    if resized != capacity {
        let origin = Own::new(held, capacity, instance)?;
        let mut transfer = Transfer {
            pins,
            grace,
            instance,
            origin: &origin,
            observe,
        };
        match transfer.run(resized)? {
            Ok(loaded) => return Ok((loaded, None)),
            Err(reason) => refused = Some(reason),
        }
    }
    let loaded = match complete {
        // What has been completed measures nothing.
        Some(loaded) if !wanted.measures => loaded,
        _ => instance::adopt(pins, wanted)?.load()?,
    };
    // It may be of maps that a killed process never came to put in force: they know no flow that has begun since, and its replies would be reset by its
    // client. So not only when all else is attached, which waits for first verdicts.
    local::switch_all(pins, loaded.local_reply_fd())?;
    Ok((loaded, refused))
}

/// A capacity with flow tables as wanted, for programs that guard and measure as wanted. Translations once begun stay: flows of a service that is gone
/// from the configuration may still need them.
pub(super) fn resized(capacity: &Capacity, wanted: &Capacity) -> Capacity {
    let translates =
        |version| wanted.translates_flows_of(version) || capacity.translates_flows_of(version);
    Capacity {
        flow4_buckets: wanted.flow4_buckets,
        flow6_buckets: wanted.flow6_buckets,
        ..*capacity
    }
    .translating_flows_of(IpVersion::V4, translates(IpVersion::V4))
    .translating_flows_of(IpVersion::V6, translates(IpVersion::V6))
    .guarding(wanted.guards)
    .measuring(wanted.measures)
}

/// Completes what a killed process has left, if links run its new program; else removes its traces. The program guards services if `guards` says so.
///
/// It may be killed itself, and is begun anew then: all of it can be done twice.
fn finish(
    pins: &Pins,
    grace: &GracePeriod,
    guards: bool,
    observe: &mut dyn FnMut(Step),
) -> Result<Option<Loaded>, Error> {
    let staged = pins.staged();
    if !staged.join(names::FLOWS4).exists() || !attach::runs_staged(pins.directory())? {
        pins.discard_staged()?;
        pins.discard_programs()?;
        return Ok(None);
    }
    let version = shapes::pinned_version(&staged)?;
    if version != names::ABI_VERSION {
        return Err(Error::Interrupted {
            path: staged,
            version,
        });
    }
    tracing::warn!(
        "a change of the flow tables was interrupted when its new program was in force already; completing it"
    );
    let (maps, capacity, instance) = shapes::open_pinned(&staged)?;
    let capacity = capacity.guarding(guards);
    let old: Box<dyn Origin> = if shapes::pinned_version(&pins.maps())? == names::ABI_VERSION {
        let (maps, capacity, instance) = shapes::open_pinned(&pins.maps())?;
        Box::new(Own::new(maps, capacity, instance)?)
    } else {
        Box::new(migrate::Foreign::open(&pins.maps())?)
    };
    let loaded = Prepared::with_maps(capacity, instance, &maps)?.load()?;
    pins.stage_program(loaded.program_fd())?;
    local::switch_all(pins, loaded.local_reply_fd())?;
    observe(Step::RepliesSwitched);
    attach::switch_all(pins, loaded.program_fd(), &mut || {
        observe(Step::SwitchedOne);
    })?;
    grace.wait();
    observe(Step::Switched);
    let mut copier = Copier::new(loaded)?;
    rescue::rescue(&*old, &instance, &mut copier)?;
    old.conclude(&copier.loaded().maps())?;
    pins.exchange_maps()?;
    observe(Step::Exchanged);
    pins.discard_staged()?;
    pins.discard_programs()?;
    copier.into_loaded().map(Some)
}

/// The instance's maps, of this version.
struct Own {
    /// By name.
    held: Opened,
    /// The same, as memory.
    maps: Arc<Maps>,
}

impl Own {
    fn new(held: Opened, capacity: Capacity, instance: names::Instance) -> Result<Self, Error> {
        let maps = Prepared::with_maps(capacity.measuring(false), instance, &held)?.maps();
        Ok(Self { held, maps })
    }
}

impl Origin for Own {
    fn maps(&self) -> &Arc<Maps> {
        &self.maps
    }

    fn is_of_this_version(&self) -> bool {
        true
    }

    fn refresh(&self) -> Result<(), Error> {
        Ok(())
    }

    fn hold(&self) -> &AtomicU64 {
        self.maps.hold.word(0, 0)
    }

    /// What the tables do not make up is shared.
    fn stage(&self, capacity: &Capacity) -> Result<Opened, Error> {
        let mut maps = create_tables(capacity)?;
        for (name, map) in &self.held {
            if !maps.contains_key(name) {
                let map = map.as_fd().try_clone_to_owned();
                let map = map.map_err(shapes::refused_call(
                    "keeping a map of the instance for its new tables",
                ))?;
                maps.insert(name, map);
            }
        }
        Ok(maps)
    }

    fn conclude(&self, _: &Maps) -> Result<(), Error> {
        Ok(())
    }
}
