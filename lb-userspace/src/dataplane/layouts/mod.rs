//! What is where in the maps of any version: read from what that version has pinned beside them, or, of the one that came before such descriptions, from what
//! is kept here.
//!
//! ```text
//! tether layouts 7
//! record slot 64
//!   changed 36 28          name, first bit, bits
//! number state.pin 5
//! ```
//!
//! * [`convert`][]: moving a record to another version's

pub mod convert;

use std::{collections::BTreeMap, fmt, str::FromStr};

use lb_common::{
    layout::{self, Record},
    maps::ABI_VERSION,
};

/// The layouts of version 6, the last one that did not describe them.
const VERSION_6: &str = include_str!("version-6.txt");

/// The layouts of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layouts {
    /// [`ABI_VERSION`] of that tether.
    pub version: u32,
    records: BTreeMap<String, Shape>,
    numbers: BTreeMap<String, u64>,
}

/// A record's layout: its size in bits, and of each field the first bit and the number of bits. Nested ones have dots in their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    bits: usize,
    fields: BTreeMap<String, (usize, usize)>,
}

/// A text that describes no layouts.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("line {line}: {what}")]
pub struct NoLayouts {
    line: usize,
    what: &'static str,
}

impl Layouts {
    /// Those of this program.
    #[must_use]
    pub fn own() -> Self {
        let records = layout::RECORDS.iter().map(|record| {
            let mut shape = Shape {
                bits: record.bits,
                ..Shape::default()
            };
            flatten(record, "", 0, &mut shape);
            (record.name.to_owned(), shape)
        });
        Self {
            version: ABI_VERSION,
            records: records.collect(),
            numbers: layout::numbers().into_iter().collect(),
        }
    }

    /// Those of a version that did not describe them, if it is known here.
    #[must_use]
    pub fn undescribed(version: u32) -> Option<Self> {
        VERSION_6
            .parse()
            .ok()
            .filter(|known: &Self| known.version == version)
    }

    /// A record's size, bytes; 0 if that version has no such record.
    #[must_use]
    pub fn bytes_of(&self, record: &str) -> usize {
        self.records.get(record).map_or(0, |shape| shape.bits / 8)
    }

    /// Where a field of a record begins, in bits.
    #[must_use]
    pub fn place(&self, record: &str, field: &str) -> Option<usize> {
        let (at, _) = self.records.get(record)?.fields.get(field)?;
        Some(*at)
    }

    /// Whether both versions have a record, and the same one.
    #[must_use]
    pub fn has_same(&self, other: &Self, record: &str) -> bool {
        let shape = self.records.get(record);
        shape.is_some() && shape == other.records.get(record)
    }

    /// A number.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u64> {
        self.numbers.get(name).copied()
    }

    /// Where counters of reasons are in this version, with where they are in that one, by their names.
    pub fn reasons<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = (u32, u32)> + 'a {
        self.reason_codes()
            .filter_map(|(name, code)| Some((code, other.number(name)? as u32)))
    }

    fn reason_codes(&self) -> impl Iterator<Item = (&str, u32)> {
        self.numbers
            .iter()
            .filter(|(name, _)| name.starts_with(layout::REASON))
            .map(|(name, code)| (name.as_str(), *code as u32))
    }

    /// Numbers that both have, that have to be the same, and are not.
    pub fn conflicts<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a str> {
        self.numbers
            .iter()
            .filter(|(name, number)| {
                let may_differ =
                    name.starts_with(layout::REASON) || *name == layout::COUNTERS_OF_REASONS;
                !may_differ && other.number(name).is_some_and(|found| found != **number)
            })
            .map(|(name, _)| name.as_str())
    }
}

fn flatten(record: &Record, prefix: &str, base: usize, shape: &mut Shape) {
    for field in record.fields {
        let name = format!("{prefix}{}", field.name);
        let at = base + field.at;
        let Some(of) = field.of else {
            shape.fields.insert(name, (at, field.bits));
            continue;
        };
        let count = field.bits / of.bits;
        for index in 0..count {
            let prefix = match count {
                1 => format!("{name}."),
                _ => format!("{name}.{index}."),
            };
            flatten(of, &prefix, at + index * of.bits, shape);
        }
    }
}

impl fmt::Display for Layouts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "tether layouts {}", self.version)?;
        for (name, shape) in &self.records {
            writeln!(f, "record {name} {}", shape.bits)?;
            for (field, (at, bits)) in &shape.fields {
                writeln!(f, "  {field} {at} {bits}")?;
            }
        }
        for (name, number) in &self.numbers {
            writeln!(f, "number {name} {number}")?;
        }
        Ok(())
    }
}

impl FromStr for Layouts {
    type Err = NoLayouts;

    fn from_str(text: &str) -> Result<Self, NoLayouts> {
        let mut lines = (1..).zip(text.lines());
        let wrong = |line, what| NoLayouts { line, what };
        let (_, first) = lines.next().ok_or(wrong(1, "there is none"))?;
        let version = first
            .strip_prefix("tether layouts ")
            .and_then(|version| version.parse().ok())
            .ok_or(wrong(1, "it names no version"))?;
        let mut layouts = Self {
            version,
            records: BTreeMap::new(),
            numbers: BTreeMap::new(),
        };
        let mut record = None;
        for (line, text) in lines {
            let words: Vec<_> = text.split(' ').collect();
            match words[..] {
                ["record", name, bits] => {
                    let bits = bits.parse().ok().filter(|bits| bits % 8 == 0);
                    let bits = bits.ok_or(wrong(line, "it gives no size"))?;
                    let shape = Shape {
                        bits,
                        ..Shape::default()
                    };
                    record = Some(layouts.records.entry(name.to_owned()).or_insert(shape));
                }
                ["", "", name, at, bits] => {
                    let shape = record
                        .as_deref_mut()
                        .ok_or(wrong(line, "a field of nothing"))?;
                    let place = at.parse().ok().zip(bits.parse().ok());
                    let place = place
                        .filter(|&(at, bits): &(usize, usize)| {
                            at.checked_add(bits).is_some_and(|end| end <= shape.bits)
                        })
                        .ok_or(wrong(line, "it gives no place in its record"))?;
                    shape.fields.insert(name.to_owned(), place);
                }
                ["number", name, number] => {
                    let number = number.parse().ok();
                    let number = number.ok_or(wrong(line, "it gives no number"))?;
                    layouts.numbers.insert(name.to_owned(), number);
                }
                _ => return Err(wrong(line, "it is neither record nor field nor number")),
            }
        }
        Ok(layouts)
    }
}

#[cfg(test)]
mod tests {
    use lb_common::maps::LAYOUTS_BYTES;
    #[cfg(not(feature = "next-abi"))]
    use lb_common::service::Service;

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let own = Layouts::own();
        let text = own.to_string();
        assert_eq!(text.parse(), Ok(own));
        assert!(
            text.len() < LAYOUTS_BYTES as usize / 2,
            "{} bytes",
            text.len()
        );
        let old = Layouts::undescribed(6).expect("version 6 is known");
        assert_eq!(old.to_string(), VERSION_6);
        assert_eq!(Layouts::undescribed(5), None);
    }

    #[test]
    fn what_describes_nothing_is_refused() {
        for (text, line) in [
            ("", 1),
            ("tether layouts x", 1),
            ("tether layouts 7\nrecord slot", 2),
            ("tether layouts 7\nrecord slot 7", 2),
            ("tether layouts 7\n  changed 0 8", 2),
            ("tether layouts 7\nrecord slot 64\n  changed 60 5", 3),
            (
                "tether layouts 7\nrecord slot 64\n  changed 18446744073709551615 2",
                3,
            ),
            ("tether layouts 7\nnumber a -1", 2),
            ("tether layouts 7\nsomething", 2),
        ] {
            assert_eq!(
                text.parse::<Layouts>().map_err(|error| error.line),
                Err(line)
            );
        }
    }

    /// Everything of a version that is known here can be moved to this one, and back all that it knew.
    #[test]
    fn what_an_older_version_has_finds_its_place() {
        let own = Layouts::own();
        let newer = |version, record: &str| match (version, record) {
            (6, "service") => &["affinity", "affinity_ticks", "guarded"][..],
            (7, "service") => &["guarded"][..],
            _ => &[],
        };
        for text in [
            VERSION_6,
            include_str!("version-7.txt"),
            include_str!("version-8.txt"),
        ] {
            let old: Layouts = text.parse().unwrap();
            assert_eq!(old.conflicts(&own).collect::<Vec<_>>(), [] as [&str; 0]);
            let is_known = |record: &str| old.bytes_of(record) != 0;
            for record in layout::RECORDS
                .iter()
                .filter(|record| record.bits % 64 == 0 && is_known(record.name))
            {
                let newer = newer(old.version, record.name);
                for (from, to, dropped) in [(&old, &own, &[][..]), (&own, &old, newer)] {
                    let conversion = convert::Conversion::between(from, to, record.name);
                    let conversion = conversion.expect(record.name);
                    let (words, new_words) = conversion.words();
                    let mut all = vec![u64::MAX; words];
                    if let Some(at) = from.place(record.name, "translates") {
                        // Of 16 bits once, of which all but the first are zero.
                        all[at / 64] &= !(0xfffe << (at % 64));
                    }
                    let mut moved = vec![0; new_words];
                    assert_eq!(conversion.apply(&all, &mut moved), Ok(()));
                    assert_eq!(conversion.dropped, dropped, "{}", record.name);
                }
            }
        }
    }

    /// A service that translates does so in the other version too, and is guarded in none by accident.
    #[test]
    #[cfg(not(feature = "next-abi"))]
    fn traits_of_a_service_are_moved_one_by_one() {
        let (own, old) = (
            Layouts::own(),
            include_str!("version-7.txt").parse().unwrap(),
        );
        let at = own.place("service", "translates").unwrap();
        let traits = |word: u64| word >> (at % 64) & 0xffff;
        for (from, to, before, after) in [
            (&old, &own, 1, Service::TRANSLATES),
            (&old, &own, 0, 0),
            (&own, &old, Service::TRANSLATES | Service::GUARDED, 1),
            (&own, &old, Service::GUARDED, 0),
        ] {
            let conversion = convert::Conversion::between(from, to, "service").unwrap();
            let (words, new_words) = conversion.words();
            let (mut raw, mut moved) = (vec![0; words], vec![0; new_words]);
            raw[at / 64] = u64::from(before) << (at % 64);
            conversion.apply(&raw, &mut moved).unwrap();
            assert_eq!(traits(moved[at / 64]), u64::from(after));
        }
    }

    /// Who changes a layout gives it another version, so that no daemon takes other maps for its own.
    #[test]
    #[cfg(not(feature = "next-abi"))]
    fn a_layout_changes_with_its_version_only() {
        let kept = include_str!("version-9.txt");
        let own = Layouts::own();
        assert_eq!(own.version, 9);
        assert!(
            own.to_string() == kept,
            "the layouts are not those of layouts/version-{}.txt; raise ABI_VERSION, and keep what `tether upgrade-check --layouts` prints under its \
             number:\n{own}",
            own.version
        );
    }
}
