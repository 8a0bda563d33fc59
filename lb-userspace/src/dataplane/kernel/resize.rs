//! Other sizes for the flow tables of an instance whose maps are pinned, without a flow lost.
//!
//! Both tables are replaced together, those of IPv4 and of IPv6, also where only one gets another size: there is one program, and one hold.
//!
//! 1. Tables of the new sizes are made, and a second set of maps pinned aside, which has all else in common with the first. The program is loaded
//!    for it.
//! 2. Entries are copied while the old program goes on, in passes, each of which copies what has changed since the one before.
//! 3. The old tables are held ([`lb_common::maps::Hold`]): everything is forwarded, nothing is written. After a grace period the last pass makes the
//!    copies exact. That takes milliseconds.
//! 4. All links are switched to the new program, each atomically. From its first packet on it knows every flow. A packet that still meets the old one
//!    is forwarded to the same backend, and writes nothing.
//! 5. After a grace period nobody has the old table any more. The two sets of maps change places, in one step, and the old one goes.
//!
//! Established flows are forwarded all the time. A flow that begins during 3 is forwarded unrecorded, and adopted with its next packet (its
//! backend is the same: nothing changes the tables meanwhile, since this runs before the reconciler does); a segment that ends a flow, or is
//! the answer to its SYN, is dropped then, and TCP sends it again.
//!
//! The process may be killed anywhere. A hold ends by itself. Which of two sets of maps is the instance's is told by the program that the links
//! run: as long as none runs the new one, the next start removes the new set and begins anew; once one does, the next start completes
//! what is left. And should a hold have ended before the switch was complete, because this process was stopped for so long, what the old
//! program has recorded since is copied too ([`rescue`]).

use std::{
    os::fd::AsFd as _,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use lb_common::{
    clock::Tick,
    flow::{
        bucket::{LOAD, WAYS},
        copy::Kind,
        v4, v6,
        word::Word,
    },
    hash::Seed,
    maps::{self as names, Instance},
    net::IpVersion,
};

use super::{
    attach, bpf,
    copier::{Copier, Traveller},
    error::Error,
    grace::GracePeriod,
    load::{Loaded, Prepared},
    mirror::{Mirror, remove},
    pins::Pins,
    shapes::{self, Opened, create_tables},
};
use crate::{
    config::Limits,
    dataplane::{
        maps::{self, Capacity, Maps},
        table::TableKey,
    },
};

/// How long the old table is held at first: much longer than is needed.
const HOLD: Duration = Duration::from_secs(1);
/// How often that is tried, each time for twice as long.
const TRIES: u32 = 3;
/// Passes before the hold, at most.
const PASSES: u32 = 4;
/// Changes that are few enough for the last pass.
const FEW: usize = 1_000;

/// A moment at which a process may be killed, for tests that do just that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Both sets of maps are pinned; the new tables are empty.
    Staged,
    /// All entries were copied once.
    Copied,
    /// The old tables are held.
    Held,
    /// The copies are exact.
    Exact,
    /// One link more runs the new program.
    SwitchedOne,
    /// All do, and no run of the old program is left.
    Switched,
    /// The new set of maps is the instance's.
    Exchanged,
}

/// Flows that a table of so many buckets is meant for.
pub fn flows_in(buckets: u32) -> u64 {
    u64::from(buckets) * u64::from(WAYS) * LOAD.0 / LOAD.1
}

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
    let complete = finish(pins, grace)?;
    let (held, capacity, instance) = shapes::open_pinned(&pins.maps())?;
    let mut refused = None;
    // Translations once begun stay: flows of a service that is gone from the configuration may still need them.
    let translates =
        |version| wanted.translates_flows_of(version) || capacity.translates_flows_of(version);
    let resized = Capacity {
        flow4_buckets: wanted.flow4_buckets,
        flow6_buckets: wanted.flow6_buckets,
        ..capacity
    }
    .translating_flows_of(IpVersion::V4, translates(IpVersion::V4))
    .translating_flows_of(IpVersion::V6, translates(IpVersion::V6));
    if resized != capacity {
        let mut resize = Resize {
            pins,
            grace,
            instance,
            held: &held,
            from: Prepared::with_maps(capacity, instance, &held)?.maps(),
            observe,
        };
        match resize.run(resized)? {
            Ok(loaded) => return Ok((loaded, None)),
            Err(reason) => refused = Some(reason),
        }
    }
    let loaded = match complete {
        Some(loaded) => loaded,
        None => Prepared::with_maps(capacity, instance, &held)?.load()?,
    };
    Ok((loaded, refused))
}

/// Completes what a killed process has left, if links run its new program; else removes its traces.
fn finish(pins: &Pins, grace: &GracePeriod) -> Result<Option<Loaded>, Error> {
    let staged = pins.staged();
    if !staged.join(names::FLOWS4).exists()
        || !attach::is_used(pins, shapes::pinned_id(&staged, names::FLOWS4)?)?
    {
        pins.discard_staged()?;
        return Ok(None);
    }
    tracing::warn!(
        "a resize of the flow tables was interrupted when its new program was in force already; completing it"
    );
    let (maps, capacity, instance) = shapes::open_pinned(&staged)?;
    let (old_maps, old_capacity, _) = shapes::open_pinned(&pins.maps())?;
    let old = Prepared::with_maps(old_capacity, instance, &old_maps)?.maps();
    let loaded = Prepared::with_maps(capacity, instance, &maps)?.load()?;
    attach::switch_all(pins, loaded.program_fd(), &mut || ())?;
    grace.wait();
    let mut copier = Copier::new(loaded)?;
    rescue(&old, &instance, &mut copier)?;
    pins.exchange_maps()?;
    pins.discard_staged()?;
    copier.into_loaded().map(Some)
}

/// A change of size under way.
struct Resize<'a> {
    pins: &'a Pins,
    grace: &'a GracePeriod,
    instance: Instance,
    /// The instance's maps, by name.
    held: &'a Opened,
    /// The same, as memory.
    from: Arc<Maps>,
    observe: &'a mut dyn FnMut(Step),
}

/// New tables that are exact copies, while the old ones are held.
struct Copy {
    copier: Copier,
    entries: u64,
    held_since_ns: u64,
    held_until_ns: u64,
}

impl Resize<'_> {
    /// The inner error: all is as it was.
    fn run(&mut self, capacity: Capacity) -> Result<Result<Loaded, Error>, Error> {
        let begun_ns = maps::now_ns();
        let copy = match self.copy(capacity) {
            Ok(copy) => copy,
            Err(error) => {
                self.hold_until(0);
                self.pins.discard_staged()?;
                return Ok(Err(error));
            }
        };
        let Copy {
            mut copier,
            entries,
            held_since_ns,
            held_until_ns,
        } = copy;
        attach::switch_all(self.pins, copier.loaded().program_fd(), &mut || {
            (self.observe)(Step::SwitchedOne);
        })?;
        self.grace.wait();
        (self.observe)(Step::Switched);
        let done_ns = maps::now_ns();
        if done_ns >= held_until_ns {
            rescue(&self.from, &self.instance, &mut copier)?;
        }
        self.pins.exchange_maps()?;
        (self.observe)(Step::Exchanged);
        self.pins.discard_staged()?;
        tracing::info!(
            from = flows_in(self.from.capacity.flow4_buckets),
            to = flows_in(capacity.flow4_buckets),
            from6 = flows_in(self.from.capacity.flow6_buckets),
            to6 = flows_in(capacity.flow6_buckets),
            entries,
            held_ms = (done_ns - held_since_ns) / 1_000_000,
            took_ms = (maps::now_ns() - begun_ns) / 1_000_000,
            "flow tables resized; no flow was lost"
        );
        copier.into_loaded().map(Ok)
    }

    /// Makes the new tables, the program for them, and an exact copy of all entries.
    fn copy(&mut self, capacity: Capacity) -> Result<Copy, Error> {
        let seed = self.instance.flow_seed;
        let v4 = fitting(&self.from, seed, &capacity)?;
        let v6 = fitting(&self.from, seed, &capacity)?;

        let maps = self.stage(&capacity)?;
        let prepared = Prepared::with_maps(capacity, self.instance, &maps)?;
        let to = prepared.maps();
        (self.observe)(Step::Staged);
        // The verifier needs a second or more, in which nothing is held yet.
        let mut copier = Copier::new(prepared.load()?)?;
        let now = maps::now();
        let entries = insert(&mut copier, v4.entries(now))? + insert(&mut copier, v6.entries(now))?;
        (self.observe)(Step::Copied);

        let mut mirrors = Mirrors { v4, v6 };
        for _ in 0..PASSES {
            if mirrors.pass(&to, seed, &mut copier)? <= FEW {
                break;
            }
        }
        for attempt in 0..TRIES {
            let hold = HOLD * 2u32.pow(attempt);
            let held_since_ns = maps::now_ns();
            let held_until_ns = held_since_ns + hold.as_nanos() as u64;
            self.hold_until(held_until_ns);
            self.grace.wait();
            (self.observe)(Step::Held);
            mirrors.pass(&to, seed, &mut copier)?;
            // Enough has to be left for the switch.
            if maps::now_ns() < held_until_ns - hold.as_nanos() as u64 / 2 {
                (self.observe)(Step::Exact);
                return Ok(Copy {
                    copier,
                    entries,
                    held_since_ns,
                    held_until_ns,
                });
            }
            tracing::warn!(
                held_ms = hold.as_millis() as u64,
                "this machine is too busy to copy what changed of the flow tables in the time that they can be held; trying again"
            );
        }
        Err(Error::TooBusy)
    }

    /// Makes the new tables, and pins them aside together with all else.
    fn stage(&self, capacity: &Capacity) -> Result<Opened, Error> {
        let mut maps = create_tables(capacity)?;
        for (name, map) in self.held {
            if !maps.contains_key(name) {
                let map = map.try_clone().map_err(shapes::refused_call(
                    "keeping a map of the instance for its new tables",
                ))?;
                maps.insert(name, map);
            }
        }
        let staging = self.pins.stage_maps()?;
        for (name, map) in &maps {
            let path = staging.join(name);
            bpf::pin(map.as_fd(), &path).map_err(Error::file(&path, "pinning a map"))?;
        }
        Ok(maps)
    }

    fn hold_until(&self, until_ns: u64) {
        self.from.hold.word(0, 0).store(until_ns, Ordering::SeqCst);
    }
}

/// The images of both tables.
struct Mirrors {
    v4: Mirror<v4::Key>,
    v6: Mirror<v6::Key>,
}

impl Mirrors {
    /// Copies what has changed. Gives the number of keys for which something had.
    fn pass(&mut self, to: &Maps, seed: Seed, copier: &mut Copier) -> Result<usize, Error> {
        Ok(pass(&mut self.v4, to, seed, copier)? + pass(&mut self.v6, to, seed, copier)?)
    }
}

/// An image of a table whose entries have room in one of this capacity.
fn fitting<K: TableKey>(
    from: &Arc<Maps>,
    seed: Seed,
    capacity: &Capacity,
) -> Result<Mirror<K>, Error> {
    let mut mirror = Mirror::new(from.clone(), seed);
    mirror.refresh();
    let in_use = mirror.entries(maps::now()).count() as u64;
    let room = flows_in(capacity.flow_buckets(K::VERSION));
    if in_use > room {
        return Err(Error::TooSmall {
            limit: Limits::flows_key(K::VERSION),
            in_use,
            room,
        });
    }
    Ok(mirror)
}

/// Copies what has changed of one table. Gives the number of keys for which something had.
fn pass<K: TableKey>(
    mirror: &mut Mirror<K>,
    to: &Maps,
    seed: Seed,
    copier: &mut Copier,
) -> Result<usize, Error> {
    let changed = mirror.refresh();
    for key in &changed {
        remove(to, &seed, *key);
    }
    let now = maps::now();
    let entries = changed.iter().flat_map(|key| mirror.of(*key, now));
    insert(copier, entries)?;
    Ok(changed.len())
}

/// Copies entries, all of them. Gives their number.
fn insert<K: TableKey>(
    copier: &mut Copier,
    entries: impl Iterator<Item = Traveller<K>>,
) -> Result<u64, Error> {
    let copied = copier.insert(entries, Kind::Copy)?;
    match copied.homeless {
        0 => Ok(copied.done),
        homeless => Err(Error::NoPlace {
            limit: Limits::flows_key(K::VERSION),
            homeless,
        }),
    }
}

/// Copies entries that the old program has recorded after the hold of its tables had ended, and that the new tables lack; nobody writes the old
/// ones any more.
///
/// What else it has written since is of no weight: no flow depends on it.
fn rescue(old: &Arc<Maps>, instance: &Instance, copier: &mut Copier) -> Result<(), Error> {
    rescue_from::<v4::Key>(old, instance, copier)?;
    rescue_from::<v6::Key>(old, instance, copier)
}

fn rescue_from<K: TableKey>(
    old: &Arc<Maps>,
    instance: &Instance,
    copier: &mut Copier,
) -> Result<(), Error> {
    let until_ns = old.hold.word(0, 0).load(Ordering::SeqCst);
    let (since, now) = (Tick::from_ns(until_ns), maps::now());
    let mut mirror = Mirror::<K>::new(old.clone(), instance.flow_seed);
    mirror.refresh();
    let ticks = now.0.wrapping_sub(since.0);
    let late = mirror
        .entries(now)
        .filter(|traveller| age(traveller.word, now) <= ticks);
    let copied = copier.insert(late, Kind::Rescue)?;
    if copied.done > 0 || copied.homeless > 0 {
        tracing::warn!(
            copied.done,
            copied.homeless,
            version = K::VERSION as u32,
            "flows that began while the flow tables were being switched were copied afterwards"
        );
    }
    Ok(())
}

fn age(word: Word, now: Tick) -> u32 {
    if word.is_nascent() {
        word.nascent_age(now)
    } else {
        word.age(now)
    }
}
