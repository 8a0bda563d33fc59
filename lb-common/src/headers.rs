//! Sizes, offsets and numbers of the protocol headers that the data path reads and writes.

/// Ethernet header, bytes.
pub const ETH_LEN: usize = 14;
/// One 802.1Q tag, bytes.
pub const VLAN_LEN: usize = 4;
/// IPv4 header without options, bytes.
pub const IPV4_LEN: usize = 20;
/// IPv6 header without extension headers, bytes.
pub const IPV6_LEN: usize = 40;
/// Header of an ICMP or ICMPv6 message, bytes.
pub const ICMP_LEN: usize = 8;
/// TCP header without options, bytes.
pub const TCP_LEN: usize = 20;
/// Both ports, which TCP's header begins with, bytes.
pub const PORTS_LEN: usize = 4;

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// EtherType of an 802.1Q tag.
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// EtherType of an 802.1ad service tag.
pub const ETHERTYPE_QINQ: u16 = 0x88a8;

/// Protocol number of IPv4 in IPv4 (RFC 2003).
pub const PROTO_IPIP: u8 = 4;
/// Protocol number of ICMP.
pub const PROTO_ICMP: u8 = 1;
/// Protocol number of ICMPv6.
pub const PROTO_ICMPV6: u8 = 58;
/// Protocol number of TCP.
pub const PROTO_TCP: u8 = 6;

/// Protocol number of IPv6 in IPv6 or IPv4 (RFC 2473).
pub const PROTO_IPV6: u8 = 41;
/// Next header: hop-by-hop options (RFC 8200, section 4.3).
pub const NEXT_HOP_BY_HOP: u8 = 0;
/// Next header: routing (RFC 8200, section 4.4).
pub const NEXT_ROUTING: u8 = 43;
/// Next header: fragment (RFC 8200, section 4.5).
pub const NEXT_FRAGMENT: u8 = 44;
/// Next header: destination options (RFC 8200, section 4.6).
pub const NEXT_DESTINATION: u8 = 60;

/// IPv4's don't-fragment flag, in the flags-and-offset word.
pub const IPV4_DF: u16 = 0x4000;
/// IPv4's more-fragments flag, in the flags-and-offset word.
pub const IPV4_MF: u16 = 0x2000;
/// IPv4's fragment offset, in the flags-and-offset word, in units of 8 bytes.
pub const IPV4_OFFSET: u16 = 0x1fff;

/// IPv6's fragment offset, in the offset-and-flag word of the fragment header.
pub const IPV6_OFFSET: u16 = 0xfff8;

/// The TTL or hop limit of packets that start here.
pub const TTL: u8 = 64;
