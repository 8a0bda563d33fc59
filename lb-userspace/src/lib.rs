//! Tether's daemon and command line.

pub mod admin;
pub mod config;
pub mod dataplane;
pub mod flows;
pub mod health;
mod http;
pub mod ids;
pub mod logging;
pub mod maglev;
pub mod model;
pub mod neighbour;
pub mod objects;
pub mod reconcile;
pub mod shutdown;
pub mod status;

#[cfg(test)]
mod testnet;
