//! The flow that tests of a flow's life are about: [`CLIENT`]'s.

use lb_common::{
    clock::Tick,
    flow::word::{State, Word, epoch_of},
    tcp::{ACK, FIN, RST},
    verdict::Reason,
};

use super::{BackendSpec, CLIENT, Packet, World, entries::backend, forwarded};

/// The length of an epoch, in bytes of the client's stream.
pub const MIB: u32 = 1 << 20;

/// Asserts that a packet is forwarded to a backend for this reason, in mode `l2`.
///
/// # Panics
/// If anything else comes of it.
#[track_caller]
pub fn assert_to(world: &World, packet: &Packet, reason: Reason, id: u32) {
    let output = BackendSpec::l2(id).l2_output(packet);
    world.send(packet).expect(&forwarded(reason, id, output));
}

/// Where its stream is: the sequence number of `CLIENT.ack()`.
pub fn seq() -> u32 {
    CLIENT.ack().as_tcp().seq
}

/// A live entry of it on backend 1, with its stream at [`seq`].
pub fn live(state: State, then: Tick) -> Word {
    Word::live(state, backend(1), epoch_of(seq()), then, 0)
}

/// Its FIN.
pub fn fin() -> Packet {
    CLIENT.ack().with_tcp(|tcp| tcp.flags = FIN | ACK)
}

/// Its RST.
pub fn rst() -> Packet {
    CLIENT.ack().with_tcp(|tcp| tcp.flags = RST)
}

/// A world with a pin of it on backend 2, while all slots name backend 1: whoever moves the flow shows.
pub fn pinned() -> (World, Word) {
    let world = World::new();
    let pin = Word::live(State::Pin, backend(2), epoch_of(seq()), world.now(), 0);
    world.insert(CLIENT.key(), pin);
    (world, pin)
}

/// So many ticks before.
pub fn ago(now: Tick, ticks: u32) -> Tick {
    Tick(now.0.wrapping_sub(ticks))
}
