//! The fuzzers behind `cargo xtask fuzz`: each plays random cases that their seeds make, until one breaks what was promised.

pub mod api;
pub mod config;
pub mod packets;
