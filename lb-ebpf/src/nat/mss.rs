//! The maximum segment size of a SYN (RFC 9293, section 3.7.1), made to fit the way that the other side's segments take to who has sent it.

use aya_ebpf::programs::XdpContext;
use lb_common::{csum, headers::TCP_LEN};

use lb_ebpf::packet::Frame;

use crate::{
    family::Family,
    hide,
    parse::{Segment, blur},
};

/// Option: no operation.
const NO_OPERATION: u8 = 1;
/// Option: maximum segment size.
const MSS: u8 = 2;
/// Length of that.
const MSS_LEN: usize = 4;
/// Options that are looked through, each no-operation being one. Hosts tell the size first; one that stands behind so many others is left as it is, and
/// what is too long for the way is told of by errors.
const MOST_OPTIONS: u32 = 10;

/// Has the option tell at most what fits a way of this MTU; 0 is not known. A SYN without the option stays without: it means 536 bytes, or 1220.
#[inline(always)]
pub(super) fn clamp<F: Family>(ctx: &XdpContext, segment: &Segment, mtu: u32) -> Option<()> {
    let most = mtu.checked_sub((F::LEN + TCP_LEN) as u32)?;
    let tcp = segment.transport();
    let len = (Frame::of(ctx).at(tcp, TCP_LEN)?.u8(12) >> 4) as u32 * 4;
    let mut at = TCP_LEN as u32;
    let mut looked = 0;
    while looked < MOST_OPTIONS {
        if at + MSS_LEN as u32 > len {
            return None;
        }
        // Hidden, as are the offsets of extension headers.
        let offset = hide::number(tcp as u64) + (hide::number(u64::from(at)) & 0x3f);
        let option = Frame::of(ctx).at(offset as usize, MSS_LEN)?;
        let kind = option.u8(0);
        if kind == MSS {
            let told = option.u16(2);
            if option.u8(1) == MSS_LEN as u8 && told as u32 > most {
                option.set_u16(2, most as u16);
                // The option may begin at an odd offset: then its bytes are the other halves of two words.
                let (old, new) = if at & 1 == 0 {
                    (told, most as u16)
                } else {
                    (told.swap_bytes(), (most as u16).swap_bytes())
                };
                let header = Frame::of(ctx).at(tcp, TCP_LEN)?;
                header.set_u16(16, csum::update(header.u16(16), old, new));
            }
            return Some(());
        }
        let step = if kind == NO_OPERATION {
            1
        } else {
            option.u8(1) as u32
        };
        // The end of options, or one that cannot be.
        if kind == 0 || step == 0 {
            return None;
        }
        at = blur(ctx, at + step, 0x1ff);
        looked += 1;
    }
    None
}
