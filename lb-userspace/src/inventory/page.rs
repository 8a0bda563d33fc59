//! A page of a sorted list, and where the next begins.
//!
//! A sorted list of a million flows is never made: of one pass over the tables the first so many are kept that come after the last one
//! shown, and the next page is another pass. What changes its place between two passes is shown in neither or in both, as in any list of
//! what lives.

use std::{cmp::Ordering, collections::BinaryHeap, net::IpAddr};

use super::{flows::Found, query::Sort};

/// Where a list goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cursor {
    /// In the order of the tables: behind this place.
    Place(Place),
    /// In a sorted list: behind this key.
    Key(Key),
}

/// A place in the tables: version of IP, bucket, way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) version: u8,
    pub(super) bucket: u32,
    pub(super) way: u32,
}

/// By what a sorted list is ordered. No two flows have the same: a client, or two entries of one, are told apart by place at last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    /// A tick, or 0 where the client alone counts.
    pub(super) tick: u32,
    pub(super) client: (IpAddr, u16),
    pub(super) service: u16,
    /// Begun later than another entry of the same key.
    pub(super) second: bool,
}

impl Cursor {
    /// As it stands in a URL.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Place(Place {
                version,
                bucket,
                way,
            }) => format!("{version}.{bucket}.{way}"),
            Self::Key(Key {
                tick,
                client: (address, port),
                service,
                second,
            }) => format!("{tick}_{address}_{port}_{service}_{}", u8::from(*second)),
        }
    }

    /// What [`Cursor::text`] wrote, for a list of the same order.
    pub(super) fn parse(text: &str, sort: Option<Sort>) -> Option<Self> {
        if sort.is_none() {
            let mut parts = text.split('.');
            let place = Place {
                version: parts.next()?.parse().ok()?,
                bucket: parts.next()?.parse().ok()?,
                way: parts.next()?.parse().ok()?,
            };
            return parts.next().is_none().then_some(Self::Place(place));
        }
        let mut parts = text.split('_');
        let key = Key {
            tick: parts.next()?.parse().ok()?,
            client: (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?),
            service: parts.next()?.parse().ok()?,
            second: match parts.next()? {
                "0" => false,
                "1" => true,
                _ => return None,
            },
        };
        parts.next().is_none().then_some(Self::Key(key))
    }
}

/// The first so many of what it is shown, in order.
pub(super) struct Page {
    limit: usize,
    reverse: bool,
    after: Option<Key>,
    /// The last one on top.
    kept: BinaryHeap<Kept>,
    /// Whether any was left out that comes behind.
    more: bool,
}

struct Kept {
    key: Key,
    reverse: bool,
    found: Found,
}

impl Kept {
    fn order(reverse: bool, one: &Key, other: &Key) -> Ordering {
        if reverse {
            other.cmp(one)
        } else {
            one.cmp(other)
        }
    }
}

impl Ord for Kept {
    fn cmp(&self, other: &Self) -> Ordering {
        Self::order(self.reverse, &self.key, &other.key)
    }
}

impl PartialOrd for Kept {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Kept {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Kept {}

impl Page {
    pub(super) fn new(limit: usize, reverse: bool, after: Option<Key>) -> Self {
        Self {
            limit,
            reverse,
            after,
            kept: BinaryHeap::new(),
            more: false,
        }
    }

    /// Shows it one more.
    pub(super) fn offer(&mut self, key: Key, found: Found) {
        if self
            .after
            .is_some_and(|after| Kept::order(self.reverse, &key, &after).is_le())
        {
            return;
        }
        let new = Kept {
            key,
            reverse: self.reverse,
            found,
        };
        if self.kept.len() < self.limit {
            self.kept.push(new);
            return;
        }
        self.more = true;
        if let Some(mut last) = self.kept.peek_mut()
            && new < *last
        {
            *last = new;
        }
    }

    /// What was kept, in order, and where the list goes on if it does.
    pub(super) fn finish(self) -> (Vec<Found>, Option<Cursor>) {
        let kept = self.kept.into_sorted_vec();
        let next = kept
            .last()
            .filter(|_| self.more)
            .map(|last| Cursor::Key(last.key));
        (kept.into_iter().map(|kept| kept.found).collect(), next)
    }
}
