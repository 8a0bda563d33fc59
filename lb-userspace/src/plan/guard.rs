//! Guards: there before a service says that it has one, gone after it says so no more. Ranges are written aside, then named by one store.

use std::collections::BTreeSet;

use lb_common::guard::{Guard, RangesRef};

use super::{
    Deferred, Operation, Planner, Wanted,
    arena::{Arena, Stretch, make_room},
};
use crate::{guard, resolve};

impl Planner<'_> {
    /// A service's guard: its ranges, then its entry. False if it has none, or cannot have it and has had none.
    pub(super) fn guard(&mut self, all: &Wanted<'_>, service: &resolve::Service<'_>) -> bool {
        let Some(wanted) = service.guard else {
            return false;
        };
        if self.moved.contains(&service.id) {
            return true;
        }
        let named = match self.place_ranges(all, service.id, wanted) {
            Ok(named) => named,
            Err(deferred) => {
                self.plan.deferred.insert(service.id, deferred);
                return self.guarded.contains_key(&service.id);
            }
        };
        let entry = self.entry(wanted, named);
        if self.held_guard(service.id) != entry {
            self.push(Operation::WriteGuard {
                service: service.id,
                guard: Box::new(entry),
            });
        }
        self.name_ranges(service.id, Some(named));
        true
    }

    /// A guard as the map is to have it.
    fn entry(&self, wanted: &guard::Guard, named: RangesRef) -> Guard {
        Guard {
            longest_burst_ns: self.longest_burst_ns,
            ..wanted.entry(named)
        }
    }

    /// The longest burst of all guards.
    pub(super) fn longest_burst_of(services: &[resolve::Service<'_>]) -> u64 {
        let guards = services.iter().filter_map(|service| service.guard);
        guards
            .map(|guard| guard.entry(RangesRef::default()).burst_ns)
            .max()
            .unwrap_or(0)
    }

    /// What the map holds for a service, once the operations so far are done.
    fn held_guard(&self, service: u16) -> Guard {
        let held = self.observed.guards.get(&service);
        let held = held.filter(|_| self.guarded.contains_key(&service));
        held.map(|held| held.entry).unwrap_or_default()
    }

    /// Where a guard's ranges are: where they are today, or written aside.
    fn place_ranges(
        &mut self,
        all: &Wanted<'_>,
        service: u16,
        wanted: &guard::Guard,
    ) -> Result<RangesRef, Deferred> {
        let len = wanted.ranges.len() as u32;
        if len == 0 {
            return Ok(RangesRef::default());
        }
        let held = self.observed.guards.get(&service);
        if let Some(held) = held.filter(|held| self.guarded.get(&service) == Some(&held.ranges))
            && (held.ranges.len(), held.digest) == (len, wanted.digest)
        {
            return Ok(held.ranges);
        }
        let mut first = self.ranges().take(len);
        if first.is_none() && !self.plan.unsettled.ranges.is_empty() {
            self.grace();
            first = self.ranges().take(len);
        }
        if first.is_none() && self.make_room(all, service, len) {
            first = self.ranges().take(len);
        }
        let Some(first) = first else {
            return Err(Deferred::Ranges {
                ranges: len,
                largest: self.ranges().largest(),
            });
        };
        let to = RangesRef::new(first, len);
        self.push(Operation::WriteRanges {
            service,
            to,
            ranges: wanted.ranges.clone(),
        });
        Ok(to)
    }

    /// Has other services' ranges elsewhere, so that so many of a service's come to have room in a row: there may be enough, but in pieces. False if that
    /// does not help.
    fn make_room(&mut self, all: &Wanted<'_>, service: u16, len: u32) -> bool {
        let taken = self.guarded.iter().map(|(&id, ranges)| Stretch {
            first: ranges.first(),
            len: ranges.len(),
            can_move: id != service && self.in_place(all, id).is_some(),
        });
        let taken: Vec<Stretch> = taken.collect();
        let Some(moves) = make_room(self.observed.capacity.ranges, &taken, len) else {
            return false;
        };
        let ids: Vec<u16> = self.guarded.keys().copied().collect();
        for (index, first) in moves {
            let id = ids[index];
            let Some(guard) = self.in_place(all, id) else {
                continue;
            };
            let to = RangesRef::new(first, taken[index].len);
            self.push(Operation::WriteRanges {
                service: id,
                to,
                ranges: guard.ranges.clone(),
            });
            let entry = self.entry(guard, to);
            self.push(Operation::WriteGuard {
                service: id,
                guard: Box::new(entry),
            });
            self.name_ranges(id, Some(to));
            self.moved.insert(id);
        }
        self.grace();
        true
    }

    /// A service's guard, if the ranges that are named for it are this one's by now, and not those of before.
    fn in_place<'a>(&self, all: &Wanted<'a>, service: u16) -> Option<&'a guard::Guard> {
        let mut services = all.services.iter();
        let wanted = services.find(|other| other.id == service)?.guard?;
        let named = self.guarded.get(&service)?;
        let held = self.observed.guards.get(&service);
        let is_of_before =
            held.is_some_and(|held| held.ranges == *named && held.digest != wanted.digest);
        (!is_of_before && named.len() as usize == wanted.ranges.len()).then_some(wanted)
    }

    /// Notes which ranges a service's guard names from now on; none if it has no guard.
    fn name_ranges(&mut self, service: u16, named: Option<RangesRef>) {
        let before = match named {
            Some(named) => self.guarded.insert(service, named),
            None => self.guarded.remove(&service),
        };
        if let Some(before) = before.filter(|before| Some(*before) != named && !before.is_empty()) {
            self.plan.unsettled.ranges.push(before);
        }
    }

    /// Takes a service's guard out of use, if it has one.
    pub(super) fn clear_guard(&mut self, service: u16) {
        if self.guarded.contains_key(&service) {
            self.push(Operation::WriteGuard {
                service,
                guard: Box::default(),
            });
            self.name_ranges(service, None);
            // Whoever has the id next is yet to be given a guard.
            self.moved.remove(&service);
        }
    }

    /// Guards of services that are to have none, which say so no more by now.
    pub(super) fn remove_guards(&mut self, wanted: &Wanted<'_>) {
        let services = wanted.services.iter();
        let guarded = services.filter(|service| service.guard.is_some());
        let kept: BTreeSet<u16> = guarded.map(|service| service.id).collect();
        let gone: Vec<u16> = self
            .guarded
            .keys()
            .copied()
            .filter(|id| !kept.contains(id))
            .collect();
        for id in gone {
            self.clear_guard(id);
        }
    }

    fn ranges(&mut self) -> &mut Arena {
        self.ranges.get_or_insert_with(|| {
            let unsettled = self.plan.unsettled.ranges.iter();
            let ranges = self.guarded.values().chain(unsettled);
            Arena::without(
                self.observed.capacity.ranges,
                ranges.map(|ranges| (ranges.first(), ranges.len())),
            )
        })
    }
}
