//! What the data path and the daemon share: the layout of every map, the flow table's protocol and the life of a flow, hashing,
//! Maglev slots, verdicts.
//!
//! No allocation, no I/O, no panic: all of it runs inside the kernel as well as in tests, in the model checker and in the
//! daemon. Nothing here reads a clock or a map by itself; time and memory are parameters.
#![cfg_attr(not(any(test, loom, feature = "user")), no_std)]

pub mod backend;
pub mod bench;
mod bits;
pub mod clock;
pub mod counters;
pub mod csum;
pub mod flood;
pub mod flow;
pub mod guard;
pub mod hash;
pub mod headers;
pub mod hide;
#[cfg(feature = "user")]
pub mod layout;
pub mod maglev;
pub mod maps;
pub mod nat;
pub mod net;
pub mod notice;
pub mod repeats;
pub mod service;
pub mod share;
pub mod tcp;
pub mod verdict;
pub mod vip;
pub mod watch;
