//! What is sent back to who has sent: resets, and errors.

use lb_common::{
    tcp::{ACK, FIN, RST, SYN},
    verdict::Reason,
};

use super::{Breach, Observed, Promise, breach, ensure};
use crate::{
    fuzz::packets::reader::{self, Carried, Ip, Seen, Tcp},
    packet::icmp::MOST_QUOTED,
};

/// What was made of a frame to answer it: sent back where it came from, with right checksums.
pub(super) fn answer_of<'a>(seen: &Seen<'_>, came: &'a Observed) -> Result<Seen<'a>, Breach> {
    let back = [&seen.frame[6..12], &seen.frame[..6]].concat();
    ensure(
        came.output.get(..12) == Some(&back[..]),
        Promise::RightWay,
        || "the answer does not go back to who sent".into(),
    )?;
    let answer = reader::read(&came.output);
    ensure(answer.tags == seen.tags, Promise::RightWay, || {
        format!("tags {:?} became {:?}", seen.tags, answer.tags)
    })?;
    let Some(ip) = &answer.ip else {
        return breach(Promise::RightWay, "the answer is no packet of IP");
    };
    let (at, protocol) = match ip.carried {
        Carried::Tcp(tcp) => (tcp.at, 6),
        Carried::Icmp(at) => (at, if ip.is_ipv4() { 1 } else { 58 }),
        other => return breach(Promise::RightWay, format!("the answer is {other:?}")),
    };
    // An echo's sums are changed and not made, so they are as right as the request's.
    let is_echo =
        matches!(ip.carried, Carried::Icmp(at) if matches!(ip.bytes.get(at), Some(0 | 129)));
    let came_right = |of: &dyn Fn(&Ip<'_>) -> bool| seen.ip.as_ref().is_some_and(of);
    ensure(
        ip.has_right_header_sum() || (is_echo && !came_right(&|ip| ip.has_right_header_sum())),
        Promise::RightSums,
        || "the answer's header's".into(),
    )?;
    ensure(
        ip.has_right_sum(at, protocol)
            || (is_echo && !came_right(&|ip| ip.has_right_sum(at, protocol))),
        Promise::RightSums,
        || "the answer's".into(),
    )?;
    Ok(answer)
}

/// A RST in answer to a segment, to who sent it.
pub(super) fn is_reset(
    seen: &Seen<'_>,
    ip: &Ip<'_>,
    tcp: &Tcp,
    came: &Observed,
) -> Result<(), Breach> {
    ensure(tcp.flags & RST == 0, Promise::Cause, || {
        "a RST was answered with a RST".into()
    })?;
    let answer = answer_of(seen, came)?;
    let Some((reply, Carried::Tcp(sent))) = answer.ip.as_ref().map(|ip| (ip, ip.carried)) else {
        return breach(Promise::RightWay, "the answer is no segment");
    };
    let ends = (
        reply.source,
        sent.source,
        reply.destination,
        sent.destination,
    );
    ensure(
        ends == (ip.destination, tcp.destination, ip.source, tcp.source),
        Promise::RightWay,
        || format!("the RST goes {ends:?}"),
    )?;
    // RFC 9293, section 3.10.7.1.
    let ends = u32::from(tcp.flags & FIN != 0) + u32::from(tcp.flags & SYN != 0);
    let expected = if tcp.flags & ACK != 0 {
        (RST, tcp.ack, 0)
    } else {
        let taken = tcp.seq.wrapping_add(tcp.payload as u32).wrapping_add(ends);
        (RST | ACK, 0, taken)
    };
    ensure(
        (sent.flags, sent.seq, sent.ack) == expected,
        Promise::RightWay,
        || {
            format!(
                "the RST has {:?}, not {expected:?}",
                (sent.flags, sent.seq, sent.ack)
            )
        },
    )
}

/// An error about a segment, to who sent it: it quotes what stands before the segment, and eight bytes of that, and if the packet was too big, tells an MTU
/// that `fits` its way.
pub(super) fn is_complaint(
    seen: &Seen<'_>,
    ip: &Ip<'_>,
    tcp: &Tcp,
    reason: Reason,
    came: &Observed,
    fits: impl Fn(usize) -> bool,
) -> Result<(), Breach> {
    let answer = answer_of(seen, came)?;
    let Some((told, Carried::Icmp(at))) = answer.ip.as_ref().map(|ip| (ip, ip.carried)) else {
        return breach(Promise::RightWay, "the answer is no ICMP");
    };
    ensure(
        (told.source, told.destination) == (ip.destination, ip.source),
        Promise::RightWay,
        || format!("told {} from {}", told.destination, told.source),
    )?;
    let kinds: [u8; 2] = match (reason, ip.is_ipv4()) {
        (Reason::TtlExpired, true) => [11, 0],
        (Reason::TtlExpired, false) => [3, 0],
        (_, true) => [3, 4],
        (_, false) => [2, 0],
    };
    let quote = told.bytes.get(at + 8..told.length).unwrap_or_default();
    let least = (tcp.at + 8).min(MOST_QUOTED);
    let is_quoted = quote.len() >= least && ip.bytes.starts_with(quote);
    ensure(
        told.bytes.get(at..at + 2) == Some(&kinds) && is_quoted,
        Promise::RightWay,
        || {
            format!(
                "{:?}, quoting {} bytes",
                told.bytes.get(at..at + 2),
                quote.len()
            )
        },
    )?;
    // RFC 1191, section 4, and RFC 4443, section 3.2. Where there is none to be told, there is nothing (RFC 792; RFC 4443, section 3.3).
    let word = told.bytes.get(at + 4..at + 8);
    let mtu = word.map_or(0, |word| {
        word.iter()
            .fold(0, |mtu, byte| mtu << 8 | usize::from(*byte))
    });
    let is_due = match reason {
        Reason::TtlExpired => mtu == 0,
        _ => fits(mtu),
    };
    ensure(is_due, Promise::RightWay, || {
        format!("{}, with an MTU of {mtu}", reason.name())
    })
}
