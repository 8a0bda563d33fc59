//! The data path's maps and programs, seen from userspace.
//!
//! * [`array`], [`maps`]: map contents as mapped memory, and how large the maps are; storing cannot fail
//! * [`table`]: the flow tables among them, alike for both versions of IP
//! * [`layouts`]: what is where in maps of any version
//! * [`kernel`]: what gets them into the kernel, keeps them there, and removes them again

pub mod array;
pub mod kernel;
pub mod layouts;
pub mod maps;
pub mod table;
