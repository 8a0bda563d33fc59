//! Tether's daemon and command line.

pub mod dataplane;
pub mod health;
pub mod model;
pub mod neighbour;
pub mod objects;
pub mod shutdown;

#[cfg(test)]
mod testnet;
