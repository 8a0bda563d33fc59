//! Flow tables that give way to others, without a flow lost: the engine of resizing ([`super::resize`]) and of migrating ([`super::migrate`]).
//!
//! Both tables are replaced together, those of IPv4 and of IPv6, also where only one changes: there is one program, and one hold.
//!
//! 1. A second set of maps is pinned aside. The program is loaded for it.
//! 2. Entries are copied while the old program goes on, in passes, each of which copies what has changed since the one before.
//! 3. The old tables are held ([`lb_common::maps::Hold`]): everything is forwarded, nothing is written. After a grace period the last pass makes the
//!    copies exact. That takes milliseconds.
//! 4. All links are switched to the new program, each atomically. From its first packet on it knows every flow. A packet that still meets the old one
//!    is forwarded to the same backend, and writes nothing.
//! 5. After a grace period nobody has the old table any more. The two sets of maps change places, in one step, and the old one goes.
//!
//! Established flows are forwarded all the time. A flow that begins during 3 is forwarded unrecorded, and adopted with its next packet (its
//! backend is the same: nothing changes the tables meanwhile, since this runs before the reconciler does), but in modes `nat` and `dnat` and to
//! backends on this host, where its SYN is dropped and comes again, since nothing could be translated back; a segment that ends a flow, or is the answer
//! to its SYN, is dropped then too, and TCP sends it again.
//!
//! The process may be killed anywhere. A hold ends by itself. Which of two sets of maps is the instance's is told by the program that the links
//! run: as long as none runs the new one, the next start removes the new set and begins anew; once one does, the next start completes
//! what is left. And should a hold have ended before the switch was complete, because this process was stopped for so long, or killed, what the old
//! program has recorded since is copied too ([`super::rescue`]).
//!
//! Until then one link may run the new program and another the old one. Flows that were there before go on, whichever way their packets come: both
//! know them. So do those that begin, if all their packets come one way. If their two sides' packets come by two such links, as may be in modes `nat` and `dnat`,
//! they cannot begin: the host resets what is not known on the other, and the client sends its SYN again until all links run one program.
//!
//! The same is so of flows to backends on this host while their replies are translated by the new maps and no link runs the new program. Then the old
//! maps are the instance's still, and hold all that the data path has recorded: the next start discards the new ones, and first of all has replies
//! translated by those again ([`super::resize::open`]), or by yet others, if it moves the flows once more.

use std::{
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use lb_common::{
    flow::{
        bucket::{LOAD, WAYS},
        copy::Kind,
        v4, v6,
    },
    hash::Seed,
    maps::Instance,
};

use super::{
    attach, bpf,
    copier::{Copier, Traveller},
    error::Error,
    grace::GracePeriod,
    load::{Loaded, Prepared},
    local,
    mirror::{Mirror, remove},
    pins::Pins,
    rescue,
    shapes::Opened,
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
    /// What translates replies of backends on this host does so by the new maps; no link runs the new program yet.
    RepliesSwitched,
    /// One link more runs the new program.
    SwitchedOne,
    /// All do, and no run of the old program is left.
    Switched,
    /// The new set of maps is the instance's.
    Exchanged,
}

/// Where flows come from: the maps that the instance has.
pub(super) trait Origin {
    /// The flow tables, as this version lays them out.
    fn maps(&self) -> &Arc<Maps>;

    /// Whether an entry is in these tables where this version looks for it.
    fn is_of_this_version(&self) -> bool;

    /// Brings [`Origin::maps`] up to date.
    fn refresh(&self) -> Result<(), Error>;

    /// Where the program that is in force reads until when it writes nothing.
    fn hold(&self) -> &AtomicU64;

    /// Has it write nothing until then.
    fn hold_until(&self, until_ns: u64) {
        self.hold().store(until_ns, Ordering::SeqCst);
    }

    /// Until when it writes nothing.
    fn held_until(&self) -> u64 {
        self.hold().load(Ordering::SeqCst)
    }

    /// The maps of the new set: the flow tables empty, all else as it is here.
    fn stage(&self, capacity: &Capacity) -> Result<Opened, Error>;

    /// Copies what the program has written to its end, once it runs no more.
    fn conclude(&self, to: &Maps) -> Result<(), Error>;
}

/// Flows that a table of so many buckets is meant for.
pub fn flows_in(buckets: u32) -> u64 {
    u64::from(buckets) * u64::from(WAYS) * LOAD.0 / LOAD.1
}

/// A transfer under way.
pub(super) struct Transfer<'a> {
    pub(super) pins: &'a Pins,
    pub(super) grace: &'a GracePeriod,
    pub(super) instance: Instance,
    pub(super) origin: &'a dyn Origin,
    pub(super) observe: &'a mut dyn FnMut(Step),
}

/// New tables that are exact copies, while the old ones are held.
struct Copy {
    copier: Copier,
    entries: u64,
    held_since_ns: u64,
    held_until_ns: u64,
}

impl Transfer<'_> {
    /// The inner error: all is as it was.
    pub(super) fn run(&mut self, capacity: Capacity) -> Result<Result<Loaded, Error>, Error> {
        let begun_ns = maps::now_ns();
        let copy = match self.copy(capacity) {
            Ok(copy) => copy,
            Err(error) => {
                self.origin.hold_until(0);
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
        self.pins.stage_program(copier.loaded().program_fd())?;
        // What comes back of a flow is told by the table that its first packet was recorded in: so this one first.
        local::switch_all(self.pins, copier.loaded().local_reply_fd())?;
        (self.observe)(Step::RepliesSwitched);
        attach::switch_all(self.pins, copier.loaded().program_fd(), &mut || {
            (self.observe)(Step::SwitchedOne);
        })?;
        self.grace.wait();
        (self.observe)(Step::Switched);
        let done_ns = maps::now_ns();
        if done_ns >= held_until_ns {
            rescue::rescue(self.origin, &self.instance, &mut copier)?;
        }
        self.origin.conclude(&copier.loaded().maps())?;
        self.pins.exchange_maps()?;
        (self.observe)(Step::Exchanged);
        self.pins.discard_staged()?;
        self.pins.discard_programs()?;
        let from = self.origin.maps().capacity;
        tracing::info!(
            from = flows_in(from.flow4_buckets),
            to = flows_in(capacity.flow4_buckets),
            from6 = flows_in(from.flow6_buckets),
            to6 = flows_in(capacity.flow6_buckets),
            entries,
            held_ms = (done_ns - held_since_ns) / 1_000_000,
            took_ms = (maps::now_ns() - begun_ns) / 1_000_000,
            "flow tables {}; no flow was lost",
            if self.origin.is_of_this_version() {
                "resized"
            } else {
                "migrated"
            }
        );
        copier.into_loaded().map(Ok)
    }

    /// Makes the new tables, the program for them, and an exact copy of all entries.
    fn copy(&mut self, capacity: Capacity) -> Result<Copy, Error> {
        let seed = self.instance.flow_seed;
        self.origin.refresh()?;
        let v4 = fitting(self.origin, seed, &capacity)?;
        let v6 = fitting(self.origin, seed, &capacity)?;

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
            if mirrors.pass(self.origin, &to, seed, &mut copier)? <= FEW {
                break;
            }
        }
        for attempt in 0..TRIES {
            let hold = HOLD * 2u32.pow(attempt);
            let held_since_ns = maps::now_ns();
            let held_until_ns = held_since_ns + hold.as_nanos() as u64;
            self.origin.hold_until(held_until_ns);
            self.grace.wait();
            (self.observe)(Step::Held);
            mirrors.pass(self.origin, &to, seed, &mut copier)?;
            // Enough has to be left for the switch.
            if maps::now_ns() < held_until_ns - hold.as_nanos() as u64 / 2 {
                to.mark_ports();
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

    /// Makes the new set of maps, and pins it aside.
    fn stage(&self, capacity: &Capacity) -> Result<Opened, Error> {
        let maps = self.origin.stage(capacity)?;
        let staging = self.pins.stage_maps()?;
        for (name, map) in &maps {
            let path = staging.join(name);
            bpf::pin(map.as_fd(), &path).map_err(Error::file(&path, "pinning a map"))?;
        }
        Ok(maps)
    }
}

/// The images of both tables.
struct Mirrors {
    v4: Mirror<v4::Key>,
    v6: Mirror<v6::Key>,
}

impl Mirrors {
    /// Copies what has changed. Gives the number of keys for which something had.
    fn pass(
        &mut self,
        from: &dyn Origin,
        to: &Maps,
        seed: Seed,
        copier: &mut Copier,
    ) -> Result<usize, Error> {
        from.refresh()?;
        Ok(pass(&mut self.v4, to, seed, copier)? + pass(&mut self.v6, to, seed, copier)?)
    }
}

/// An image of a table whose entries have room in one of this capacity.
fn fitting<K: TableKey>(
    from: &dyn Origin,
    seed: Seed,
    capacity: &Capacity,
) -> Result<Mirror<K>, Error> {
    let mut mirror = Mirror::new(from.maps().clone(), seed, from.is_of_this_version());
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
    insert(copier, mirror.of(&changed, now))?;
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
