//! The BPF objects that the build script built.

/// The load balancer: program [`lb_common::maps::PROGRAM`] and its maps.
pub static TETHER: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tether"));
/// The decapsulator: program [`lb_common::maps::DECAP_PROGRAM`].
pub static DECAP: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/decap"));
/// Programs that only the bench loads: floors and the harness that varies packets.
pub static BENCH: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/bench"));
