//! The data path's maps and programs, seen from userspace.
//!
//! * [`array`], [`maps`]: map contents as mapped memory; storing cannot fail
//! * [`table`]: the flow tables among them, alike for both versions of IP
//! * [`kernel`]: what gets them into the kernel, keeps them there, and removes them again

pub mod array;
pub mod kernel;
pub mod maps;
pub mod table;
