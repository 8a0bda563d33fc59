//! Addresses, ports and checksums of a segment that is translated (RFC 1624).

use aya_ebpf::programs::XdpContext;
use lb_common::{
    backend::NextHop,
    csum,
    headers::{ETH_LEN, IPV4_LEN, TCP_LEN},
    verdict::Reason,
};

use lb_ebpf::packet::{Bytes, Frame};

use crate::{
    family::{Family, V4, V6},
    forward::{self, Header},
    parse::{Parse, Segment},
};

/// Where a segment comes from and where it goes, once it is translated. Ports in host byte order.
pub(super) struct New<F: Parse> {
    pub(super) source: F::Address,
    pub(super) source_port: u16,
    pub(super) destination: F::Address,
    pub(super) destination_port: u16,
}

/// Writing the ends of an IP header, in one version of IP.
pub(crate) trait Rewrite: Parse {
    /// Writes both ends, and the header's checksum if it has one. Gives what their running sum has grown by: words in network byte order.
    fn set_ends(ip: Bytes, source: Self::Address, destination: Self::Address) -> u64;
}

impl Rewrite for V4 {
    #[inline(always)]
    fn set_ends(ip: Bytes, source: u32, destination: u32) -> u64 {
        let (source, destination) = (source.to_be(), destination.to_be());
        let grown =
            !ip.raw32(12) as u64 + !ip.raw32(16) as u64 + source as u64 + destination as u64;
        ip.set_raw32(12, source);
        ip.set_raw32(16, destination);
        ip.set_raw16(10, csum::finish(!ip.raw16(10) as u64 + grown));
        grown
    }
}

impl Rewrite for V6 {
    #[inline(always)]
    fn set_ends(ip: Bytes, source: [u64; 2], destination: [u64; 2]) -> u64 {
        replace(ip, 8, source[0])
            + replace(ip, 16, source[1])
            + replace(ip, 24, destination[0])
            + replace(ip, 32, destination[1])
    }
}

/// Replaces a word of a header. Gives what the running sum of its 32-bit words has grown by.
#[inline(always)]
fn replace(ip: Bytes, offset: usize, new: u64) -> u64 {
    let old = !ip.raw64(offset);
    ip.set_raw64(offset, new);
    (old >> 32) + (old & 0xffff_ffff) + (new >> 32) + (new & 0xffff_ffff)
}

/// Writes ends and ports, and both checksums. The packet's hop has been taken off it.
#[inline(always)]
fn write<F: Rewrite>(ip: Bytes, tcp: Bytes, new: &New<F>) {
    let grown = F::set_ends(ip, new.source, new.destination);
    let ports = new.source_port.to_be() as u32 | ((new.destination_port.to_be() as u32) << 16);
    let grown = grown + !tcp.raw32(0) as u64 + ports as u64;
    tcp.set_raw32(0, ports);
    tcp.set_raw16(16, csum::finish(!tcp.raw16(16) as u64 + grown));
}

/// A frame without VLAN tags and a packet without anything between its headers, to a next hop without tags.
#[inline(always)]
pub(super) fn plain<F: Family>(ctx: &XdpContext, hop: &NextHop, new: &New<F>) -> Option<()> {
    let frame = Frame::of(ctx).at(0, F::PLAIN_LEN)?;
    let ip = frame.after(ETH_LEN);
    F::take_a_hop(ip).ok()?;
    write::<F>(ip, ip.after(F::LEN), new);
    forward::address(frame, hop);
    Some(())
}

/// Any frame, whose head stays as it is.
#[inline(always)]
pub(super) fn packet<F: Family>(
    ctx: &XdpContext,
    segment: &Segment,
    new: &New<F>,
) -> Result<(), Reason> {
    const _: () = assert!(<V4 as Header>::LEN == IPV4_LEN);
    let ip = Frame::of(ctx)
        .at(segment.network(), F::LEN)
        .ok_or(Reason::Malformed)?;
    // Both are there, or nothing is written.
    let tcp = Frame::of(ctx)
        .at(segment.transport(), TCP_LEN)
        .ok_or(Reason::Malformed)?;
    F::take_a_hop(ip)?;
    write::<F>(ip, tcp, new);
    Ok(())
}
