//! ICMP (RFC 792) and ICMPv6 (RFC 4443), as far as they concern VIPs: errors about services' packets go to the backends that sent these, and those about
//! encapsulated packets to the clients; echo requests are answered, and clients are told of packets that cannot go on.

mod complaint;
mod echo;
mod error;
mod relay;
mod tunnel;
mod v4;
mod v6;

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    macros::xdp,
    programs::XdpContext,
};
use lb_common::{
    headers::ICMP_LEN,
    maps::{ERROR_INDEX, KEPT_NS},
    net::IpVersion,
    verdict::{Reason, Verdict},
};

use lb_ebpf::packet::{Bytes, Frame};

use crate::{
    count::Tally,
    family::{Family, V4, V6},
    hand_on, maps,
    parse::{self, Ends, Parse},
};

pub(crate) use self::{
    complaint::{complain, room_on_the_way_to},
    error::AboutSegment,
    relay::to_backend,
};

/// ICMP, in one version of IP.
pub(crate) trait Icmp: Parse {
    /// Type of an echo request.
    const ECHO_REQUEST: u8;
    /// Type of an echo reply.
    const ECHO_REPLY: u8;
    /// Type and code of the error about a packet that is too big.
    const TOO_BIG: [u8; 2];
    /// Type and code of the error about a packet whose hops ended.
    const EXPIRED: [u8; 2];
    /// Type and code of the error about a packet whose receiver no router can reach.
    const NO_WAY: [u8; 2];
    /// The least MTU that is told.
    const LEAST_MTU: u32;

    /// The message at an offset of the frame, if it is one, and whole but for its end.
    fn message(ctx: &XdpContext, network: usize) -> Option<Message<Self>>;
    /// Whether a type is that of an error.
    fn is_error(kind: u8) -> bool;
    /// The offset of TCP's header in a packet that is quoted at an offset of the frame, from there; none if it is not TCP, or no
    /// packet's beginning.
    fn quoted_tcp(ctx: &XdpContext, quote: usize) -> Option<usize>;
    /// The offset of the packet within a packet that is quoted at an offset of the frame, from there; none if it holds none, or is no
    /// packet's beginning.
    fn quoted_tunnel(ctx: &XdpContext, quote: usize) -> Option<usize>;
    /// The version of IP of that packet within.
    fn version_within(ctx: &XdpContext, quote: usize) -> Option<IpVersion>;
    /// What the header of an error about an encapsulated packet has its client learn, if anything.
    fn told(header: Bytes) -> Option<Told>;
    /// Sets the TTL, or hop limit, of a packet that starts here.
    fn renew(ip: Bytes);
    /// Swaps the ends of an IP header.
    fn swap_ends(ip: Bytes);
    /// How much of a segment that has been parsed is quoted in an error about it: its header, what stands between that and TCP's, and eight bytes more.
    fn quoted_len(ctx: &XdpContext, network: usize) -> Option<u32>;
    /// Writes the header of an answer to the packet that it quotes. Gives the running sum that the checksum of the message begins with, in
    /// network byte order.
    fn write_header(ip: Bytes, quoted: Bytes, message_len: u32) -> u64;
    /// Answers the frame with an error about its packet: that it is too big for a way of this MTU, or if that is 0, that its hops ended. A function of
    /// its own, for its stack; what it returns is told in [`complaint`].
    fn complain(ctx: *mut xdp_md, mtu: u32) -> u32;
}

/// What a client is to learn of its packet: too big for a way of this MTU, in bytes; or if that is 0, [`Icmp::NO_WAY`]. One number and no enum, since the
/// verifier would follow both sides.
pub(crate) struct Told(u32);

impl Told {
    const NO_WAY: Self = Self(0);

    /// None for an MTU of 0, which routers that are older than RFC 1191 tell.
    #[inline(always)]
    fn too_big(mtu: u32) -> Option<Self> {
        (mtu != 0).then_some(Self(mtu))
    }
}

/// A message.
pub(crate) struct Message<F: Parse> {
    /// Its type.
    kind: u8,
    /// Length of the IP header.
    header_len: usize,
    /// Length of the packet.
    length: u32,
    /// Where it comes from and where it goes.
    ends: Ends<F>,
}

// What a function returns that leaves the message to another. No XDP actions.
/// It is about an encapsulated packet.
const TUNNEL: u32 = u32::MAX - 3;
/// It is about an IPv4 packet in an IPv6 one.
const TUNNEL_4_IN_6: u32 = u32::MAX - 4;
/// It is about a packet of a service whose flows are translated, or about one of a flow that was.
const TRANSLATED: u32 = u32::MAX - 7;

/// A message of ICMP.
#[xdp(frags)]
fn control4(ctx: XdpContext) -> u32 {
    match handle4(ctx.ctx) {
        TUNNEL => tunnel::tunnel4(ctx.ctx),
        TRANSLATED => hand_on(&ctx, ERROR_INDEX),
        action => action,
    }
}

/// A message of ICMPv6.
#[xdp(frags)]
fn control6(ctx: XdpContext) -> u32 {
    match handle6(ctx.ctx) {
        TUNNEL => tunnel::tunnel6(ctx.ctx),
        TUNNEL_4_IN_6 => tunnel::tunnel4in6(ctx.ctx),
        TRANSLATED => hand_on(&ctx, ERROR_INDEX + 1),
        action => action,
    }
}

#[inline(never)]
fn handle4(ctx: *mut xdp_md) -> u32 {
    let ctx = XdpContext::new(ctx);
    match parse::network_of::<V4>(&ctx) {
        Some(offset) => control::<V4>(&ctx, offset),
        None => xdp_action::XDP_PASS,
    }
}

#[inline(never)]
fn handle6(ctx: *mut xdp_md) -> u32 {
    let ctx = XdpContext::new(ctx);
    match parse::network_of::<V6>(&ctx) {
        Some(offset) => control::<V6>(&ctx, offset),
        None => xdp_action::XDP_PASS,
    }
}

#[inline(always)]
fn control<F: Family>(ctx: &XdpContext, network: usize) -> u32 {
    let mut tally = Tally::new();
    let (reason, action) = match handle::<F>(ctx, network, &mut tally) {
        Ok((Reason::NotService, action)) => return action,
        Ok((reason, action)) => (reason, action),
        Err(reason) => match reason.verdict() {
            Verdict::Pass => (reason, xdp_action::XDP_PASS),
            _ => (reason, xdp_action::XDP_DROP),
        },
    };
    tally.count(reason);
    action
}

#[inline(always)]
fn handle<F: Family>(
    ctx: &XdpContext,
    network: usize,
    tally: &mut Tally,
) -> Result<(Reason, u32), Reason> {
    let message = F::message(ctx, network).ok_or(Reason::NotService)?;
    if F::is_error(message.kind) {
        let quote = network + message.header_len + ICMP_LEN;
        if let Some(within) = F::version_within(ctx, quote) {
            let is_other = within as u32 != F::VERSION as u32;
            let action = if is_other { TUNNEL_4_IN_6 } else { TUNNEL };
            return Ok((Reason::NotService, action));
        }
        relay::relay::<F>(ctx, network, &message, tally)
    } else if message.kind == F::ECHO_REQUEST && F::is_only_vip(message.ends.destination) {
        tally.bytes = network as u32 + message.length;
        if !maps::may_answer(maps::now_ns(), KEPT_NS) {
            return Err(Reason::AnswerLimited);
        }
        echo::answer::<F>(ctx, network, &message)?;
        Ok((Reason::EchoAnswered, xdp_action::XDP_TX))
    } else {
        Err(Reason::NotService)
    }
}

/// The header of a message, the first [`ICMP_LEN`] bytes of it.
#[inline(always)]
fn header_at(ctx: &XdpContext, offset: usize) -> Option<Bytes> {
    Frame::of(ctx).at(offset, ICMP_LEN)
}
