//! Taking over the maps of another version of Tether, older or newer, without a flow lost: see [`super::transfer`].
//!
//! What is where in them is told by what that version has pinned beside them ([`crate::dataplane::layouts`]). All maps are made anew, and everything in
//! them is moved from the one layout to the other: services, backends, tables, directories, guards and clients' affinities by the ids that they have, so
//! that what the flows' entries refer to stays the same; entries by the program that alone inserts. Packets and bytes that the other version has counted go
//! on being counted, in the region of a CPU that there is not.
//!
//! * [`flows`][]: flow tables as this version lays them out
//! * `affinities`: what is found elsewhere by this version
//! * `counters`: what was counted

mod affinities;
mod counters;
mod flows;

use std::{
    collections::BTreeMap,
    os::fd::AsFd as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use lb_common::{
    backend::{Backend, BackendState},
    flow::{bucket::buckets_for, v4, v6},
    guard::SOURCES_IN_BUCKET,
    maps::{self as names, Instance, default},
    nat,
    service::Service,
};

use self::flows::Flows;
use super::{
    error::Error,
    grace::GracePeriod,
    load::Loaded,
    pins::Pins,
    resize,
    shapes::{self, Opened, possible_cpus},
    transfer::{Origin, Step, Transfer},
};
use crate::dataplane::{
    array::Array,
    layouts::{
        Layouts,
        convert::{Conversion, Overflow},
    },
    maps::{Capacity, Maps},
};

/// Maps whose records are moved one by one, each to the place that it has, with the record's name.
const MOVED: [(&str, &str); 14] = [
    (names::SERVICES, "service"),
    (names::BACKENDS, "backend"),
    (names::AFFINITIES, "affinity"),
    (names::GUARDS, "guard"),
    (names::RANGES, "range"),
    (names::SOURCES, "source"),
    (names::TABLES, "slot"),
    (names::VIPS4, "vip_bucket"),
    (names::VIPS6, "vip_bucket"),
    (names::ENDPOINTS, "endpoint"),
    (names::ENDPOINTS4, "vip_bucket"),
    (names::ENDPOINTS6, "vip_bucket"),
    (names::PAIRS, "pair"),
    (names::LINKS, "link"),
];
/// Those of them that not every version has: nothing is moved from one that has none.
const NEWER: [&str; 4] = [
    names::AFFINITIES,
    names::GUARDS,
    names::RANGES,
    names::SOURCES,
];
/// Maps that are moved in a way of their own.
const READ: [(&str, &str); 10] = [
    (names::INSTANCE, "instance"),
    (names::HOLD, "hold"),
    (names::FLOWS4, "flow4_entry"),
    (names::FACTS4, "facts"),
    (names::NAT4, "translation"),
    (names::FLOWS6, "flow6_entry"),
    (names::FACTS6, "facts"),
    (names::NAT6, "translation"),
    (names::COUNTERS, "counter"),
    (names::CPUS, "cpu_state"),
];
/// Maps that are made anew and are not moved: what is in them follows from others, or is the program's own.
#[cfg(test)]
const FRESH: [&str; 4] = [names::LAYOUTS, names::PORTS, names::SLOTS, names::PROGRAMS];
/// Maps that are kept, as both versions use them alike: the second if its records are the same.
const SHARED: [&str; 2] = [names::EGRESS, names::NOTICES];

/// The version from which on what has an address of IPv6 for a key is found elsewhere in the tables that clients fill.
const FOUND_ELSEWHERE: u32 = 9;

/// Takes over the maps. If other sizes of the flow tables are wanted and not to be had, they get those that they had, and the reason is given too.
///
/// # Errors
/// When these maps cannot be taken over, the kernel refuses maps or program, or links could not be switched.
pub(super) fn open(
    pins: &Pins,
    wanted: &Capacity,
    grace: &GracePeriod,
    observe: &mut dyn FnMut(Step),
) -> Result<(Loaded, Option<Error>), Error> {
    let origin = Foreign::open(&pins.maps())?;
    tracing::info!(
        from = origin.layouts.version,
        to = names::ABI_VERSION,
        "the pinned maps are of another version; taking over what is in them"
    );
    let had = origin
        .capacity(wanted)
        .guarding(wanted.guards)
        .measuring(wanted.measures);
    let mut transfer = Transfer {
        pins,
        grace,
        instance: origin.instance,
        origin: &origin,
        observe,
    };
    let resized = resize::resized(&had, wanted);
    match transfer.run(resized)? {
        Ok(loaded) => Ok((loaded, None)),
        Err(reason @ (Error::TooSmall { .. } | Error::NoPlace { .. })) if resized != had => {
            let loaded = transfer.run(had)?;
            Ok((loaded?, Some(reason)))
        }
        Err(reason) => Err(reason),
    }
}

/// Maps of another version.
pub(super) struct Foreign {
    directory: std::path::PathBuf,
    layouts: Layouts,
    /// Those that hold records, as words, by name.
    words: BTreeMap<&'static str, Array<u64>>,
    shared: Opened,
    /// The flow tables as this version lays them out, but with each entry at the place that it has in the other's.
    image: Arc<Maps>,
    instance: Instance,
    /// By name of the map.
    moved: BTreeMap<&'static str, Conversion>,
    flows4: Flows<v4::Key>,
    flows6: Flows<v6::Key>,
    counter: Conversion,
    hold_at: usize,
}

impl Foreign {
    /// The capacity that maps of this version get for what is in them, flow tables as large as they are.
    pub(super) fn capacity(&self, wanted: &Capacity) -> Capacity {
        let had = self.image.capacity;
        if self.words.contains_key(names::RANGES) {
            return had;
        }
        // What that version had none of can have the size that is asked for.
        Capacity {
            ranges: wanted.ranges,
            source_buckets: wanted.source_buckets,
            ..had
        }
    }

    /// Opens them, and sees whether all that is in them can be moved; changes nothing.
    pub(super) fn open(directory: &Path) -> Result<Self, Error> {
        let layouts = shapes::pinned_layouts(directory)?;
        let own = Layouts::own();
        let version = layouts.version;
        let refused = |why: String| refused(directory, version, why);
        if let Some(number) = layouts.conflicts(&own).next() {
            return Err(refused(format!(
                "they differ in `{number}`, which cannot be moved"
            )));
        }
        let conversion = |record: &str| {
            Conversion::between(&layouts, &own, record)
                .ok_or_else(|| refused(format!("`{record}` is not in both")))
        };
        let moved = moved_from(&layouts)
            .map(|(name, record)| Ok((name, conversion(record)?)))
            .collect::<Result<_, Error>>()?;
        let flows4 = Flows::<v4::Key>::between(&layouts, &own);
        let flows6 = Flows::<v6::Key>::between(&layouts, &own);
        let hold_at = layouts.place("hold", "until_ns");
        let (Some(flows4), Some(flows6), Some(hold_at)) = (flows4, flows6, hold_at) else {
            return Err(refused(
                "the entries of their flows are of another kind".into(),
            ));
        };

        let words = open_words(directory, &layouts)?;
        let mut shared = Opened::new();
        for name in SHARED {
            if name != names::NOTICES || layouts.has_same(&own, "notice") {
                shared.insert(name, shapes::adopt_alone(directory, name)?);
            }
        }
        let image = Maps::in_memory(capacity(directory, &layouts, &words)?);
        let foreign = Self {
            directory: directory.to_owned(),
            instance: read_instance(&words[names::INSTANCE], &conversion("instance")?)
                .map_err(|Overflow| refused("their seeds have no room".into()))?,
            counter: conversion("counter")?,
            words,
            shared,
            image: Arc::new(image.map_err(|errno| {
                shapes::refused_call("making room for flow tables")(errno.into())
            })?),
            moved,
            flows4,
            flows6,
            hold_at: hold_at / 64,
            layouts,
        };
        foreign.check()?;
        Ok(foreign)
    }

    /// Fields of theirs that this version does not have.
    pub(super) fn dropped(&self) -> Vec<String> {
        let of_maps = moved_from(&self.layouts).flat_map(|(name, record)| {
            self.moved[&name]
                .dropped
                .iter()
                .map(move |field| (record, field))
        });
        let mut dropped: Vec<_> = of_maps
            .map(|(record, field)| format!("{record}.{field}"))
            .collect();
        dropped.extend(self.flows4.dropped());
        dropped.extend(self.flows6.dropped());
        dropped.sort();
        dropped.dedup();
        dropped
    }

    /// The flow tables and all else, brought to this version's layout for once; changes nothing there.
    pub(super) fn examine(&self) -> Result<&Maps, Error> {
        self.refresh()?;
        Ok(&self.image)
    }

    /// Sees whether everything has room here, and this version knows what backends ask for.
    fn check(&self) -> Result<(), Error> {
        const IDENTITY: usize = std::mem::offset_of!(Backend, identity) / 8;
        for (name, conversion) in &self.moved {
            for_each(&self.words[name], conversion, |index, record| {
                let is_unknown = *name == names::BACKENDS
                    && record[IDENTITY] != 0
                    && BackendState(record[0]).forwarding().is_none();
                if is_unknown {
                    return Err(self.refused(format!(
                        "backend {index} is forwarded in a way that this one does not know"
                    )));
                }
                Ok(())
            })
            .map_err(|failure| match failure {
                Moving::Overflow(index) => {
                    self.refused(format!("entry {index} of {name} has no room in this one's"))
                }
                Moving::Stopped(error) => error,
            })?;
        }
        Ok(())
    }

    fn refused(&self, why: String) -> Error {
        refused(&self.directory, self.layouts.version, why)
    }

    /// Services and backends that are in use.
    pub(super) fn objects(&self) -> (usize, usize) {
        let count = |name, identity: usize| {
            let mut count = 0;
            // What has no room was refused when these were opened.
            let _ = for_each::<()>(&self.words[name], &self.moved[name], |_, record| {
                count += usize::from(record[identity / 8] != 0);
                Ok(())
            });
            count
        };
        (
            count(names::SERVICES, std::mem::offset_of!(Service, identity)),
            count(names::BACKENDS, std::mem::offset_of!(Backend, identity)),
        )
    }

    /// Moves a map's records to another map, which is empty.
    fn move_map(&self, name: &'static str, to: &Array<u64>) -> Result<(), Error> {
        let conversion = &self.moved[name];
        let (_, words) = conversion.words();
        let is_elsewhere = name == names::AFFINITIES && self.layouts.version < FOUND_ELSEWHERE;
        for_each(&self.words[name], conversion, |index, record| {
            if is_elsewhere {
                affinities::place(record, to, &self.instance.flow_seed);
                return Ok(());
            }
            let to = to.all().get(index * words..(index + 1) * words);
            for (to, word) in to.ok_or(())?.iter().zip(record) {
                to.store(*word, Ordering::Relaxed);
            }
            Ok::<_, ()>(())
        })
        .map_err(|_| self.refused(format!("what is in {name} has no room in this one's")))
    }
}

impl Origin for Foreign {
    fn maps(&self) -> &Arc<Maps> {
        &self.image
    }

    fn is_of_this_version(&self) -> bool {
        false
    }

    fn refresh(&self) -> Result<(), Error> {
        let [flows, facts, translations] =
            [names::FLOWS4, names::FACTS4, names::NAT4].map(|name| self.words[name].all());
        let seed = &self.instance.flow_seed;
        let four = self
            .flows4
            .read(flows, facts, translations, &self.image, seed);
        let [flows, facts, translations] =
            [names::FLOWS6, names::FACTS6, names::NAT6].map(|name| self.words[name].all());
        let six = self
            .flows6
            .read(flows, facts, translations, &self.image, seed);
        four.and(six)
            .map_err(|Overflow| self.refused("a flow's entry has no room in this one's".into()))
    }

    fn hold(&self) -> &AtomicU64 {
        self.words[names::HOLD].word(self.hold_at as u32, 0)
    }

    fn stage(&self, capacity: &Capacity) -> Result<Opened, Error> {
        let mut maps = shapes::create_maps(capacity)?;
        for (name, map) in &self.shared {
            let map = map.try_clone().map_err(shapes::refused_call(
                "keeping a map of the instance for its new tables",
            ))?;
            maps.insert(name, map);
        }
        let memory =
            |errno: nix::Error| shapes::refused_call("mapping a new map's memory")(errno.into());
        for name in self.moved.keys().copied() {
            let bytes = shapes::value_bytes(maps[name].as_fd())?;
            self.move_map(
                name,
                &Array::of_map(maps[name].as_fd(), bytes / 8).map_err(memory)?,
            )?;
        }
        let instance = Array::of_map(maps[names::INSTANCE].as_fd(), 1).map_err(memory)?;
        // Word by word from the last, so the version, which vouches for the seeds, is written after them.
        instance.set(0, &self.instance);
        Ok(maps)
    }

    fn conclude(&self, to: &Maps) -> Result<(), Error> {
        counters::read(&self.layouts, &self.words, &self.counter, to);
        Ok(())
    }
}

/// Why the maps of another version cannot be taken over.
fn refused(directory: &Path, found: u32, why: String) -> Error {
    Error::Version {
        path: directory.to_owned(),
        found,
        expected: names::ABI_VERSION,
        why,
    }
}

/// Why records could not all be moved.
enum Moving<E> {
    /// One has no room.
    Overflow(usize),
    /// Whoever was given them has had enough.
    Stopped(E),
}

/// Gives each record of a map that is not all zero, as this version lays it out, with its number.
fn for_each<E>(
    from: &Array<u64>,
    conversion: &Conversion,
    mut with: impl FnMut(usize, &[u64]) -> Result<(), E>,
) -> Result<(), Moving<E>> {
    let (words, new_words) = conversion.words();
    let (mut raw, mut new) = (vec![0; words], vec![0; new_words]);
    for (index, record) in from.all().chunks_exact(words).enumerate() {
        load(record, &mut raw);
        if raw.iter().all(|word| *word == 0) {
            continue;
        }
        let moved = conversion.apply(&raw, &mut new);
        moved.map_err(|Overflow| Moving::Overflow(index))?;
        with(index, &new).map_err(Moving::Stopped)?;
    }
    Ok(())
}

fn load(from: &[AtomicU64], to: &mut [u64]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = from.load(Ordering::Acquire);
    }
}

/// The instance's facts, but for the version, which becomes this one.
fn read_instance(from: &Array<u64>, conversion: &Conversion) -> Result<Instance, Overflow> {
    let (words, new_words) = conversion.words();
    let (mut raw, mut new) = (vec![0; words], vec![0; new_words]);
    load(&from.all()[..words.min(from.all().len())], &mut raw);
    conversion.apply(&raw, &mut new)?;
    let record = Array::<Instance>::in_memory(1).expect("a page of memory is to be had");
    for (to, word) in record.all().iter().zip(new) {
        to.store(word, Ordering::Relaxed);
    }
    let mut instance = record.get(0);
    instance.abi_version = names::ABI_VERSION;
    Ok(instance)
}

/// Maps whose records are moved one by one from a version of these layouts, with the record's name.
fn moved_from(layouts: &Layouts) -> impl Iterator<Item = (&'static str, &'static str)> {
    let is_there =
        |(name, record): &(&str, &str)| !NEWER.contains(name) || layouts.bytes_of(record) != 0;
    MOVED.into_iter().filter(is_there)
}

/// Opens all maps that records are moved from.
fn open_words(
    directory: &Path,
    layouts: &Layouts,
) -> Result<BTreeMap<&'static str, Array<u64>>, Error> {
    moved_from(layouts)
        .chain(READ)
        .map(|(name, record)| {
            let words = shapes::adopt_words(directory, name)?;
            let record = layouts.bytes_of(record) as u32 / 8;
            if record == 0 || words.is_empty() || words.len() % record != 0 {
                return Err(shapes::damaged(
                    directory,
                    name,
                    format!(
                        "it has {} bytes, which are not whole records",
                        words.len() * 8
                    ),
                ));
            }
            Ok((name, words))
        })
        .collect()
}

/// The capacity that maps of this version need for what is in those, flow tables as large as they are.
fn capacity(
    directory: &Path,
    layouts: &Layouts,
    words: &BTreeMap<&'static str, Array<u64>>,
) -> Result<Capacity, Error> {
    let records =
        |name: &str, record: &str| words[name].len() * 8 / layouts.bytes_of(record) as u32;
    let more_than_one = |records: u32| if records == 1 { 0 } else { records };
    let ways = lb_common::flow::bucket::WAYS;
    let capacity = Capacity {
        flow4_buckets: records(names::FLOWS4, "flow4_entry") / ways,
        flow6_buckets: records(names::FLOWS6, "flow6_entry") / ways,
        services: records(names::SERVICES, "service"),
        backends: records(names::BACKENDS, "backend"),
        table_slots: records(names::TABLES, "slot"),
        affinity_buckets: if words.contains_key(names::AFFINITIES) {
            records(names::AFFINITIES, "affinity") / ways
        } else {
            buckets_for(default::AFFINITIES)
        },
        // One more than there are: what was counted before is kept in its region.
        cpus: possible_cpus()? + 1,
        nat4_buckets: more_than_one(records(names::NAT4, "translation") / ways),
        nat6_buckets: more_than_one(records(names::NAT6, "translation") / ways),
        endpoints: more_than_one(records(names::ENDPOINTS, "endpoint")),
        pairs: more_than_one(records(names::PAIRS, "pair")),
        ranges: if words.contains_key(names::RANGES) {
            records(names::RANGES, "range")
        } else {
            default::RANGES
        },
        source_buckets: if words.contains_key(names::SOURCES) {
            records(names::SOURCES, "source") / SOURCES_IN_BUCKET
        } else {
            buckets_for(default::SOURCES)
        },
        guards: false,
        measures: false,
    };
    // Maps that have to be as long as these.
    let follow = [
        (names::FACTS4, "facts", capacity.flow4_buckets),
        (names::FACTS6, "facts", capacity.flow6_buckets),
        (names::VIPS4, "vip_bucket", capacity.vip_buckets()),
        (names::VIPS6, "vip_bucket", capacity.vip_buckets()),
        (names::ENDPOINTS4, "vip_bucket", capacity.endpoint_buckets()),
        (names::ENDPOINTS6, "vip_bucket", capacity.endpoint_buckets()),
        (names::LINKS, "link", nat::LINKS_LEN),
    ];
    let guards = words.contains_key(names::GUARDS);
    let guards = guards.then_some((names::GUARDS, "guard", capacity.services));
    for (name, record, expected) in follow.into_iter().chain(guards) {
        let found = records(name, record);
        if found != expected {
            return Err(shapes::damaged(
                directory,
                name,
                format!("it has {found} records and should have {expected}"),
            ));
        }
    }
    for (nat, flows) in [
        (capacity.nat4_buckets, capacity.flow4_buckets),
        (capacity.nat6_buckets, capacity.flow6_buckets),
    ] {
        if nat != 0 && nat != flows {
            return Err(shapes::damaged(
                directory,
                names::NAT4,
                format!("translations of {nat} buckets are beside {flows}"),
            ));
        }
    }
    Ok(capacity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_settled_what_becomes_of_every_map() {
        let mut settled: Vec<_> = MOVED.iter().chain(&READ).map(|(name, _)| *name).collect();
        settled.extend(FRESH.iter().chain(&SHARED));
        settled.sort_unstable();
        let mut all = names::ALL;
        all.sort_unstable();
        assert_eq!(settled, all);
    }
}
