//! Tether's daemon and command line.

pub mod dataplane;
pub mod model;
pub mod objects;
