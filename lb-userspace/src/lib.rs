//! Tether's daemon and command line.

pub mod config;
pub mod dataplane;
pub mod flows;
pub mod ids;
pub mod maglev;
pub mod model;
pub mod objects;
pub mod reconcile;
pub mod status;
