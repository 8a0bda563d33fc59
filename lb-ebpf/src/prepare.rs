//! Programs that prepare a frame's surroundings as a test run cannot, and then call the program under test.

use aya_ebpf::{
    bindings::xdp_action,
    helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
    macros::xdp,
    programs::XdpContext,
};
use lb_common::bench::{CROWD_LEN, CROWD_SHIFTS, POISON_LEN};

use lb_ebpf::packet::Frame;

use crate::UNDER_TEST;

/// Fills the headroom before a frame with ones. The frame is supplied with that many bytes of anything before it.
#[xdp(frags)]
fn poison(ctx: XdpContext) -> u32 {
    if fill(&ctx).is_some() {
        // SAFETY: a helper on the context. It returns only if it fails.
        unsafe { UNDER_TEST.tail_call(&ctx, 0) };
    }
    xdp_action::XDP_ABORTED
}

#[inline(always)]
fn fill(ctx: &XdpContext) -> Option<()> {
    let bytes = Frame::of(ctx).at(0, POISON_LEN)?;
    let mut at = 0;
    while at < POISON_LEN {
        bytes.set_raw32(at, u32::MAX);
        at += size_of::<u32>();
    }
    // SAFETY: a helper on the context.
    (unsafe { bpf_xdp_adjust_head(ctx.ctx, POISON_LEN as i32) } == 0).then_some(())
}

/// Moves a frame, of [`CROWD_LEN`] bytes, to the start of its buffer.
#[xdp(frags)]
fn crowd(ctx: XdpContext) -> u32 {
    if shift::<{ CROWD_SHIFTS[0] }>(&ctx)
        .or_else(|| shift::<{ CROWD_SHIFTS[1] }>(&ctx))
        .is_some()
    {
        // SAFETY: as above.
        unsafe { UNDER_TEST.tail_call(&ctx, 0) };
    }
    xdp_action::XDP_ABORTED
}

/// Does nothing if the kernel refuses to move it that far.
#[inline(always)]
fn shift<const BYTES: usize>(ctx: &XdpContext) -> Option<()> {
    // SAFETY: a helper on the context.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(BYTES as i32)) } != 0 {
        return None;
    }
    let bytes = Frame::of(ctx).at(0, BYTES + CROWD_LEN)?;
    let mut at = 0;
    while at < CROWD_LEN {
        bytes.set_raw32(at, bytes.raw32(BYTES + at));
        at += size_of::<u32>();
    }
    // SAFETY: a helper on the context.
    (unsafe { bpf_xdp_adjust_tail(ctx.ctx, -(BYTES as i32)) } == 0).then_some(())
}
