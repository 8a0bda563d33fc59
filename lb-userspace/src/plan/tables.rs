//! Which tables must be built, and their owners.

use std::{collections::HashMap, sync::Arc};

use super::observed::{ObservedService, digest};
use crate::{
    ids::KeyedHash,
    maglev::{self, Member},
    resolve,
};

/// Remembers which tables were built already, so that an unchanged one is not built again to be compared.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// By service id: the hash of what the table is made of, and the digest of its owners.
    built: HashMap<u16, (u64, u64)>,
    /// How many were built so far.
    #[cfg(test)]
    pub(super) builds: usize,
}

impl Tables {
    /// The owners of a service's slots, if they differ from what `observed` holds.
    pub(super) fn owners_if_changed(
        &mut self,
        fleet_seed: &[u64; 4],
        service: &resolve::Service<'_>,
        table: &resolve::Table<'_>,
        observed: Option<&ObservedService>,
    ) -> Option<Arc<[u32]>> {
        let held = observed
            .map(|held| held.table)
            .filter(|held| held.size() == table.size)
            .and(observed)
            .map(|service| service.digest);
        let made_of = made_of(fleet_seed, service, table);
        if held.is_some_and(|held| self.built.get(&service.id) == Some(&(made_of, held))) {
            return None;
        }
        let (owners, digest) = self.build_of(made_of, fleet_seed, service, table);
        (held != Some(digest)).then_some(owners)
    }

    /// The owners of a service's slots, whatever is there, and their digest.
    pub(super) fn build(
        &mut self,
        fleet_seed: &[u64; 4],
        service: &resolve::Service<'_>,
        table: &resolve::Table<'_>,
    ) -> (Arc<[u32]>, u64) {
        let made_of = made_of(fleet_seed, service, table);
        self.build_of(made_of, fleet_seed, service, table)
    }

    /// The same, for what [`made_of`] gives of them.
    fn build_of(
        &mut self,
        made_of: u64,
        fleet_seed: &[u64; 4],
        service: &resolve::Service<'_>,
        table: &resolve::Table<'_>,
    ) -> (Arc<[u32]>, u64) {
        #[cfg(test)]
        {
            self.builds += 1;
        }
        let owners = owners(fleet_seed, service.placed_as, table);
        let digest = digest(owners.iter().copied());
        self.built.insert(service.id, (made_of, digest));
        (owners.into(), digest)
    }
}

/// A hash of all that decides the owners of a table's slots.
fn made_of(
    fleet_seed: &[u64; 4],
    service: &resolve::Service<'_>,
    table: &resolve::Table<'_>,
) -> u64 {
    let start = KeyedHash::of_fleet(fleet_seed, "table")
        .text(service.placed_as)
        .number(u64::from(table.size));
    table
        .members
        .iter()
        .fold(start, |hash, member| {
            let numbers = (u64::from(member.id) << 32) | u64::from(member.weight);
            hash.text(member.name).number(numbers)
        })
        .finish()
}

/// The owners of a table's slots, by id.
pub fn owners(fleet_seed: &[u64; 4], service: &str, table: &resolve::Table<'_>) -> Vec<u32> {
    let members: Vec<Member<'_>> = table
        .members
        .iter()
        .map(|share| Member {
            name: share.name,
            weight: share.weight,
        })
        .collect();
    let mut owners = maglev::build(fleet_seed, service, &members, table.size);
    for owner in &mut owners {
        *owner = table.members[*owner as usize].id;
    }
    // Without members no slot has an owner. (And an empty list would be no table, which forgets previous owners at once.)
    owners.resize(table.size as usize, 0);
    owners
}
