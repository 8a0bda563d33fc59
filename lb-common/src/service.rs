//! The entry of a service.

use core::mem::{offset_of, size_of};

use crate::{hash::Seed, net::Address};

/// One service, one cache line. Written before the directory of VIPs names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Service {
    /// A [`crate::maglev::TableRef`]: the only word that changes while the service is in use.
    pub table: u64,
    /// Keys the choice of slots: derived from the fleet's seed and the service's name.
    pub seed: Seed,
    /// Hash of the service's full identity (name, VIP, port, mode); 0 is an entry that is not in use.
    #[cfg(not(feature = "next-abi"))]
    pub identity: u64,
    /// VIP.
    pub vip: Address,
    /// The same, where the next layout has it.
    #[cfg(feature = "next-abi")]
    pub identity: u64,
    /// Port, host byte order.
    pub port: u16,
    /// What else is to be done with its packets: [`Service::TRANSLATES`] and [`Service::GUARDED`], each or none.
    pub traits: u16,
    /// 0 if it places each flow for itself. Else it places clients, all flows of one at one backend: the number of those services that do so together.
    pub affinity: u16,
    /// How long a client without flows keeps its backend, in ticks.
    pub affinity_ticks: u16,
}

impl Service {
    /// Of [`Service::traits`]: one of its backends, those that drain among them, has a mode that translates (see [`crate::backend::Mode::translates`]). Set
    /// before the first of these can be given a flow.
    pub const TRANSLATES: u16 = 1;
    /// Of [`Service::traits`]: it has a [`crate::guard::Guard`]. Set after that is written.
    pub const GUARDED: u16 = 2;
}

const _: () = assert!(size_of::<Service>() == 64 && offset_of!(Service, port) == 56);
#[cfg(not(feature = "next-abi"))]
const _: () = assert!(offset_of!(Service, identity) == 32 && offset_of!(Service, vip) == 40);
const _: () = assert!(offset_of!(Service, traits) == 58);
