//! Tether's lab: a network of clients, router, load balancer and backends in namespaces, the peers that talk across it, and
//! the daemon under test, all as values that clean up after themselves.

pub mod address;
pub mod browser;
pub mod config;
pub mod dashboard;
pub mod fleet;
pub mod flood;
pub mod frame;
pub mod fuzz;
pub mod gray;
mod mounts;
pub mod namespace;
pub mod packet;
pub mod packet_socket;
pub mod passing;
pub mod peer;
pub mod pods;
pub mod prometheus;
pub mod random;
pub mod running;
pub mod sandbox;
pub mod stage;
pub mod status;
pub mod terminal;
pub mod test_run;
pub mod tether;
pub mod topology;
pub mod torture;
pub mod two_links;
pub mod wait;
