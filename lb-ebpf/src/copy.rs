//! Inserting entries for the daemon, which never does so itself: the one code that inserts is this object's.

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use lb_common::flow::copy::{FRAME_LEN, Outcome};

use crate::{flow, maps};
use lb_ebpf::packet::Frame;

/// Carries out one order. Only ever run by the daemon, by `BPF_PROG_TEST_RUN`, and repeated: each run finds the packet as the one before has
/// left it, and so the number of its order.
#[xdp]
fn copy(ctx: XdpContext) -> u32 {
    match carry_out(&ctx) {
        Some(()) => xdp_action::XDP_PASS,
        None => xdp_action::XDP_ABORTED,
    }
}

#[inline(always)]
fn carry_out(ctx: &XdpContext) -> Option<()> {
    let bytes = Frame::of(ctx).at(0, FRAME_LEN)?;
    let index = bytes.raw32(0);
    bytes.set_raw32(0, index.wrapping_add(1));
    let order = maps::order(index)?;
    // SAFETY: an entry of the map, which nobody else uses during the test run. Volatile, so that the compiler makes no copy of it.
    let (key, value, first_seen, kind, outcome) = unsafe {
        (
            core::ptr::addr_of!((*order).key).read_volatile(),
            core::ptr::addr_of!((*order).value).read_volatile(),
            core::ptr::addr_of!((*order).first_seen).read_volatile(),
            core::ptr::addr_of!((*order).kind).read_volatile(),
            core::ptr::addr_of!((*order).outcome).read_volatile(),
        )
    };
    // A run that was interrupted has begun anew.
    if outcome == Outcome::Pending as u32 {
        let outcome = flow::copy(key, value, first_seen, kind) as u32;
        // SAFETY: as above.
        unsafe { core::ptr::addr_of_mut!((*order).outcome).write_volatile(outcome) };
    }
    Some(())
}
