//! The flow table on its own: the life of an entry, what packets do to it, and millions of random packets against a reference.
#![cfg(not(loom))]

mod crowded;
mod forgery;
mod life;
mod load;
mod model;
mod pace;
mod random;
mod reference;
mod rig;
mod steer;
mod story;
