//! The entry of a backend: where it is, how to reach it, whether it may take flows.

use core::{
    mem::{offset_of, size_of},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::{
    clock::Tick,
    nat::SNAT_ADDRESSES,
    net::{Address, IpVersion, VlanTag},
    share::Share,
};

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

impl Serving {
    /// All of them, from nothing on.
    pub const ALL: [Self; 3] = [Self::None, Self::ExistingOnly, Self::New];
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

/// How packets reach a backend, as the operator says it.
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
    /// IP in IP: IPv4 in IPv4 (RFC 2003), IPv6 in IPv6 and IPv4 in IPv6 (RFC 2473).
    Ipip = 2,
    /// Source and destination rewritten; what the backend sends back comes through here.
    Nat = 3,
    /// Destination rewritten; what the backend sends back comes through here.
    Dnat = 4,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::L2, Self::Ipip, Self::Nat, Self::Dnat];

    /// Whether what backends send back comes through here: there is a translation for each flow.
    #[must_use]
    pub const fn translates(self) -> bool {
        matches!(self, Self::Nat | Self::Dnat)
    }
}

/// How packets reach a backend, as the data path does it: the mode, and the family of what it adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Forwarding {
    /// Mode `l2`.
    L2 = 1,
    /// Mode `ipip`, to a backend with an IPv4 address.
    InIpv4 = 2,
    /// Mode `ipip`, to a backend with an IPv6 address.
    InIpv6 = 3,
    /// Mode `nat`, in the same version of IP.
    Nat = 4,
    /// Mode `dnat`, in the same version of IP.
    Dnat = 5,
}

impl Forwarding {
    /// To a backend at this address.
    #[must_use]
    pub const fn new(mode: Mode, backend: IpAddr) -> Self {
        match (mode, backend) {
            (Mode::L2, _) => Self::L2,
            (Mode::Ipip, IpAddr::V4(_)) => Self::InIpv4,
            (Mode::Ipip, IpAddr::V6(_)) => Self::InIpv6,
            (Mode::Nat, _) => Self::Nat,
            (Mode::Dnat, _) => Self::Dnat,
        }
    }

    /// The mode.
    #[must_use]
    pub const fn mode(self) -> Mode {
        match self {
            Self::L2 => Mode::L2,
            Self::InIpv4 | Self::InIpv6 => Mode::Ipip,
            Self::Nat => Mode::Nat,
            Self::Dnat => Mode::Dnat,
        }
    }
}

/// The word of a backend that changes: swapped by one store.
///
/// | bits | what |
/// |---|---|
/// | 0-4 | generation of the id |
/// | 5-6 | [`Serving`] |
/// | 7 | which of the two next hops is in force |
/// | 8 | resolved: that next hop is valid |
/// | 9-11 | [`Forwarding`] |
/// | 12-13 | how many VLAN tags that next hop has: 0 to 2; 3 if it is this host's own stack: [`BackendState::is_local`] |
/// | 14 | paces: flows are closed at a pace, and the rest of the word says which |
/// | 15-31 | the [`Share`] of flows that are closed, in parts |
/// | 32-63 | the tick from which on that is all of them, and all are told with their next packet; 0 before; 1 with a share of none: entries of its flows are to be forgotten |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct BackendState(pub u64);

impl BackendState {
    pub(crate) const SERVING_SHIFT: u32 = if cfg!(feature = "next-abi") { 6 } else { 5 };
    pub(crate) const HOP_SHIFT: u32 = if cfg!(feature = "next-abi") { 5 } else { 7 };
    const HOP: u64 = 1 << Self::HOP_SHIFT;
    pub(crate) const RESOLVED: u64 = 1 << 8;
    pub(crate) const FORWARDING_SHIFT: u32 = 9;
    pub(crate) const TAGS_SHIFT: u32 = 12;
    const TAGS: u64 = 3 << Self::TAGS_SHIFT;
    pub(crate) const PACES: u64 = 1 << 14;
    pub(crate) const SHARE_SHIFT: u32 = 15;
    pub(crate) const SHARE_BITS: u32 = 17;
    const SHARE_MASK: u64 = (1 << Self::SHARE_BITS) - 1;
    pub(crate) const SINCE_SHIFT: u32 = 32;

    /// `hop` is 0 or 1. The next hop has no VLAN tags; see [`Self::tagged`].
    #[inline(always)]
    pub const fn new(
        generation: u8,
        serving: Serving,
        forwarding: Forwarding,
        hop: u8,
        resolved: bool,
    ) -> Self {
        Self(
            (generation as u64 & 31)
                | ((serving as u64) << Self::SERVING_SHIFT)
                | ((hop as u64 & 1) << Self::HOP_SHIFT)
                | (resolved as u64 * Self::RESOLVED)
                | ((forwarding as u64) << Self::FORWARDING_SHIFT),
        )
    }

    /// The same, its next hop having this many VLAN tags: 0 to 2, or being of the kind that [`NextHop::kind`] tells.
    #[inline(always)]
    pub const fn tagged(self, tags: u8) -> Self {
        Self((self.0 & !Self::TAGS) | (((tags as u64) << Self::TAGS_SHIFT) & Self::TAGS))
    }

    /// The same, with this share of the flows closed: whoever is in it is answered with a RST, whoever is not is forwarded, even if nothing is
    /// served. `since` is the moment from which on it is all of them, and counts only then.
    #[inline(always)]
    pub const fn pacing(self, share: Share, since: Tick) -> Self {
        let kept = self.0 & (Self::PACES - 1);
        // Zero is before.
        let since = match (share.parts() == Share::ALL.parts(), since.0) {
            (false, _) => 0,
            (true, 0) => 1,
            (true, since) => since,
        };
        Self(
            kept | Self::PACES
                | ((share.parts() as u64) << Self::SHARE_SHIFT)
                | ((since as u64) << Self::SINCE_SHIFT),
        )
    }

    /// The same, with none of the flows closed though nothing is served, and with their entries to be forgotten: each flow goes with its next packet where
    /// the table sends it.
    #[inline(always)]
    pub const fn forgetting(self) -> Self {
        Self(self.pacing(Share::NONE, Tick(0)).0 | 1 << Self::SINCE_SHIFT)
    }

    /// Whether entries of its flows are to be forgotten.
    #[inline(always)]
    pub const fn forgets(self) -> bool {
        let closed = (self.0 >> Self::SHARE_SHIFT) & Self::SHARE_MASK;
        self.0 & Self::PACES != 0 && closed == 0 && self.0 >> Self::SINCE_SHIFT != 0
    }

    /// The share of flows that is closed, if they are closed at a pace.
    #[inline(always)]
    pub const fn share(self) -> Option<Share> {
        if self.0 & Self::PACES == 0 {
            None
        } else {
            let parts = (self.0 >> Self::SHARE_SHIFT) & Self::SHARE_MASK;
            Some(Share::of_parts(parts as u32))
        }
    }

    /// Since when all flows are closed, at whatever pace they were.
    #[inline(always)]
    pub const fn all_closed_since(self) -> Option<Tick> {
        let since = (self.0 >> Self::SINCE_SHIFT) as u32;
        if self.0 & Self::PACES == 0 || since == 0 || self.forgets() {
            None
        } else {
            Some(Tick(since))
        }
    }

    /// Whether a flow with this first home, in a table of so many buckets, is over: it is in the share that is closed, or there is no pace, and
    /// nothing is served.
    #[inline(always)]
    pub const fn closes(self, home: u32, buckets: u32) -> bool {
        match self.share() {
            Some(share) => share.holds(home, buckets),
            None => matches!(self.serving(), Serving::None),
        }
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

    /// Whether the backend is on this host: packets are translated as in mode `dnat`, whatever the mode, and left to the host's own stack.
    #[inline(always)]
    pub const fn is_local(self) -> bool {
        self.0 & Self::TAGS == Self::TAGS
    }

    /// Whether packets of flows that name this `generation` of the id can be forwarded, and plainly: it is the present one, serves
    /// existing flows, is resolved, its next hop has no VLAN tags and is another host, and none of its flows are closed.
    #[inline(always)]
    pub const fn can_forward_plainly_for(self, generation: u8) -> bool {
        let differs = self.0 ^ (generation as u64 | Self::RESOLVED);
        differs & (31 | Self::RESOLVED | Self::TAGS | Self::PACES) == 0
            && !matches!(self.serving(), Serving::None)
    }

    /// Whether packets are forwarded by [`Forwarding::Nat`], and to another host.
    #[inline(always)]
    pub const fn is_nat(self) -> bool {
        let differs = ((self.0 >> Self::FORWARDING_SHIFT) & 7) ^ Forwarding::Nat as u64;
        differs | self.local_bit() == 0
    }

    /// Whether packets have a translation beside their flow's entry: [`Forwarding::Nat`] or [`Forwarding::Dnat`], to another host.
    #[inline(always)]
    pub const fn translates(self) -> bool {
        (self.0 >> (Self::FORWARDING_SHIFT + 2)) & 1 & !self.local_bit() != 0
    }

    /// [`Self::is_local`] as a number, without a branch: the verifier would follow both sides through all that comes.
    #[inline(always)]
    const fn local_bit(self) -> u64 {
        (self.0 >> Self::TAGS_SHIFT) & (self.0 >> (Self::TAGS_SHIFT + 1)) & 1
    }

    /// How packets are forwarded, if the entry was ever written.
    #[inline(always)]
    pub const fn forwarding(self) -> Option<Forwarding> {
        match (self.0 >> Self::FORWARDING_SHIFT) & 7 {
            1 => Some(Forwarding::L2),
            2 => Some(Forwarding::InIpv4),
            3 => Some(Forwarding::InIpv6),
            4 => Some(Forwarding::Nat),
            5 => Some(Forwarding::Dnat),
            _ => None,
        }
    }
}

/// How a packet leaves for a backend. Resolved by the daemon, so the data path looks up no route.
///
/// Laid out as it goes onto the wire, so that few and wide loads and stores write it: the first 16 bytes are those of an untagged encapsulated
/// frame, the last eight those that follow the MAC addresses of a tagged one. The first half is all that an untagged frame in IPv4 needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct NextHop {
    /// MAC of the next hop.
    pub destination: [u8; 6],
    /// MAC of the egress interface.
    pub source: [u8; 6],
    /// `ipip`: EtherType of the outer header, network byte order.
    pub ethertype: [u8; 2],
    /// `ipip`: the outer header's first two bytes, with a type of service or traffic class of 0.
    pub outer_start: [u8; 2],
    /// Index of the egress interface: the physical one (or a bond's master) below any VLAN devices. None that there is: see [`NextHop::local`].
    pub ifindex: u32,
    /// MTU of the egress interface or the route, in bytes from the IP header on.
    pub mtu: u16,
    /// `ipip` in IPv4: the outer header's checksum as a folded sum of all that is constant: everything but length, type of service, and what
    /// varies of the source. In IPv6, whose header has none: which of the source's last 16 bits vary from flow to flow, network byte order.
    pub checksum_base: u16,
    /// `ipip`: the outer header's addresses, this host's and then the backend's: twice four bytes in IPv4, twice sixteen in IPv6. Behind those of
    /// IPv4: which of the source's last 16 bits vary from flow to flow, network byte order. Those that vary are zero in the address.
    pub outer: [u8; 32],
    /// VLAN tags that the frame leaves with, the outermost first.
    pub tags: [VlanTag; 2],
}

impl NextHop {
    /// In the place of an interface's index: this host's own stack. (The kernel numbers interfaces from 1 to `i32::MAX`.)
    const STACK: u32 = u32::MAX;
    /// What the state of a backend says of such a hop in the place of the number of its tags.
    const KIND_LOCAL: u8 = 3;

    /// This host's own stack, for a backend on this host that takes packets of up to `mtu` bytes.
    #[must_use]
    pub const fn local(mtu: u16) -> Self {
        Self {
            destination: [0; 6],
            source: [0; 6],
            ethertype: [0; 2],
            outer_start: [0; 2],
            ifindex: Self::STACK,
            mtu,
            checksum_base: 0,
            outer: [0; 32],
            tags: [VlanTag::NONE; 2],
        }
    }

    /// Whether it is this host's own stack.
    #[must_use]
    pub const fn is_local(&self) -> bool {
        self.ifindex == Self::STACK
    }

    /// What [`BackendState::tagged`] is told: how many VLAN tags it has, or that it is this host's own stack.
    #[must_use]
    pub const fn kind(&self) -> u8 {
        if self.is_local() {
            Self::KIND_LOCAL
        } else {
            self.tag_count()
        }
    }

    /// How many VLAN tags it has.
    #[must_use]
    pub const fn tag_count(&self) -> u8 {
        let [outer, inner] = self.tags;
        (u16::from_ne_bytes(outer.protocol) != 0) as u8
            + (u16::from_ne_bytes(inner.protocol) != 0) as u8
    }

    /// The same, its outer header being from `source`: what [`NextHop::encapsulating`] completes.
    #[must_use]
    pub const fn from_source(self, source: IpAddr) -> Self {
        let mut outer = [0; 32];
        match source {
            IpAddr::V4(source) => put(&mut outer, 0, &source.octets()),
            IpAddr::V6(source) => put(&mut outer, 0, &source.octets()),
        }
        Self { outer, ..self }
    }

    /// The same, these of the last 16 bits of what [`NextHop::from_source`] was given being another number for each flow; they are zero there.
    #[must_use]
    pub const fn varying(self, version: IpVersion, bits: u16) -> Self {
        match version {
            IpVersion::V4 => {
                let mut outer = self.outer;
                put(&mut outer, 8, &bits.to_be_bytes());
                Self { outer, ..self }
            }
            IpVersion::V6 => Self {
                checksum_base: bits.to_be(),
                ..self
            },
        }
    }

    /// What [`NextHop::from_source`] was given, an address of this version of IP.
    #[must_use]
    pub const fn source_address(&self, version: IpVersion) -> IpAddr {
        let [a, b, c, d, rest @ ..] = self.outer;
        let [e, f, g, h, i, j, k, l, m, n, o, p, ..] = rest;
        match version {
            IpVersion::V4 => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
            IpVersion::V6 => IpAddr::V6(Ipv6Addr::from_octets([
                a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p,
            ])),
        }
    }

    /// As it is for mode `ipip` and a backend, whose family is that of the source.
    #[must_use]
    pub const fn encapsulating(self, backend: IpAddr) -> Self {
        use crate::{
            csum::{fold, halves},
            headers::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4_DF, PROTO_IPIP, TTL},
        };
        let mut outer = self.outer;
        match backend {
            IpAddr::V4(backend) => {
                let [a, b, c, d, ..] = self.outer;
                let source = u32::from_be_bytes([a, b, c, d]);
                let constant = 0x4500 + IPV4_DF as u64 + (((TTL as u64) << 8) | PROTO_IPIP as u64);
                let sum = constant + halves(source) + halves(backend.to_bits());
                put(&mut outer, 4, &backend.octets());
                Self {
                    ethertype: ETHERTYPE_IPV4.to_be_bytes(),
                    outer_start: [0x45, 0],
                    outer,
                    checksum_base: fold(sum),
                    ..self
                }
            }
            IpAddr::V6(backend) => {
                put(&mut outer, 16, &backend.octets());
                Self {
                    ethertype: ETHERTYPE_IPV6.to_be_bytes(),
                    outer_start: [0x60, 0],
                    outer,
                    ..self
                }
            }
        }
    }

    /// As it is for a mode without an outer header.
    #[must_use]
    pub const fn bare(self) -> Self {
        Self {
            ethertype: [0; 2],
            outer_start: [0; 2],
            outer: [0; 32],
            checksum_base: 0,
            ..self
        }
    }
}

/// Copies bytes into a place that has room for them.
const fn put(to: &mut [u8; 32], at: usize, from: &[u8]) {
    let mut index = 0;
    while index < from.len() {
        to[at + index] = from[index];
        index += 1;
    }
}

/// One backend, three cache lines. Written before anything refers to it.
///
/// What an untagged frame in IPv4 needs of the first next hop is in the first of them, together with the state and with where the backend is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Backend {
    /// A [`BackendState`].
    pub state: u64,
    /// Port, host byte order.
    pub port: u16,
    /// Id of the service it belongs to.
    pub service: u16,
    /// Modes `nat` and `dnat`, and of a backend on this host: id of the endpoint at its address and port.
    pub endpoint: u16,
    /// Zero.
    pub reserved: u16,
    /// Address.
    pub address: Address,
    /// Two next hops, of which the state names one: the daemon writes the other, then swaps the state. It lets a grace period pass
    /// before it writes the first again.
    pub hops: [NextHop; 2],
    /// Hash of the backend's full identity (service, name, address, port, mode); 0 is an entry that is not in use.
    pub identity: u64,
    /// Mode `nat`: the pairs of its service's SNAT addresses with its endpoint, all there are before the first 0.
    pub pairs: [u16; SNAT_ADDRESSES],
    /// Zero.
    pub unused: u64,
}

const _: () = assert!(size_of::<NextHop>() == 64 && offset_of!(NextHop, source) == 6);
const _: () = assert!(offset_of!(NextHop, outer_start) == 14 && offset_of!(NextHop, outer) == 24);
const _: () = assert!(offset_of!(NextHop, tags) == 56 && size_of::<VlanTag>() == 4);
const _: () = assert!(size_of::<Backend>() == 192 && offset_of!(Backend, hops) == 32);
const _: () = assert!(offset_of!(Backend, address) == 16 && offset_of!(Backend, port) == 8);
const _: () = assert!(offset_of!(Backend, identity) == 160 && offset_of!(Backend, pairs) == 168);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_state_keeps_what_it_is_given(generation in 0u8..32, serving in 0u8..3, forwarding in 0u8..5, hop in 0u8..2, tags in 0u8..4, resolved: bool) {
            let serving = Serving::ALL[serving as usize];
            let forwarding = [Forwarding::L2, Forwarding::InIpv4, Forwarding::InIpv6, Forwarding::Nat, Forwarding::Dnat][forwarding as usize];
            let state = BackendState::new(generation, serving, forwarding, hop, resolved).tagged(tags);
            prop_assert_eq!((state.generation(), state.serving(), state.forwarding()), (generation, serving, Some(forwarding)));
            prop_assert_eq!((state.hop(), state.is_resolved()), (usize::from(hop), resolved));
            prop_assert_eq!((state.tags(), state.tagged(0).tags()), (tags, 0));
            let forwards = resolved && tags == 0 && serving != Serving::None;
            prop_assert_eq!(state.can_forward_plainly_for(generation), forwards);
            prop_assert!(!state.can_forward_plainly_for(generation ^ 1));
            prop_assert_eq!((state.share(), state.all_closed_since()), (None, None));
            prop_assert_eq!(state.is_local(), tags == 3);
            prop_assert_eq!(state.translates(), tags != 3 && forwarding.mode().translates());
            prop_assert_eq!(state.is_nat(), tags != 3 && forwarding == Forwarding::Nat);
        }

        #[test]
        fn a_pace_changes_nothing_but_who_is_closed(bits in 0u64..1 << 14, parts in 0u32..=1 << 16, since: u32, home in 0u32..1_000) {
            let state = BackendState(bits);
            let share = Share::of_parts(parts);
            let paced = state.pacing(share, Tick(since));
            prop_assert_eq!(paced.0 & (BackendState::PACES - 1), bits);
            prop_assert_eq!(paced.share(), Some(share));
            let all = (share == Share::ALL).then_some(Tick(since.max(1)));
            prop_assert_eq!(paced.all_closed_since(), all);
            prop_assert!(!paced.can_forward_plainly_for(state.generation()));
            prop_assert_eq!(paced.closes(home, 1_000), share.holds(home, 1_000));
            prop_assert_eq!(state.closes(home, 1_000), state.serving() == Serving::None);
            // The last one counts.
            prop_assert_eq!(paced.pacing(Share::NONE, Tick(since)), state.pacing(Share::NONE, Tick(7)));
        }
    }

    #[test]
    fn forgetting_closes_nothing() {
        let state = BackendState::new(3, Serving::None, Forwarding::L2, 1, true);
        let forgetting = state.forgetting();
        assert!(forgetting.forgets() && !state.forgets());
        assert_eq!(forgetting.share(), Some(Share::NONE));
        assert_eq!(forgetting.all_closed_since(), None);
        assert!(!forgetting.closes(0, 1_000) && state.closes(0, 1_000));
        assert!(!forgetting.can_forward_plainly_for(3));
        for share in [Share::NONE, Share::of_parts(1), Share::ALL] {
            assert!(!state.pacing(share, Tick(7)).forgets(), "{share:?}");
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
    fn a_hop_to_the_own_stack_is_none_with_tags() {
        let local = NextHop::local(1_450);
        assert!(local.is_local() && !NextHop::default().is_local());
        let state = |hop: &NextHop| BackendState(u64::MAX).tagged(hop.kind());
        assert!(state(&local).is_local());
        for hops in [0, 1, 2] {
            let mut hop = NextHop::default();
            hop.tags[..hops].fill(VlanTag::new(0x8100, 7));
            assert_eq!((hop.kind(), state(&hop).is_local()), (hops as u8, false));
        }
    }

    #[test]
    fn an_unwritten_entry_serves_nothing() {
        let state = BackendState::default();
        assert_eq!(
            (state.serving(), state.is_resolved(), state.forwarding()),
            (Serving::None, false, None)
        );
    }
}
