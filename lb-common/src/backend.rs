//! The entry of a backend: where it is, how to reach it, whether it may take flows.

use core::mem::{offset_of, size_of};

use crate::net::VlanTag;

/// What a backend may be given: derived from admin state and health.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "user",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
#[repr(u8)]
pub enum Serving {
    /// Nothing: it is dead, and its clients are told so.
    None = 0,
    /// The flows it has.
    ExistingOnly = 1,
    /// New flows too.
    New = 2,
}

#[cfg(feature = "user")]
impl core::fmt::Display for Serving {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::ExistingOnly => "existing-only",
            Self::New => "new",
        })
    }
}

/// How packets reach a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "user",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "lowercase")
)]
#[repr(u8)]
pub enum Mode {
    /// Destination MAC rewritten.
    L2 = 1,
    /// IPv4 in IPv4 (RFC 2003).
    Ipip = 2,
}

/// The word of a backend that changes: swapped by one store.
///
/// | bits | what |
/// |---|---|
/// | 0-4 | generation of the id |
/// | 5-6 | [`Serving`] |
/// | 7 | which of the two next hops is in force |
/// | 8 | resolved: that next hop is valid |
/// | 9-11 | [`Mode`] |
/// | 12-13 | how many VLAN tags that next hop has: 0 to 2 |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct BackendState(pub u64);

impl BackendState {
    const SERVING_SHIFT: u32 = 5;
    const HOP: u64 = 1 << 7;
    const RESOLVED: u64 = 1 << 8;
    const MODE_SHIFT: u32 = 9;
    const TAGS_SHIFT: u32 = 12;
    const TAGS: u64 = 3 << Self::TAGS_SHIFT;

    /// `hop` is 0 or 1. The next hop has no VLAN tags; see [`Self::tagged`].
    #[inline(always)]
    pub const fn new(
        generation: u8,
        serving: Serving,
        mode: Mode,
        hop: u8,
        resolved: bool,
    ) -> Self {
        Self(
            (generation as u64 & 31)
                | ((serving as u64) << Self::SERVING_SHIFT)
                | ((hop as u64 & 1) << 7)
                | ((resolved as u64) << 8)
                | ((mode as u64) << Self::MODE_SHIFT),
        )
    }

    /// The same, its next hop having this many VLAN tags: 0 to 2.
    #[inline(always)]
    pub const fn tagged(self, tags: u8) -> Self {
        Self((self.0 & !Self::TAGS) | (((tags as u64) << Self::TAGS_SHIFT) & Self::TAGS))
    }

    /// Generation of the id, 0 to 31.
    #[inline(always)]
    pub const fn generation(self) -> u8 {
        (self.0 & 31) as u8
    }

    /// Serving; an invalid code reads as none.
    #[inline(always)]
    pub const fn serving(self) -> Serving {
        match (self.0 >> Self::SERVING_SHIFT) & 3 {
            2 => Serving::New,
            1 => Serving::ExistingOnly,
            _ => Serving::None,
        }
    }

    /// Index of the next hop in force: 0 or 1.
    #[inline(always)]
    pub const fn hop(self) -> usize {
        (self.0 & Self::HOP != 0) as usize
    }

    /// Whether the next hop in force is valid.
    #[inline(always)]
    pub const fn is_resolved(self) -> bool {
        self.0 & Self::RESOLVED != 0
    }

    /// How many VLAN tags the next hop in force has.
    #[inline(always)]
    pub const fn tags(self) -> u8 {
        ((self.0 & Self::TAGS) >> Self::TAGS_SHIFT) as u8
    }

    /// Whether packets of flows that name this `generation` of the id can be forwarded, and plainly: it is the present one, serves
    /// existing flows, is resolved, and its next hop has no VLAN tags.
    #[inline(always)]
    pub const fn can_forward_plainly_for(self, generation: u8) -> bool {
        let differs = self.0 ^ (generation as u64 | Self::RESOLVED);
        differs & (31 | Self::RESOLVED | Self::TAGS) == 0
            && !matches!(self.serving(), Serving::None)
    }

    /// The mode's code, as in [`Mode`]; 0 in an entry that was never written.
    #[inline(always)]
    pub const fn mode_code(self) -> u8 {
        ((self.0 >> Self::MODE_SHIFT) & 7) as u8
    }

    /// The mode, if the entry was ever written.
    #[inline(always)]
    pub const fn mode(self) -> Option<Mode> {
        match self.mode_code() {
            1 => Some(Mode::L2),
            2 => Some(Mode::Ipip),
            _ => None,
        }
    }
}

/// How a packet leaves for a backend. Resolved by the daemon, so the data path looks up no route.
///
/// Laid out as it goes onto the wire, so that few and wide loads and stores write it: the first 16 bytes are those of an untagged frame of
/// mode `ipip`, the next eight the outer header's addresses; the last eight those that follow the addresses of a tagged one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct NextHop {
    /// MAC of the next hop.
    pub destination: [u8; 6],
    /// MAC of the egress interface.
    pub source: [u8; 6],
    /// `ipip`: EtherType of IPv4, network byte order.
    pub ethertype: [u8; 2],
    /// `ipip`: the outer header's version and length, and a type of service of 0.
    pub outer_start: [u8; 2],
    /// `ipip`: source of the outer header, network byte order.
    pub outer_source: [u8; 4],
    /// `ipip`: destination of the outer header, which is the backend, network byte order.
    pub outer_destination: [u8; 4],
    /// Index of the egress interface: the physical one (or a bond's master) below any VLAN devices.
    pub ifindex: u32,
    /// MTU of the egress interface or the route, in bytes from the IP header on.
    pub mtu: u16,
    /// `ipip`: the outer header's checksum as a folded sum of all that is constant: everything but length and type of service.
    pub checksum_base: u16,
    /// VLAN tags that the frame leaves with, the outermost first.
    pub tags: [VlanTag; 2],
}

impl NextHop {
    /// How many VLAN tags it has: what [`BackendState::tagged`] is told.
    #[must_use]
    pub const fn tag_count(&self) -> u8 {
        let [outer, inner] = self.tags;
        (u16::from_ne_bytes(outer.protocol) != 0) as u8
            + (u16::from_ne_bytes(inner.protocol) != 0) as u8
    }

    /// As it is for mode `ipip` and a backend, given in host byte order.
    #[must_use]
    pub const fn encapsulating(self, backend: u32) -> Self {
        use crate::{
            csum::{fold, halves},
            headers::{ETHERTYPE_IPV4, IPV4_DF, PROTO_IPIP, TTL},
        };
        let source = u32::from_be_bytes(self.outer_source);
        let constant = 0x4500 + IPV4_DF as u64 + (((TTL as u64) << 8) | PROTO_IPIP as u64);
        Self {
            ethertype: ETHERTYPE_IPV4.to_be_bytes(),
            outer_start: [0x45, 0],
            outer_destination: backend.to_be_bytes(),
            checksum_base: fold(constant + halves(source) + halves(backend)),
            ..self
        }
    }

    /// As it is for a mode without an outer header.
    #[must_use]
    pub const fn bare(self) -> Self {
        Self {
            ethertype: [0; 2],
            outer_start: [0; 2],
            outer_source: [0; 4],
            outer_destination: [0; 4],
            checksum_base: 0,
            ..self
        }
    }
}

/// One backend, two cache lines. Written before anything refers to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Backend {
    /// A [`BackendState`].
    pub state: u64,
    /// Hash of the backend's full identity (service, name, address, port, mode); 0 is an entry that is not in use.
    pub identity: u64,
    /// Address, host byte order.
    pub address: u32,
    /// Port, host byte order.
    pub port: u16,
    /// Id of the service it belongs to.
    pub service: u16,
    /// Zero.
    pub reserved: u64,
    /// Two next hops, of which the state names one: the daemon writes the other, then swaps the state. It lets a grace period pass
    /// before it writes the first again.
    pub hops: [NextHop; 2],
    /// Zero.
    pub reserved_end: [u64; 2],
}

const _: () = assert!(size_of::<NextHop>() == 40 && offset_of!(NextHop, source) == 6);
const _: () =
    assert!(offset_of!(NextHop, outer_start) == 14 && offset_of!(NextHop, outer_destination) == 20);
const _: () = assert!(offset_of!(NextHop, tags) == 32 && size_of::<VlanTag>() == 4);
const _: () = assert!(size_of::<Backend>() == 128 && offset_of!(Backend, hops) == 32);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_state_keeps_what_it_is_given(generation in 0u8..32, serving in 0u8..3, mode in 1u8..3, hop in 0u8..2, tags in 0u8..3, resolved: bool) {
            let serving = [Serving::None, Serving::ExistingOnly, Serving::New][serving as usize];
            let mode = if mode == 1 { Mode::L2 } else { Mode::Ipip };
            let state = BackendState::new(generation, serving, mode, hop, resolved).tagged(tags);
            prop_assert_eq!((state.generation(), state.serving(), state.mode()), (generation, serving, Some(mode)));
            prop_assert_eq!((state.hop(), state.is_resolved()), (usize::from(hop), resolved));
            prop_assert_eq!((state.tags(), state.tagged(0).tags()), (tags, 0));
            let forwards = resolved && tags == 0 && serving != Serving::None;
            prop_assert_eq!(state.can_forward_plainly_for(generation), forwards);
            prop_assert!(!state.can_forward_plainly_for(generation ^ 1));
        }
    }

    #[test]
    fn tags_are_counted_and_laid_out_as_on_the_wire() {
        let mut hop = NextHop::default();
        assert_eq!(hop.tag_count(), 0);
        hop.tags[0] = VlanTag::new(0x88a8, 0xfff);
        assert_eq!((hop.tag_count(), hop.tags[0].vlan()), (1, 0xfff));
        assert_eq!(hop.tags[0].protocol, [0x88, 0xa8]);
        hop.tags[1] = VlanTag::new(0x8100, 0xf123);
        assert_eq!((hop.tag_count(), hop.tags[1].control), (2, [0x01, 0x23]));
    }

    #[test]
    fn an_unwritten_entry_serves_nothing() {
        let state = BackendState::default();
        assert_eq!(
            (state.serving(), state.is_resolved(), state.mode()),
            (Serving::None, false, None)
        );
    }
}
