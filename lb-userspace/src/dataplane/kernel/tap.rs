//! A program that watches, in the place of the one that runs otherwise, and back; and programs that guard services, in the place of such that do not.
//!
//! All are of the same object and the same maps: they do the same with every packet (but for guards, if they know of none), and a packet that meets a part
//! of the one and a part of the other is steered all the same. So the links are switched while traffic goes on, each atomically, as an upgrade does.
//!
//! A daemon that is killed meanwhile leaves the program that watches, which goes on forwarding. It tells nobody anything once the listeners' time is
//! over ([`lb_common::watch::Filter::until_ns`]), and the next start puts its own program in its place, as it does with every other.

use std::{
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aya::{
    EbpfError,
    maps::{Map, MapData, RingBuf},
};
use lb_common::{
    maps::{self as names, Instance},
    watch::{Filter, LISTENERS, Record},
};

use super::{
    attach::{self, Attached, Seen},
    bpf::{self, Link},
    error::Error,
    grace::GracePeriod,
    load::{Loaded, Prepared},
    pins::Pins,
    runs::{self, Runs},
    shapes::{self, Opened, refused_call},
};
use crate::{
    chain::chain,
    dataplane::{array::Array, maps::Capacity},
};

/// What puts programs in the place of those that run.
#[derive(Debug)]
pub struct Tap {
    pins: Arc<Pins>,
    grace: Arc<GracePeriod>,
    maps: Opened,
    instance: Instance,
    running: Mutex<Running>,
}

/// What runs.
#[derive(Debug)]
struct Running {
    /// What the programs were loaded for.
    capacity: Capacity,
    /// Those that run unless somebody watches.
    usual: Usual,
    /// Those that watch, while they are in their places, with the maps that they have for that.
    watching: Option<(Loaded, Opened)>,
    /// The links, by their interfaces: see [`attach::hold`].
    held: Vec<(String, Link)>,
}

/// Programs that do not watch.
#[derive(Debug)]
struct Usual {
    program: OwnedFd,
    /// Those that it hands packets on to.
    handed_on_to: Vec<(u32, OwnedFd)>,
}

impl Usual {
    fn of(loaded: &Loaded) -> Result<Self, Error> {
        let keep = |fd: BorrowedFd<'_>| {
            fd.try_clone_to_owned()
                .map_err(refused_call("keeping a program open"))
        };
        let mut handed_on_to = Vec::new();
        for (index, name, program) in loaded.handed_on_to() {
            let program = program.fd().map_err(|error| Error::program(name, error))?;
            handed_on_to.push((index, keep(program.as_fd())?));
        }
        Ok(Self {
            program: keep(loaded.program_fd())?,
            handed_on_to,
        })
    }
}

impl Running {
    /// The program on the links.
    fn program(&self) -> BorrowedFd<'_> {
        match &self.watching {
            Some((loaded, _)) => loaded.program_fd(),
            None => self.usual.program.as_fd(),
        }
    }
}

/// What a program that watches is told and tells.
pub struct Tapped {
    /// Who listens, and to what: [`LISTENERS`] of them.
    pub listeners: Array<Filter>,
    /// The packets on their way, by CPU.
    pub records: Array<Record>,
    /// What listeners are told.
    pub told: RingBuf<MapData>,
}

impl Tap {
    pub(super) fn new(
        loaded: &Loaded,
        pins: Arc<Pins>,
        grace: Arc<GracePeriod>,
    ) -> Result<Self, Error> {
        let mut maps = loaded.keep_maps()?;
        let capacity = loaded.maps().capacity;
        // The programs know nothing of it, but a set of maps has one.
        maps.extend(shapes::create_some(&capacity, &[names::INSTANCE])?);
        Ok(Self {
            pins,
            grace,
            maps,
            instance: loaded.instance(),
            running: Mutex::new(Running {
                capacity,
                usual: Usual::of(loaded)?,
                watching: None,
                held: Vec::new(),
            }),
        })
    }

    /// Puts the program that watches in its place, on all interfaces. The kernel's verifier takes a second or more for it. Nobody listens yet.
    ///
    /// # Errors
    /// When the kernel refuses it; then all is as it was.
    pub fn open(&self) -> Result<Tapped, Error> {
        let mut running = self.running();
        let capacity = running.capacity;
        let watch = shapes::create_watch(capacity.cpus)?;
        let tapped = Tapped::of(&watch, capacity.cpus)?;
        let prepared = Prepared::watching(capacity, self.instance, &self.maps, &watch)?;
        let switched = prepared.load().and_then(|loaded| {
            attach::switch_all(&self.pins, loaded.program_fd(), &mut || ())?;
            Ok(loaded)
        });
        match switched {
            Ok(loaded) => running.watching = Some((loaded, watch)),
            Err(error) => {
                if let Err(error) = self.put_back(&running.usual) {
                    tracing::error!(
                        error = chain(&error),
                        "a program that watches stays in its place, and tells nobody anything"
                    );
                }
                return Err(error);
            }
        }
        Ok(tapped)
    }

    /// Puts the program that runs otherwise back.
    ///
    /// # Errors
    /// When the kernel refuses that; it can be tried again.
    pub fn close(&self) -> Result<(), Error> {
        let mut running = self.running();
        if running.watching.is_some() {
            self.put_back(&running.usual)?;
            self.grace.wait();
            running.watching = None;
        }
        Ok(())
    }

    /// Has services guarded from now on: puts programs that do so in the place of those that do not, if these run. The kernel's verifier takes some
    /// seconds for them, in which everything goes on as before.
    ///
    /// # Errors
    /// When the kernel refuses them; it can be tried again.
    pub fn guard(&self) -> Result<(), Error> {
        let mut running = self.running();
        if running.capacity.guards {
            return Ok(());
        }
        let capacity = running.capacity.guarding(true);
        let usual = Prepared::with_maps(capacity, self.instance, &self.maps)?.load()?;
        let usual = Usual::of(&usual)?;
        // Whoever listens goes on to hear.
        let watching = match &running.watching {
            None => None,
            Some((before, watch)) => {
                let prepared = Prepared::watching(capacity, self.instance, &self.maps, watch);
                match prepared.and_then(Prepared::load) {
                    Ok(loaded) => Some(loaded),
                    Err(error) => {
                        before.connect()?;
                        return Err(error);
                    }
                }
            }
        };
        running.capacity = capacity;
        running.usual = usual;
        if let (Some(loaded), Some(held)) = (watching, &mut running.watching) {
            held.0 = loaded;
        }
        let switched = attach::switch_all(&self.pins, running.program(), &mut || ());
        if switched.is_err() {
            // Some links may have it: the next attempt begins anew, and comes to the same.
            running.capacity = capacity.guarding(false);
        }
        switched
    }

    /// Attaches the program that is to run now, as [`attach::attach_all`] does.
    pub(super) fn attach(&self, interfaces: &[String]) -> Result<Vec<Attached>, Error> {
        self.attach_by(|program| attach::attach_all(&self.pins, program, interfaces))
    }

    /// The same where it is not, as [`attach::attach_each`] does.
    pub(super) fn attach_each(&self, interfaces: &[String]) -> Result<Vec<(String, Seen)>, Error> {
        self.attach_by(|program| attach::attach_each(&self.pins, program, interfaces))
    }

    fn attach_by<T>(
        &self,
        attach: impl FnOnce(BorrowedFd<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut running = self.running();
        attach::pin_again(&self.pins, running.program(), &running.held)?;
        let attached = attach(running.program())?;
        running.held = attach::hold(&self.pins)?;
        Ok(attached)
    }

    /// The runs of the program that runs unless somebody watches, since it was loaded; none while the kernel counts none, or while it is replaced.
    pub fn runs(&self) -> Option<Runs> {
        let running = self.running.try_lock().ok()?;
        runs::counted(running.usual.program.as_fd())
    }

    fn put_back(&self, usual: &Usual) -> Result<(), Error> {
        let programs = self.maps[names::PROGRAMS].as_fd();
        for (index, program) in &usual.handed_on_to {
            bpf::set_program(programs, *index, program.as_fd()).map_err(refused_call(
                "putting an XDP program back in its place, that packets are handed on to",
            ))?;
        }
        attach::switch_all(&self.pins, usual.program.as_fd(), &mut || ())
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        // Nothing panics while it is held.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tapped {
    fn of(watch: &Opened, cpus: u32) -> Result<Self, Error> {
        Ok(Self {
            listeners: memory(watch, names::LISTENERS, LISTENERS)?,
            records: memory(watch, names::RECORDS, cpus)?,
            told: ring(watch)?,
        })
    }

    /// Loads programs that watch, with maps of their own, without pinning anything. For test runs.
    ///
    /// # Errors
    /// When the kernel refuses a map or a program.
    pub fn private(capacity: Capacity, instance: Instance) -> Result<(Loaded, Self), Error> {
        let maps = shapes::create_maps(&capacity)?;
        let watch = shapes::create_watch(capacity.cpus)?;
        let tapped = Self::of(&watch, capacity.cpus)?;
        let prepared = Prepared::watching(capacity, instance, &maps, &watch)?;
        Ok((prepared.load()?, tapped))
    }
}

fn memory<T: crate::dataplane::array::Entry>(
    maps: &Opened,
    name: &str,
    entries: u32,
) -> Result<Array<T>, Error> {
    Array::of_map(maps[name].as_fd(), entries)
        .map_err(|errno| refused_call("mapping the memory of listeners")(errno.into()))
}

fn ring(maps: &Opened) -> Result<RingBuf<MapData>, Error> {
    let refused = |source| Error::Load {
        what: "the ring buffer of what listeners are told",
        source: Box::new(EbpfError::MapError(source)),
    };
    let fd = maps[names::TOLD]
        .try_clone()
        .map_err(refused_call("keeping a map open"))?;
    let data = MapData::from_fd(fd).map_err(refused)?;
    RingBuf::try_from(Map::RingBuf(data)).map_err(refused)
}
