//! Watching: what the program tells of single packets while somebody listens.
//!
//! A program that watches is another one than that which runs otherwise: the same object, loaded with [`crate::maps::Constants::watches`] set.
//! The verifier leaves out of every other what is for watching, so that costs nothing while nobody does.

use core::mem::size_of;

use crate::{net::Address, verdict::Reason};

/// Listeners at once, at most.
pub const LISTENERS: u32 = 4;
/// Bytes of a packet that a listener can have, at most.
pub const MOST_KEPT: u32 = 2_047;
/// Any service, or any backend, in a [`Filter`]; none, in a [`Head`].
pub const ANY: u32 = u32::MAX;

/// What a listener wants to hear of. Written by the daemon.
///
/// A packet is told of if it is all of: of the service, of the backend, from or for the prefix, and in the sample; and if its reason is among the
/// reasons, or it has changed the state of its flow's entry and changes are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Filter {
    /// Until when, in nanoseconds of the monotonic clock; 0 is not in use. A moment that the daemon puts off as long as somebody listens: should it
    /// die, nothing is told any more soon after.
    pub until_ns: u64,
    /// Reasons, a bit for each by its code.
    pub reasons: u64,
    /// Address that a client has, masked.
    pub prefix: [u64; 2],
    /// The bits of it that count; none is any address.
    pub mask: [u64; 2],
    /// Id of the service, or [`ANY`].
    pub service: u32,
    /// Id of the backend, or [`ANY`].
    pub backend: u32,
    /// Of so many packets, or flows, in 2^32 one less is told of.
    pub sample: u32,
    /// 1: flows are in the sample or not, all of a client together; 0: packets are.
    pub by_flow: u32,
    /// Bytes of a packet that are wanted, at most [`MOST_KEPT`].
    pub kept: u32,
    /// 1: also what changes the state of its flow's entry.
    pub changes: u32,
    /// Zero.
    pub reserved: [u64; 7],
}

impl Filter {
    /// A set of reasons.
    pub const fn bit(reason: Reason) -> u64 {
        1 << reason as u8
    }
}

/// What is told of a packet; as many of its bytes as are wanted follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Head {
    /// When it came, in nanoseconds of the monotonic clock.
    pub at_ns: u64,
    /// Where it is from, as it came in.
    pub source: Address,
    /// Where it is for; of a reply that was translated, the client.
    pub destination: Address,
    /// Its length in bytes, from the Ethernet header on.
    pub length: u32,
    /// Bytes of it that follow.
    pub kept: u32,
    /// Interface that it came in by.
    pub ifindex: u32,
    /// Id of the service, or [`ANY`].
    pub service: u32,
    /// Id of the backend, or [`ANY`].
    pub backend: u32,
    /// A [`Reason`].
    pub reason: u32,
    /// Listeners that hear of it, a bit for each.
    pub listeners: u32,
    /// State of its flow's entry before (bits 0-7) and after (8-15) a change; 0 if there was none.
    pub change: u32,
    /// 1 while its packet is on its way.
    pub is_on_its_way: u32,
    /// Of a reply that was translated, the client's port; else 0.
    pub client_port: u32,
    /// Packets that there was no room to tell of, on this CPU.
    pub lost: u64,
    /// Zero.
    pub unused: [u64; 5],
}

/// A CPU's packet on its way.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Record {
    /// What is known of it so far.
    pub head: Head,
    /// Its first bytes, as it came in.
    pub data: [u64; 256],
}

const _: () = assert!(size_of::<Filter>() == 128 && size_of::<Head>() == 128);
const _: () = assert!(size_of::<Record>() == 128 + MOST_KEPT as usize + 1);
const _: () = assert!(Reason::ALL.len() <= 64);

impl Head {
    /// From what a ring buffer gives: the head, and the packet's bytes.
    #[cfg(feature = "user")]
    pub fn split(record: &[u8]) -> Option<(Self, &[u8])> {
        let (head, data) = record.split_at_checked(size_of::<Self>())?;
        // SAFETY: as many bytes as a head has, and any bytes are one: integers only.
        let head: Self = unsafe { head.as_ptr().cast::<Self>().read_unaligned() };
        Some((head, data.get(..head.kept as usize)?))
    }

    /// The states before and after, by their codes.
    pub const fn states(&self) -> Option<(u8, u8)> {
        if self.change == 0 {
            None
        } else {
            Some((self.change as u8, (self.change >> 8) as u8))
        }
    }
}
