//! The flow table: which backend a flow has, for as long as it lives.
//!
//! * [`word`]: the value word that owns an entry
//! * [`table`]: the protocol by which CPUs and the daemon share the buckets without locks
//! * [`life`]: what one packet does to one entry; pure
//! * [`steer`]: what one packet does to the table, and which backend it gets
//! * [`copy`]: how entries move to another table
//! * [`v4`]: keys and buckets of IPv4 flows

pub mod copy;
pub mod life;
pub mod steer;
pub mod table;
pub mod v4;
pub mod word;
