//! Flows that begin and end, found by comparing each place of a table with what it held a pass ago.
//!
//! The data path counts packets and not flows, so this is where their number comes from. A place is not used again within a pass once its
//! flow has ended, since closing entries linger for a minute at least: so no end goes unseen. What began and ended between two passes is
//! counted as both. An entry that is relocated counts as begun once more, which is rare; a flow that takes back its end, as another.
//!
//! Not every end can be told from a table. A client that was reset because its backend is dead leaves an entry like that of one that has said
//! nothing yet and may go on when the backend is back; and an entry that was reclaimed for want of room is of a flow that goes on.

use lb_common::flow::word::{State, Word};

use super::judge::Gone;

/// Flows of one service, or of one backend, that were found to begin and to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Churn {
    /// The client has answered, or the flow was adopted.
    pub established: u64,
    /// Ended by a FIN.
    pub fin: u64,
    /// Ended by a RST of its client.
    pub rst: u64,
    /// Closed at a drain's deadline: ended by a RST when its turn had come, which is the daemon's unless its client was faster; or forgotten, long after
    /// that.
    pub deadline: u64,
    /// Forgotten, so that it goes elsewhere: its backend is dead.
    pub rehashed: u64,
}

impl Churn {
    pub(super) fn add(&mut self, other: &Self) {
        self.established += other.established;
        self.fin += other.fin;
        self.rst += other.rst;
        self.deadline += other.deadline;
        self.rehashed += other.rehashed;
    }
}

/// What the places of one table held a pass ago.
#[derive(Debug)]
pub(super) struct Places {
    /// By bucket: bit `way` for a young entry or a pin, bit `4 + way` for a closing one.
    held: Vec<u8>,
    /// Whether a pass has been made: what the first one meets began long ago.
    known: bool,
}

impl Places {
    pub(super) fn new(buckets: u32) -> Self {
        Self {
            held: vec![0; buckets as usize],
            known: false,
        }
    }

    /// Takes in what a place holds now. `is_due` says whether its flow's turn at a drain's deadline has come, and is asked only where that matters.
    pub(super) fn note(
        &mut self,
        bucket: u32,
        way: u32,
        word: Word,
        is_due: impl FnOnce() -> bool,
        churn: &mut Churn,
    ) {
        let held = &mut self.held[bucket as usize];
        let (open, closing) = (1 << way, 0x10 << way);
        let before = *held & (open | closing);
        let now = if word.is_open() {
            open
        } else if word.is(State::Closing) {
            closing
        } else {
            0
        };
        if before == now {
            return;
        }
        *held = (*held & !(open | closing)) | now;
        if !self.known || now == 0 {
            return;
        }
        if before != open {
            churn.established += 1;
        }
        if now == closing {
            if !word.has(Word::BY_RESET) {
                churn.fin += 1;
            } else if is_due() {
                churn.deadline += 1;
            } else {
                churn.rst += 1;
            }
        }
    }

    /// Takes in that the sweep has emptied a place.
    pub(super) fn empty(&mut self, bucket: u32, way: u32, gone: Gone, churn: &mut Churn) {
        self.held[bucket as usize] &= !(0x11 << way);
        match gone {
            Gone::Closed => churn.deadline += 1,
            Gone::Rehashed => churn.rehashed += 1,
            // Its end was counted when it came, or it never was a flow, or goes on without an entry.
            Gone::Ended | Gone::Expired | Gone::Invalid | Gone::Reclaimed => {}
        }
    }

    /// A pass is over.
    pub(super) fn passed(&mut self) {
        self.known = true;
    }
}

#[cfg(test)]
mod tests {
    use lb_common::{clock::Tick, flow::word::BackendRef};

    use super::*;

    fn word(state: State, flags: u64) -> Word {
        Word::live(state, BackendRef::new(1, 0), 0, Tick(5), flags)
    }

    /// What was counted while a place held these words, one a pass, and its backend closed its flow or not.
    fn all_counted(words: &[Word], is_due: bool) -> (Places, Churn) {
        let mut places = Places::new(2);
        let mut churn = Churn::default();
        for word in words {
            places.note(1, 3, *word, || is_due, &mut churn);
            // Its neighbours do not matter.
            let neighbour = super::tests::word(State::Pin, 0);
            places.note(1, 2, neighbour, || is_due, &mut Churn::default());
            places.passed();
        }
        (places, churn)
    }

    fn counted(words: &[Word]) -> [u64; 3] {
        let (_, churn) = all_counted(words, false);
        assert_eq!((churn.deadline, churn.rehashed), (0, 0));
        [churn.established, churn.fin, churn.rst]
    }

    #[test]
    fn a_flow_is_counted_once_however_long_it_lives() {
        let (young, pin) = (word(State::Young, 0), word(State::Pin, 0));
        let fin = word(State::Closing, 0);
        let rst = word(State::Closing, Word::BY_RESET);
        let embryo = Word::embryo(BackendRef::new(1, 0), 9, Tick(5));
        let empty = Word::EMPTY;
        assert_eq!(counted(&[empty, embryo, young, young, pin, pin]), [1, 0, 0]);
        assert_eq!(counted(&[empty, young, pin, fin, fin, empty]), [1, 1, 0]);
        assert_eq!(counted(&[empty, young, rst, rst]), [1, 0, 1]);
        assert_eq!(counted(&[empty, fin]), [1, 1, 0], "between two passes");
        assert_eq!(counted(&[empty, young, empty, young]), [2, 0, 0]);
        assert_eq!(counted(&[empty, young, fin, embryo, young, fin]), [2, 2, 0]);
        assert_eq!(
            counted(&[empty, young, fin, young]),
            [2, 1, 0],
            "taken back"
        );
    }

    #[test]
    fn a_reset_of_a_flow_whose_turn_has_come_is_the_deadlines() {
        let young = word(State::Young, 0);
        let rst = word(State::Closing, Word::BY_RESET);
        let (_, churn) = all_counted(&[Word::EMPTY, young, rst, rst], true);
        let deadline = Churn {
            established: 1,
            deadline: 1,
            ..Churn::default()
        };
        assert_eq!(churn, deadline);
        // A client that says goodbye is heard all the same.
        let (_, churn) = all_counted(&[Word::EMPTY, young, word(State::Closing, 0)], true);
        assert_eq!((churn.fin, churn.deadline), (1, 0));
    }

    #[test]
    fn what_the_sweep_takes_away_is_counted_once_and_by_why() {
        let pin = word(State::Pin, 0);
        for (gone, [deadline, rehashed]) in [
            (Gone::Closed, [1, 0]),
            (Gone::Rehashed, [0, 1]),
            (Gone::Ended, [0, 0]),
            (Gone::Expired, [0, 0]),
            (Gone::Invalid, [0, 0]),
            (Gone::Reclaimed, [0, 0]),
        ] {
            let (mut places, mut churn) = all_counted(&[Word::EMPTY, pin], false);
            places.empty(1, 3, gone, &mut churn);
            // And another flow in its place.
            places.note(1, 3, pin, || false, &mut churn);
            let expected = Churn {
                established: 2,
                deadline,
                rehashed,
                ..Churn::default()
            };
            assert_eq!(churn, expected, "{gone:?}");
        }
    }

    #[test]
    fn what_was_there_before_the_daemon_did_not_begin_now() {
        let pin = word(State::Pin, 0);
        let fin = word(State::Closing, 0);
        assert_eq!(counted(&[pin, pin]), [0; 3]);
        assert_eq!(counted(&[fin, fin]), [0; 3]);
        assert_eq!(counted(&[pin, fin]), [0, 1, 0]);
    }
}
