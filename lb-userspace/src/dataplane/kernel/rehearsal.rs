//! Rehearsals: what the program would do with a packet, found out by running it, with nothing changed by that.
//!
//! The same object is loaded a second time. Of the maps, those that it only reads are the instance's own; of those that it writes
//! ([`names::WRITTEN`]) it has copies, which are made anew before each packet. So it meets exactly the state that a real packet would meet at
//! that moment, the fullness of the flow's buckets and the use of SNAT ports included, and what it records is recorded in the copies and goes with
//! them. Its token buckets are full: a limit that others have used up at that moment is none of this packet's doing.
//!
//! The copies take as much memory as the flow table of one version of IP, for as long as the rehearsal lives.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, atomic::Ordering},
};

use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use lb_common::{
    maps::{self as names, Instance},
    net::IpVersion,
    service::Service,
    verdict::Reason,
};

use super::{
    copier::system_error,
    error::Error,
    load::{Loaded, Prepared},
    shapes::{self, Opened, refused_call},
};
use crate::dataplane::{
    array::{Array, Entry},
    maps::{Capacity, Maps},
};

/// Room for what the program puts before a packet, in bytes, twice and more.
const GROWTH: usize = 256;

/// An instance, as rehearsals of its program need it.
#[derive(Debug)]
pub struct Rehearsals {
    /// The maps that are only read, by name.
    shared: Opened,
    maps: Arc<Maps>,
    instance: Instance,
}

/// The program, with copies of what it writes.
#[derive(Debug)]
pub struct Rehearsal {
    loaded: Loaded,
    from: Arc<Maps>,
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rehearsed {
    /// The XDP action.
    pub action: u32,
    /// The frame afterwards.
    pub frame: Vec<u8>,
    /// Why.
    pub reason: Reason,
    /// The service that it was counted for, by id.
    pub service: Option<u16>,
    /// The backend that it was counted for, by id.
    pub backend: Option<u32>,
}

impl Rehearsals {
    /// Of a loaded instance.
    ///
    /// # Errors
    /// When there are no file descriptors left.
    pub fn of(loaded: &Loaded) -> Result<Self, Error> {
        let shared = names::ALL
            .into_iter()
            .filter(|name| !names::OF_DAEMON.contains(name) && !names::WRITTEN.contains(name))
            .map(|name| {
                let map = loaded.map_fd(name).ok_or_else(|| Error::Bpf {
                    doing: "rehearsing",
                    source: io::Error::new(io::ErrorKind::NotFound, name),
                })?;
                Ok((name, keep(map.try_clone_to_owned())?))
            })
            .collect::<Result<_, Error>>()?;
        Ok(Self {
            shared,
            maps: loaded.maps(),
            instance: loaded.instance(),
        })
    }

    /// Loads the program for packets of one version of IP, which takes the kernel's verifier a second or more.
    ///
    /// # Errors
    /// When the memory for copies is not to be had, or the kernel refuses the program.
    pub fn prepare(&self, version: IpVersion) -> Result<Rehearsal, Error> {
        // Services that have come to be guarded since the instance was opened are so here too.
        let guards = is_guarded(&self.maps);
        let capacity = only(version, self.maps.capacity).guarding(guards);
        let mut maps = shapes::create_some(&capacity, &names::WRITTEN)?;
        maps.extend(shapes::create_some(&capacity, &[names::INSTANCE])?);
        for (name, map) in &self.shared {
            maps.insert(name, keep(map.try_clone())?);
        }
        Ok(Rehearsal {
            loaded: Prepared::with_maps(capacity, self.instance, &maps)?.load_for(version)?,
            from: Arc::clone(&self.maps),
        })
    }
}

impl Rehearsal {
    /// Runs the program with a frame that comes in by an interface, given by its index in this network namespace, on the state of now.
    ///
    /// # Errors
    /// When the kernel does not run it, or it has counted nothing, which is a fault of this tether.
    pub fn run(&self, ifindex: u32, frame: &[u8]) -> Result<Rehearsed, Error> {
        self.copy();
        let (action, frame) = run_once(self.loaded.program(), ifindex, frame)
            .map_err(refused_call("rehearsing a packet"))?;
        self.counted(action, frame).ok_or_else(|| Error::Bpf {
            doing: "rehearsing a packet",
            source: io::Error::other("it was not counted, which is a fault of this tether"),
        })
    }

    /// The copies, as the last packet has left them. Of the other version of IP there are no flows in them.
    pub fn maps(&self) -> Arc<Maps> {
        self.loaded.maps()
    }

    fn copy(&self) {
        let (from, to) = (&*self.from, &*self.loaded.maps());
        copy(&from.flows4, &to.flows4);
        copy(&from.facts4, &to.facts4);
        copy(&from.nat4, &to.nat4);
        copy(&from.flows6, &to.flows6);
        copy(&from.facts6, &to.facts6);
        copy(&from.nat6, &to.nat6);
        copy(&from.slots, &to.slots);
        copy(&from.sources, &to.sources);
        copy(&from.ports, &to.ports);
        to.counters.clear();
        to.cpus.clear();
    }

    fn counted(&self, action: u32, frame: Vec<u8>) -> Option<Rehearsed> {
        let maps = self.loaded.maps();
        let layout = maps.capacity.counters();
        let was_counted = |offset: u32| maps.counter(offset).packets != 0;
        let reason = Reason::ALL
            .iter()
            .find(|reason| was_counted(layout.reason(**reason)))?;
        Some(Rehearsed {
            action,
            frame,
            reason: *reason,
            service: (0..layout.services as u16).find(|id| was_counted(layout.service(*id))),
            backend: (0..maps.capacity.backends).find(|id| was_counted(layout.backend(*id))),
        })
    }
}

/// Runs an XDP program with a frame that comes in by an interface of this network namespace. Gives the action, and the frame afterwards.
///
/// # Errors
/// When the kernel does not run it.
pub fn run_once(program: &Xdp, ifindex: u32, frame: &[u8]) -> io::Result<(u32, Vec<u8>)> {
    let mut output = vec![0; frame.len() + GROWTH];
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let context: Vec<u8> = [0, frame.len() as u32, 0, ifindex, 0, 0]
        .into_iter()
        .flat_map(u32::to_ne_bytes)
        .collect();
    let mut options = TestRunOptions::new();
    options.data_in = Some(frame);
    options.data_out = Some(&mut output);
    options.ctx_in = Some(&context);
    let ran = program.test_run(options).map_err(system_error)?;
    output.truncate(ran.data_size_out as usize);
    Ok((ran.return_value, output))
}

/// Whether a service has a guard.
fn is_guarded(maps: &Maps) -> bool {
    let mut services = (0..maps.services.len()).map(|id| maps.services.get(id));
    services.any(|service| service.traits & Service::GUARDED != 0)
}

/// The same capacity with next to no room for flows of the other version of IP, for a program that counts nothing of what clients send again.
fn only(version: IpVersion, capacity: Capacity) -> Capacity {
    let capacity = capacity.measuring(false);
    match version {
        IpVersion::V4 => Capacity {
            flow6_buckets: 2,
            nat6_buckets: 0,
            ..capacity
        },
        IpVersion::V6 => Capacity {
            flow4_buckets: 2,
            nat4_buckets: 0,
            ..capacity
        },
    }
}

/// Copies a map's memory, word by word: others write it meanwhile. What is not of this rehearsal's version of IP has another size, and is left out.
fn copy<T: Entry>(from: &Array<T>, to: &Array<T>) {
    if from.len() != to.len() {
        return;
    }
    for index in 0..from.len() {
        for (from, to) in from.words(index).iter().zip(to.words(index)) {
            to.store(from.load(Ordering::Acquire), Ordering::Release);
        }
    }
}

fn keep(map: io::Result<OwnedFd>) -> Result<OwnedFd, Error> {
    map.map_err(refused_call("keeping a map open for rehearsals"))
}
