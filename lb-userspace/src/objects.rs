//! The BPF objects that the build script built.

/// The load balancer: program [`lb_common::maps::PROGRAM`] and its maps.
pub static TETHER: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tether"));
/// The decapsulator: program [`lb_common::maps::DECAP_PROGRAM`].
pub static DECAP: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/decap"));
/// What only the bench, the packet tests and the labs load: floors, harnesses that vary packets or prepare them, and a generator of floods.
pub static BENCH: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/bench"));
