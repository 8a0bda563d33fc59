//! Checksums of what is changed on its way: what came right leaves right.

use std::net::IpAddr;

use super::{Breach, Promise, ensure};
use crate::fuzz::packets::reader::{self, Ip};

/// Whether a sum that was right is right.
pub(super) fn stays_right(before: bool, after: bool, whose: &str) -> Result<(), Breach> {
    ensure(!before || after, Promise::RightSums, || whose.into())
}

/// Whether the sums of an IP header and of what it carries at an offset, with the pseudo-header of a protocol, are right if they were.
pub(super) fn stay_right(
    before: &Ip<'_>,
    after: &[u8],
    at: usize,
    protocol: u8,
) -> Result<(), Breach> {
    let ethertype = if before.is_ipv4() { 0x0800 } else { 0x86dd };
    let after = reader::read_ip(after, 0, ethertype);
    let is_right = |of: &dyn Fn(&Ip<'_>) -> bool| after.as_ref().is_some_and(of);
    stays_right(
        before.has_right_header_sum(),
        is_right(&|ip| ip.has_right_header_sum()),
        "the header's",
    )?;
    stays_right(
        before.has_right_sum(at, protocol),
        is_right(&|ip| ip.has_right_sum(at, protocol)),
        "the segment's",
    )
}

/// Whether the sum of a segment that is quoted, and may be cut short, covers its ends as it did: whatever it lacks, it lacks it still (RFC 1624).
pub(super) fn covers_as_before(
    before: (&[IpAddr; 2], &[u8]),
    after: (&[IpAddr; 2], &[u8]),
) -> Result<(), Breach> {
    ensure(
        lacking(before.0, before.1) == lacking(after.0, after.1),
        Promise::RightSums,
        || "the quoted segment's".into(),
    )
}

/// What the one's complement sum of a segment and its ends comes to.
fn lacking(ends: &[IpAddr; 2], segment: &[u8]) -> u16 {
    let mut summed = Vec::new();
    for end in ends {
        summed.extend(octets(*end));
    }
    summed.extend(segment);
    // Zero has two names.
    reader::sum(&summed) % 0xffff
}

/// The bytes of an address.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
