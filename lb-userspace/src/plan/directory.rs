//! Arranges the directory of VIPs: which word goes to which bucket.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::Ipv4Addr,
};

use lb_common::vip::{VipBucket, VipEntry, WAYS, homes};

use super::Operation;
use crate::desired::Endpoint;

/// How many entries are moved, at most, to make place for one.
const MOVES: u32 = 4;

/// What changes in the directory.
pub(super) struct Changes {
    /// New and moved words, with grace periods where a reader might miss one that moves.
    pub(super) additions: Vec<Operation>,
    /// Words to be cleared.
    pub(super) removals: Vec<Operation>,
    /// Services that found no place.
    pub(super) unplaced: Vec<u16>,
}

/// Arranges a directory that holds `listed` services, and an entry for each of their VIPs that the host owns or not.
pub(super) fn arrange(
    held: &[VipBucket],
    listed: &[(Endpoint, u16)],
    host_owned: &BTreeSet<Ipv4Addr>,
) -> Changes {
    let mut wanted = BTreeMap::new();
    for &(Endpoint { vip, port }, service) in listed {
        let flags = if host_owned.contains(&vip) {
            VipEntry::HOST_OWNED
        } else {
            0
        };
        wanted.insert(VipEntry::key(vip.to_bits(), port), service);
        wanted.insert(VipEntry::key(vip.to_bits(), 0), flags);
    }
    let mut arranger = Arranger {
        buckets: held.to_vec(),
        additions: Vec::new(),
    };
    let removals = arranger.keep(&mut wanted);
    let mut unplaced = Vec::new();
    for (key, value) in wanted {
        let entry = VipEntry(key | u64::from(value));
        if !arranger.insert(key, entry) {
            // A VIP's own entry that finds no place is missed by nobody but the host's other traffic to it.
            unplaced.extend((entry.port() != 0).then_some(value));
        }
    }
    Changes {
        additions: arranger.additions,
        removals,
        unplaced,
    }
}

struct Arranger {
    /// As they will be once the additions are done.
    buckets: Vec<VipBucket>,
    additions: Vec<Operation>,
}

impl Arranger {
    /// Takes from `wanted` what is there, with its value corrected; gives the removals of all else.
    fn keep(&mut self, wanted: &mut BTreeMap<u64, u16>) -> Vec<Operation> {
        let mut removals = Vec::new();
        let mut kept = HashSet::new();
        let count = self.buckets.len() as u32;
        for bucket in 0..count {
            for way in 0..WAYS {
                let entry = VipEntry(self.buckets[bucket as usize].entries[way]);
                if entry.0 == 0 {
                    continue;
                }
                let key = VipEntry::key(entry.address(), entry.port());
                let value = wanted.get(&key).copied();
                match value {
                    Some(value) if homes(key, count).contains(&bucket) && kept.insert(key) => {
                        if value != entry.value() {
                            self.set(bucket, way, VipEntry(key | u64::from(value)));
                        }
                    }
                    // Not wanted, there twice, or where nobody looks.
                    _ => removals.push(Operation::SetVip {
                        bucket,
                        way,
                        entry: VipEntry::default(),
                    }),
                }
            }
        }
        wanted.retain(|key, _| !kept.contains(key));
        removals
    }

    fn insert(&mut self, key: u64, entry: VipEntry) -> bool {
        let homes = homes(key, self.buckets.len() as u32);
        for moves in 0..=MOVES {
            for bucket in homes {
                if let Some(way) = self.make_place(bucket, moves) {
                    self.set(bucket, way, entry);
                    return true;
                }
            }
        }
        false
    }

    /// A free way of a bucket, after at most `moves` moves to other buckets.
    fn make_place(&mut self, bucket: u32, moves: u32) -> Option<usize> {
        let entries = self.buckets[bucket as usize].entries;
        if let Some(way) = entries.iter().position(|&entry| entry == 0) {
            return Some(way);
        }
        let count = self.buckets.len() as u32;
        for (way, entry) in entries
            .into_iter()
            .map(VipEntry)
            .enumerate()
            .take(WAYS * moves.min(1) as usize)
        {
            let [first, second] = homes(VipEntry::key(entry.address(), entry.port()), count);
            // Where nobody looks for it, it is to be removed, and not worth a move.
            if first == second || (bucket != first && bucket != second) {
                continue;
            }
            let other = if bucket == first { second } else { first };
            if let Some(free) = self.make_place(other, moves - 1) {
                if self.buckets[bucket as usize].entries[way] != entry.0 {
                    // The chain came back here and took this very place.
                    return self.make_place(bucket, moves - 1);
                }
                self.set(other, free, entry);
                // A reader that has looked there before the copy came must still find the original here.
                self.additions.push(Operation::Grace);
                self.set(bucket, way, VipEntry::default());
                return Some(way);
            }
        }
        None
    }

    fn set(&mut self, bucket: u32, way: usize, entry: VipEntry) {
        self.buckets[bucket as usize].entries[way] = entry.0;
        self.additions
            .push(Operation::SetVip { bucket, way, entry });
    }
}
