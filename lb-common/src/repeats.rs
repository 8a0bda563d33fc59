//! What clients send again: which of a flow's segments are repeats, and how they are counted. A backend that loses packets, or answers too late, has clients
//! that repeat themselves, whatever its health checks say.
//!
//! Of data, some flows are watched at a time: each place of an array is one flow's for as long as it sends, and then whoever's comes next. So what is counted
//! is a sample, and within it the share of repeats is exact. Handshakes are counted all. A client, which is an address or an IPv6 network of 64 bits, has some
//! places only, for data and for SYNs, however many ports it sends from.
//!
//! Whose repeats they were is noted too, roughly: all clients are dealt into eight parts, and of each part some are counted. So it is known of how many clients
//! they have been at least, and how much of it one client can have sent at most.

use core::mem::{offset_of, size_of};

use crate::clock::Tick;

/// Flows whose data is watched at once, at most; and as many whose SYN was sent again. A power of two.
pub const PLACES: u32 = 4_096;
/// Segments of one flow that count in a tick, at most: nobody's own bad network is to speak for a backend.
pub const MOST_A_TICK: u32 = 8;
/// Places that a client has for data, and as many for SYNs. A power of two.
pub const PLACES_OF_A_CLIENT: u32 = 4;
/// A flow that has been silent for so many ticks, at least one of them whole, leaves its place to another.
const IDLE_TICKS: u32 = 2;
/// What lies further than this from what was seen counts as nothing, and is where the flow is now, bytes: it is of another connection on the same port, or was
/// forged, and then the flow's next segment is as far from it.
const FARTHEST: u32 = 1 << 21;

/// What the clients of one backend have sent, and sent again. Counters that only grow, in memory that all CPUs share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Repeats {
    /// Handshakes that clients have finished.
    pub handshakes: u64,
    /// Connections whose SYN came again.
    pub syns: u64,
    /// Segments with data, of watched flows.
    pub data: u64,
    /// Those of them whose data had come before.
    pub data_again: u64,
    /// How many of [`Repeats::syns`] are of each part of all clients, a byte for each part ([`one_of`]), since the daemon has taken note. None are noted any
    /// more once a part has [`ENOUGH`].
    pub syn_clients: u64,
    /// The same of [`Repeats::data_again`].
    pub data_clients: u64,
}

const _: () = assert!(size_of::<Repeats>() == 48 && offset_of!(Repeats, data_again) == 24);
const _: () = assert!(
    offset_of!(Repeats, syn_clients) == SYN_CLIENTS * 8
        && offset_of!(Repeats, data_clients) == DATA_CLIENTS * 8
);

/// [`Repeats::syn_clients`], as the number of its word.
pub const SYN_CLIENTS: usize = 4;
/// [`Repeats::data_clients`], as the number of its word.
pub const DATA_CLIENTS: usize = 5;

/// Parts that all clients are dealt into: as many as a word has bytes.
pub const PARTS: usize = 8;

/// A bit of each part's byte. Once one of them is set, what is noted tells well enough how much is of which part. No byte runs over into the next: for that
/// 128 CPUs would have to note something at the same moment.
pub const ENOUGH: u64 = 0x8080_8080_8080_8080;

/// One of the part of all clients that a client is of, to be added to what is noted: of its address mixed under a secret, so that nobody can aim at it.
#[inline(always)]
#[must_use]
pub const fn one_of(client: u64) -> u64 {
    1 << ((client >> 61) * 8)
}

/// What is noted in two words, together; 255 of a part at most.
const fn noted(one: u64, other: u64) -> u64 {
    let (one, other) = (one.to_le_bytes(), other.to_le_bytes());
    let mut both = [0; PARTS];
    let mut part = 0;
    while part < PARTS {
        both[part] = one[part].saturating_add(other[part]);
        part += 1;
    }
    u64::from_le_bytes(both)
}

/// One of the counters of [`Repeats`], as the number of its word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Counted {
    /// [`Repeats::handshakes`].
    Handshake = 0,
    /// [`Repeats::syns`].
    Syn = 1,
    /// [`Repeats::data`].
    Data = 2,
    /// [`Repeats::data_again`].
    DataAgain = 3,
}

impl Repeats {
    /// What has been counted since an earlier moment. Of clients, who they were since the daemon has taken note.
    #[must_use]
    pub const fn since(&self, earlier: &Self) -> Self {
        Self {
            handshakes: self.handshakes.wrapping_sub(earlier.handshakes),
            syns: self.syns.wrapping_sub(earlier.syns),
            data: self.data.wrapping_sub(earlier.data),
            data_again: self.data_again.wrapping_sub(earlier.data_again),
            ..*self
        }
    }

    /// Both together.
    #[must_use]
    pub const fn and(&self, other: &Self) -> Self {
        Self {
            handshakes: self.handshakes.wrapping_add(other.handshakes),
            syns: self.syns.wrapping_add(other.syns),
            data: self.data.wrapping_add(other.data),
            data_again: self.data_again.wrapping_add(other.data_again),
            syn_clients: noted(self.syn_clients, other.syn_clients),
            data_clients: noted(self.data_clients, other.data_clients),
        }
    }
}

/// A place, and the flow that has it. Two words that are written one after the other and by whichever CPU has the flow's packet: should two CPUs meet here,
/// a segment is counted wrongly, and that is all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct Sample {
    /// The flow's fingerprint (bits 32-63), and the number of the byte after the last that it has sent (0-31).
    pub flow: u64,
    /// When it sent last, in ticks (bits 0-31), and how many of its segments have counted in that tick (32-63).
    pub seen: u64,
}

const _: () = assert!(size_of::<Sample>() == 16 && offset_of!(Sample, seen) == 8);

/// What a segment makes of a place, and what it counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noted {
    /// The place from now on.
    pub sample: Sample,
    /// Whether it counts.
    pub counts: bool,
    /// Whether it is a repeat, if it counts.
    pub is_again: bool,
}

impl Sample {
    /// Nobody's place.
    pub const EMPTY: Self = Self { flow: 0, seen: 0 };

    #[inline(always)]
    const fn new(fingerprint: u32, end: u32, now: Tick, counted: u32) -> Self {
        Self {
            flow: ((fingerprint as u64) << 32) | end as u64,
            seen: ((counted as u64) << 32) | now.0 as u64,
        }
    }

    #[inline(always)]
    const fn is_of(self, fingerprint: u32) -> bool {
        (self.flow >> 32) as u32 == fingerprint
    }

    #[inline(always)]
    const fn is_free(self, now: Tick) -> bool {
        self.flow == 0 || now.age(self.seen as u32, 31) >= IDLE_TICKS
    }

    /// With a segment of `length` bytes of data, at least 1, that begins at `seq`.
    ///
    /// A probe whether the other side is still there counts as nothing: it repeats the last byte on purpose. So does a window probe, which may.
    #[inline(always)]
    #[must_use]
    pub const fn with_data(self, fingerprint: u32, seq: u32, length: u32, now: Tick) -> Noted {
        let end = seq.wrapping_add(length);
        let stays = Noted {
            sample: self,
            counts: false,
            is_again: false,
        };
        if !self.is_of(fingerprint) {
            return if self.is_free(now) {
                // As far as is known, it comes for the first time.
                Noted {
                    sample: Self::new(fingerprint, end, now, 1),
                    counts: true,
                    is_again: false,
                }
            } else {
                stays
            };
        }
        let before = if self.seen as u32 == now.0 {
            (self.seen >> 32) as u32
        } else {
            0
        };
        let last = self.flow as u32;
        let ahead = end.wrapping_sub(last);
        // Modulo 2^32, and so is what is behind.
        let is_ahead = ahead != 0 && ahead < 1 << 31;
        if length == 1 && ahead == 0 {
            return Noted {
                sample: Self::new(fingerprint, last, now, before),
                ..stays
            };
        }
        let counts = before < MOST_A_TICK;
        let counted = before + counts as u32;
        let distance = if is_ahead {
            ahead
        } else {
            ahead.wrapping_neg()
        };
        if distance > FARTHEST {
            return Noted {
                sample: Self::new(fingerprint, end, now, before),
                ..stays
            };
        }
        Noted {
            sample: Self::new(fingerprint, if is_ahead { end } else { last }, now, counted),
            counts,
            is_again: counts && !is_ahead,
        }
    }

    /// With a SYN that has come before, in a place among those for SYNs. It counts once for its connection, however often it comes, as long as nobody else
    /// has taken the place. `fingerprint` is of the flow and the SYN's number.
    #[inline(always)]
    #[must_use]
    pub const fn with_syn(self, fingerprint: u32, now: Tick) -> Noted {
        let counts = !self.is_of(fingerprint) && self.is_free(now);
        Noted {
            sample: if counts {
                Self::new(fingerprint, 0, now, 1)
            } else {
                self
            },
            counts,
            is_again: counts,
        }
    }

    /// With a SYN that begins another connection of a flow: what the former one has sent is nothing to it.
    #[inline(always)]
    #[must_use]
    pub const fn anew(self, fingerprint: u32) -> Self {
        if self.is_of(fingerprint) {
            Self::EMPTY
        } else {
            self
        }
    }
}

/// The place of a flow, one of the few that its client has, and its fingerprint, which is never 0, so that no flow is taken for nobody: of the client and of the
/// flow's key, both mixed under a secret, so that nobody can aim at another's place.
#[inline(always)]
#[must_use]
pub const fn place(client: u64, mixed: u64) -> (u32, u32) {
    const WITHIN: u32 = PLACES_OF_A_CLIENT - 1;
    let first = client as u32 & (PLACES - 1) & !WITHIN;
    let fingerprint = (mixed >> 32) as u32 | 1;
    (first | (mixed as u32 & WITHIN), fingerprint)
}

/// The place of a SYN among those for SYNs, and its fingerprint: of the SYN's number too, since the next connection from the same port is another.
#[inline(always)]
#[must_use]
pub const fn syn_place(client: u64, mixed: u64, seq: u32) -> (u32, u32) {
    place(client, mixed ^ ((seq as u64) << 32))
}

const _: () = assert!(PLACES.is_multiple_of(PLACES_OF_A_CLIENT));

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Tick = Tick(1_000);
    const FLOW: u32 = 0xabcd_ef01;

    /// Segments of one flow, each by where it begins and its length: which count, and which of them as repeats.
    fn told(segments: &[(u32, u32)]) -> Vec<(bool, bool)> {
        let mut sample = Sample::EMPTY;
        segments
            .iter()
            .zip(NOW.0..)
            .map(|(&(seq, length), tick)| {
                // One in each tick, so that none is too many.
                let noted = sample.with_data(FLOW, seq, length, Tick(tick));
                sample = noted.sample;
                (noted.counts, noted.is_again)
            })
            .collect()
    }

    const NEW: (bool, bool) = (true, false);
    const AGAIN: (bool, bool) = (true, true);
    const NOTHING: (bool, bool) = (false, false);

    #[test]
    fn what_ends_where_the_flow_has_been_is_a_repeat() {
        assert_eq!(
            told(&[
                (100, 50),
                (150, 50),
                (150, 50),
                (100, 50),
                (120, 10),
                (200, 1)
            ]),
            [NEW, NEW, AGAIN, AGAIN, AGAIN, NEW]
        );
        // New data behind old is new, and a gap is no repeat; what fills it is, for it has been sent before.
        assert_eq!(
            told(&[(100, 50), (120, 60), (300, 100), (180, 120)]),
            [NEW, NEW, NEW, AGAIN]
        );
    }

    #[test]
    fn numbers_wrap() {
        let start = u32::MAX - 19;
        assert_eq!(
            told(&[(start, 10), (start + 10, 30), (start + 10, 30), (20, 5)]),
            [NEW, NEW, AGAIN, NEW]
        );
    }

    #[test]
    fn a_probe_counts_as_nothing() {
        // The last byte once more, as often as it comes.
        assert_eq!(
            told(&[(100, 50), (149, 1), (149, 1), (150, 50)]),
            [NEW, NOTHING, NOTHING, NEW]
        );
        // Any other byte is data.
        assert_eq!(told(&[(100, 50), (148, 1)]), [NEW, AGAIN]);
    }

    #[test]
    fn another_connection_on_the_same_port_begins_anew() {
        assert_eq!(
            told(&[(100, 50), (0x8000_0000, 50), (0x8000_0000, 50)]),
            [NEW, NOTHING, AGAIN]
        );
        let sample = Sample::EMPTY.with_data(FLOW, 100, 50, NOW).sample;
        assert_eq!(sample.anew(FLOW), Sample::EMPTY);
        assert_eq!(sample.anew(FLOW ^ 2), sample);
    }

    #[test]
    fn a_place_is_a_flows_for_as_long_as_it_sends() {
        let other = FLOW ^ 2;
        let mut sample = Sample::EMPTY.with_data(FLOW, 100, 50, NOW).sample;
        let noted = sample.with_data(other, 7, 50, NOW.later(IDLE_TICKS - 1));
        assert_eq!((noted.sample, noted.counts), (sample, false));
        sample = sample.with_data(FLOW, 150, 50, NOW.later(1)).sample;
        let noted = sample.with_data(other, 7, 50, NOW.later(IDLE_TICKS));
        assert!(!noted.counts);
        let noted = sample.with_data(other, 7, 50, NOW.later(IDLE_TICKS + 1));
        assert!(noted.counts && !noted.is_again);
        let again = noted
            .sample
            .with_data(other, 7, 50, NOW.later(IDLE_TICKS + 1));
        assert!(again.is_again);
    }

    #[test]
    fn no_flow_counts_for_more_than_some_segments_in_a_tick() {
        let mut sample = Sample::EMPTY;
        let mut counted = 0;
        for n in 0..100 {
            let noted = sample.with_data(FLOW, n * 10, 10, NOW);
            sample = noted.sample;
            counted += u32::from(noted.counts);
        }
        assert_eq!(counted, MOST_A_TICK);
        // What did not count was seen all the same.
        let noted = sample.with_data(FLOW, 990, 10, NOW.later(1));
        assert!(noted.counts && noted.is_again);
    }

    #[test]
    fn a_syn_counts_once_however_often_it_comes() {
        let noted = Sample::EMPTY.with_syn(FLOW, NOW);
        assert!(noted.counts);
        for later in [0, 1, 100] {
            let again = noted.sample.with_syn(FLOW, NOW.later(later));
            assert_eq!((again.sample, again.counts), (noted.sample, false));
        }
        // That of another one waits for the place.
        assert!(!noted.sample.with_syn(FLOW ^ 2, NOW).counts);
        assert!(
            noted
                .sample
                .with_syn(FLOW ^ 2, NOW.later(IDLE_TICKS))
                .counts
        );
    }

    /// Over a window of half a minute, whatever it sends, and by however many flows.
    #[test]
    fn a_client_counts_for_some_syns_only() {
        const TICKS: u32 = 8;
        let mut places = vec![Sample::EMPTY; PLACES as usize];
        let client = 0x0123_4567_89ab_cdef;
        let mut counted = 0;
        for tick in 0..TICKS {
            for flow in 0..1_000 {
                let mixed =
                    (u64::from(tick * 1_000 + flow) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let (place, fingerprint) = syn_place(client, mixed, flow);
                let noted = places[place as usize].with_syn(fingerprint, NOW.later(tick));
                places[place as usize] = noted.sample;
                counted += u32::from(noted.counts);
            }
        }
        assert_eq!(counted, PLACES_OF_A_CLIENT * TICKS / IDLE_TICKS);
        let held = |place: &&Sample| **place != Sample::EMPTY;
        assert_eq!(
            places.iter().filter(held).count(),
            PLACES_OF_A_CLIENT as usize
        );
        // Another one has places of its own.
        let (other, fingerprint) = syn_place(client ^ u64::from(PLACES_OF_A_CLIENT), 7, 7);
        assert!(places[other as usize].with_syn(fingerprint, NOW).counts);
    }

    /// However many flows it has, and however much each of them sends.
    #[test]
    fn a_client_is_watched_in_some_flows_only() {
        let mut places = vec![Sample::EMPTY; PLACES as usize];
        let client = 0x0123_4567_89ab_cdef;
        let mut counted = 0;
        for flow in 0..1_000_u64 {
            let (place, fingerprint) =
                place(client, (flow + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            for n in 0..2 * MOST_A_TICK {
                let noted = places[place as usize].with_data(fingerprint, n * 10, 10, NOW);
                places[place as usize] = noted.sample;
                counted += u32::from(noted.counts);
            }
        }
        assert_eq!(counted, PLACES_OF_A_CLIENT * MOST_A_TICK);
        // Others' flows have places of their own, as far as there are any.
        let (other, fingerprint) = place(client ^ u64::from(PLACES_OF_A_CLIENT), 7);
        let noted = places[other as usize].with_data(fingerprint, 0, 10, NOW);
        assert!(noted.counts);
    }

    #[test]
    fn clients_are_of_parts() {
        assert_eq!(one_of(0), 1);
        assert_eq!(one_of(u64::MAX), 1 << 56);
        assert_eq!(one_of((5 << 61) | 99), 1 << 40);
        let all = (0..PARTS as u64).map(|part| one_of(part << 61));
        assert_eq!(all.sum::<u64>() << 7, ENOUGH);
    }

    #[test]
    fn counts_are_told_apart_by_moments() {
        let earlier = Repeats {
            handshakes: u64::MAX,
            syns: 1,
            data: 2,
            data_again: 3,
            syn_clients: 0,
            data_clients: 0,
        };
        let step = Repeats {
            handshakes: 4,
            syns: 5,
            data: 6,
            data_again: 7,
            syn_clients: 0xfe00_0000_0000_0002,
            data_clients: 0x0300,
        };
        assert_eq!(earlier.and(&step).since(&earlier), step);
        let other = Repeats {
            syn_clients: 0x0200_0000_0000_0101,
            ..step
        };
        // Each byte by itself, whatever there is of another.
        let both = step.and(&other);
        assert_eq!(both.syn_clients, 0xff00_0000_0000_0103);
        assert_eq!(both.data_clients, 0x0600);
    }

    proptest! {
        /// A sender that sends every byte once, in order, repeats nothing; one that sends each segment twice repeats every second one.
        #[test]
        fn repeats_are_told_from_what_is_new(start: u32, client: u64, mixed: u64, lengths in prop::collection::vec(2u32..70_000, 1..200)) {
            let (place, fingerprint) = place(client, mixed);
            prop_assert!(place < PLACES && fingerprint != 0);
            let (mut once, mut twice) = (Sample::EMPTY, Sample::EMPTY);
            let mut seq = start;
            for (length, tick) in lengths.into_iter().zip(NOW.0..) {
                let now = Tick(tick);
                let noted = once.with_data(fingerprint, seq, length, now);
                prop_assert!(noted.counts && !noted.is_again);
                once = noted.sample;
                let first = twice.with_data(fingerprint, seq, length, now);
                let second = first.sample.with_data(fingerprint, seq, length, now);
                prop_assert!(!first.is_again && second.is_again);
                twice = second.sample;
                seq = seq.wrapping_add(length);
            }
            prop_assert_eq!(once.flow, twice.flow);
        }
    }
}
