use super::*;
use proptest::prelude::*;

const POLICY: Outlier = Outlier {
    at_most: 50,
    ..Outlier::DEFAULT
};
const START: Moment = Moment(1_000_000);

/// Just as many clients as it takes, each as often as the others.
const ENOUGH: u64 = 0x01_0101_0101;

/// What a backend's clients, who are enough, send in a step: of so many handshakes and segments, so many again.
fn sent(handshakes: u64, syns: u64, data: u64, again: u64) -> Repeats {
    Repeats {
        handshakes,
        syns,
        data,
        data_again: again,
        syn_clients: ENOUGH,
        data_clients: ENOUGH,
    }
}

/// Backends with what was counted for each since the beginning.
struct Service {
    policy: Outlier,
    min_healthy: usize,
    may_eject: bool,
    backends: Vec<(Memory, Repeats)>,
    now: Moment,
}

impl Service {
    fn of(backends: usize) -> Self {
        let fresh = || {
            let mut memory = Memory::default();
            memory.window.step(Repeats::default());
            (memory, Repeats::default())
        };
        Self {
            policy: POLICY,
            min_healthy: 1,
            may_eject: true,
            backends: (0..backends).map(|_| fresh()).collect(),
            now: START,
        }
    }

    /// A step passes, in which each backend's clients send this.
    fn step(&mut self, steps: &[Repeats]) {
        assert_eq!(steps.len(), self.backends.len());
        self.now = self.now.later(self.policy.step());
        for ((memory, counted), step) in self.backends.iter_mut().zip(steps) {
            // Of clients the daemon takes what has been noted, and leaves nothing.
            *counted = Repeats {
                syn_clients: step.syn_clients,
                data_clients: step.data_clients,
                ..counted.and(step)
            };
            memory.window.step(*counted);
        }
        self.judge();
    }

    fn judge(&mut self) {
        let mut memories: Vec<&mut Memory> =
            self.backends.iter_mut().map(|(memory, _)| memory).collect();
        judge(
            &self.policy,
            self.min_healthy,
            self.may_eject,
            &mut memories,
            self.now,
        );
    }

    fn ejected(&self) -> Vec<usize> {
        let all = self.backends.iter().enumerate();
        all.filter(|(_, (memory, _))| memory.ejected.is_some())
            .map(|(at, _)| at)
            .collect()
    }

    #[track_caller]
    fn expect(&self, ejected: &[usize]) {
        assert_eq!(self.ejected(), *ejected);
    }

    fn ejection(&self, at: usize) -> Ejection {
        self.backends[at].0.ejected.expect("it is ejected")
    }
}

/// One percent again: what any network does.
const WELL: Repeats = Repeats {
    handshakes: 99,
    syns: 1,
    data: 1_000,
    data_again: 10,
    syn_clients: ENOUGH,
    data_clients: ENOUGH,
};
/// Nearly a third of the data again.
const ILL: Repeats = Repeats {
    data_again: 300,
    ..WELL
};

#[test]
fn a_window_is_what_was_counted_in_the_latest_steps() {
    let mut window = Window::default();
    let counted = |window: &Window| {
        Signal::ALL.map(|signal| {
            let share = window.share(signal);
            (share.samples, share.again)
        })
    };
    window.step(sent(5, 5, 5, 5));
    assert_eq!(counted(&window), [(0, 0); 2], "whoever had it before");
    for n in 1..=10 {
        window.step(sent(5 + n, 5, 5 + 10 * n, 5 + n));
    }
    assert_eq!(counted(&window), [(6, 0), (60, 6)]);
    window.forget();
    assert_eq!(counted(&window), [(0, 0); 2]);
    window.step(sent(17, 6, 108, 16));
    assert_eq!(counted(&window), [(3, 1), (3, 1)]);
}

#[test]
fn a_share_is_of_what_was_sent() {
    let counted = sent(90, 10, 400, 100);
    let syns = Share::of(&counted, Signal::Syns);
    assert_eq!((syns.samples, syns.again, syns.per_mille()), (100, 10, 100));
    let data = Share::of(&counted, Signal::Data);
    assert_eq!(
        (data.samples, data.again, data.per_mille()),
        (400, 100, 250)
    );
    // A backend that answers nobody: all SYNs come again.
    assert_eq!(
        Share::of(&sent(0, 70, 0, 0), Signal::Syns).per_mille(),
        1_000
    );
    assert_eq!(Share::default().per_mille(), 0);
    assert_eq!(
        Share::of(&sent(0, 0, 3, 4), Signal::Data).per_mille(),
        1_000
    );
}

#[test]
fn who_differs_from_its_peers_is_ejected() {
    let mut service = Service::of(3);
    service.step(&[WELL, ILL, WELL]);
    service.expect(&[1]);
    let ejection = service.ejection(1);
    assert_eq!(
        (ejection.signal, ejection.share, ejection.peers),
        (Signal::Data, 300, 10)
    );
    assert_eq!(
        (ejection.times, ejection.until),
        (1, service.now.later(POLICY.eject_for))
    );
}

#[test]
fn few_clients_speak_for_nobody() {
    let deaf = sent(0, 250, 0, 0);
    let busy = sent(400, 4, 0, 0);
    let few = |step: Repeats| Repeats {
        syn_clients: ENOUGH >> 8,
        data_clients: ENOUGH >> 8,
        ..step
    };
    // Over more than a whole window, and whatever the others have.
    for (well, ill) in [(WELL, ILL), (busy, deaf)] {
        let mut service = Service::of(3);
        for _ in 0..2 * STEPS {
            service.step(&[well, few(ill), well]);
            service.expect(&[]);
        }
        // One more is enough, if that is not long ago.
        service.step(&[well, ill, well]);
        service.expect(&[1]);
    }
    // Those who repeat their data say nothing of SYNs.
    let mut service = Service::of(3);
    let mixed = Repeats {
        syn_clients: 1,
        ..deaf
    };
    service.step(&[busy, mixed, busy]);
    service.expect(&[]);
}

#[test]
fn clients_come_together_over_the_steps_of_a_window() {
    let mut window = Window::default();
    window.step(Repeats::default());
    for n in 1..=u64::from(STEPS) {
        let counted = Repeats {
            data_clients: 1 << (8 * n),
            ..sent(0, 0, n, n)
        };
        window.step(counted);
        assert_eq!(window.share(Signal::Data).clients() as u64, n);
    }
    // The first ones are forgotten.
    let nobody = Repeats {
        data_clients: 0,
        ..sent(0, 0, 9, 9)
    };
    window.step(nobody);
    window.step(nobody);
    let clients = window.share(Signal::Data).clients();
    assert_eq!(clients, STEPS as usize - 2);
}

/// The first client far more than the four others.
const LOUD: u64 = 0x01_0101_0178;

/// The same of whoever sends this.
fn loud(step: Repeats) -> Repeats {
    Repeats {
        syn_clients: LOUD,
        data_clients: LOUD,
        ..step
    }
}

#[test]
fn whose_repeats_they_were_is_in_the_proportions_of_what_was_noted() {
    let dealt = |again, noted: u64| dealt(again, noted.to_le_bytes());
    assert_eq!(dealt(7, 0x0102_0000_0000_0004), [4, 0, 0, 0, 0, 0, 2, 1]);
    // Of more than were noted, and of fewer: all of it, and no more.
    assert_eq!(
        dealt(700, 0x0102_0000_0000_0004),
        [400, 0, 0, 0, 0, 0, 200, 100]
    );
    assert_eq!(dealt(3, 0x0101_0101_0101_0101).iter().sum::<u64>(), 3);
    assert_eq!(dealt(9, 0), [0; PARTS]);
}

#[test]
fn of_what_is_compared_nobody_has_more_than_one_of_the_others() {
    let share = |place, parts: [u64; PARTS]| {
        let share = Share {
            samples: 1_000,
            again: parts.iter().sum(),
            parts,
        };
        let evened = share.evened(place);
        assert_eq!(evened.evened(place), evened, "once and for all");
        (evened.samples, evened.again)
    };
    assert_eq!(share(5, [10; PARTS]), (1_000, 80));
    assert_eq!(share(5, [500, 9, 8, 7, 6, 5, 0, 0]), (500, 35));
    assert_eq!(share(2, [500, 9, 8, 7, 6, 5, 0, 0]), (509, 44));
    assert_eq!(share(5, [500, 400, 50, 4, 3, 2, 1, 0]), (58, 18));
    // Of fewer nobody has more than the last.
    assert_eq!(share(5, [0, 0, 500, 0, 20, 0, 0, 0]), (520, 40));
    assert_eq!(share(5, [0, 0, 500, 0, 0, 0, 0, 0]), (1_000, 500));
    assert_eq!(share(2, [0; PARTS]), (1_000, 0));
    // What nobody is known to have sent speaks for nobody.
    let nobodys = Share {
        samples: 100,
        again: 60,
        parts: [0; PARTS],
    };
    assert_eq!(nobodys.evened(5).again, 0);
}

#[test]
fn by_chance_a_peer_looks_no_better_than_it_is() {
    // Six percent of 400 segments, as uneven as so few come out by chance; and eight of 2,000.
    let peer = Repeats {
        data_clients: 0x01_0102_0204_0507,
        ..sent(0, 0, 400, 24)
    };
    let busy = Repeats {
        data_clients: 0x0e0e_0f0f_0f10_1011,
        ..sent(0, 0, 2_000, 160)
    };
    let mut service = Service::of(2);
    service.policy.ratio = 2;
    service.step(&[busy, peer]);
    service.expect(&[]);
}

#[test]
fn one_client_ejects_nobody_though_others_repeat_something_too() {
    // Nearly a third of the data, and of that all but some percent.
    let mut service = Service::of(3);
    for _ in 0..2 * STEPS {
        service.step(&[WELL, loud(ILL), WELL]);
        service.expect(&[]);
    }
    // What is said of it is what was counted.
    let share = service.backends[1].0.window.share(Signal::Data);
    assert_eq!(share.per_mille(), 300);
    // Half of the SYNs.
    let busy = sent(400, 4, 0, 0);
    let mut service = Service::of(3);
    for _ in 0..2 * STEPS {
        service.step(&[busy, loud(sent(200, 200, 0, 0)), busy]);
        service.expect(&[]);
    }
    // At a quiet time all of them: what others have sent is too little to say anything.
    let mut service = Service::of(3);
    service.step(&[busy, loud(sent(0, 1_000, 0, 0)), busy]);
    service.expect(&[]);
    // The same from all alike.
    service.step(&[busy, sent(0, 1_000, 0, 0), busy]);
    service.expect(&[1]);
}

#[test]
fn one_client_of_a_peer_hides_nobody() {
    let of = |again| sent(0, 0, 1_000, again);
    let mut service = Service::of(2);
    service.step(&[loud(of(150)), of(200)]);
    service.expect(&[1]);
    assert!(service.ejection(1).peers < 10);
    // All of the peer's clients: it is the network's fault.
    let mut service = Service::of(2);
    service.step(&[of(150), of(200)]);
    service.expect(&[]);
}

#[test]
fn syns_tell_of_a_backend_that_answers_late_or_not_at_all() {
    let mut service = Service::of(3);
    let deaf = sent(0, 250, 0, 0);
    let busy = sent(400, 4, 0, 0);
    service.step(&[busy, busy, deaf]);
    service.expect(&[2]);
    assert_eq!(service.ejection(2).signal, Signal::Syns);
    assert_eq!(service.ejection(2).share, 1_000);
}

#[test]
fn what_all_have_makes_nobody_an_outlier() {
    let mut service = Service::of(4);
    service.step(&[ILL, ILL, ILL, ILL]);
    service.expect(&[]);
    // Three times as much as the others is, and less is not.
    let of = |again| sent(0, 0, 1_000, again);
    let mut service = Service::of(3);
    service.step(&[of(100), of(100), of(299)]);
    service.expect(&[]);
    let mut service = Service::of(3);
    service.step(&[of(100), of(100), of(300)]);
    service.expect(&[2]);
}

#[test]
fn little_is_not_enough_however_much_more_it_is() {
    let of = |again| sent(0, 0, 1_000, again);
    let mut service = Service::of(3);
    service.step(&[of(0), of(0), of(49)]);
    service.expect(&[]);
    let mut service = Service::of(3);
    service.step(&[of(0), of(0), of(50)]);
    service.expect(&[2]);
}

#[test]
fn few_samples_say_nothing_and_are_no_peers() {
    let few = sent(0, 0, u64::from(POLICY.least) - 1, 100);
    let enough = sent(0, 0, u64::from(POLICY.least), 100);
    let mut service = Service::of(3);
    service.step(&[WELL, few, WELL]);
    service.expect(&[]);
    let mut service = Service::of(3);
    service.step(&[WELL, enough, WELL]);
    service.expect(&[1]);
    // Who has nobody to be compared with is no outlier.
    let quiet = Repeats::default();
    let mut service = Service::of(3);
    service.step(&[quiet, enough, quiet]);
    service.expect(&[]);
    // They come together over the steps of a window.
    let mut service = Service::of(3);
    service.step(&[WELL, few, WELL]);
    service.step(&[WELL, few, WELL]);
    service.expect(&[1]);
}

#[test]
fn the_median_is_the_peers_own() {
    let of = |again| sent(0, 0, 1_000, again);
    // Of two others, the middle between them.
    let mut service = Service::of(3);
    service.step(&[of(0), of(100), of(150)]);
    service.expect(&[2]);
    assert_eq!(service.ejection(2).peers, 50);
    // One backend that is worse than another is compared with that one alone.
    let mut service = Service::of(2);
    service.step(&[of(10), of(200)]);
    service.expect(&[1]);
    // Alone it is never ejected.
    let mut service = Service::of(1);
    service.step(&[of(900)]);
    service.expect(&[]);
}

#[test]
fn at_most_a_share_is_ejected_the_worst_first() {
    let of = |again| sent(0, 0, 1_000, again);
    let mut steps = vec![WELL; 10];
    steps[3] = of(300);
    steps[5] = of(500);
    steps[7] = of(400);
    let expected: [(u32, &[usize]); 6] = [
        (0, &[]),
        // One is, if there are two at all.
        (1, &[5]),
        (10, &[5]),
        (29, &[5, 7]),
        (30, &[3, 5, 7]),
        (100, &[3, 5, 7]),
    ];
    for (at_most, expected) in expected {
        let mut service = Service::of(10);
        service.policy.at_most = at_most;
        service.step(&steps);
        assert_eq!(service.ejected(), *expected, "at most {at_most}%");
    }
    assert_eq!([0, 1, 2, 3, 100].map(|n| POLICY.most(n)), [0, 0, 1, 1, 50]);
    let all = Outlier {
        at_most: 100,
        ..POLICY
    };
    assert_eq!([1, 2, 10].map(|n| all.most(n)), [0, 1, 9]);
}

#[test]
fn min_healthy_take_new_flows_whatever_they_have() {
    for (min_healthy, ejected) in [(0, 1), (1, 1), (2, 1), (3, 0), (9, 0)] {
        let mut service = Service::of(3);
        service.min_healthy = min_healthy;
        service.step(&[WELL, ILL, WELL]);
        assert_eq!(
            service.ejected().len(),
            ejected,
            "min_healthy {min_healthy}"
        );
    }
}

#[test]
fn in_fail_open_nobody_is_ejected_and_time_goes_on() {
    let mut service = Service::of(3);
    service.may_eject = false;
    service.step(&[WELL, ILL, WELL]);
    service.expect(&[]);
    service.may_eject = true;
    service.step(&[WELL, ILL, WELL]);
    service.expect(&[1]);
    service.may_eject = false;
    for _ in 0..STEPS {
        service.step(&[WELL, ILL, WELL]);
    }
    service.expect(&[]);
}

#[test]
fn an_ejection_ends_by_time_and_the_next_is_longer() {
    let mut service = Service::of(3);
    let quiet = Repeats::default();
    let mut lengths = Vec::new();
    for _ in 0..12 {
        service.step(&[WELL, ILL, WELL]);
        service.expect(&[1]);
        let began = service.now;
        while !service.ejected().is_empty() {
            service.step(&[WELL, quiet, WELL]);
        }
        lengths.push(service.now.since(began).as_secs());
    }
    assert_eq!(
        lengths,
        [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300]
    );
}

#[test]
fn a_shorter_time_holds_for_who_is_ejected_already() {
    let hour = Duration::from_hours(1);
    let mut service = Service::of(3);
    service.policy.eject_for = hour;
    service.step(&[WELL, ILL, WELL]);
    let first = service.ejection(1);
    assert_eq!(first.until, service.now.later(hour));
    service.policy.eject_for = POLICY.eject_for;
    service.step(&[WELL, WELL, WELL]);
    let until = service.now.later(POLICY.eject_for);
    assert_eq!(service.ejection(1), Ejection { until, ..first });
    // It is the same one, which runs on, and is not made longer either.
    service.policy.eject_for = hour;
    service.step(&[WELL, WELL, WELL]);
    assert!(service.ejection(1).is(&first));
    assert_eq!(service.ejection(1).until, until);
    while service.now < until {
        service.expect(&[1]);
        service.step(&[WELL, WELL, WELL]);
    }
    service.expect(&[]);
}

#[test]
fn what_was_counted_before_does_not_eject_again() {
    let mut service = Service::of(3);
    let quiet = Repeats::default();
    service.step(&[WELL, ILL, WELL]);
    while !service.ejected().is_empty() {
        service.step(&[WELL, quiet, WELL]);
    }
    for _ in 0..10 {
        service.step(&[WELL, WELL, WELL]);
        service.expect(&[]);
    }
}

#[test]
fn who_is_no_better_stays_out() {
    let mut service = Service::of(3);
    service.step(&[WELL, ILL, WELL]);
    // The clients that it still has go on repeating themselves.
    for _ in 0..40 {
        service.step(&[WELL, ILL, WELL]);
        service.expect(&[1]);
    }
    assert!(service.ejection(1).times > 2);
    let until = service.ejection(1).until;
    while service.now < until {
        service.step(&[WELL, WELL, WELL]);
    }
    service.expect(&[]);
}

#[test]
fn good_behaviour_is_remembered_too() {
    let mut service = Service::of(3);
    let quiet = Repeats::default();
    for _ in 0..3 {
        service.step(&[WELL, ILL, WELL]);
        while !service.ejected().is_empty() {
            service.step(&[WELL, quiet, WELL]);
        }
    }
    // Two of three are forgiven in twice the time of a first ejection.
    for _ in 0..2 * STEPS {
        service.step(&[WELL, WELL, WELL]);
    }
    service.step(&[WELL, ILL, WELL]);
    while service.ejected().is_empty() {
        service.step(&[WELL, ILL, WELL]);
    }
    assert_eq!(service.ejection(1).times, 2);
}

#[test]
fn whoever_is_out_is_nobodys_peer() {
    let of = |again| sent(0, 0, 1_000, again);
    let mut service = Service::of(4);
    service.step(&[of(10), of(10), of(900), of(20)]);
    service.expect(&[2]);
    // Without it the last one's peers are the first two.
    service.step(&[of(10), of(10), of(900), of(200)]);
    service.expect(&[2, 3]);
    assert_eq!(service.ejection(3).peers, 10);
}

#[test]
fn with_fewer_backends_fewer_are_out() {
    let of = |again| sent(0, 0, 1_000, again);
    let mut service = Service::of(4);
    service.step(&[WELL, WELL, of(300), of(400)]);
    service.expect(&[2, 3]);
    // One of those that take new flows is gone.
    service.backends.remove(0);
    service.judge();
    assert_eq!(service.ejected().len(), 1);
    service.policy.at_most = 0;
    service.judge();
    service.expect(&[]);
}

#[test]
fn what_was_counted_before_it_could_take_new_flows_does_not_count() {
    let mut memory = Memory::default();
    // Not even what comes to light with the next step.
    assert!(memory.begins(true) && !memory.begins(true));
    memory.window.begin(sent(10, 0, 100, 0));
    memory.window.step(sent(20, 5, 200, 90));
    assert!(!memory.begins(false));
    memory.window.step(sent(20, 95, 200, 180));
    assert!(!memory.begins(false) && memory.begins(true));
    memory.window.begin(sent(20, 99, 200, 190));
    let shares = |window: &Window| Signal::ALL.map(|signal| window.share(signal).samples);
    assert_eq!(shares(&memory.window), [0, 0]);
    memory.window.step(sent(27, 99, 203, 190));
    assert_eq!(shares(&memory.window), [7, 3]);
}

#[test]
fn who_cannot_take_new_flows_anyhow_is_back_in_time() {
    let mut service = Service::of(3);
    service.step(&[WELL, ILL, WELL]);
    let until = service.ejection(1).until;
    let memory = &mut service.backends[1].0;
    expire(memory, until.earlier(Duration::from_millis(1)));
    assert!(memory.ejected.is_some());
    expire(memory, until);
    assert!(memory.ejected.is_none());
}

proptest! {
    /// However clients behave, and however many backends there are: some are left, no more are out than is said, each for a while that was said, and nobody
    /// who does as most do.
    #[test]
    fn there_is_always_somebody_left(
        at_most in 0u32..=100,
        min_healthy in 0usize..6,
        steps in prop::collection::vec(prop::collection::vec((0u64..2_000, 0u64..2_000), 5), 1..60),
    ) {
        let mut service = Service::of(5);
        service.policy.at_most = at_most;
        service.min_healthy = min_healthy;
        for step in steps {
            let step: Vec<Repeats> = step
                .into_iter()
                .map(|(data, again)| sent(0, 0, data, again.min(data)))
                .collect();
            service.step(&step);
            let ejected = service.ejected();
            prop_assert!(ejected.len() <= service.policy.most(5));
            prop_assert!(5 - ejected.len() >= min_healthy.clamp(1, 5));
            for at in ejected {
                let ejection = service.ejection(at);
                prop_assert!(ejection.until > service.now);
                prop_assert!(ejection.until <= service.now.later(POLICY.eject_for * MOST_TIMES));
                prop_assert!(ejection.share >= POLICY.floor * 10);
                prop_assert!(ejection.share >= POLICY.ratio * ejection.peers);
            }
        }
    }

    /// From some point on it makes no difference how much it sends again.
    #[test]
    fn a_client_counts_for_no_more_however_much_it_repeats(
        others in prop::array::uniform7(0u64..100),
        samples in 1_000u64..100_000,
        much in 100u64..1_000_000,
        more in 0u64..1_000_000,
    ) {
        prop_assume!(others.iter().filter(|part| **part > 0).count() >= LEAST_CLIENTS);
        let evened = |one: u64| {
            let [a, b, c, d, e, f, g] = others;
            let parts = [a, b, c, one, d, e, f, g];
            let again = parts.iter().sum();
            let share = Share { samples: samples + one, again, parts }.evened(LEAST_CLIENTS);
            (share.samples, share.again)
        };
        prop_assert_eq!(evened(much), evened(much + more));
        prop_assert!(evened(much).1 <= 8 * others.iter().max().copied().unwrap_or(0));
    }
}
