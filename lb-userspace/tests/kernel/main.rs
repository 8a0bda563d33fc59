//! Instances in the real kernel: created, adopted, attached, replaced, removed. Needs root.
//!
//! Each test runs in a network namespace and with a bpffs of its own, which end with it: nothing here touches the host's
//! interfaces or pins.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod attach;
mod decap;
mod egress;
mod guard;
mod local;
mod measured;
#[path = "../model/mod.rs"]
mod model;
#[path = "../../../tests/src/mounts.rs"]
mod mounts;
mod open;
mod reconciled;
mod resize;
mod runs;
mod sandbox;
mod translated;
mod wire;
