//! What an error says of the TCP segment that it is about.

use aya_ebpf::programs::XdpContext;
use lb_common::headers::{ICMP_LEN, PORTS_LEN};

use lb_ebpf::packet::{Bytes, Frame};

use super::Message;
use crate::{
    family::Family,
    parse::{self, Ends, Parse},
};

/// An error about a TCP segment, told to who has sent that.
pub(crate) struct AboutSegment<F: Parse> {
    /// Offset of the message's IP header.
    pub(crate) network: usize,
    /// Offset of the message itself from there.
    header_len: usize,
    /// Length of the packet.
    pub(crate) length: u32,
    /// Who tells.
    pub(crate) teller: F::Address,
    /// Where the segment came from, as those who tell have seen it, and where it went.
    pub(crate) ends: Ends<F>,
    /// Its source port, host byte order.
    pub(crate) source_port: u16,
    /// Its destination port, host byte order.
    pub(crate) destination_port: u16,
    /// Offset of its TCP header from its IP header.
    tcp: usize,
}

impl<F: Family> AboutSegment<F> {
    /// From a message at an offset of the frame; none if it is about something else. Ports are enough; but what stands behind the packet in its frame is no
    /// part of what it quotes, and no checksum covers it.
    #[inline(always)]
    pub(super) fn of(ctx: &XdpContext, network: usize, message: &Message<F>) -> Option<Self> {
        let quote = network + message.header_len + ICMP_LEN;
        let ends = F::ends(Frame::of(ctx).at(quote, F::LEN)?);
        if ends.source != message.ends.destination {
            return None;
        }
        let tcp = F::quoted_tcp(ctx, quote)?;
        if message.header_len + ICMP_LEN + tcp + PORTS_LEN > message.length as usize {
            return None;
        }
        let ports = Frame::of(ctx).at(quote + tcp, PORTS_LEN)?;
        Some(Self {
            network,
            header_len: message.header_len,
            length: message.length,
            teller: message.ends.source,
            ends,
            source_port: ports.u16(0),
            destination_port: ports.u16(2),
            tcp,
        })
    }

    /// Of a frame, for a program that comes after one which has looked at it.
    #[inline(always)]
    pub(crate) fn in_frame(ctx: &XdpContext) -> Option<Self> {
        let network = parse::network_of::<F>(ctx)?;
        Self::of(ctx, network, &F::message(ctx, network)?)
    }

    /// Length of the frame, without padding.
    #[inline(always)]
    pub(crate) fn bytes(&self) -> u32 {
        self.network as u32 + self.length
    }

    /// The headers of the message.
    #[inline(always)]
    pub(crate) fn headers(&self, ctx: &XdpContext) -> Option<(Bytes, Bytes)> {
        let ip = Frame::of(ctx).at(self.network, F::LEN)?;
        let message = Frame::of(ctx).at(self.network + self.header_len, ICMP_LEN)?;
        Some((ip, message))
    }

    /// Those of the segment, as far as its ports.
    #[inline(always)]
    pub(crate) fn quoted(&self, ctx: &XdpContext) -> Option<(Bytes, Bytes)> {
        let quote = self.network + self.header_len + ICMP_LEN;
        let ip = Frame::of(ctx).at(quote, F::LEN)?;
        Some((ip, Frame::of(ctx).at(quote + self.tcp, PORTS_LEN)?))
    }

    /// Its TCP header as far as its checksum, if so much of it is quoted.
    #[inline(always)]
    pub(crate) fn quoted_checksum(&self, ctx: &XdpContext) -> Option<Bytes> {
        const LEN: usize = 18;
        let at = self.header_len + ICMP_LEN + self.tcp;
        if at + LEN > self.length as usize {
            return None;
        }
        Frame::of(ctx).at(self.network + at, LEN)
    }
}
