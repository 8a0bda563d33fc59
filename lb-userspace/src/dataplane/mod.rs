//! The data path's maps, seen from userspace.

pub mod array;
pub mod maps;
