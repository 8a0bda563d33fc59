//! Maps and program: loaded for an instance, pinned; or for a test run, private.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Map, MapData, MapInfo, MapType},
    programs::Xdp,
};
use lb_common::{
    backend::Backend,
    counters::{Counter, CpuState},
    flow::v4,
    hash::Seed,
    maglev::Slot,
    maps::{self as names, Constants, Instance, default},
    service::Service,
    vip::VipBucket,
};

use super::{
    bpf::{self, BPF_F_MMAPABLE},
    error::Error,
    pins::Pins,
};
use crate::{
    chain::chain,
    dataplane::{
        array::Array,
        maps::{Capacity, Maps},
    },
    objects,
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
}

/// All maps of an instance by name, opened.
type Opened = BTreeMap<&'static str, OwnedFd>;

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

    /// The program.
    ///
    /// # Panics
    /// Never: loading has found it.
    pub fn program(&self) -> &Xdp {
        self.0
            .ebpf
            .program(names::PROGRAM)
            .and_then(|program| program.try_into().ok())
            .expect("the program was loaded under this name")
    }

    /// The program's file descriptor.
    ///
    /// # Panics
    /// Never: the program is loaded.
    pub fn program_fd(&self) -> BorrowedFd<'_> {
        self.program().fd().expect("the program is loaded").as_fd()
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

    /// The device map [`names::EGRESS`].
    ///
    /// # Panics
    /// Never: loading has given the program this map.
    pub fn egress_fd(&self) -> BorrowedFd<'_> {
        self.map_fd(names::EGRESS)
            .expect("the program was loaded with this map")
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
        let refused = |error| Error::program("the XDP program", error);
        let program: &mut Xdp = self
            .ebpf
            .program_mut(names::PROGRAM)
            .ok_or_else(|| foreign_object("the object has no XDP program of that name"))?
            .try_into()
            .map_err(refused)?;
        program.load().map_err(refused)?;
        Ok(Loaded(self))
    }

    /// Reads the object, and gives it these maps.
    fn with_maps(capacity: Capacity, instance: Instance, opened: &Opened) -> Result<Self, Error> {
        let constants = ConstantsData(constants(capacity, &instance));
        let mut loader = EbpfLoader::new();
        loader.override_global(names::CONSTANTS, &constants, true);
        let ebpf = loader.load(objects::TETHER).map_err(refused("the maps"))?;
        for (name, map) in opened.iter().filter(|(name, _)| **name != names::INSTANCE) {
            stand_in(&ebpf, name, map.as_fd())?;
        }
        let maps = Maps::of_kernel(capacity, |name| opened[name].as_fd())
            .map_err(|errno| refused_call("mapping the maps' memory")(errno.into()))?;
        Ok(Self {
            ebpf,
            maps: Arc::new(maps),
            instance,
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
        Map::Array(data) | Map::DevMapHash(data) => Some(data.fd().as_fd()),
        _ => None,
    }
}

/// Creates all maps of this capacity.
fn create_maps(capacity: &Capacity) -> Result<Opened, Error> {
    shapes(capacity)
        .into_iter()
        .map(|shape| Ok((shape.name, shape.create()?)))
        .collect()
}

fn refused_call(doing: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Bpf { doing, source }
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
        flow_buckets: capacity.flow_buckets,
        vip_buckets: capacity.vip_buckets(),
        counters: capacity.counters(),
        backends: capacity.backends,
        table_slots: capacity.table_slots,
        cpus: capacity.cpus,
        counter_entries: capacity.counter_entries(),
        adoption_cost_ns: 1_000_000_000 / default::ADOPTIONS_PER_SECOND,
        reset_cost_ns: 1_000_000_000 / default::RESETS_PER_SECOND,
    }
}

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
        }
        let prepared = Prepared::with_maps(capacity, instance, &maps)?;
        // Word by word from the last, so the version, which vouches for the seeds, is written after them.
        prepared.maps.instance.set(0, &instance);
        pins.publish_maps()?;
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

/// Adopts an instance's pinned maps.
///
/// # Errors
/// When they are of another version, incomplete, or not what this version makes.
pub fn adopt(pins: &Pins) -> Result<Prepared, Error> {
    let directory = pins.maps();
    check_version(&directory)?;
    let capacity = pinned_capacity(&directory)?;
    let mut maps = Opened::new();
    for shape in shapes(&capacity) {
        maps.insert(shape.name, shape.adopt(&directory)?);
    }
    let instance = map_memory::<Instance>(maps[names::INSTANCE].as_fd())?.get(0);
    Prepared::with_maps(capacity, instance, &maps)
}

/// Looks at the version alone, which stays the first word whatever the rest of the layouts becomes.
fn check_version(directory: &Path) -> Result<(), Error> {
    let pinned = open(directory, names::INSTANCE)?;
    let first = map_memory::<u64>(pinned.fd().as_fd())
        .map_err(|_| {
            damaged(
                directory,
                names::INSTANCE,
                "its memory cannot be mapped".into(),
            )
        })?
        .get(0);
    let found = first as u32;
    if found == names::ABI_VERSION {
        Ok(())
    } else {
        Err(Error::Version {
            path: directory.to_owned(),
            found,
            expected: names::ABI_VERSION,
        })
    }
}

fn map_memory<T: crate::dataplane::array::Entry>(map: BorrowedFd<'_>) -> Result<Array<T>, Error> {
    Array::of_map(map, 1).map_err(|errno| Error::Bpf {
        doing: "mapping a pinned map's memory",
        source: errno.into(),
    })
}

/// The capacities of pinned maps, told by those maps that the others follow.
fn pinned_capacity(directory: &Path) -> Result<Capacity, Error> {
    fn entries<T>(directory: &Path, name: &str) -> Result<u32, Error> {
        let bytes = info(&open(directory, name)?)?.value_size();
        Ok(bytes / size_of::<T>() as u32)
    }
    let capacity = Capacity {
        flow_buckets: entries::<v4::Bucket>(directory, names::FLOWS4)?,
        services: entries::<Service>(directory, names::SERVICES)?,
        backends: entries::<Backend>(directory, names::BACKENDS)?,
        table_slots: entries::<Slot>(directory, names::TABLES)?,
        cpus: entries::<CpuState>(directory, names::CPUS)?,
    };
    let possible = possible_cpus()?;
    if capacity.cpus < possible {
        return Err(damaged(
            directory,
            names::CPUS,
            format!(
                "it has {} entries for {possible} possible CPUs",
                capacity.cpus
            ),
        ));
    }
    Ok(capacity)
}

fn open(directory: &Path, name: &str) -> Result<MapData, Error> {
    let path = directory.join(name);
    MapData::from_pin(&path).map_err(|source| {
        if path.exists() {
            Error::Load {
                what: "a pinned map",
                source: Box::new(EbpfError::MapError(source)),
            }
        } else {
            damaged(
                directory,
                name,
                "it is missing while others are there".into(),
            )
        }
    })
}

fn info(map: &MapData) -> Result<MapInfo, Error> {
    map.info().map_err(|source| Error::Load {
        what: "a pinned map",
        source: Box::new(EbpfError::MapError(source)),
    })
}

fn damaged(directory: &Path, name: &str, what: String) -> Error {
    Error::Damaged {
        path: directory.join(name),
        what,
    }
}

/// What a map has to be.
struct Shape {
    name: &'static str,
    kind: Kind,
}

/// What a map holds.
#[derive(Clone, Copy)]
enum Kind {
    /// An array of one value of this many bytes, which is an array of entries.
    Whole(u64),
    /// So many network devices.
    Devices(u32),
}

/// All maps of an instance of this capacity.
fn shapes(capacity: &Capacity) -> [Shape; names::ALL.len()] {
    fn shape<T>(name: &'static str, entries: u32) -> Shape {
        Shape {
            name,
            kind: Kind::Whole(size_of::<T>() as u64 * u64::from(entries)),
        }
    }
    [
        shape::<Instance>(names::INSTANCE, 1),
        shape::<v4::Bucket>(names::FLOWS4, capacity.flow_buckets),
        shape::<v4::Facts>(names::FACTS4, capacity.flow_buckets),
        shape::<Slot>(names::TABLES, capacity.table_slots),
        shape::<Service>(names::SERVICES, capacity.services),
        shape::<Backend>(names::BACKENDS, capacity.backends),
        shape::<VipBucket>(names::VIPS4, capacity.vip_buckets()),
        shape::<Counter>(names::COUNTERS, capacity.counter_entries()),
        shape::<CpuState>(names::CPUS, capacity.cpus),
        Shape {
            name: names::EGRESS,
            kind: Kind::Devices(names::EGRESS_INTERFACES),
        },
    ]
}

impl Shape {
    /// Creates the map.
    fn create(&self) -> Result<OwnedFd, Error> {
        let created = match self.kind {
            Kind::Whole(bytes) if bytes > MAX_BYTES => {
                Err(io::Error::from_raw_os_error(libc::E2BIG))
            }
            Kind::Whole(bytes) => bpf::create_shared(self.name, bytes as u32),
            Kind::Devices(entries) => bpf::create_devices(self.name, entries),
        };
        created.map_err(|source| Error::Create {
            map: self.name,
            bytes: match self.kind {
                Kind::Whole(bytes) => bytes,
                Kind::Devices(entries) => u64::from(entries) * u64::from(bpf::DEVICE_BYTES),
            },
            source,
        })
    }

    /// Opens a pinned map, if it has this shape.
    fn adopt(&self, directory: &Path) -> Result<OwnedFd, Error> {
        let map = open(directory, self.name)?;
        let info = info(&map)?;
        let found = (
            info.map_type().ok(),
            info.key_size(),
            u64::from(info.value_size()),
            info.max_entries(),
            info.map_flags() & BPF_F_MMAPABLE,
        );
        let expected = match self.kind {
            Kind::Whole(bytes) => (Some(MapType::Array), 4, bytes, 1, BPF_F_MMAPABLE),
            Kind::Devices(entries) => {
                let bytes = u64::from(bpf::DEVICE_BYTES);
                (Some(MapType::DevMapHash), 4, bytes, entries, 0)
            }
        };
        if found != expected {
            return Err(damaged(
                directory,
                self.name,
                format!(
                    "its (type, key size, value size, entries, flags) are {found:?} and should be {expected:?}"
                ),
            ));
        }
        map.fd()
            .as_fd()
            .try_clone_to_owned()
            .map_err(refused_call("keeping a pinned map open"))
    }
}

/// The largest map that a program can address: the verifier (all kernels to 7.2) bounds variable offsets so.
const MAX_BYTES: u64 = 1 << 29;

/// A new instance with seeds that nobody knows.
fn new_instance() -> Result<Instance, Error> {
    let random: [u64; 7] = random()?;
    Ok(Instance {
        abi_version: names::ABI_VERSION,
        reserved: 0,
        flow_seed: Seed::new([random[0], random[1], random[2]]),
        fleet_seed: [random[3], random[4], random[5], random[6]],
    })
}

/// Words from the kernel's generator.
fn random<const N: usize>() -> Result<[u64; N], Error> {
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

/// CPUs that this machine may ever have online: the number of regions in per-CPU arrays.
///
/// # Errors
/// When sysfs does not tell.
pub fn possible_cpus() -> Result<u32, Error> {
    aya::util::nr_cpus()
        .map(|cpus| cpus as u32)
        .map_err(|(path, source)| Error::File {
            path: path.into(),
            doing: "reading the number of CPUs",
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_map_has_a_shape() {
        let capacity = Capacity::for_flows(1_000, 8, 16, 1_024, 2);
        let shaped: Vec<_> = shapes(&capacity).iter().map(|shape| shape.name).collect();
        assert_eq!(shaped, names::ALL);
    }

    #[test]
    fn two_instances_share_no_seed() {
        let (one, other) = (new_instance().unwrap(), new_instance().unwrap());
        assert_ne!(one.flow_seed, other.flow_seed);
        assert_ne!(one.fleet_seed, other.fleet_seed);
    }
}
