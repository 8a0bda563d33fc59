//! Reading and writing a packet that the stack sends, by helpers: its headers need not be in one piece, and others may have it too.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{
        bpf_csum_diff, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_load_bytes,
        bpf_skb_store_bytes,
    },
};
use lb_common::{
    headers::{
        ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN, IPV4_LEN, IPV4_OFFSET,
        IPV6_LEN, PROTO_TCP, TCP_LEN, VLAN_LEN,
    },
    tcp::RST,
};

use crate::family::{V4, V6};

/// VLAN tags that are looked through. (The tag of a device on top of this interface is mostly not in the packet, but beside it.)
const MOST_TAGS: u32 = 2;
/// Offset of the EtherType.
const ETHERTYPE: u32 = 12;
/// Offset of TCP's flags.
const TCP_FLAGS: u32 = 13;
/// Offset of TCP's checksum.
const TCP_CHECKSUM: u32 = 16;
/// BPF_F_PSEUDO_HDR: the checksum covers it by the pseudo header, which is all that an unfinished checksum holds.
const PSEUDO_HEADER: u64 = 1 << 4;

/// A packet's headers, as far as they are looked at.
pub(super) struct Packet {
    /// Offset of the IP header.
    pub(super) network: u32,
    /// Offset of TCP's header.
    pub(super) transport: u32,
    /// Ports: the source's, the destination's.
    pub(super) ports: [u16; 2],
}

/// Reading and writing, in one version of IP.
pub(super) trait Sent {
    /// An address, as its kind of parser gives it.
    type Address: Copy + PartialEq;

    /// The ends and headers of a TCP segment whose IP header is at an offset; none of anything else.
    fn read(skb: *mut __sk_buff, network: u32) -> Option<([Self::Address; 2], Packet)>;

    /// Writes another source, with both checksums. False if the kernel refuses, and then nothing is written.
    fn set_source(
        skb: *mut __sk_buff,
        packet: &Packet,
        from: Self::Address,
        to: Self::Address,
        port: u16,
    ) -> bool;
}

/// Bytes of a packet, if it has them.
///
/// # Safety
/// Any bytes are a `T`.
#[inline(always)]
unsafe fn load<T>(skb: *mut __sk_buff, offset: u32) -> Option<T> {
    let mut bytes = MaybeUninit::<T>::uninit();
    // SAFETY: a helper on the context; it writes all of `bytes`, or fails.
    unsafe {
        let failed = bpf_skb_load_bytes(
            skb.cast(),
            offset,
            bytes.as_mut_ptr().cast(),
            size_of::<T>() as u32,
        );
        if failed != 0 {
            return None;
        }
        Some(bytes.assume_init())
    }
}

/// Writes bytes of a packet.
#[inline(always)]
fn store<T>(skb: *mut __sk_buff, offset: u32, bytes: &T) -> bool {
    let from = core::ptr::from_ref(bytes).cast();
    // SAFETY: a helper on the context, which reads all of `bytes`.
    unsafe { bpf_skb_store_bytes(skb.cast(), offset, from, size_of::<T>() as u32, 0) == 0 }
}

/// EtherType and offset of what is within the VLAN tags of a frame.
#[inline(always)]
pub(super) fn network(skb: *mut __sk_buff) -> Option<(u16, u32)> {
    let mut offset = ETHERTYPE;
    let mut tags = 0;
    loop {
        // SAFETY: a number.
        let ethertype = u16::from_be(unsafe { load(skb, offset)? });
        if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_QINQ {
            return Some((ethertype, offset + 2));
        }
        if tags == MOST_TAGS {
            return None;
        }
        tags += 1;
        offset += VLAN_LEN as u32;
    }
}

/// Whether this is the EtherType of IPv4, or of IPv6; neither is none.
#[inline(always)]
pub(super) fn is_ipv6(ethertype: u16) -> Option<bool> {
    match ethertype {
        ETHERTYPE_IPV4 => Some(false),
        ETHERTYPE_IPV6 => Some(true),
        _ => None,
    }
}

#[inline(always)]
fn ports(skb: *mut __sk_buff, transport: u32) -> Option<[u16; 2]> {
    // SAFETY: numbers.
    let [source, destination]: [u16; 2] = unsafe { load(skb, transport)? };
    Some([u16::from_be(source), u16::from_be(destination)])
}

/// Whether a segment has the flag RST.
#[inline(always)]
pub(super) fn resets(skb: *mut __sk_buff, packet: &Packet) -> bool {
    // SAFETY: a number.
    let flags: Option<u8> = unsafe { load(skb, packet.transport + TCP_FLAGS) };
    flags.is_some_and(|flags| flags & RST != 0)
}

/// Writes another source port, once its checksum and all before were written.
#[inline(always)]
fn replace_port(skb: *mut __sk_buff, packet: &Packet, to: u16) -> bool {
    let from = packet.ports[0].to_be();
    let to = to.to_be();
    let checksum = packet.transport + TCP_CHECKSUM;
    // SAFETY: a helper on the context. An unfinished checksum covers no port, and the helper leaves it as it is.
    let refused = unsafe { bpf_l4_csum_replace(skb.cast(), checksum, from as u64, to as u64, 2) };
    refused == 0 && store(skb, packet.transport, &to)
}

impl Sent for V4 {
    type Address = u32;

    #[inline(always)]
    fn read(skb: *mut __sk_buff, network: u32) -> Option<([u32; 2], Packet)> {
        const _: () = assert!(IPV4_LEN == 20 && TCP_LEN == 20);
        // SAFETY: numbers.
        let header: [u32; 5] = unsafe { load(skb, network)? };
        let first = header[0] as u8;
        let fragment = u32::from_be(header[1]) as u16;
        if first >> 4 != 4 || (header[2] >> 8) as u8 != PROTO_TCP || fragment & IPV4_OFFSET != 0 {
            return None;
        }
        let len = (first & 0xf) as u32 * 4;
        if len < IPV4_LEN as u32 {
            return None;
        }
        let transport = network + len;
        let packet = Packet {
            network,
            transport,
            ports: ports(skb, transport)?,
        };
        let ends = [u32::from_be(header[3]), u32::from_be(header[4])];
        Some((ends, packet))
    }

    #[inline(always)]
    fn set_source(skb: *mut __sk_buff, packet: &Packet, from: u32, to: u32, port: u16) -> bool {
        let (from, to) = (from.to_be(), to.to_be());
        let tcp = packet.transport + TCP_CHECKSUM;
        let ip = packet.network + 10;
        // SAFETY: helpers on the context.
        let is_written = unsafe {
            bpf_l4_csum_replace(skb.cast(), tcp, from as u64, to as u64, PSEUDO_HEADER | 4) == 0
                && bpf_l3_csum_replace(skb.cast(), ip, from as u64, to as u64, 4) == 0
        };
        is_written && store(skb, packet.network + 12, &to) && replace_port(skb, packet, port)
    }
}

impl Sent for V6 {
    type Address = [u64; 2];

    #[inline(always)]
    fn read(skb: *mut __sk_buff, network: u32) -> Option<([[u64; 2]; 2], Packet)> {
        // SAFETY: numbers.
        let header: [u64; 5] = unsafe { load(skb, network)? };
        // What a host's TCP sends has no extension headers.
        if (header[0] as u8) >> 4 != 6 || (header[0] >> 48) as u8 != PROTO_TCP {
            return None;
        }
        let transport = network + IPV6_LEN as u32;
        let packet = Packet {
            network,
            transport,
            ports: ports(skb, transport)?,
        };
        let ends = [[header[1], header[2]], [header[3], header[4]]];
        Some((ends, packet))
    }

    #[inline(always)]
    fn set_source(
        skb: *mut __sk_buff,
        packet: &Packet,
        mut from: [u64; 2],
        mut to: [u64; 2],
        port: u16,
    ) -> bool {
        const LEN: u32 = size_of::<[u64; 2]>() as u32;
        let tcp = packet.transport + TCP_CHECKSUM;
        // SAFETY: helpers on the context, and on two addresses.
        let is_written = unsafe {
            let (from, to) = (from.as_mut_ptr().cast(), to.as_mut_ptr().cast());
            let grown = bpf_csum_diff(from, LEN, to, LEN, 0);
            grown >= 0 && bpf_l4_csum_replace(skb.cast(), tcp, 0, grown as u64, PSEUDO_HEADER) == 0
        };
        is_written && store(skb, packet.network + 8, &to) && replace_port(skb, packet, port)
    }
}
