//! The protocols of the flow table and of the sources under a model checker: every interleaving of two CPUs, and every one of three with few preemptions.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p lb-common --release --test loom -- --nocapture`
#![cfg(loom)]

mod duplicates;
mod machine;
mod moves;
mod sources;
mod steering;
