//! Tether's daemon and command line.

pub mod config;
pub mod dataplane;
pub mod health;
pub mod flows;
pub mod ids;
pub mod maglev;
pub mod model;
pub mod neighbour;
pub mod objects;
pub mod shutdown;

#[cfg(test)]
mod testnet;
pub mod reconcile;
pub mod status;
