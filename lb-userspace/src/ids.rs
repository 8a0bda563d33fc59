//! Who has which number: identities, the keyed hashes behind them, and the assignment of ids.

mod hash;

pub use hash::{KeyedHash, backend_identity, fleet_seed_of, service_identity, service_seed};
