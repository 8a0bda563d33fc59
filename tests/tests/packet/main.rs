//! What becomes of single packets: each is handed to the programs in the kernel, on fresh maps. Action, output and counters are compared to the byte.
//!
//! One program for all of them, since the kernel takes seconds to verify what it loads, and minutes where it is emulated.

mod affinity;
mod decap;
mod dnat;
mod down;
mod errors;
mod forgery;
mod forward;
mod gray;
mod guard;
mod icmp;
mod ipv6;
mod life;
mod local;
mod nat;
mod nat_again;
mod nat_life;
mod nat_ports;
mod pacing;
mod parse;
mod reasons;
mod reset;
mod table;
mod taken;
mod vlan;
