//! Tether's daemon and command line.

pub mod admin;
pub mod balance;
pub mod by_version;
mod capabilities;
mod chain;
pub mod cli;
#[cfg(test)]
mod compatibility;
pub mod config;
pub mod daemon;
pub mod dataplane;
pub mod desired;
mod digest;
pub mod dns;
pub mod doctor;
pub mod explain;
pub mod failpoint;
pub mod flows;
pub mod guard;
pub mod health;
pub mod history;
mod http;
pub mod ids;
pub mod inventory;
pub mod logging;
pub mod maglev;
pub mod model;
pub mod neighbour;
pub mod notice;
pub mod objects;
pub mod pace;
mod packet;
pub mod plan;
pub mod preview;
pub mod reconcile;
pub mod resolve;
pub mod shutdown;
pub mod status;
mod sysctl;
mod wall_clock;
pub mod watch;
pub mod web;
mod words;

#[cfg(test)]
mod testnet;
