//! From the results of checks to a verdict: pure, without a clock and without I/O.
//!
//! | from | to | when |
//! |---|---|---|
//! | unknown | up | one yes |
//! | refusing, down | up | `rise` yeses in a row |
//! | unknown, up | refusing | `fall` failures in a row; while unknown, only after the startup grace |
//! | any | down | `fall` checks in a row without a TCP reply of any kind, and a sign of life that is gone |
//! | down | refusing | any reply, or a sign of life: whatever answers is not gone, and its kernel sends its own resets |
//!
//! A backend without a sign of life to lose (routed, and it never answered an echo while it was up) is never called down: nothing
//! tells it from a live host behind a firewall, and the flows of a live host must not be reset. That it answered is told with the verdict, so that
//! whoever goes on with the checks may begin with it: a host that died while nobody asked would else never be called down.

use std::time::Duration;

use crate::model::Health;

/// Echoes in a row that must go unanswered before their absence says anything: one may simply be lost.
const UNANSWERED_ECHOES: u32 = 2;

/// What a check got for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A yes.
    Yes,
    /// A reply that is no yes: a reset, a wrong status, a connection on which no answer came.
    No,
    /// No TCP reply of any kind.
    Silent,
    /// This host could not ask (no memory, no file descriptors, a local firewall): it says nothing of the backend.
    Unasked,
}

/// What there is to tell, beside the check, whether the host lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// It shows itself: its neighbour entry was confirmed, or it is this very host.
    Alive,
    /// It is gone: its neighbour entry failed.
    Gone,
    /// It was asked and has time left to answer.
    Asked,
    /// An echo was sent, and was answered or not. What that means depends on whether echoes used to be answered.
    Echo(bool),
    /// There is nothing to tell by.
    Absent,
}

/// How many results make a verdict, and how often to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Time between two checks while all is well known.
    pub interval: Duration,
    /// The same while a verdict is in doubt, if that is shorter.
    pub doubt_interval: Duration,
    /// Failures in a row that change a verdict for the worse; 0 counts as 1.
    pub fall: u32,
    /// Successes in a row that change it for the better; 0 counts as 1.
    pub rise: u32,
}

/// What is known of one backend.
#[derive(Clone, Debug)]
pub struct Track {
    rules: Rules,
    health: Health,
    /// Yeses in a row.
    yeses: u32,
    /// Checks in a row that were no yes.
    failures: u32,
    /// Checks in a row without any reply.
    silences: u32,
    /// Whether the latest echo beside a yes was answered: only then does a later silence mean something.
    answers_echoes: bool,
    /// Echoes in a row that were not answered.
    unanswered_echoes: u32,
    /// Whether the next checks may bring the sign of life that is missing for a verdict.
    sign_pending: bool,
    /// Whether it has time left to start.
    in_grace: bool,
}

impl Track {
    /// Nothing is known yet.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            health: Health::Unknown,
            yeses: 0,
            failures: 0,
            silences: 0,
            answers_echoes: false,
            unanswered_echoes: 0,
            sign_pending: false,
            in_grace: false,
        }
    }

    /// The same with what was known of the host before: whether it answered the latest echo beside a yes. The next echo beside one says that anew.
    #[must_use]
    pub fn recalling(self, answers_echoes: bool) -> Self {
        Self {
            answers_echoes,
            ..self
        }
    }

    /// The same with the verdict that was found by another name, if it was: the next one needs as much as it did then.
    #[must_use]
    pub fn going_on_from(self, verdict: Health) -> Self {
        Self {
            health: verdict,
            ..self
        }
    }

    /// Whether the backend still has time to start. Meanwhile failures do not make a first verdict, but a host that is gone is gone. Those counted in it
    /// count when it is over.
    pub fn set_grace(&mut self, in_grace: bool) {
        self.in_grace = in_grace;
    }

    /// The verdict.
    pub fn health(&self) -> Health {
        self.health
    }

    /// Whether the host answered the latest echo beside a yes.
    pub fn answers_echoes(&self) -> bool {
        self.answers_echoes
    }

    /// Other rules from now on. The verdict stays, what was counted towards the next one does not.
    pub fn set_rules(&mut self, rules: Rules) {
        if rules != self.rules {
            self.rules = rules;
            (self.yeses, self.failures, self.silences) = (0, 0, 0);
        }
    }

    /// Takes in a check's result and gives the verdict after it.
    pub fn observe(&mut self, reply: Reply, sign: Sign) -> Health {
        self.note_echo(reply, sign);
        match reply {
            Reply::Unasked => return self.health,
            Reply::Yes => {
                self.yeses = self.yeses.saturating_add(1);
                (self.failures, self.silences) = (0, 0);
            }
            Reply::No => {
                self.failures = self.failures.saturating_add(1);
                (self.yeses, self.silences) = (0, 0);
            }
            Reply::Silent => {
                self.failures = self.failures.saturating_add(1);
                self.silences = self.silences.saturating_add(1);
                self.yeses = 0;
            }
        }
        let fallen = self.failures >= self.rules.fall.max(1);
        let silent = self.silences >= self.rules.fall.max(1);
        self.sign_pending = reply == Reply::Silent && self.may_yet_be_gone(sign);
        self.health = match (self.health, reply) {
            (Health::Unknown | Health::Up, Reply::Yes) => Health::Up,
            (_, Reply::Yes) if self.yeses >= self.rules.rise.max(1) => Health::Up,
            (Health::Down, Reply::Yes | Reply::No) => Health::Refusing,
            (_, Reply::Silent) if silent && self.is_gone(sign) => Health::Down,
            (Health::Down, Reply::Silent) if matches!(sign, Sign::Alive | Sign::Echo(true)) => {
                Health::Refusing
            }
            (Health::Unknown, _) if self.in_grace => Health::Unknown,
            (Health::Unknown | Health::Up, _) if fallen => Health::Refusing,
            (health, _) => health,
        };
        self.health
    }

    /// Whether the verdict is that it takes nothing new, and nothing speaks for another one.
    pub fn is_given_up(&self) -> bool {
        matches!(self.health, Health::Refusing | Health::Down) && !self.is_in_doubt()
    }

    /// Time from the beginning of one check to the beginning of the next, without jitter.
    pub fn interval(&self) -> Duration {
        if self.is_in_doubt() {
            self.rules.interval.min(self.rules.doubt_interval)
        } else {
            self.rules.interval
        }
    }

    /// Whether the verdict may be about to change.
    fn is_in_doubt(&self) -> bool {
        match self.health {
            Health::Unknown => true,
            Health::Up => self.failures > 0,
            Health::Refusing => {
                self.yeses > 0
                    || self.silences > 0 && self.silences < self.rules.fall
                    || self.sign_pending
            }
            Health::Down => self.yeses > 0,
        }
    }

    /// Whether the last checks went without a reply, so that a sign of life is wanted.
    pub fn is_silent(&self) -> bool {
        self.silences > 0
    }

    fn note_echo(&mut self, reply: Reply, sign: Sign) {
        let Sign::Echo(answered) = sign else { return };
        if reply == Reply::Yes {
            self.answers_echoes = answered;
        }
        self.unanswered_echoes = if answered {
            0
        } else {
            self.unanswered_echoes.saturating_add(1)
        };
    }

    fn is_gone(&self, sign: Sign) -> bool {
        match sign {
            Sign::Gone => true,
            Sign::Echo(false) => self.answers_echoes && self.unanswered_echoes >= UNANSWERED_ECHOES,
            Sign::Alive | Sign::Asked | Sign::Echo(true) | Sign::Absent => false,
        }
    }

    fn may_yet_be_gone(&self, sign: Sign) -> bool {
        match sign {
            Sign::Asked => true,
            Sign::Echo(false) => self.answers_echoes && self.unanswered_echoes < UNANSWERED_ECHOES,
            Sign::Alive | Sign::Gone | Sign::Echo(true) | Sign::Absent => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RULES: Rules = Rules {
        interval: Duration::from_secs(2),
        doubt_interval: Duration::from_millis(500),
        fall: 3,
        rise: 2,
    };

    fn after(results: &[(Reply, Sign)]) -> Track {
        let mut track = Track::new(RULES);
        for (reply, sign) in results {
            track.observe(*reply, *sign);
        }
        track
    }

    const YES: (Reply, Sign) = (Reply::Yes, Sign::Absent);
    const NO: (Reply, Sign) = (Reply::No, Sign::Absent);
    const GONE: (Reply, Sign) = (Reply::Silent, Sign::Gone);
    const MUTE: (Reply, Sign) = (Reply::Silent, Sign::Absent);
    const STALLED: (Reply, Sign) = (Reply::Silent, Sign::Alive);

    #[test]
    fn the_first_verdict_needs_one_yes_and_a_later_one_needs_rise() {
        assert_eq!(after(&[YES]).health(), Health::Up);
        assert_eq!(after(&[NO, NO, YES]).health(), Health::Up);
        assert_eq!(after(&[NO, NO, NO]).health(), Health::Refusing);
        assert_eq!(after(&[NO, NO, NO, YES]).health(), Health::Refusing);
        assert_eq!(after(&[NO, NO, NO, YES, YES]).health(), Health::Up);
    }

    #[test]
    fn one_failure_changes_nothing_but_the_pace() {
        let track = after(&[YES, NO]);
        assert_eq!(track.health(), Health::Up);
        assert_eq!(track.interval(), RULES.doubt_interval);
        assert_eq!(after(&[YES]).interval(), RULES.interval);
        assert_eq!(after(&[YES, NO, NO, NO]).interval(), RULES.interval);
        assert_eq!(
            after(&[YES, NO, NO, NO, YES]).interval(),
            RULES.doubt_interval
        );
    }

    #[test]
    fn a_silent_host_that_shows_signs_of_life_is_refusing() {
        assert_eq!(
            after(&[YES, STALLED, STALLED, STALLED]).health(),
            Health::Refusing
        );
        assert_eq!(
            after(&[YES, MUTE, MUTE, MUTE, MUTE]).health(),
            Health::Refusing
        );
    }

    #[test]
    fn a_vanished_host_is_down_and_the_first_sign_of_life_ends_that() {
        let down = [YES, GONE, GONE, GONE];
        assert_eq!(after(&down[..3]).health(), Health::Up);
        assert_eq!(after(&down).health(), Health::Down);
        for sign in [NO, YES, STALLED, (Reply::Silent, Sign::Echo(true))] {
            assert_eq!(
                after(&[&down[..], &[sign]].concat()).health(),
                Health::Refusing
            );
        }
        assert_eq!(
            after(&[&down[..], &[YES, YES]].concat()).health(),
            Health::Up
        );
        assert_eq!(after(&[&down[..], &[MUTE]].concat()).health(), Health::Down);
    }

    #[test]
    fn a_neighbour_that_still_has_time_to_answer_is_asked_again_soon() {
        let asked = (Reply::Silent, Sign::Asked);
        let mut track = after(&[YES, asked, asked, asked]);
        assert_eq!(
            (track.health(), track.interval()),
            (Health::Refusing, RULES.doubt_interval)
        );
        assert_eq!(track.observe(Reply::Silent, Sign::Gone), Health::Down);
    }

    #[test]
    fn who_is_given_up_has_a_verdict_that_nothing_speaks_against() {
        let asked = (Reply::Silent, Sign::Asked);
        for (results, is_given_up) in [
            (vec![], false),
            (vec![YES], false),
            (vec![NO, NO], false),
            (vec![YES, NO, NO], false),
            (vec![YES, NO, NO, NO], true),
            (vec![YES, NO, NO, NO, YES], false),
            (vec![YES, asked, asked, asked], false),
            (vec![YES, GONE, GONE, GONE], true),
            (vec![YES, GONE, GONE, GONE, NO], true),
            (vec![YES, GONE, GONE, GONE, YES], false),
        ] {
            assert_eq!(after(&results).is_given_up(), is_given_up, "{results:?}");
        }
    }

    #[test]
    fn echoes_only_tell_of_a_host_that_answered_them_while_it_was_up() {
        let lost = (Reply::Silent, Sign::Echo(false));
        let answering = (Reply::Yes, Sign::Echo(true));
        let mute = (Reply::Yes, Sign::Echo(false));
        assert_eq!(after(&[answering, lost, lost, lost]).health(), Health::Down);
        assert_eq!(
            after(&[mute, lost, lost, lost, lost]).health(),
            Health::Refusing
        );
        assert_eq!(after(&[lost, lost, lost, lost]).health(), Health::Refusing);
        // A single lost echo is no proof, however many checks went before it.
        assert_eq!(
            after(&[answering, MUTE, MUTE, MUTE, lost]).health(),
            Health::Refusing
        );
        assert_eq!(
            after(&[answering, MUTE, MUTE, MUTE, lost, lost]).health(),
            Health::Down
        );
    }

    #[test]
    fn what_was_known_of_echoes_before_holds_until_the_next_yes_with_an_echo() {
        let lost = (Reply::Silent, Sign::Echo(false));
        let recalling = |answers_echoes, results: &[(Reply, Sign)]| {
            let mut track = Track::new(RULES).recalling(answers_echoes);
            for (reply, sign) in results {
                track.observe(*reply, *sign);
            }
            (track.health(), track.answers_echoes())
        };
        // It died while nobody asked, or was dead before.
        let dead = [lost; 3];
        assert_eq!(recalling(true, &dead), (Health::Down, true));
        assert_eq!(recalling(false, &dead), (Health::Refusing, false));
        // One lost echo is no more of a proof than it was, and neither are echoes while no check has gone without a reply.
        assert_eq!(
            recalling(true, &[MUTE, MUTE, lost]),
            (Health::Refusing, true)
        );
        let refuses = (Reply::No, Sign::Echo(false));
        assert_eq!(recalling(true, &[refuses; 9]), (Health::Refusing, true));
        // A yes without an echo beside it says nothing of echoes.
        let falls = [YES, lost, lost, lost];
        assert_eq!(recalling(true, &falls), (Health::Down, true));
        // A firewall drops them by now: that is seen while the host is up, and its silence is no death any more.
        let mute = (Reply::Yes, Sign::Echo(false));
        let falls = [mute, lost, lost, lost, lost];
        assert_eq!(recalling(true, &falls), (Health::Refusing, false));
        // Or it lets them through by now.
        let answering = (Reply::Yes, Sign::Echo(true));
        let falls = [answering, lost, lost, lost];
        assert_eq!(recalling(false, &falls), (Health::Down, true));
    }

    #[test]
    fn a_verdict_that_was_found_by_another_name_needs_as_much_to_change() {
        let going_on = |verdict, results: &[(Reply, Sign)]| {
            let mut track = Track::new(RULES).going_on_from(verdict);
            for (reply, sign) in results {
                track.observe(*reply, *sign);
            }
            (track.health(), track.interval())
        };
        let (soon, usual) = (RULES.doubt_interval, RULES.interval);
        assert_eq!(going_on(Health::Unknown, &[YES]), (Health::Up, usual));
        assert_eq!(going_on(Health::Refusing, &[]), (Health::Refusing, usual));
        assert_eq!(going_on(Health::Refusing, &[YES]), (Health::Refusing, soon));
        assert_eq!(going_on(Health::Refusing, &[YES; 2]), (Health::Up, usual));
        // What is down is so before it was silent for long again, and until there is a sign of life.
        assert_eq!(going_on(Health::Down, &[MUTE]), (Health::Down, usual));
        assert_eq!(going_on(Health::Down, &[YES]), (Health::Refusing, soon));
        assert_eq!(going_on(Health::Up, &[NO; 2]), (Health::Up, soon));
        assert_eq!(going_on(Health::Up, &[NO; 3]), (Health::Refusing, usual));
    }

    #[test]
    fn what_this_host_could_not_ask_counts_for_nothing() {
        let unasked = [(Reply::Unasked, Sign::Absent); 9];
        assert_eq!(after(&[&[YES][..], &unasked].concat()).health(), Health::Up);
        assert_eq!(after(&unasked).health(), Health::Unknown);
    }

    #[test]
    fn failures_while_it_starts_make_no_verdict_and_count_afterwards() {
        let mut track = Track::new(RULES);
        track.set_grace(true);
        for _ in 0..9 {
            assert_eq!(track.observe(Reply::No, Sign::Absent), Health::Unknown);
            assert_eq!(track.observe(Reply::Silent, Sign::Alive), Health::Unknown);
        }
        assert_eq!(track.interval(), RULES.doubt_interval);
        let mut late = track.clone();
        late.set_grace(false);
        assert_eq!(late.observe(Reply::No, Sign::Absent), Health::Refusing);
        // One yes is the end of the start.
        assert_eq!(track.observe(Reply::Yes, Sign::Absent), Health::Up);
        for _ in 1..RULES.fall {
            assert_eq!(track.observe(Reply::No, Sign::Absent), Health::Up);
        }
        assert_eq!(track.observe(Reply::No, Sign::Absent), Health::Refusing);
    }

    #[test]
    fn a_host_that_is_gone_is_down_even_while_it_starts() {
        let mut track = Track::new(RULES);
        track.set_grace(true);
        for _ in 1..RULES.fall {
            assert_eq!(track.observe(GONE.0, GONE.1), Health::Unknown);
        }
        assert_eq!(track.observe(GONE.0, GONE.1), Health::Down);
    }

    #[test]
    fn new_rules_keep_the_verdict() {
        let mut track = after(&[YES, NO, NO]);
        track.set_rules(Rules { fall: 2, ..RULES });
        assert_eq!(track.health(), Health::Up);
        track.observe(Reply::No, Sign::Absent);
        assert_eq!(track.health(), Health::Up);
        assert_eq!(track.observe(Reply::No, Sign::Absent), Health::Refusing);
    }

    fn results() -> impl Strategy<Value = Vec<(Reply, Sign)>> {
        let reply = prop_oneof![
            Just(Reply::Yes),
            Just(Reply::No),
            Just(Reply::Silent),
            Just(Reply::Unasked)
        ];
        let sign = prop_oneof![
            Just(Sign::Alive),
            Just(Sign::Gone),
            Just(Sign::Asked),
            Just(Sign::Echo(true)),
            Just(Sign::Echo(false)),
            Just(Sign::Absent)
        ];
        proptest::collection::vec((reply, sign), 0..60)
    }

    /// The length of the run of results at the end for which `pred` holds, what could not be asked left aside.
    fn run(seen: &[(Reply, Sign)], pred: impl Fn(Reply) -> bool) -> u32 {
        seen.iter()
            .rev()
            .filter(|(reply, _)| *reply != Reply::Unasked)
            .take_while(|(reply, _)| pred(*reply))
            .count() as u32
    }

    proptest! {
        #[test]
        fn every_change_of_verdict_has_its_evidence(
            results in results(),
            fall in 1u32..5,
            rise in 1u32..5,
            answered_before in any::<bool>(),
        ) {
            let rules = Rules { fall, rise, ..RULES };
            let mut track = Track::new(rules).recalling(answered_before);
            for (step, (reply, sign)) in results.iter().enumerate() {
                let before = track.health();
                let after = track.observe(*reply, *sign);
                let seen = &results[..=step];
                let yeses = run(seen, |reply| reply == Reply::Yes);
                let failures = run(seen, |reply| reply != Reply::Yes);
                let silences = run(seen, |reply| reply == Reply::Silent);
                match (before, after) {
                    (before, after) if before == after => (),
                    (Health::Unknown, Health::Up) => prop_assert!(yeses >= 1),
                    (_, Health::Up) => prop_assert!(yeses >= rise),
                    (_, Health::Down) => {
                        prop_assert!(silences >= fall);
                        prop_assert!(matches!(sign, Sign::Gone | Sign::Echo(false)));
                        if *sign == Sign::Echo(false) {
                            let baseline = seen.iter().rev().find_map(|result| match result {
                                (Reply::Yes, Sign::Echo(answered)) => Some(*answered),
                                _ => None,
                            });
                            prop_assert!(baseline.unwrap_or(answered_before));
                        }
                    }
                    (Health::Down, Health::Refusing) => {
                        prop_assert!(*reply != Reply::Silent || matches!(sign, Sign::Alive | Sign::Echo(true)));
                    }
                    (_, Health::Refusing) => prop_assert!(failures >= fall),
                    (_, Health::Unknown) => prop_assert!(false, "a verdict was forgotten"),
                }
                // What answers is not gone.
                if matches!(reply, Reply::Yes | Reply::No) {
                    prop_assert_ne!(after, Health::Down);
                }
                prop_assert!(track.interval() <= RULES.interval);
            }
        }

        #[test]
        fn enough_of_the_same_settles_any_past(results in results(), fall in 1u32..5, rise in 1u32..5) {
            let rules = Rules { fall, rise, ..RULES };
            let settle = |last: (Reply, Sign), times: u32| {
                let mut track = Track::new(rules);
                for (reply, sign) in &results {
                    track.observe(*reply, *sign);
                }
                (0..times).map(|_| track.observe(last.0, last.1)).last()
            };
            prop_assert_eq!(settle(YES, rise), Some(Health::Up));
            prop_assert_eq!(settle(NO, fall), Some(Health::Refusing));
            prop_assert_eq!(settle(GONE, fall), Some(Health::Down));
            prop_assert_eq!(settle(STALLED, fall), Some(Health::Refusing));
        }
    }
}
