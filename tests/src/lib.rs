//! Lab.

pub mod packet;
