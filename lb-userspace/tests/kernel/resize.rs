//! A flow table that gets another size: every entry is found again, while packets come, whenever the daemon is killed.

use std::{
    collections::HashMap,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle, sleep},
    time::Duration,
};

use lb_common::{
    clock::Tick,
    flow::{
        bucket::{WAYS, buckets_for},
        v4, v6,
        word::{BackendRef, EMBRYO_TICKS, LINGER_FIN_TICKS, LINGER_RST_TICKS, State, Word},
    },
    maps,
    net::IpVersion,
    tcp::{ACK, FIN, SYN},
    verdict::Reason,
};
use lb_userspace::dataplane::{
    kernel::{Error, Kernel, Options, resize::Step},
    maps::{Capacity, Maps, now},
};
use nix::{
    mount::umount,
    sys::signal::{Signal, kill},
    unistd::getpid,
};

use crate::{
    sandbox::{Sandbox, names, run},
    wire::{BACKENDS, Client, ISN, PICKED, Wire, count_of, count_to, pick, serve},
};

/// What a key has in a table: words with the tick of first sight.
type Held = Vec<(Word, u32)>;

/// Options for a table of a version of IP for so many flows; the other one is always the same.
fn sized<K: Client>(sandbox: &Sandbox, interfaces: &[&str], flows: u32) -> Options {
    let mut options = sandbox.options(interfaces);
    let Capacity {
        flow4_buckets,
        flow6_buckets,
        ..
    } = &mut options.capacity;
    (*flow4_buckets, *flow6_buckets) = (buckets_for(OTHER), buckets_for(OTHER));
    *match K::VERSION {
        IpVersion::V4 => flow4_buckets,
        IpVersion::V6 => flow6_buckets,
    } = buckets_for(flows);
    options
}

/// Flows that the table of the version of IP has room for which a test is not about.
const OTHER: u32 = 3_000;

/// Buckets of the table that a test is about, while the other one is as it was.
fn buckets<K: Client>(maps: &Maps) -> u32 {
    let capacity = &maps.capacity;
    let other = match K::VERSION {
        IpVersion::V4 => capacity.flow6_buckets,
        IpVersion::V6 => capacity.flow4_buckets,
    };
    assert_eq!(other, buckets_for(OTHER));
    capacity.flow_buckets(K::VERSION)
}

pub(crate) fn places<K: Client>(maps: &Maps, key: K) -> impl Iterator<Item = (u32, u32)> {
    let homes = K::table(maps).homes(key, &maps.instance.get(0).flow_seed);
    homes
        .into_iter()
        .flat_map(|home| (0..WAYS).map(move |way| (home, way)))
}

/// Writes an entry where there is a vacant place in one of its homes; false if there is none.
pub(crate) fn put<K: Client>(maps: &Maps, key: K, word: Word, first_seen: u32) -> bool {
    let table = K::table(maps);
    for (home, way) in places(maps, key) {
        let bucket = table.bucket(home);
        if bucket.value(way).load(Ordering::SeqCst) != Word::EMPTY.0 {
            continue;
        }
        for (to, from) in bucket.key_words(way).iter().zip(key.to_words()) {
            to.store(from, Ordering::SeqCst);
        }
        let mut facts = table.facts().get(home);
        facts.first_seen[way as usize] = first_seen;
        table.facts().set(home, &facts);
        bucket.value(way).store(word.0, Ordering::SeqCst);
        return true;
    }
    false
}

/// The entries of a key, sorted.
fn find<K: Client>(maps: &Maps, key: K) -> Held {
    let table = K::table(maps);
    let mut found: Held = places(maps, key)
        .filter_map(|(home, way)| {
            let (held, word) = table.read((home, way))?;
            let first_seen = table.facts().get(home).first_seen[way as usize];
            (held == key).then_some((word, first_seen))
        })
        .collect();
    found.sort_by_key(|(word, _)| word.0);
    found
}

/// The number of entries in a table.
fn entries<K: Client>(maps: &Maps) -> usize {
    let table = K::table(maps);
    (0..table.buckets())
        .flat_map(|bucket| (0..WAYS).map(move |way| (bucket, way)))
        .filter(|place| table.read(*place).is_some())
        .count()
}

/// What one key is given, by a number: every state, pairs, and what is past its time.
fn cast(number: u32, now: Tick) -> Held {
    let backend = BackendRef::new(1 + number % BACKENDS, 0);
    let first_seen = 1 + number;
    let live = |state, ago: u32, flags| {
        Word::live(
            state,
            backend,
            number & 0xfff,
            Tick(now.0.wrapping_sub(ago)),
            flags,
        )
    };
    let one = |word| vec![(word, first_seen)];
    match number % 13 {
        0 => one(Word::embryo(backend, number, Tick(now.0.wrapping_sub(2)))),
        1 => one(live(State::Young, 1, 0)),
        2 => one(live(State::Young, 5_000, Word::FOREIGN)),
        3 => one(live(State::Pin, 20_000, 0)),
        4 => one(live(State::Pin, 400_000, Word::HINT)),
        5 => one(live(State::Pin, 3, Word::UNCONFIRMED)),
        6 => one(live(State::Closing, LINGER_FIN_TICKS - 100, 0)),
        7 => one(live(State::Closing, 1, Word::BY_RESET)),
        8 => one(live(State::Closing, LINGER_FIN_TICKS + 1, Word::EXCEPTION)),
        9 => vec![
            (live(State::Pin, 7, Word::CONTESTED), first_seen),
            (Word::challenger(backend, number, now), 0),
        ],
        10 => vec![
            (live(State::Pin, 7, Word::CONTESTED), first_seen),
            (
                live(State::Young, 1, Word::CONTESTED | Word::SECOND),
                first_seen + 1,
            ),
        ],
        // These are past their time, and nobody's.
        11 => one(Word::embryo(
            backend,
            number,
            Tick(now.0.wrapping_sub(EMBRYO_TICKS)),
        )),
        _ => one(live(State::Closing, LINGER_RST_TICKS, Word::BY_RESET)),
    }
}

/// Whether an entry of [`cast`] is to be found again.
fn is_kept(number: u32) -> bool {
    number % 13 < 11
}

/// Entries of every kind that no packet touches.
struct Crowd<K>(HashMap<K, (u32, Held)>);

impl<K: Client> Crowd<K> {
    /// Fills a table with that many entries.
    fn settle(maps: &Maps, wanted: usize) -> Self {
        let (mut crowd, mut placed, now) = (HashMap::new(), 0, now());
        for number in 0.. {
            if placed >= wanted {
                break;
            }
            let key = K::client(0x0a01_0000 + (number >> 10), 1_024 + number as u16 % 1_024);
            let mut held = cast(number, now);
            // A key whose homes are full is another's.
            held.retain(|&(word, first_seen)| put(maps, key, word, first_seen));
            held.sort_by_key(|(word, _)| word.0);
            placed += held.len();
            if !held.is_empty() {
                crowd.insert(key, (number, held));
            }
        }
        Self(crowd)
    }

    /// Every entry is there with its value and its fact, and those past their time are not. Of those that wait for the answer to a SYN,
    /// new flows may have claimed some.
    fn assert_kept(&self, maps: &Maps, claimed_at_most: u64) {
        let mut claimed = 0;
        for (key, (number, held)) in &self.0 {
            let found = find(maps, *key);
            if !is_kept(*number) {
                assert!(found.is_empty(), "entry {number}: {found:?}");
                continue;
            }
            // On a slow machine some linger to their end meanwhile.
            if held.iter().any(|(word, _)| word.is_vacant(now())) {
                continue;
            }
            let (found_live, found_nascent) = apart(&found);
            let (live, nascent) = apart(held);
            assert_eq!(found_live, live, "entry {number}");
            if found_nascent != nascent {
                assert!(found_nascent.is_empty(), "entry {number}: {found:?}");
                claimed += nascent.len() as u64;
            }
        }
        assert!(
            claimed <= claimed_at_most,
            "{claimed} embryos are gone, and {claimed_at_most} flows began"
        );
    }
}

/// Live entries with their facts; nascent ones, which have none: what is beside their places is another's.
fn apart(held: &Held) -> (Held, Vec<Word>) {
    let (nascent, live): (Held, Held) = held.iter().partition(|(word, _)| word.is_nascent());
    (live, nascent.into_iter().map(|(word, _)| word).collect())
}

/// The `number`-th flow that packets come for.
fn talker<K: Client>(number: u32) -> K {
    K::client(0x0b00_0000 + number, 40_000)
}

/// Pins talkers to backends that the table names nowhere: whose entry is lost goes astray.
fn pin_talkers<K: Client>(maps: &Maps, count: u32) {
    for number in 0..count {
        let backend = BackendRef::new(PICKED + 1 + number % (BACKENDS - PICKED), 0);
        let word = Word::live(
            State::Pin,
            backend,
            ISN >> 20,
            Tick(now().0.wrapping_sub(9)),
            0,
        );
        assert!(put(maps, talker::<K>(number), word, 7));
    }
}

fn astray(maps: &Maps) -> [u64; 3] {
    [Reason::Adopted, Reason::Unadopted, Reason::Stray].map(|reason| count_of(maps, reason))
}

/// A packet of each talker reaches its backend.
fn assert_talking<K: Client>(wire: &mut Wire, maps: &Maps, count: u32) {
    let (before, lost) = (
        (1..=BACKENDS)
            .map(|id| count_to(maps, id))
            .collect::<Vec<_>>(),
        astray(maps),
    );
    for number in 0..count {
        wire.send(&[(talker::<K>(number), ISN + 1, ACK)]);
    }
    for id in 1..=BACKENDS {
        let own = (0..count)
            .filter(|number| PICKED + 1 + number % (BACKENDS - PICKED) == id)
            .count() as u64;
        assert_eq!(count_to(maps, id) - before[id as usize - 1], own);
    }
    assert_eq!(astray(maps), lost);
}

/// Sends packets of talkers, and opens new flows, until it is told to stop.
struct Traffic<K> {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(Vec<u64>, Vec<K>)>,
}

impl<K: Client> Traffic<K> {
    fn start(mut wire: Wire, talkers: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = thread::spawn(move || {
            let mut random = fastrand::Rng::with_seed(1);
            let mut to = vec![0; BACKENDS as usize + 1];
            let mut opened = vec![];
            for round in 0u64.. {
                if told.load(Ordering::SeqCst) {
                    break;
                }
                let mut burst = vec![];
                for _ in 0..12 {
                    let number = random.u32(..talkers);
                    burst.push((talker::<K>(number), ISN + 1, ACK));
                    to[(PICKED + 1 + number % (BACKENDS - PICKED)) as usize] += 1;
                }
                // A flow begins now and then: a SYN, then what answers to the other side's, and that again a while later. While the table is
                // held the first such is dropped, and a client sends more.
                if round % 8 == 0 {
                    let newcomer = K::client(0x0c00_0000 + opened.len() as u32, 50_000);
                    opened.push(newcomer);
                    burst.push((newcomer, ISN, SYN));
                } else if round % 8 <= 2
                    && let Some(key) = opened.last()
                {
                    burst.push((*key, ISN + 1, ACK));
                }
                wire.send(&burst);
            }
            for key in &opened {
                wire.send(&[(*key, ISN + 3, ACK)]);
            }
            (to, opened)
        });
        Self { stop, thread }
    }

    /// Packets that were sent to each backend's pinned flows, and the flows that were opened.
    fn stop(self) -> (Vec<u64>, Vec<K>) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

#[test]
fn every_entry_is_found_again_in_a_larger_and_a_smaller_table_while_packets_come() {
    resize_under_traffic::<v4::Key, v6::Key>([240_000, 960_000, 120_000], 100_000);
}

#[test]
fn every_ipv6_entry_is_found_again_in_a_larger_and_a_smaller_table_while_packets_come() {
    resize_under_traffic::<v6::Key, v4::Key>([120_000, 360_000, 60_000], 50_000);
}

/// Resizes the table of K while packets of its flows come, and leaves the size of the other one alone.
fn resize_under_traffic<K: Client, O: Client>([made, larger, smaller]: [u32; 3], entries: usize) {
    const TALKERS: u32 = 2_000;
    run(move |sandbox| {
        sandbox.veth("va", "vb");
        let mut kernel = Kernel::open(&sized::<K>(sandbox, &["va"], made)).unwrap();
        kernel.attach().unwrap();
        let first = kernel.maps();
        serve(&first, "va");
        pin_talkers::<K>(&first, TALKERS);
        let crowd = Crowd::<K>::settle(&first, entries);
        let others = Crowd::<O>::settle(&first, 1_000);
        let traffic = Traffic::<K>::start(Wire::new("vb", first.clone()), TALKERS);

        for flows in [larger, smaller] {
            drop(kernel);
            let begun = count_of(&first, Reason::Opened);
            kernel = Kernel::open(&sized::<K>(sandbox, &["va"], flows)).unwrap();
            if let Some(error) = kernel.not_resized() {
                panic!("{error}");
            }
            assert!(kernel.adopted());
            assert!(
                count_of(&first, Reason::Opened) > begun,
                "flows began meanwhile"
            );
            assert_eq!(buckets::<K>(&kernel.maps()), buckets_for(flows));
            assert_eq!(names(&sandbox.pins()), ["link-va", "maps"]);
            crowd.assert_kept(&kernel.maps(), count_of(&first, Reason::Opened));
            others.assert_kept(&kernel.maps(), 0);
            // As a daemon goes on; nothing changes by it.
            kernel.attach().unwrap();
        }
        let (to, opened) = traffic.stop();
        for id in PICKED + 1..=BACKENDS {
            assert_eq!(count_to(&first, id), to[id as usize], "packets to {id}");
        }
        let maps = kernel.maps();
        let mut unrecorded = 0;
        for key in &opened {
            let found = find(&maps, *key);
            if found.is_empty() {
                // It began while the table was held, and could not be adopted: then there was no place for it.
                let word = |(home, way)| {
                    let value = K::table(&maps).bucket(home).value(way);
                    Word(value.load(Ordering::SeqCst))
                };
                let taken = places(&maps, *key).all(|place| !word(place).is_vacant(now()));
                assert!(taken, "{key:?}");
                unrecorded += 1;
                continue;
            }
            assert_eq!(found.len(), 1, "{key:?}: {found:?}");
            let (word, first_seen) = found[0];
            assert!(word.is(State::Young), "{word:?}");
            assert_eq!(word.backend().id(), pick(*key), "{word:?}");
            assert_ne!(first_seen, 0);
        }
        assert!(unrecorded <= opened.len() / 100, "{unrecorded} flows");
        let of_all: u64 = (1..=PICKED).map(|id| count_to(&first, id)).sum();
        println!(
            "{} flows opened meanwhile, {of_all} of their packets forwarded, {unrecorded} without a place; {} packets dropped while held; adopted, \
             unadopted, stray: {:?}",
            opened.len(),
            count_of(&first, Reason::Held),
            astray(&first)
        );
        crowd.assert_kept(&maps, opened.len() as u64);
    });
}

#[test]
fn a_table_that_would_be_too_small_is_refused_before_anything_changes() {
    refuse_too_small::<v4::Key>("`flows` in [limits]");
    refuse_too_small::<v6::Key>("`flows6` in [limits]");
}

fn refuse_too_small<K: Client>(limit: &'static str) {
    run(move |sandbox| {
        sandbox.veth("va", "vb");
        let mut kernel = Kernel::open(&sized::<K>(sandbox, &["va"], 3_000)).unwrap();
        kernel.attach().unwrap();
        serve(&kernel.maps(), "va");
        pin_talkers::<K>(&kernel.maps(), 50);
        Crowd::<K>::settle(&kernel.maps(), 1_500);
        let in_use = entries::<K>(&kernel.maps());
        drop(kernel);

        let mut steps = vec![];
        let options = sized::<K>(sandbox, &["va"], 1_000);
        let kernel = Kernel::open_observed(&options, &mut |step| steps.push(step)).unwrap();
        let error = kernel.not_resized().unwrap();
        assert!(matches!(error, Error::TooSmall { .. }), "{error}");
        assert!(error.to_string().contains(limit), "{error}");
        assert_eq!(steps, []);
        let maps = kernel.maps();
        assert_eq!(buckets::<K>(&maps), buckets_for(3_000));
        assert_eq!(entries::<K>(&maps), in_use);
        assert_eq!(names(&sandbox.pins()), ["link-va", "maps"]);
        let mut wire = Wire::new("vb", maps.clone());
        assert_talking::<K>(&mut wire, &maps, 50);
    });
}

#[test]
fn a_machine_too_busy_for_the_hold_keeps_the_table_it_has() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        let mut kernel = Kernel::open(&sized::<v4::Key>(sandbox, &["va"], 3_000)).unwrap();
        kernel.attach().unwrap();
        serve(&kernel.maps(), "va");
        pin_talkers::<v4::Key>(&kernel.maps(), 50);
        drop(kernel);

        let (mut holds, mut hold) = (0, Duration::from_secs(1));
        let options = sized::<v4::Key>(sandbox, &["va"], 6_000);
        let kernel = Kernel::open_observed(&options, &mut |step| {
            if step == Step::Held {
                // As if this process had been stopped for most of the hold.
                sleep(hold * 3 / 4);
                hold *= 2;
                holds += 1;
            }
        })
        .unwrap();
        assert!(matches!(kernel.not_resized(), Some(Error::TooBusy)));
        assert_eq!(holds, 3);
        let maps = kernel.maps();
        assert_eq!(buckets::<v4::Key>(&maps), buckets_for(3_000));
        assert_eq!(maps.hold.get(0).until_ns, 0);
        assert_eq!(names(&sandbox.pins()), ["link-va", "maps"]);
        assert_talking::<v4::Key>(&mut Wire::new("vb", maps.clone()), &maps, 50);
    });
}

/// The hold ends while one link still runs the old program, which records flows in the old table from then on.
#[test]
fn flows_that_the_old_program_records_after_the_hold_are_copied_too() {
    rescue_what_came_late::<v4::Key>();
    rescue_what_came_late::<v6::Key>();
}

fn rescue_what_came_late<K: Client>() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        sandbox.veth("wa", "wb");
        let interfaces = ["va", "wa"];
        let mut kernel = Kernel::open(&sized::<K>(sandbox, &interfaces, 3_000)).unwrap();
        kernel.attach().unwrap();
        let first = kernel.maps();
        serve(&first, "va");
        pin_talkers::<K>(&first, 50);
        drop(kernel);

        let newcomer = |end: u8| K::client(0x0c00_0000 + u32::from(end), 50_000);
        let options = sized::<K>(sandbox, &interfaces, 6_000);
        let kernel = resize_beyond_the_hold(&options, || {
            for (end, interface) in [(1, "vb"), (2, "wb")] {
                let mut wire = Wire::new(interface, first.clone());
                wire.send(&[(newcomer(end), ISN, SYN)]);
                wire.send(&[(newcomer(end), ISN + 1, ACK)]);
            }
        });
        let recorded_in_old = [1, 2].map(|end| find(&first, newcomer(end)).len());
        assert_eq!(
            recorded_in_old.iter().sum::<usize>(),
            1,
            "one link ran the old program: {recorded_in_old:?}"
        );
        let maps = kernel.maps();
        for end in [1, 2] {
            let found = find(&maps, newcomer(end));
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].0.is(State::Young) && !found[0].0.has(Word::FOREIGN));
        }
        assert_talking::<K>(&mut Wire::new("wb", maps.clone()), &maps, 50);
    });
}

/// Opens what is to be resized; when the first of its links runs the new program, waits until the hold is over, and then lets something happen.
fn resize_beyond_the_hold(options: &Options, mut happens: impl FnMut()) -> Kernel {
    let mut switched = 0;
    let kernel = Kernel::open_observed(options, &mut |step| {
        if step != Step::SwitchedOne || switched > 0 {
            return;
        }
        switched += 1;
        sleep(Duration::from_millis(1_100));
        happens();
    })
    .unwrap();
    assert!(kernel.not_resized().is_none());
    kernel
}

/// The hold ends while one link still runs the old program, which goes on with flows that both tables know.
#[test]
fn what_the_old_program_changes_after_the_hold_is_not_lost() {
    rescue_what_has_changed::<v4::Key>();
    rescue_what_has_changed::<v6::Key>();
}

fn rescue_what_has_changed<K: Client>() {
    const FAR: u32 = ISN.wrapping_add(1 << 31);
    run(|sandbox| {
        sandbox.veth("va", "vb");
        sandbox.veth("wa", "wb");
        let interfaces = ["va", "wa"];
        let mut kernel = Kernel::open(&sized::<K>(sandbox, &interfaces, 3_000)).unwrap();
        kernel.attach().unwrap();
        let first = kernel.maps();
        serve(&first, "va");
        // One of each for either interface, since either may be the one that is switched last.
        let key = |what: u32, end: u32| K::client(0x0c00_0000 + 2 * what + end, 50_000);
        let (opening, ending, reused) = (|end| key(0, end), |end| key(1, end), |end| key(2, end));
        let own = BackendRef::new(PICKED + 1, 0);
        let then = Tick(now().0.wrapping_sub(9));
        let pin = Word::live(State::Pin, own, ISN >> 20, then, 0);
        for end in [0, 1] {
            assert!(put(&first, opening(end), Word::embryo(own, ISN, now()), 0));
            assert!(put(&first, ending(end), pin, 7));
            assert!(put(&first, reused(end), pin, 7));
        }
        drop(kernel);

        let options = sized::<K>(sandbox, &interfaces, 6_000);
        let kernel = resize_beyond_the_hold(&options, || {
            for (end, interface) in [(0, "vb"), (1, "wb")] {
                let mut wire = Wire::new(interface, first.clone());
                wire.send(&[(opening(end), ISN + 1, ACK)]);
                wire.send(&[(ending(end), ISN + 1, FIN | ACK)]);
                wire.send(&[(reused(end), FAR, SYN)]);
                wire.send(&[(reused(end), FAR + 1, ACK)]);
            }
        });
        let in_old = [0, 1].map(|end| find(&first, reused(end)).len());
        assert_eq!(
            in_old.iter().sum::<usize>(),
            3,
            "one link ran the old program: {in_old:?}"
        );
        let maps = kernel.maps();
        for end in [0, 1] {
            let found = find(&maps, opening(end));
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].0.is(State::Young), "{found:?}");
            assert_eq!(found[0].0.backend(), own);
            assert_ne!(found[0].1, 0, "when it was promoted");
            let found = find(&maps, ending(end));
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].0.is(State::Closing), "{found:?}");
            let found = find(&maps, reused(end));
            let of = |state| {
                let mut words = found.iter().map(|(word, _)| word);
                words.find(|word| word.is(state)).copied()
            };
            assert_eq!(found.len(), 2, "{found:?}");
            assert_eq!(of(State::Pin), Some(pin.with(Word::CONTESTED)));
            let second = of(State::Young).unwrap();
            assert!(second.has(Word::SECOND) && second.has(Word::CONTESTED));
            assert_eq!(second.epoch(), FAR >> 20);
        }
    });
}

/// This test's own executable, run again, is the daemon that is killed, at every step; and so is the one that completes what was begun.
#[test]
fn a_resize_killed_at_any_step_loses_no_entry() {
    const TEST: &str = "resize::a_resize_killed_at_any_step_loses_no_entry";
    const VICTIM: &str = "TETHER_TEST_RESIZE";
    const STEPS: [Step; 8] = [
        Step::Staged,
        Step::Copied,
        Step::Held,
        Step::Exact,
        Step::RepliesSwitched,
        Step::SwitchedOne,
        Step::Switched,
        Step::Exchanged,
    ];
    /// One link of two runs the new program: the next daemon completes it.
    const IN_FORCE: usize = 5;
    const TALKERS: u32 = 100;
    assert_eq!(STEPS[IN_FORCE], Step::SwitchedOne);
    run(|sandbox| {
        let interfaces = ["va", "wa"];
        if let Some(orders) = std::env::var_os(VICTIM) {
            // In the sandbox of the process that started this one, whose bpffs lies under the one just mounted.
            umount("/sys/fs/bpf").unwrap();
            let (at, flows) = orders.to_str().unwrap().split_once(' ').unwrap();
            let at = STEPS[at.parse::<usize>().unwrap()];
            let options = sized::<v4::Key>(sandbox, &interfaces, flows.parse().unwrap());
            let end = Kernel::open_observed(&options, &mut |step| {
                if step == at {
                    kill(getpid(), Signal::SIGKILL).unwrap();
                }
            });
            unreachable!("{at:?} was not reached: {end:?}");
        }
        sandbox.veth("va", "vb");
        sandbox.veth("wa", "wb");
        let (mut small, mut large) = (8_000, 20_000);
        let mut kernel = Kernel::open(&sized::<v4::Key>(sandbox, &interfaces, small)).unwrap();
        kernel.attach().unwrap();
        let first = kernel.maps();
        serve(&first, "va");
        pin_talkers::<v4::Key>(&first, TALKERS);
        pin_talkers::<v6::Key>(&first, TALKERS);
        let crowd = Crowd::<v4::Key>::settle(&first, 4_000);
        let crowd6 = Crowd::<v6::Key>::settle(&first, 1_000);
        let once = (0..STEPS.len()).map(|at| vec![at]);
        let twice = (IN_FORCE - 1..STEPS.len()).map(|at| vec![IN_FORCE, at]);
        for (round, deaths) in once.chain(twice).enumerate() {
            let steps: Vec<_> = deaths.iter().map(|at| STEPS[*at]).collect();
            let before = buckets::<v4::Key>(&kernel.maps());
            assert_eq!(before, buckets_for(small));
            drop(kernel);
            for at in &deaths {
                let mut victim = Command::new("/proc/self/exe")
                    .args(["--exact", TEST])
                    .env(VICTIM, format!("{at} {large}"))
                    .stdout(Stdio::null())
                    .spawn()
                    .unwrap();
                let end = victim.wait().unwrap();
                assert_eq!(
                    std::os::unix::process::ExitStatusExt::signal(&end),
                    Some(libc::SIGKILL),
                    "{steps:?}: {end}"
                );
                // Nobody is there: the data path goes on by itself, on both interfaces.
                for interface in ["vb", "wb"] {
                    let mut wire = Wire::new(interface, first.clone());
                    assert_talking::<v4::Key>(&mut wire, &first, TALKERS);
                    assert_talking::<v6::Key>(&mut wire, &first, TALKERS);
                }
            }
            // The next daemon wants the new size, or that of before.
            let wanted = if round % 2 == 0 { large } else { small };
            kernel = Kernel::open(&sized::<v4::Key>(sandbox, &interfaces, wanted)).unwrap();
            if let Some(error) = kernel.not_resized() {
                panic!("{steps:?}: {error}");
            }
            kernel.attach().unwrap();
            let maps = kernel.maps();
            assert_eq!(buckets::<v4::Key>(&maps), buckets_for(wanted), "{steps:?}");
            assert_eq!(names(&sandbox.pins()), ["link-va", "link-wa", "maps"]);
            assert_eq!(names(&sandbox.pins().join("maps")).len(), maps::ALL.len());
            crowd.assert_kept(&maps, 0);
            crowd6.assert_kept(&maps, 0);
            for interface in ["vb", "wb"] {
                let mut wire = Wire::new(interface, maps.clone());
                assert_talking::<v4::Key>(&mut wire, &maps, TALKERS);
                assert_talking::<v6::Key>(&mut wire, &maps, TALKERS);
            }
            if wanted == large {
                std::mem::swap(&mut small, &mut large);
            }
        }
    });
}
