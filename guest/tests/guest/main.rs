//! What only a guest can test: devices that the machine's own kernel may lack. `cargo xtask kernels` runs them; anywhere else
//! each of them says what it misses, and fails.

mod bond;
mod ground;
mod virtio_net;
mod vlan;
