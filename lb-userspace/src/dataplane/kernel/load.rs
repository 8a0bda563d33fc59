//! Program and maps: the object is read, given its maps, and taken by the kernel.

mod programs;

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::Arc,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Map, MapData, RingBuf},
    programs::{SchedClassifier, Xdp},
};
use lb_common::{
    flow::copy::{BATCH, Order},
    maps::{self as names, Constants, Instance, default},
    net::IpVersion,
};

use self::programs::{
    handed_on_to, is_local, load_program, load_programs, no_array, program_of, put,
};
use super::{
    error::Error,
    shapes::{self, Opened, create_maps, refused_call},
};
use crate::{
    chain::chain,
    dataplane::{
        array::Array,
        maps::{Capacity, Maps, Measured},
    },
    failpoint, objects,
};

/// The program, loaded, and its maps.
#[derive(Debug)]
pub struct Loaded(Prepared);

/// Maps in the kernel, and a program that it has not been asked to take yet: its verifier needs a second or more for that.
#[derive(Debug)]
pub struct Prepared {
    ebpf: Ebpf,
    maps: Arc<Maps>,
    instance: Instance,
    /// Why the kernel has not taken the programs for backends on this host, if it has not.
    no_local: Option<String>,
    /// Whether the program that counts what clients send again comes first. Not if the kernel has not taken it.
    measures: bool,
}

/// Lets aya put [`Constants`] into the object.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct ConstantsData(Constants);
// SAFETY: integers only, without padding: see the layout's definition.
unsafe impl aya::Pod for ConstantsData {}

impl Loaded {
    /// Loads program and maps without pinning anything: they live as long as this value. For test runs.
    ///
    /// # Errors
    /// When the kernel refuses a map or the program.
    pub fn private(capacity: Capacity, instance: Instance) -> Result<Self, Error> {
        let prepared = Prepared::with_maps(capacity, instance, &create_maps(&capacity)?)?;
        prepared.maps.instance.set(0, &prepared.instance);
        prepared.load()
    }

    /// The maps, as memory.
    pub fn maps(&self) -> Arc<Maps> {
        self.0.maps()
    }

    /// Seeds and version.
    pub fn instance(&self) -> Instance {
        self.0.instance
    }

    /// The program that steers.
    ///
    /// # Panics
    /// Never: loading has found it.
    pub fn program(&self) -> &Xdp {
        program_of(&self.0.ebpf, names::PROGRAM)
    }

    /// The program that packets come to first: that, or the one which counts what clients send again and hands them on to it.
    ///
    /// # Panics
    /// Never: loading has found it.
    pub fn entry(&self) -> &Xdp {
        program_of(
            &self.0.ebpf,
            if self.0.measures {
                names::MEASURE_PROGRAM
            } else {
                names::PROGRAM
            },
        )
    }

    /// The file descriptor of [`Loaded::entry`].
    ///
    /// # Panics
    /// Never: the program is loaded.
    pub fn program_fd(&self) -> BorrowedFd<'_> {
        self.entry().fd().expect("the program is loaded").as_fd()
    }

    /// The program that translates what backends on this host send back, on egress.
    ///
    /// # Errors
    /// Why the kernel has not taken it.
    ///
    /// # Panics
    /// Never: the object has it.
    pub fn local_reply(&self) -> Result<&SchedClassifier, &str> {
        if let Some(reason) = &self.0.no_local {
            return Err(reason);
        }
        let program = self.0.ebpf.program(names::LOCAL_REPLY_PROGRAM);
        Ok(program
            .and_then(|program| program.try_into().ok())
            .expect("the program was loaded under this name"))
    }

    /// The descriptor of that program.
    ///
    /// # Errors
    /// Why the kernel has not taken it.
    ///
    /// # Panics
    /// Never: the program is loaded.
    pub fn local_reply_fd(&self) -> Result<BorrowedFd<'_>, &str> {
        let program = self.local_reply()?;
        Ok(program.fd().expect("the program is loaded").as_fd())
    }

    /// The programs that packets are handed on to, with their indices in [`names::PROGRAMS`]: those that translate only if the maps have room
    /// for that, those that guard only if services are to be guarded, those for backends on this host only if the kernel has taken all of them, and the
    /// one that steers only if another comes before it.
    ///
    /// # Panics
    /// Never: loading has found them.
    pub fn handed_on_to(&self) -> impl Iterator<Item = (u32, &'static str, &Xdp)> {
        let has_local = self.0.no_local.is_none();
        let main = self
            .0
            .measures
            .then_some((names::MAIN_INDEX, names::PROGRAM));
        handed_on_to(&self.0.maps.capacity)
            .filter(move |(index, _)| has_local || !is_local(*index))
            .chain(main)
            .map(|(index, name)| (index, name, program_of(&self.0.ebpf, name)))
    }

    /// Puts the programs that packets are handed on to in their places. A program of the same maps that runs already hands packets on to these from now
    /// on, which do the same with them.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn connect(&self) -> Result<(), Error> {
        let programs = self.map_fd(names::PROGRAMS).ok_or_else(no_array)?;
        for (index, _, program) in self.handed_on_to() {
            failpoint::pass(failpoint::Place::ProgramMissing);
            put(programs, index, program)?;
        }
        Ok(())
    }

    /// Loads the program that inserts entries for the daemon too. Gives the memory of its orders.
    ///
    /// # Errors
    /// When the kernel refuses the program or the map of its orders.
    pub fn load_copy_program(&mut self) -> Result<Array<Order>, Error> {
        let map = shapes::create_orders()?;
        stand_in(&self.0.ebpf, names::COPIES, map.as_fd())?;
        load_program(&mut self.0.ebpf, names::COPY_PROGRAM)?;
        Array::of_map(map.as_fd(), BATCH)
            .map_err(|errno| refused_call("mapping the memory of orders")(errno.into()))
    }

    /// That program, once it is loaded.
    pub fn copy_program(&self) -> Option<&Xdp> {
        let program: &Xdp = self.0.ebpf.program(names::COPY_PROGRAM)?.try_into().ok()?;
        program.fd().is_ok().then_some(program)
    }

    /// Unloads that program.
    ///
    /// # Errors
    /// When it is not loaded.
    pub fn unload_copy_program(&mut self) -> Result<(), Error> {
        let refused = |error| Error::program("the program that copies flows", error);
        let program: &mut Xdp = self
            .0
            .ebpf
            .program_mut(names::COPY_PROGRAM)
            .ok_or_else(|| foreign_object("the object has no XDP program of that name"))?
            .try_into()
            .map_err(refused)?;
        program.unload().map_err(refused)
    }

    /// Hands on what the program logs, for as long as the future is polled. To be asked for once, after loading.
    ///
    /// # Errors
    /// When the program was built without anything to log.
    #[cfg(feature = "log")]
    pub fn log(&mut self) -> Result<impl Future<Output = io::Result<()>> + use<>, aya_log::Error> {
        use tokio::io::{Interest, unix::AsyncFd};

        let logger = aya_log::EbpfLogger::init(&mut self.0.ebpf)?;
        Ok(async move {
            // SAFETY: the descriptor is the ring buffer's, which the logger owns and never replaces.
            let logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) };
            let mut logger = logger.map_err(io::Error::from)?;
            loop {
                let mut readable = logger.readable_mut().await?;
                readable.get_inner_mut().flush();
                readable.clear_ready();
            }
        })
    }

    /// What the program tells the daemon: [`names::NOTICES`]. To be asked for once.
    ///
    /// # Errors
    /// When its memory cannot be mapped, or it was asked for before.
    pub fn take_notices(&mut self) -> Result<RingBuf<MapData>, Error> {
        let map = self
            .0
            .ebpf
            .take_map(names::NOTICES)
            .ok_or_else(|| foreign_object("the object lacks the map of notices"))?;
        RingBuf::try_from(map).map_err(|source| Error::Load {
            what: "the map of notices",
            source: Box::new(EbpfError::MapError(source)),
        })
    }

    /// The device map [`names::EGRESS`].
    ///
    /// # Panics
    /// Never: loading has given the program this map.
    pub fn egress_fd(&self) -> BorrowedFd<'_> {
        self.map_fd(names::EGRESS)
            .expect("the program was loaded with this map")
    }

    /// The instance's maps by name, kept open, but for [`names::INSTANCE`], and those of what is measured. To be asked for before [`Loaded::take_notices`].
    ///
    /// # Errors
    /// When there are no file descriptors left.
    pub(super) fn keep_maps(&self) -> Result<Opened, Error> {
        let keep = refused_call("keeping a map open");
        let measured = names::OF_MEASURING
            .into_iter()
            .filter(|_| self.0.maps.measured.is_some());
        let maps: io::Result<Opened> = names::ALL
            .into_iter()
            .chain(measured)
            .filter_map(|name| Some((name, self.map_fd(name)?)))
            .map(|(name, map)| Ok((name, map.try_clone_to_owned()?)))
            .collect();
        maps.map_err(keep)
    }

    /// The file descriptor of a map of the program, by its name in [`lb_common::maps`] or by its section in the object.
    pub fn map_fd(&self, name: &str) -> Option<BorrowedFd<'_>> {
        map_fd(&self.0.ebpf, name)
    }
}

impl Prepared {
    /// The maps, as memory.
    pub fn maps(&self) -> Arc<Maps> {
        Arc::clone(&self.maps)
    }

    /// Seeds and version.
    pub fn instance(&self) -> Instance {
        self.instance
    }

    /// Has the kernel verify and take the program.
    ///
    /// # Errors
    /// When it refuses.
    pub fn load(mut self) -> Result<Loaded, Error> {
        let handed_on_to: Vec<_> = handed_on_to(&self.maps.capacity).collect();
        let names: Vec<_> = [names::PROGRAM]
            .into_iter()
            .chain(handed_on_to.iter().map(|(_, name)| *name))
            .chain([names::LOCAL_REPLY_PROGRAM])
            .chain(self.measures.then_some(names::MEASURE_PROGRAM))
            .collect();
        for (name, loaded) in load_programs(&mut self.ebpf, &names) {
            let Err(error) = loaded else { continue };
            if name == names::MEASURE_PROGRAM {
                // All else goes on, and no backend is held to be an outlier.
                tracing::warn!(
                    "what clients send again cannot be counted: {}",
                    chain(&error)
                );
                self.measures = false;
                // Who has the maps already sees that nothing is ever counted.
                if let Some(maps) = Arc::get_mut(&mut self.maps) {
                    maps.measured = None;
                }
                continue;
            }
            let is_local = name == names::LOCAL_REPLY_PROGRAM
                || handed_on_to
                    .iter()
                    .any(|(index, other)| *other == name && is_local(*index));
            if !is_local {
                return Err(error);
            }
            self.no_local.get_or_insert_with(|| chain(&error));
        }
        // Without them all goes on but for those backends, which say why.
        if let Some(reason) = &self.no_local {
            tracing::warn!("backends on this host cannot be served: {reason}");
        }
        let loaded = Loaded(self);
        loaded.connect()?;
        Ok(loaded)
    }

    /// Has the kernel verify and take those programs that packets of one version of IP meet.
    ///
    /// # Errors
    /// When it refuses.
    pub(super) fn load_for(mut self, version: IpVersion) -> Result<Loaded, Error> {
        let of_version: Vec<_> = handed_on_to(&self.maps.capacity)
            .filter(|(_, name)| name.ends_with(char::from(b'0' + version as u8)))
            .collect();
        let names: Vec<_> = [names::PROGRAM]
            .into_iter()
            .chain(of_version.iter().map(|(_, name)| *name))
            .collect();
        let loaded = load_programs(&mut self.ebpf, &names);
        for (name, loaded) in loaded {
            let Some((index, _)) = of_version.iter().find(|(_, other)| *other == name) else {
                loaded?;
                continue;
            };
            if loaded.is_err() && is_local(*index) {
                continue;
            }
            loaded?;
            let program = program_of(&self.ebpf, name);
            let programs = map_fd(&self.ebpf, names::PROGRAMS).ok_or_else(no_array)?;
            put(programs, *index, program)?;
        }
        Ok(Loaded(self))
    }

    /// Reads the object, and gives it these maps.
    pub(super) fn with_maps(
        capacity: Capacity,
        instance: Instance,
        opened: &Opened,
    ) -> Result<Self, Error> {
        Self::with_constants(constants(capacity, &instance), capacity, instance, opened)
    }

    /// The same for programs that watch, with what [`shapes::create_watch`] makes.
    pub(super) fn watching(
        capacity: Capacity,
        instance: Instance,
        opened: &Opened,
        watch: &Opened,
    ) -> Result<Self, Error> {
        let constants = Constants {
            watches: 1,
            ..constants(capacity, &instance)
        };
        let prepared = Self::with_constants(constants, capacity, instance, opened)?;
        for (name, map) in watch {
            stand_in(&prepared.ebpf, name, map.as_fd())?;
        }
        Ok(prepared)
    }

    fn with_constants(
        constants: Constants,
        capacity: Capacity,
        instance: Instance,
        opened: &Opened,
    ) -> Result<Self, Error> {
        let constants = ConstantsData(constants);
        let mut loader = EbpfLoader::new();
        loader.override_global(names::CONSTANTS, &constants, true);
        let ebpf = loader.load(objects::TETHER).map_err(refused("the maps"))?;
        let own = if capacity.measures && !opened.contains_key(names::REPEATS) {
            shapes::create_measure(&capacity)?
        } else {
            Opened::new()
        };
        let of_programs = opened
            .iter()
            .chain(&own)
            .filter(|(name, _)| !names::OF_DAEMON.contains(name));
        for (name, map) in of_programs {
            stand_in(&ebpf, name, map.as_fd())?;
        }
        let mapped = |errno: nix::Error| refused_call("mapping the maps' memory")(errno.into());
        let mut maps = Maps::of_kernel(capacity, |name| opened[name].as_fd()).map_err(mapped)?;
        if capacity.measures {
            let map = |name: &'static str| own.get(name).unwrap_or_else(|| &opened[name]).as_fd();
            maps.measured = Some(Measured::of_kernel(&capacity, map).map_err(mapped)?);
        }
        Ok(Self {
            ebpf,
            maps: Arc::new(maps),
            instance,
            no_local: None,
            measures: capacity.measures,
        })
    }
}

/// Puts a map in the place of the one that aya has made of the object's section, or of its definition.
///
/// The sections are sized for nothing, since the object does not know how large a map is, and aya knows no way to say so; and what is
/// defined is to be the pinned one. But the instructions name a map by the number of its descriptor, which the kernel looks up when it is
/// asked to take the program: so what has that number by then is the program's map.
fn stand_in(ebpf: &Ebpf, name: &str, map: BorrowedFd<'_>) -> Result<(), Error> {
    let placeholder = map_fd(ebpf, name).ok_or_else(|| {
        foreign_object("the object lacks one of the maps, or has one of another type in its place")
    })?;
    // SAFETY: the number is that of a descriptor that aya owns and goes on owning; only what it refers to changes.
    let placed = unsafe { libc::dup3(map.as_raw_fd(), placeholder.as_raw_fd(), libc::O_CLOEXEC) };
    if placed < 0 {
        return Err(refused_call("giving the program its maps")(
            io::Error::last_os_error(),
        ));
    }
    Ok(())
}

/// The descriptor of a map of the program, by its definition's name, by that of the section which stands for it, or by what follows `.bss.`
/// in that.
fn map_fd<'a>(ebpf: &'a Ebpf, name: &str) -> Option<BorrowedFd<'a>> {
    let map = ebpf
        .map(name)
        .or_else(|| ebpf.map(&format!(".bss.{name}")))?;
    match map {
        Map::Array(data) | Map::DevMapHash(data) | Map::RingBuf(data) | Map::ProgramArray(data) => {
            Some(data.fd().as_fd())
        }
        _ => None,
    }
}

fn refused(what: &'static str) -> impl FnOnce(EbpfError) -> Error {
    move |source| Error::Load {
        what,
        source: Box::new(source),
    }
}

/// The built object lacks something: a fault of the build.
fn foreign_object(what: &'static str) -> Error {
    Error::Bpf {
        doing: "loading tether's BPF object, which is not the one that belongs to this build",
        source: io::Error::new(io::ErrorKind::NotFound, what),
    }
}

/// What the program is told about its maps.
fn constants(capacity: Capacity, instance: &Instance) -> Constants {
    Constants {
        flow_seed: instance.flow_seed,
        flow4_buckets: capacity.flow4_buckets,
        flow6_buckets: capacity.flow6_buckets,
        vip_buckets: capacity.vip_buckets(),
        counters: capacity.counters(),
        backends: capacity.backends,
        table_slots: capacity.table_slots,
        cpus: capacity.cpus,
        counter_entries: capacity.counter_entries(),
        nat4_buckets: capacity.nat4_buckets,
        nat6_buckets: capacity.nat6_buckets,
        endpoints: capacity.endpoints,
        endpoint_buckets: capacity.endpoint_buckets(),
        pairs: capacity.pairs,
        adoption_cost_ns: 1_000_000_000 / default::ADOPTIONS_PER_SECOND,
        reset_cost_ns: 1_000_000_000 / default::RESETS_PER_SECOND,
        answer_cost_ns: 1_000_000_000 / default::ANSWERS_PER_SECOND,
        watches: 0,
        affinity_buckets: capacity.affinity_buckets,
        guards: u32::from(capacity.guards),
        ranges: capacity.ranges,
        source_buckets: capacity.source_buckets,
        reserved: 0,
    }
}
