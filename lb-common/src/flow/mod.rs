//! The flow table: which backend a flow has, for as long as it lives.
//!
//! * [`word`]: the value word that owns an entry
//! * [`table`]: the protocol by which CPUs and the daemon share the buckets without locks
//! * [`life`]: what one packet does to one entry; pure
//! * [`open`]: the straight way of a SYN whose flow has no entry
//! * [`steer`]: what one packet does to the table, and which backend it gets
//! * [`copy`]: how entries move to another table
//! * `bits`: telling the places of a bucket apart
//! * [`bucket`]: what the tables of both families have in common
//! * [`v4`], [`v6`]: keys and buckets of IPv4 and of IPv6 flows

mod bits;
pub mod bucket;
pub mod copy;
pub mod life;
pub mod open;
pub mod steer;
pub mod table;
pub mod v4;
pub mod v6;
pub mod word;

use crate::hash::Seed;

/// What identifies a flow of either family: a client's endpoint and a service.
pub trait FlowKey: Copy + PartialEq {
    /// The service's id.
    fn service(&self) -> u16;
    /// All of it mixed to a word under the table's secret seed.
    fn mixed(&self, seed: &Seed) -> u64;
    /// The same as it was before version 9 of the layouts ([`crate::maps::ABI_VERSION`]), for what these have left.
    #[inline(always)]
    fn mixed_before_9(&self, seed: &Seed) -> u64 {
        self.mixed(seed)
    }
    /// The key's two buckets in a table of `buckets`: different ones if there are at least two.
    #[inline(always)]
    fn homes(&self, seed: &Seed, buckets: u32) -> [u32; 2] {
        bucket::homes(self.mixed(seed), buckets)
    }
    /// What of the client decides its slot in a table of the service with this seed: see [`crate::maglev::slot_index`].
    fn client_word(&self, seed: &Seed) -> u64;
    /// The key by which a service places the flow: this one, or without the port if it places clients and not flows
    /// ([`crate::service::Service::affinity`] is not 0).
    fn placed_by(self, affinity: u16) -> Self;
}
