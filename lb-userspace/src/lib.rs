//! Tether's daemon and command line.

pub mod config;
pub mod dataplane;
pub mod desired;
pub mod flows;
pub mod ids;
pub mod maglev;
pub mod model;
pub mod objects;
pub mod plan;
pub mod reconcile;
pub mod resolve;
pub mod status;
