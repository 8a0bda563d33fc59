//! What each map has to be: made so, or found so among pinned ones.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::atomic::Ordering,
};

use aya::{
    EbpfError,
    maps::{MapData, MapInfo, MapType},
};
use lb_common::{
    backend::Backend,
    counters::{Counter, CpuState},
    flow::{bucket::Facts, copy, v4, v6},
    guard::{Guard, Range, SourceBucket},
    maglev::Slot,
    maps::{self as names, Hold, Instance},
    nat,
    repeats::{PLACES, Repeats, Sample},
    service::Service,
    vip::VipBucket,
    watch,
};

use super::{
    bpf::{self, BPF_F_MMAPABLE},
    error::Error,
};
use crate::dataplane::{array::Array, layouts::Layouts, maps::Capacity};

/// All maps of an instance by name, opened.
pub(super) type Opened = BTreeMap<&'static str, OwnedFd>;

/// Creates all maps of this capacity, empty but for the description of their layouts.
pub(super) fn create_maps(capacity: &Capacity) -> Result<Opened, Error> {
    let maps = shapes(capacity)
        .into_iter()
        .map(|shape| Ok((shape.name, shape.create()?)))
        .collect::<Result<Opened, Error>>()?;
    let described = Array::<u64>::of_map(maps[names::LAYOUTS].as_fd(), names::LAYOUTS_BYTES / 8)
        .map_err(|errno| refused_call("mapping the memory of a new map")(errno.into()))?;
    let text = Layouts::own().to_string();
    for (to, bytes) in described.all().iter().zip(text.as_bytes().chunks(8)) {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        to.store(u64::from_ne_bytes(word), Ordering::Relaxed);
    }
    Ok(maps)
}

/// Creates the maps that make up flow tables of this capacity.
pub(super) fn create_tables(capacity: &Capacity) -> Result<Opened, Error> {
    create_some(capacity, &names::OF_FLOWS)
}

/// Creates the maps of these names.
pub(super) fn create_some(capacity: &Capacity, wanted: &[&str]) -> Result<Opened, Error> {
    shapes(capacity)
        .into_iter()
        .filter(|shape| wanted.contains(&shape.name))
        .map(|shape| Ok((shape.name, shape.create()?)))
        .collect()
}

/// Creates the map of orders for [`names::COPY_PROGRAM`].
pub(super) fn create_orders() -> Result<OwnedFd, Error> {
    Shape {
        name: names::COPIES,
        kind: Kind::Whole(size_of::<copy::Order>() as u64 * u64::from(copy::BATCH)),
    }
    .create()
}

/// Creates the maps that a program which watches has beside the instance's, for so many CPUs.
pub(super) fn create_watch(cpus: u32) -> Result<Opened, Error> {
    [
        Shape {
            name: names::LISTENERS,
            kind: Kind::Whole(size_of::<watch::Filter>() as u64 * u64::from(watch::LISTENERS)),
        },
        Shape {
            name: names::RECORDS,
            kind: Kind::Whole(size_of::<watch::Record>() as u64 * u64::from(cpus)),
        },
        Shape {
            name: names::TOLD,
            kind: Kind::Ring(names::TOLD_BYTES),
        },
    ]
    .into_iter()
    .map(|shape| Ok((shape.name, shape.create()?)))
    .collect()
}

/// Creates the maps that a program which measures has beside the instance's.
pub(super) fn create_measure(capacity: &Capacity) -> Result<Opened, Error> {
    let entries = |name, bytes: usize, entries: u32| Shape {
        name,
        kind: Kind::Whole(bytes as u64 * u64::from(entries)),
    };
    [
        entries(names::REPEATS, size_of::<Repeats>(), capacity.backends),
        entries(names::SAMPLES, size_of::<Sample>(), 2 * PLACES),
        entries(names::MEASURED, size_of::<u64>(), capacity.services),
    ]
    .into_iter()
    .map(|shape| Ok((shape.name, shape.create()?)))
    .collect()
}

/// Opens the maps that are pinned in a directory, if they are what this version makes; and tells their capacity and what the instance is.
pub(super) fn open_pinned(directory: &Path) -> Result<(Opened, Capacity, Instance), Error> {
    let capacity = pinned_capacity(directory)?;
    let mut maps = Opened::new();
    for shape in shapes(&capacity) {
        maps.insert(shape.name, shape.adopt(directory)?);
    }
    let instance = map_memory::<Instance>(maps[names::INSTANCE].as_fd())?.get(0);
    Ok((maps, capacity, instance))
}

pub(super) fn refused_call(doing: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Bpf { doing, source }
}

/// Refuses maps of another version.
pub(super) fn check_version(directory: &Path) -> Result<(), Error> {
    let found = pinned_version(directory)?;
    if found == names::ABI_VERSION {
        Ok(())
    } else {
        Err(Error::Version {
            path: directory.to_owned(),
            found,
            expected: names::ABI_VERSION,
            why: "only the daemon does, when it starts".into(),
        })
    }
}

/// The version of pinned maps, which stays the first word whatever the rest of the layouts becomes.
pub(super) fn pinned_version(directory: &Path) -> Result<u32, Error> {
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
    Ok(first as u32)
}

/// The layouts of pinned maps: as they are described beside them, or as they are known to be.
pub(super) fn pinned_layouts(directory: &Path) -> Result<Layouts, Error> {
    let version = pinned_version(directory)?;
    if let Some(known) = Layouts::undescribed(version) {
        return Ok(known);
    }
    if !directory.join(names::LAYOUTS).exists() {
        return Err(Error::Version {
            path: directory.to_owned(),
            found: version,
            expected: names::ABI_VERSION,
            why: "it does not know their layouts".into(),
        });
    }
    let words = adopt_words(directory, names::LAYOUTS)?;
    let bytes = words.all().iter().flat_map(|word| {
        let word = word.load(Ordering::Relaxed);
        word.to_ne_bytes()
    });
    let bytes: Vec<_> = bytes.take_while(|byte| *byte != 0).collect();
    let described: Layouts = String::from_utf8_lossy(&bytes).parse().map_err(|error| {
        damaged(
            directory,
            names::LAYOUTS,
            format!("it describes no layouts: {error}"),
        )
    })?;
    if described.version == version {
        return Ok(described);
    }
    Err(Error::Version {
        path: directory.to_owned(),
        found: version,
        expected: names::ABI_VERSION,
        why: format!("what describes them is of version {}", described.version),
    })
}

/// A pinned map of one value, as words, however many it has.
pub(super) fn adopt_words(directory: &Path, name: &str) -> Result<Array<u64>, Error> {
    let map = open(directory, name)?;
    let info = info(&map)?;
    let is_whole = info.map_type().ok() == Some(MapType::Array)
        && info.max_entries() == 1
        && info.map_flags() & BPF_F_MMAPABLE != 0;
    if !is_whole {
        let what = "it is no array of one value that can be mapped".into();
        return Err(damaged(directory, name, what));
    }
    Array::of_map(map.fd().as_fd(), info.value_size() / 8)
        .map_err(|errno| refused_call("mapping a pinned map's memory")(errno.into()))
}

/// A pinned map whose shape does not depend on any capacity.
pub(super) fn adopt_alone(directory: &Path, name: &str) -> Result<OwnedFd, Error> {
    let any = Capacity::for_flows(1, 1, 1, 1, 1, 1);
    let shape = shapes(&any).into_iter().find(|shape| shape.name == name);
    shape.expect("every map has a shape").adopt(directory)
}

/// The size of a map's value, bytes.
pub(super) fn value_bytes(map: BorrowedFd<'_>) -> Result<u32, Error> {
    let owned = map
        .try_clone_to_owned()
        .map_err(refused_call("asking for a map's size"))?;
    let map = MapData::from_fd(owned).map_err(|source| Error::Load {
        what: "a new map",
        source: Box::new(EbpfError::MapError(source)),
    })?;
    Ok(info(&map)?.value_size())
}

pub(super) fn map_memory<T: crate::dataplane::array::Entry>(
    map: BorrowedFd<'_>,
) -> Result<Array<T>, Error> {
    Array::of_map(map, 1).map_err(|errno| Error::Bpf {
        doing: "mapping a pinned map's memory",
        source: errno.into(),
    })
}

/// The capacities of pinned maps, told by those maps that the others follow.
pub(super) fn pinned_capacity(directory: &Path) -> Result<Capacity, Error> {
    fn entries<T>(directory: &Path, name: &str) -> Result<u32, Error> {
        let bytes = info(&open(directory, name)?)?.value_size();
        Ok(bytes / size_of::<T>() as u32)
    }
    let capacity = Capacity {
        flow4_buckets: entries::<v4::Bucket>(directory, names::FLOWS4)?,
        flow6_buckets: entries::<v6::Bucket>(directory, names::FLOWS6)?,
        services: entries::<Service>(directory, names::SERVICES)?,
        backends: entries::<Backend>(directory, names::BACKENDS)?,
        table_slots: entries::<Slot>(directory, names::TABLES)?,
        affinity_buckets: entries::<v6::Bucket>(directory, names::AFFINITIES)?,
        cpus: entries::<CpuState>(directory, names::CPUS)?,
        nat4_buckets: more_than_one(entries::<nat::Bucket>(directory, names::NAT4)?),
        nat6_buckets: more_than_one(entries::<nat::Bucket>(directory, names::NAT6)?),
        endpoints: more_than_one(entries::<nat::Endpoint>(directory, names::ENDPOINTS)?),
        pairs: more_than_one(entries::<nat::Pair>(directory, names::PAIRS)?),
        ranges: entries::<Range>(directory, names::RANGES)?,
        source_buckets: entries::<SourceBucket>(directory, names::SOURCES)?,
        // Whoever loads programs for them says so.
        guards: false,
        measures: false,
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

/// Of maps that are there only because each has to be, there is one entry.
fn more_than_one(entries: u32) -> u32 {
    if entries == 1 { 0 } else { entries }
}

pub(super) fn open(directory: &Path, name: &str) -> Result<MapData, Error> {
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

pub(super) fn damaged(directory: &Path, name: &str, what: String) -> Error {
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
    /// A ring buffer of this many bytes.
    Ring(u32),
    /// So many programs.
    Programs(u32),
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
        shape::<u64>(names::LAYOUTS, names::LAYOUTS_BYTES / 8),
        shape::<v4::Bucket>(names::FLOWS4, capacity.flow4_buckets),
        shape::<Facts>(names::FACTS4, capacity.flow4_buckets),
        shape::<nat::Bucket>(names::NAT4, capacity.nat4_buckets.max(1)),
        shape::<v6::Bucket>(names::FLOWS6, capacity.flow6_buckets),
        shape::<Facts>(names::FACTS6, capacity.flow6_buckets),
        shape::<nat::Bucket>(names::NAT6, capacity.nat6_buckets.max(1)),
        shape::<u32>(
            names::SLOTS,
            capacity.pairs_with_slots() * nat::PORTS_OF_PAIR,
        ),
        shape::<Hold>(names::HOLD, 1),
        shape::<v6::Bucket>(names::AFFINITIES, capacity.affinity_buckets),
        shape::<Guard>(names::GUARDS, capacity.services),
        shape::<Range>(names::RANGES, capacity.ranges),
        shape::<SourceBucket>(names::SOURCES, capacity.source_buckets),
        shape::<Slot>(names::TABLES, capacity.table_slots),
        shape::<Service>(names::SERVICES, capacity.services),
        shape::<Backend>(names::BACKENDS, capacity.backends),
        shape::<VipBucket>(names::VIPS4, capacity.vip_buckets()),
        shape::<VipBucket>(names::VIPS6, capacity.vip_buckets()),
        shape::<nat::Endpoint>(names::ENDPOINTS, capacity.endpoints.max(1)),
        shape::<VipBucket>(names::ENDPOINTS4, capacity.endpoint_buckets()),
        shape::<VipBucket>(names::ENDPOINTS6, capacity.endpoint_buckets()),
        shape::<nat::Pair>(names::PAIRS, capacity.pairs.max(1)),
        shape::<u64>(names::PORTS, capacity.pairs.max(1) * nat::WORDS_OF_PAIR),
        shape::<nat::Link>(names::LINKS, nat::LINKS_LEN),
        shape::<Counter>(names::COUNTERS, capacity.counter_entries()),
        shape::<CpuState>(names::CPUS, capacity.cpus),
        Shape {
            name: names::EGRESS,
            kind: Kind::Devices(names::EGRESS_INTERFACES),
        },
        Shape {
            name: names::NOTICES,
            kind: Kind::Ring(names::NOTICES_BYTES),
        },
        Shape {
            name: names::PROGRAMS,
            kind: Kind::Programs(names::PROGRAMS_LEN),
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
            Kind::Ring(bytes) => bpf::create_ring(self.name, bytes),
            Kind::Programs(entries) => bpf::create_programs(self.name, entries),
        };
        created.map_err(|source| Error::Create {
            map: self.name,
            bytes: match self.kind {
                Kind::Whole(bytes) => bytes,
                Kind::Devices(entries) => u64::from(entries) * u64::from(bpf::DEVICE_BYTES),
                Kind::Ring(bytes) => u64::from(bytes),
                Kind::Programs(entries) => u64::from(entries) * 4,
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
            Kind::Ring(bytes) => (Some(MapType::RingBuf), 0, 0, bytes, 0),
            Kind::Programs(entries) => (Some(MapType::ProgramArray), 4, 4, entries, 0),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_map_has_a_shape() {
        let capacity = Capacity::for_flows(1_000, 100, 8, 16, 1_024, 2);
        let shaped: Vec<_> = shapes(&capacity).iter().map(|shape| shape.name).collect();
        assert_eq!(shaped, names::ALL);
    }
}
