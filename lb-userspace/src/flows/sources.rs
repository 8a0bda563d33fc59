//! How many flows sources have, of services that limit them: counted in each pass over the flow tables, and written where the data path holds its limits
//! against them.
//!
//! What the data path has opened since the pass before is in the same word as what was counted then. Of that, a pass takes back what was there when it
//! began: by then it is in the tables, to be counted, or it is over. So what is opened during a pass is counted twice until the next one, at worst, and never
//! not at all.
//!
//! What nobody has heard of for ten minutes does not count. Its client may be gone: in modes `l2` and `ipip` nobody tells, and a source whose clients have
//! vanished, or that somebody has made up handshakes in the name of, would never get in again.
//!
//! Only sources that have a place are counted: memory is bounded by those, and who has none is not limited.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
};

use lb_common::{
    clock::Tick,
    flow::word::{State, Word},
    guard::{Guard, SOURCES_IN_BUCKET},
    hash::Seed,
    net::Address,
    service::Service,
};

use super::judge;
use crate::{
    dataplane::maps::Maps,
    guard::sources::{FINGERPRINT, FLOWS, PAID, SourceFlows, WORDS, of_client, owes},
};

/// What a pass knows of sources.
#[derive(Debug, Default)]
pub(super) struct Sources {
    /// By service id: the mask of its sources if it limits their flows.
    masks: HashMap<u16, u64>,
    /// By fingerprint.
    counts: HashMap<u64, Count>,
    /// What of a source's debts any service may still ask for, in nanoseconds: its longest burst.
    longest_burst_ns: u64,
    /// Whether there may be sources: a service limits them, or one did in the pass before.
    may_be: bool,
    has_begun: bool,
}

/// One source in a pass.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    /// Opened before the pass began, as the data path has said.
    opened: u32,
    /// Met so far.
    met: u32,
}

impl Sources {
    /// Reads which services limit their sources, and what has been opened.
    pub(super) fn begin(&mut self, maps: &Maps) {
        let had = !self.has_begun || self.may_be;
        *self = Self {
            has_begun: true,
            ..Self::default()
        };
        let mut limits = false;
        for id in 0..maps.services.len() {
            if !is_guarded(maps, id) {
                continue;
            }
            let guard: Guard = maps.guards.get(id);
            self.longest_burst_ns = self.longest_burst_ns.max(guard.burst_ns);
            limits |= guard.cost_ns != 0 || guard.flows != 0;
            if guard.flows != 0 {
                self.masks.insert(id as u16, guard.mask);
            }
        }
        self.may_be = limits || had;
        if !self.may_be {
            return;
        }
        for_each(maps, |words| {
            let fingerprint = words[FINGERPRINT].load(Ordering::Acquire);
            let flows = SourceFlows::of(words[FLOWS].load(Ordering::Acquire));
            if fingerprint != 0 {
                // A source that has two places, as it may after a race for one, has the same in both from now on.
                let count = self.counts.entry(fingerprint).or_default();
                count.opened = count.opened.max(flows.opened);
            }
        });
        self.may_be = limits;
    }

    /// Whether a service limits its sources' flows.
    pub(super) fn limits(&self, service: u16) -> bool {
        self.masks.contains_key(&service)
    }

    /// Takes in that a client has a flow, whose entry is such.
    pub(super) fn note(
        &mut self,
        seed: &Seed,
        client: Address,
        is_ipv6: bool,
        service: u16,
        word: Word,
        now: Tick,
    ) {
        if self.masks.is_empty() || !counts(word, now) {
            return;
        }
        let Some(&mask) = self.masks.get(&service) else {
            return;
        };
        let own = of_client(client, is_ipv6, service, mask, seed);
        if let Some(count) = self.counts.get_mut(&own) {
            count.met = count.met.saturating_add(1);
        }
    }

    /// Writes what was counted, and forgets sources that have no flow and owe nothing by now. Gives how many are left.
    pub(super) fn finish(&mut self, maps: &Maps, now_ns: u64) -> u64 {
        let mut left = 0;
        if self.counts.is_empty() && !self.may_be {
            return left;
        }
        for_each(maps, |words| {
            let fingerprint = words[FINGERPRINT].load(Ordering::Acquire);
            if fingerprint == 0 {
                return;
            }
            if let Some(count) = self.counts.get(&fingerprint) {
                count.write(&words[FLOWS]);
            }
            let paid_ns = words[PAID].load(Ordering::Acquire);
            let owes = owes(paid_ns, now_ns, self.longest_burst_ns);
            let is_gone = words[FLOWS].load(Ordering::Acquire) == 0
                && !owes
                // Somebody else may have taken the place since.
                && words[FINGERPRINT]
                    .compare_exchange(fingerprint, 0, Ordering::SeqCst, Ordering::Relaxed)
                    .is_ok();
            left += u64::from(!is_gone);
        });
        self.counts = HashMap::new();
        left
    }
}

impl Count {
    fn write(self, flows: &AtomicU64) {
        let counted = |word| {
            let before = SourceFlows::of(word);
            let after = SourceFlows {
                counted: self.met,
                opened: before.opened.saturating_sub(self.opened),
            };
            (after != before).then(|| after.word())
        };
        // The data path adds to it meanwhile; it fails only where there is nothing to change.
        let _ = flows.fetch_update(Ordering::SeqCst, Ordering::Relaxed, counted);
    }
}

/// Whether an entry is a flow of its source's: one that nobody has answered yet, or an open one that has been heard of lately. Not a challenger, which takes the
/// place of another, nor what is over.
///
/// A source that begins many flows, and has their handshakes end only after the pass that takes back what was opened, would have as many more of them with each
/// pass, if embryos did not count.
pub(super) fn counts(word: Word, now: Tick) -> bool {
    word.is(State::Embryo) || (word.is_open() && judge::is_active(word, now))
}

/// Gives the words of each place for a source.
fn for_each(maps: &Maps, mut with: impl FnMut(&[AtomicU64])) {
    for index in 0..maps.sources.len() {
        let bucket = maps.sources.words(index);
        debug_assert_eq!(bucket.len(), WORDS * SOURCES_IN_BUCKET as usize);
        bucket.chunks_exact(WORDS).for_each(&mut with);
    }
}

/// Whether a service says that it has a guard.
fn is_guarded(maps: &Maps, service: u32) -> bool {
    const AT: usize = std::mem::offset_of!(Service, traits);
    let word = maps.services.word(service, AT / 8).load(Ordering::Relaxed) >> (AT % 8 * 8);
    word as u16 & Service::GUARDED != 0
}

#[cfg(test)]
mod tests {
    use lb_common::{
        flow::{bucket::homes, word::BackendRef},
        guard::{Source, SourceBucket},
    };

    use super::*;
    use crate::dataplane::maps::Capacity;

    const SEED: Seed = Seed {
        whiten: 5,
        first: 7,
        second: 9,
    };
    const SECOND_NS: u64 = 1_000_000_000;
    const NOW_NS: u64 = 1_000 * SECOND_NS;
    const SERVICE: u16 = 2;
    const NOW: Tick = Tick(7);

    struct Fixture {
        maps: Maps,
        sources: Sources,
    }

    fn client(host: u8) -> Address {
        std::net::IpAddr::from([192, 0, 2, host]).into()
    }

    fn pin() -> Word {
        Word::live(State::Pin, BackendRef::new(1, 0), 0, Tick(5), 0)
    }

    impl Fixture {
        /// A service that takes 10 flows of each address, ten new ones a second, and 20 at once.
        fn new() -> Self {
            let capacity = Capacity::for_flows(1, 1, 4, 4, 64, 1).with_guards(64, 50);
            let fixture = Self {
                maps: Maps::in_memory(capacity).unwrap(),
                sources: Sources::default(),
            };
            fixture.limit(10);
            fixture
        }

        fn limit(&self, flows: u32) {
            let guard = Guard {
                cost_ns: SECOND_NS / 10,
                burst_ns: 2 * SECOND_NS,
                mask: u64::MAX,
                flows,
                ..Guard::default()
            };
            let service = Service {
                identity: 1,
                traits: Service::GUARDED,
                ..self.maps.services.get(SERVICE.into())
            };
            self.maps.guards.set(SERVICE.into(), &guard);
            self.maps.services.set(SERVICE.into(), &service);
        }

        /// The words of a client's place, which it takes as the data path does.
        fn place(&self, host: u8) -> &[AtomicU64] {
            let own = of_client(client(host), false, SERVICE, u64::MAX, &SEED);
            let [home, _] = homes(own, self.maps.sources.len());
            let words = self.maps.sources.words(home);
            let held = |words: &&[AtomicU64]| words[FINGERPRINT].load(Ordering::Relaxed) == own;
            let free = |words: &&[AtomicU64]| words[FINGERPRINT].load(Ordering::Relaxed) == 0;
            let place = words
                .chunks_exact(WORDS)
                .find(held)
                .or_else(|| words.chunks_exact(WORDS).find(free))
                .expect("there is room");
            place[FINGERPRINT].store(own, Ordering::Relaxed);
            place
        }

        /// The data path opens flows of a client.
        fn open(&self, host: u8, flows: u64) {
            self.place(host)[FLOWS].fetch_add(flows << 32, Ordering::Relaxed);
        }

        fn owe(&self, host: u8, paid_ns: u64) {
            self.place(host)[PAID].store(paid_ns, Ordering::Relaxed);
        }

        /// What is counted and what was opened since.
        fn flows(&self, host: u8) -> (u32, u32) {
            let flows = SourceFlows::of(self.place(host)[FLOWS].load(Ordering::Relaxed));
            (flows.counted, flows.opened)
        }

        fn meet(&mut self, host: u8, word: Word, flows: u32) {
            for _ in 0..flows {
                self.sources
                    .note(&SEED, client(host), false, SERVICE, word, NOW);
            }
        }

        /// A pass that meets so many flows of a client. Gives how many sources are left.
        fn pass(&mut self, host: u8, flows: u32) -> u64 {
            self.sources.begin(&self.maps);
            self.meet(host, pin(), flows);
            self.sources.finish(&self.maps, NOW_NS)
        }

        fn all(&self) -> Vec<Source> {
            (0..self.maps.sources.len())
                .flat_map(|index| self.maps.sources.get(index).sources)
                .filter(|source| source.fingerprint != 0)
                .collect()
        }
    }

    #[test]
    fn what_was_opened_is_counted_and_taken_back() {
        let mut fixture = Fixture::new();
        fixture.open(1, 7);
        assert_eq!(fixture.flows(1), (0, 7));
        assert_eq!(fixture.pass(1, 5), 1);
        assert_eq!(fixture.flows(1), (5, 0), "two have ended");
        assert_eq!(fixture.pass(1, 5), 1);
        assert_eq!(fixture.flows(1), (5, 0));
        assert_eq!(fixture.pass(1, 1), 1);
        assert_eq!(fixture.flows(1), (1, 0));
    }

    #[test]
    fn what_is_opened_during_a_pass_stays_opened_until_the_next() {
        let mut fixture = Fixture::new();
        fixture.open(1, 3);
        fixture.sources.begin(&fixture.maps);
        fixture.open(1, 2);
        // The pass meets all five.
        fixture.meet(1, pin(), 5);
        fixture.sources.finish(&fixture.maps, NOW_NS);
        assert_eq!(fixture.flows(1), (5, 2), "at worst twice, never not at all");
        fixture.pass(1, 5);
        assert_eq!(fixture.flows(1), (5, 0));
    }

    #[test]
    fn sources_and_services_are_told_apart() {
        let mut fixture = Fixture::new();
        fixture.open(1, 1);
        fixture.open(2, 1);
        fixture.sources.begin(&fixture.maps);
        fixture.meet(1, pin(), 4);
        fixture.meet(2, pin(), 1);
        fixture
            .sources
            .note(&SEED, client(2), false, SERVICE + 1, pin(), NOW);
        fixture.sources.finish(&fixture.maps, NOW_NS);
        assert_eq!((fixture.flows(1), fixture.flows(2)), ((4, 0), (1, 0)));
    }

    #[test]
    fn what_is_not_over_counts_and_no_challenger_does() {
        let mut fixture = Fixture::new();
        fixture.open(1, 4);
        fixture.sources.begin(&fixture.maps);
        let backend = BackendRef::new(1, 0);
        fixture.meet(1, Word::challenger(backend, 1, Tick(5)), 1);
        fixture.meet(1, pin().with_state(State::Closing), 1);
        fixture.meet(1, pin().with_state(State::Young), 1);
        fixture.meet(1, pin(), 1);
        fixture.sources.finish(&fixture.maps, NOW_NS);
        assert_eq!(fixture.flows(1), (2, 0));
    }

    /// What has been opened is taken back by the pass after, while its handshake may take longer.
    #[test]
    fn a_handshake_that_takes_longer_than_a_pass_counts_all_the_time() {
        let mut fixture = Fixture::new();
        fixture.open(1, 4);
        let embryo = Word::embryo(BackendRef::new(1, 0), 1, Tick(5));
        for _ in 0..2 {
            fixture.sources.begin(&fixture.maps);
            fixture.meet(1, embryo, 4);
            fixture.sources.finish(&fixture.maps, NOW_NS);
            assert_eq!(fixture.flows(1), (4, 0));
        }
        fixture.pass(1, 4);
        assert_eq!(fixture.flows(1), (4, 0));
    }

    #[test]
    fn what_has_not_been_heard_of_for_long_does_not_count() {
        let mut fixture = Fixture::new();
        fixture.open(1, 10);
        let seen = |ago: u32| pin().with_tick(Tick(NOW.0.wrapping_sub(ago)));
        fixture.sources.begin(&fixture.maps);
        fixture.meet(1, seen(judge::IDLE_TICKS - 1), 2);
        fixture.meet(1, seen(judge::IDLE_TICKS), 3);
        fixture.meet(1, seen(judge::RECLAIM_PIN_TICKS), 4);
        fixture.meet(1, seen(judge::IDLE_TICKS).with_state(State::Young), 1);
        fixture.sources.finish(&fixture.maps, NOW_NS);
        assert_eq!(fixture.flows(1), (2, 0));
        // Its client is heard of again.
        fixture.pass(1, 3);
        assert_eq!(fixture.flows(1), (3, 0));
    }

    #[test]
    fn who_has_no_flow_and_owes_nothing_is_forgotten() {
        let mut fixture = Fixture::new();
        fixture.open(1, 1);
        fixture.owe(2, NOW_NS - SECOND_NS);
        fixture.owe(3, NOW_NS - 3 * SECOND_NS);
        assert_eq!(fixture.all().len(), 3);
        assert_eq!(fixture.pass(1, 1), 2, "the third has saved up all again");
        let left = fixture.all();
        assert_eq!(left.len(), 2);
        assert!(
            left.iter()
                .any(|source| source.paid_ns == NOW_NS - SECOND_NS)
        );
    }

    #[test]
    fn a_source_without_a_place_takes_none_by_being_met() {
        let mut fixture = Fixture::new();
        assert_eq!(fixture.pass(1, 5), 0);
        assert_eq!(fixture.all(), []);
        // Its next flow has it known, and then all that it has are counted.
        fixture.open(1, 1);
        fixture.pass(1, 6);
        assert_eq!(fixture.flows(1), (6, 0));
    }

    #[test]
    fn a_service_that_limits_no_more_leaves_nothing_behind() {
        let mut fixture = Fixture::new();
        fixture.open(1, 5);
        fixture.pass(1, 5);
        fixture.maps.guards.set(SERVICE.into(), &Guard::default());
        assert_eq!(fixture.pass(1, 5), 0);
        assert_eq!(fixture.all(), []);
        // Nobody looks there any more.
        let stray = SourceBucket {
            sources: [Source {
                fingerprint: 1,
                ..Source::default()
            }; 4],
        };
        fixture.maps.sources.set(0, &stray);
        assert_eq!(fixture.pass(1, 5), 0);
        assert_eq!(fixture.all().len(), 4);
    }

    #[test]
    fn a_daemon_that_starts_counts_what_another_has_left() {
        let mut fixture = Fixture::new();
        fixture.open(1, 5);
        fixture.pass(1, 5);
        fixture.open(1, 2);
        fixture.sources = Sources::default();
        fixture.pass(1, 6);
        assert_eq!(fixture.flows(1), (6, 0));
    }
}
