//! That the kernel takes every program, each with room for all that there is, and that flows come through all of them: what the verifier of a kernel may refuse.

use lab::packet::{BackendSpec, CLIENT, SERVICE, World, guard::Limits, kernel::INSTANCE};
use lb_common::{tcp::ACK, verdict::Reason};
use lb_userspace::dataplane::kernel::tap::Tapped;

lab::in_both_versions![a_flow_comes_through_all_programs];

fn a_flow_comes_through_all_programs() {
    let world = World::guarding_translating_measuring([SERVICE]);
    let backend = BackendSpec::nat(1);
    world.translate(&backend, SERVICE);
    world.guard(SERVICE, &[], &Limits::NONE);
    let flow = world.open(CLIENT);
    let data = flow.ack().payload(b"a question");
    world
        .send(&data)
        .expect(&flow.to_backend(&backend, &data, Reason::Established));
    let answer = flow.replies(ACK).payload(b"an answer");
    world.send(&answer).expect(&flow.replied(&answer));
}

#[test]
fn all_programs_that_watch_are_taken() {
    let capacity = World::guarding_translating_measuring([]).maps.capacity;
    let (loaded, _told) = Tapped::private(capacity, INSTANCE).expect("the kernel takes them");
    loaded
        .local_reply()
        .expect("and that of backends on this host");
    assert!(loaded.maps().measured.is_some(), "and the one that counts");
}
