//! What Tether's BPF programs share.
#![no_std]

pub mod packet;
