//! Inserting entries for the daemon, which never does so itself: the one code that inserts is this object's.

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use lb_common::{
    flow::copy::{FRAME_LEN, Outcome},
    net::IpVersion,
};

use crate::{
    family::{V4, V6},
    flow::{self, Table},
    maps,
};
use lb_ebpf::packet::Frame;

/// Carries out one order. Only ever run by the daemon, by `BPF_PROG_TEST_RUN`, and repeated: each run finds the packet as the one before has
/// left it, and so the number of its order.
#[xdp]
fn copy(ctx: XdpContext) -> u32 {
    let Some(bytes) = Frame::of(&ctx).at(0, FRAME_LEN) else {
        return xdp_action::XDP_ABORTED;
    };
    let index = bytes.raw32(0);
    bytes.set_raw32(0, index.wrapping_add(1));
    if copy4(index) == CARRIED_OUT || copy6(index) == CARRIED_OUT {
        xdp_action::XDP_PASS
    } else {
        xdp_action::XDP_ABORTED
    }
}

// Whether an order was carried out: a number, since that is what a BPF function returns.
const CARRIED_OUT: u32 = 0;
const IS_ANOTHERS: u32 = 1;

#[inline(never)]
fn copy4(index: u32) -> u32 {
    carry_out::<V4>(index, IpVersion::V4)
}

#[inline(never)]
fn copy6(index: u32) -> u32 {
    carry_out::<V6>(index, IpVersion::V6)
}

#[inline(always)]
fn carry_out<T: Table>(index: u32, of: IpVersion) -> u32 {
    let Some(order) = maps::order(index) else {
        return IS_ANOTHERS;
    };
    // SAFETY: an entry of the map, which nobody else uses during the test run. Volatile, so that the compiler makes no copy of it.
    let (value, first_seen, kind, outcome, version) = unsafe {
        (
            core::ptr::addr_of!((*order).value).read_volatile(),
            core::ptr::addr_of!((*order).first_seen).read_volatile(),
            core::ptr::addr_of!((*order).kind).read_volatile(),
            core::ptr::addr_of!((*order).outcome).read_volatile(),
            core::ptr::addr_of!((*order).version).read_volatile(),
        )
    };
    if version != of as u32 {
        return IS_ANOTHERS;
    }
    // SAFETY: as above.
    let key = unsafe {
        let words = core::ptr::addr_of!((*order).key).cast::<u64>();
        [
            words.read_volatile(),
            words.add(1).read_volatile(),
            words.add(2).read_volatile(),
        ]
    };
    // SAFETY: as above.
    let (translation, has_translation) = unsafe {
        (
            core::ptr::addr_of!((*order).translation).read_volatile(),
            core::ptr::addr_of!((*order).has_translation).read_volatile(),
        )
    };
    let translation = if has_translation == 0 {
        None
    } else {
        Some(translation)
    };
    // A run that was interrupted has begun anew.
    if outcome == Outcome::Pending as u32 {
        let outcome = flow::copy::<T>(key, value, translation, first_seen, kind) as u32;
        // SAFETY: as above.
        unsafe { core::ptr::addr_of_mut!((*order).outcome).write_volatile(outcome) };
    }
    CARRIED_OUT
}
