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
    icmp::AboutSegment,
    parse::{Ends, Parse, Segment},
};

/// Where a segment comes from and where it goes, once it is translated. Ports in host byte order.
pub(crate) struct New<F: Parse> {
    pub(crate) source: F::Address,
    pub(crate) source_port: u16,
    pub(crate) destination: F::Address,
    pub(crate) destination_port: u16,
}

/// Writing the ends of an IP header, in one version of IP.
pub(crate) trait Rewrite: Parse {
    /// Whether the checksum of a message of ICMP covers its ends.
    const ICMP_SUMS_ENDS: bool;

    /// Writes both ends, and the header's checksum if it has one. Gives what their running sum has grown by: words in network byte order.
    fn set_ends(ip: Bytes, source: Self::Address, destination: Self::Address) -> u64;
    /// The header's checksum as it is, or 0 if it has none.
    fn checksum(ip: Bytes) -> u16;
}

impl Rewrite for V4 {
    const ICMP_SUMS_ENDS: bool = false;

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

    #[inline(always)]
    fn checksum(ip: Bytes) -> u16 {
        ip.raw16(10)
    }
}

impl Rewrite for V6 {
    const ICMP_SUMS_ENDS: bool = true;

    #[inline(always)]
    fn set_ends(ip: Bytes, source: [u64; 2], destination: [u64; 2]) -> u64 {
        replace(ip, 8, source[0])
            + replace(ip, 16, source[1])
            + replace(ip, 24, destination[0])
            + replace(ip, 32, destination[1])
    }

    #[inline(always)]
    fn checksum(_: Bytes) -> u16 {
        0
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
    let grown = grown + replace_ports(tcp, new.source_port, new.destination_port);
    tcp.set_raw16(16, csum::finish(!tcp.raw16(16) as u64 + grown));
}

/// Replaces the ports of a segment. Gives what the running sum has grown by.
#[inline(always)]
fn replace_ports(tcp: Bytes, source: u16, destination: u16) -> u64 {
    let ports = source.to_be() as u32 | ((destination.to_be() as u32) << 16);
    let grown = !tcp.raw32(0) as u64 + ports as u64;
    tcp.set_raw32(0, ports);
    grown
}

/// A frame without VLAN tags and a packet without anything between its headers, to a next hop without tags.
#[inline(always)]
pub(crate) fn plain<F: Family>(ctx: &XdpContext, hop: &NextHop, new: &New<F>) -> Option<()> {
    let frame = Frame::of(ctx).at(0, F::PLAIN_LEN)?;
    let ip = frame.after(ETH_LEN);
    F::take_a_hop(ip).ok()?;
    write::<F>(ip, ip.after(F::LEN), new);
    forward::address(frame, hop);
    Some(())
}

/// Any frame, whose head stays as it is.
#[inline(always)]
pub(crate) fn packet<F: Family>(
    ctx: &XdpContext,
    segment: &Segment,
    new: &New<F>,
) -> Result<(), Reason> {
    const _: () = assert!(<V4 as Header>::LEN == IPV4_LEN);
    let (ip, tcp) = headers::<F>(ctx, segment)?;
    F::take_a_hop(ip)?;
    write::<F>(ip, tcp, new);
    Ok(())
}

/// The same for a packet that this host forwards, or takes: it keeps its hops, if it has one left for that.
#[inline(always)]
pub(crate) fn packet_in_place<F: Family>(
    ctx: &XdpContext,
    segment: &Segment,
    new: &New<F>,
) -> Result<(), Reason> {
    let (ip, tcp) = headers::<F>(ctx, segment)?;
    if F::hops(ip) <= 1 {
        return Err(Reason::TtlExpired);
    }
    write::<F>(ip, tcp, new);
    Ok(())
}

/// Both headers, or nothing is written.
#[inline(always)]
fn headers<F: Family>(ctx: &XdpContext, segment: &Segment) -> Result<(Bytes, Bytes), Reason> {
    let ip = Frame::of(ctx)
        .at(segment.network(), F::LEN)
        .ok_or(Reason::Malformed)?;
    let tcp = Frame::of(ctx)
        .at(segment.transport(), TCP_LEN)
        .ok_or(Reason::Malformed)?;
    Ok((ip, tcp))
}

/// A message about a segment: its own ends and those of the segment that it quotes, and all checksums, that of the segment if so much of it is
/// quoted. The message's hop is taken off it.
#[inline(always)]
pub(crate) fn error<F: Family>(
    ctx: &XdpContext,
    about: &AboutSegment<F>,
    ends: &Ends<F>,
    quoted: &New<F>,
) -> Result<(), Reason> {
    let message = Message::of(ctx, about)?;
    F::take_a_hop(message.ip)?;
    message.write::<F>(ends, quoted, about.quoted_checksum(ctx));
    Ok(())
}

/// The same for a message that this host forwards, or takes: see [`packet_in_place`].
#[inline(always)]
pub(crate) fn error_in_place<F: Family>(
    ctx: &XdpContext,
    about: &AboutSegment<F>,
    ends: &Ends<F>,
    quoted: &New<F>,
) -> Result<(), Reason> {
    let message = Message::of(ctx, about)?;
    if F::hops(message.ip) <= 1 {
        return Err(Reason::TtlExpired);
    }
    message.write::<F>(ends, quoted, about.quoted_checksum(ctx));
    Ok(())
}

/// The headers of a message about a segment, and those of the segment as far as its ports: all are there, or nothing is written.
struct Message {
    ip: Bytes,
    icmp: Bytes,
    quoted_ip: Bytes,
    quoted_tcp: Bytes,
}

impl Message {
    #[inline(always)]
    fn of<F: Family>(ctx: &XdpContext, about: &AboutSegment<F>) -> Result<Self, Reason> {
        let (ip, icmp) = about.headers(ctx).ok_or(Reason::Malformed)?;
        let (quoted_ip, quoted_tcp) = about.quoted(ctx).ok_or(Reason::Malformed)?;
        Ok(Self {
            ip,
            icmp,
            quoted_ip,
            quoted_tcp,
        })
    }

    /// `sum` is where the segment's checksum is, if it is quoted.
    #[inline(always)]
    fn write<F: Family>(&self, ends: &Ends<F>, quoted: &New<F>, sum: Option<Bytes>) {
        let outer = F::set_ends(self.ip, ends.source, ends.destination);

        let before = F::checksum(self.quoted_ip);
        let mut segment = F::set_ends(self.quoted_ip, quoted.source, quoted.destination);
        // What the message's own sum grows by: with what is quoted, the checksums in it among that.
        let mut grown = segment + !before as u64 + F::checksum(self.quoted_ip) as u64;
        let ports = replace_ports(self.quoted_tcp, quoted.source_port, quoted.destination_port);
        grown += ports;
        segment += ports;
        if let Some(tcp) = sum {
            let before = tcp.raw16(16);
            let after = csum::finish(!before as u64 + segment);
            tcp.set_raw16(16, after);
            grown += !before as u64 + after as u64;
        }
        if F::ICMP_SUMS_ENDS {
            grown += outer;
        }
        let icmp = self.icmp;
        icmp.set_raw16(2, csum::finish(!icmp.raw16(2) as u64 + grown));
    }
}
