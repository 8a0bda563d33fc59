//! What a frame begins with when it leaves: its next hop's MAC addresses and VLAN tags, whatever it came with.

use aya_ebpf::{helpers::generated::bpf_xdp_adjust_head, programs::XdpContext};
use lb_common::{
    backend::{BackendState, NextHop},
    headers::{ETH_LEN, VLAN_LEN},
    verdict::Reason,
};

use super::{address, hop_word};
use lb_ebpf::packet::Frame;

use crate::{hide, parse::Segment};

/// The priorities (IEEE 802.1Q, section 9.6) in two tags as they are loaded from a frame.
const PRIORITIES: [u64; 2] = [0xf0 << 16, 0xf0 << 48];

/// Bytes of VLAN tags that the next hop in force has.
#[inline(always)]
pub(super) fn tags_len(state: BackendState) -> usize {
    // Hidden, since the verifier would follow each length on its own from where they are told apart.
    BackendState(hide::number(state.0)).tags() as usize * VLAN_LEN
}

/// Writes the head of the frame anew, for a packet of this EtherType, with `room` bytes between it and the segment's IP header. Gives the offset at which they begin.
///
/// A tag takes the priority of the frame's tag at the same place; where there was none it has priority 0.
#[inline(always)]
pub(crate) fn write(
    ethertype: u16,
    ctx: &XdpContext,
    segment: &Segment,
    hop: &NextHop,
    state: BackendState,
    room: usize,
) -> Result<usize, Reason> {
    let old = segment.network() - ETH_LEN;
    let new = tags_len(state);
    // Behind the addresses a frame has 8 bytes in any case: of tags, or of its packet.
    let found = Frame::of(ctx)
        .at(ETH_LEN - 2, 2 * VLAN_LEN)
        .ok_or(Reason::Malformed)?
        .raw64(0);
    // Without a branch: the verifier would follow both sides through all that comes.
    let has = [((old >> 2) | (old >> 3)) as u64 & 1, (old >> 3) as u64 & 1];
    let kept = found & ((PRIORITIES[0] * has[0]) | (PRIORITIES[1] * has[1]));
    let tags = hop_word(hop, 7) | kept;

    let shift = old as i32 - new as i32 - room as i32;
    // SAFETY: a helper on the context.
    if shift != 0 && unsafe { bpf_xdp_adjust_head(ctx.ctx, shift) } != 0 {
        return Err(Reason::NoHeadroom);
    }
    let head = Frame::of(ctx)
        .at(0, ETH_LEN + 2 * VLAN_LEN)
        .ok_or(Reason::NoHeadroom)?;
    address(head, hop);
    let ethertype = ethertype.to_be();
    if new == 0 {
        head.set_raw16(ETH_LEN - 2, ethertype);
    } else if new == VLAN_LEN {
        head.set_raw32(ETH_LEN - 2, tags as u32);
        head.set_raw16(ETH_LEN - 2 + VLAN_LEN, ethertype);
    } else {
        head.set_raw64(ETH_LEN - 2, tags);
        head.set_raw16(ETH_LEN - 2 + 2 * VLAN_LEN, ethertype);
    }
    Ok(ETH_LEN + tags_len(state))
}
