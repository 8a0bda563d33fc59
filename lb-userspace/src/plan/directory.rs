//! Arranges a directory of VIPs or of endpoints: which word goes to which bucket.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, btree_map::Entry},
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    net::{Address, IpVersion},
    vip::{VipBucket, VipEntry, WAYS, homes},
};

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
    /// Services, or endpoints, that found no place.
    pub(super) unplaced: Vec<u16>,
    /// Services, or endpoints, whose key is that of another, which has the place; and that one. Keys of IPv4 are exact, so it never is so there.
    pub(super) alike: Vec<(u16, u16)>,
}

/// Which directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Directory {
    /// That of the VIPs of a version of IP.
    Vips(IpVersion),
    /// That of the endpoints of a version of IP.
    Endpoints(IpVersion),
}

/// Arranges the directory of a version of IP's endpoints, each with its id. What found no place is given as ids of endpoints.
pub(super) fn arrange_endpoints(
    version: IpVersion,
    held: &[VipBucket],
    listed: impl Iterator<Item = (SocketAddr, u16)>,
) -> Changes {
    let mut wanted = BTreeMap::new();
    let mut alike = Vec::new();
    for (address, id) in listed {
        let key = key_of(address.ip(), address.port());
        let word = Word {
            entry: VipEntry::of(key, id),
            service: Some(id),
        };
        match wanted.entry(key) {
            Entry::Vacant(vacant) => {
                vacant.insert(word);
            }
            Entry::Occupied(other) => alike.push((id, other.get().entry.value())),
        }
    }
    arrange_words(Directory::Endpoints(version), held, wanted, alike)
}

/// Arranges the directory of a version of IP: it holds the `listed` services of that version, and an entry for each of their VIPs.
pub(super) fn arrange(
    version: IpVersion,
    held: &[VipBucket],
    listed: &[(Endpoint, u16)],
    host_owned: &BTreeSet<IpAddr>,
) -> Changes {
    let Listing {
        mut services,
        vips: mut wanted,
        alike,
    } = Listing::new(version, listed, host_owned);
    // Should two of them have one key, the service is missed more than the VIP's own entry.
    wanted.append(&mut services);
    arrange_words(Directory::Vips(version), held, wanted, alike)
}

fn arrange_words(
    directory: Directory,
    held: &[VipBucket],
    mut wanted: BTreeMap<u64, Word>,
    alike: Vec<(u16, u16)>,
) -> Changes {
    let mut arranger = Arranger {
        directory,
        buckets: held.to_vec(),
        additions: Vec::new(),
    };
    let removals = arranger.keep(&mut wanted);
    let mut unplaced = Vec::new();
    for (key, word) in wanted {
        if !arranger.insert(key, word.entry) {
            // A VIP's own entry that finds no place is missed by nobody but the host's other traffic to it.
            unplaced.extend(word.service);
        }
    }
    Changes {
        additions: arranger.additions,
        removals,
        unplaced,
        alike,
    }
}

/// A word that a directory is to have.
struct Word {
    entry: VipEntry,
    /// The service, or endpoint, that is reached by it; none for a VIP's own entry.
    service: Option<u16>,
}

/// The words that a directory is to have, by key.
struct Listing {
    services: BTreeMap<u64, Word>,
    vips: BTreeMap<u64, Word>,
    /// Services whose key is another's too, and that one.
    alike: Vec<(u16, u16)>,
}

impl Listing {
    fn new(version: IpVersion, listed: &[(Endpoint, u16)], host_owned: &BTreeSet<IpAddr>) -> Self {
        let mut listing = Self {
            services: BTreeMap::new(),
            vips: BTreeMap::new(),
            alike: Vec::new(),
        };
        for &(Endpoint { vip, port }, service) in listed {
            if IpVersion::of(vip) != version {
                continue;
            }
            let word = Word {
                entry: VipEntry::of(key_of(vip, port), service),
                service: Some(service),
            };
            match listing.services.entry(key_of(vip, port)) {
                Entry::Vacant(vacant) => {
                    vacant.insert(word);
                }
                Entry::Occupied(other) => {
                    let other = other.get().entry.value();
                    listing.alike.push((service, other));
                }
            }
            listing.list_vip(vip, service, host_owned.contains(&vip));
        }
        listing
    }

    fn list_vip(&mut self, vip: IpAddr, service: u16, is_host_owned: bool) {
        let value = match vip {
            IpAddr::V4(_) if is_host_owned => VipEntry::HOST_OWNED,
            IpAddr::V4(_) => 0,
            // Listed only if the host does not own it; by the first of its services.
            IpAddr::V6(_) if is_host_owned => return,
            IpAddr::V6(_) => service,
        };
        let key = key_of(vip, 0);
        self.vips.entry(key).or_insert(Word {
            entry: VipEntry::of(key, value),
            service: None,
        });
    }
}

/// The key of an address and port in their directory; of port 0, that of the VIP's own entry.
pub fn key_of(vip: IpAddr, port: u16) -> u64 {
    match vip {
        IpAddr::V4(vip) => VipEntry::key(vip.to_bits(), port),
        IpAddr::V6(_) => VipEntry::key6(Address::from(vip).words(), port),
    }
}

struct Arranger {
    directory: Directory,
    /// As they will be once the additions are done.
    buckets: Vec<VipBucket>,
    additions: Vec<Operation>,
}

impl Arranger {
    /// Takes from `wanted` what is there, with its value corrected; gives the removals of all else.
    fn keep(&mut self, wanted: &mut BTreeMap<u64, Word>) -> Vec<Operation> {
        let mut removals = Vec::new();
        let mut kept = HashSet::new();
        let count = self.buckets.len() as u32;
        for bucket in 0..count {
            for way in 0..WAYS {
                let entry = VipEntry(self.buckets[bucket as usize].entries[way]);
                if entry.0 == 0 {
                    continue;
                }
                let key = entry.own_key();
                match wanted.get(&key).map(|word| word.entry) {
                    Some(wanted) if homes(key, count).contains(&bucket) && kept.insert(key) => {
                        if wanted != entry {
                            self.set(bucket, way, wanted);
                        }
                    }
                    // Not wanted, there twice, or where nobody looks.
                    _ => removals.push(Operation::SetWord {
                        directory: self.directory,
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
            let [first, second] = homes(entry.own_key(), count);
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
        self.additions.push(Operation::SetWord {
            directory: self.directory,
            bucket,
            way,
            entry,
        });
    }
}
