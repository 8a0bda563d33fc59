//! The packet test kit: the shipped XDP programs, one packet at a time, through `BPF_PROG_TEST_RUN`.
//!
//! A test builds a [`World`] (services, tables, backends, entries), sends it one built [`Packet`] after the other, and says for
//! each what must come of it, see [`Expect`]: the action, every byte of the output, and every counter, those that must not
//! change included. A test that fails leaves its packets in a pcap file and prints the one line that reruns it.

pub mod answer;
pub mod check;
pub mod entries;
pub mod flow;
pub mod frame;
pub mod guard;
pub mod icmp;
pub mod kernel;
pub mod nat;
pub mod pcap;
pub mod version;
pub mod world;

pub use answer::{BackendSpec, reset_output};
pub use check::{Expect, Run, Which, answered, dropped, forwarded, passed};
pub use frame::{Packet, Transport};
pub use version::{in_version, on_wire, version};
pub use world::{CLIENT, Client, SERVICE, VIP, VIP_PORT, World};
