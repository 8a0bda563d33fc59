//! The two versions of IP. What differs between them stands in each stage of the packet's way; the way itself is one.

use crate::{
    flow::Table,
    forward::{Answer, Header},
    guard::Known,
    icmp::Icmp,
    nat::Translate,
    parse::Parse,
    service::Directory,
};

/// IPv4.
pub(crate) struct V4;
/// IPv6.
pub(crate) struct V6;

/// A version of IP.
pub(crate) trait Family:
    Parse
    + Directory<Address = <Self as Parse>::Address>
    + Table<Address = <Self as Parse>::Address>
    + Header
    + Answer
    + Icmp
    + Translate
    + Known
{
}

impl Family for V4 {}
impl Family for V6 {}
