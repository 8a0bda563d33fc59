//! Flows that begin and end, found by comparing each place of a table with what it held a pass ago.
//!
//! The data path counts packets and not flows, so this is where their number comes from. A place is not used again within a pass once its
//! flow has ended, since closing entries linger for a minute at least: so no end goes unseen. What began and ended between two passes is
//! counted as both. An entry that is relocated counts as begun once more, which is rare; a flow that takes back its end, as another.

use lb_common::flow::word::{State, Word};

/// Flows of one service that were found to begin and to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Churn {
    /// The client has answered, or the flow was adopted.
    pub established: u64,
    /// Ended by a FIN.
    pub fin: u64,
    /// Ended by a RST.
    pub rst: u64,
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

    /// Takes in what a place holds now.
    pub(super) fn note(&mut self, bucket: u32, way: u32, word: Word, churn: &mut Churn) {
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
            if word.has(Word::BY_RESET) {
                churn.rst += 1;
            } else {
                churn.fin += 1;
            }
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

    /// What was counted while a place held these words, one a pass.
    fn counted(words: &[Word]) -> [u64; 3] {
        let mut places = Places::new(2);
        let mut churn = Churn::default();
        for word in words {
            places.note(1, 3, *word, &mut churn);
            // Its neighbours do not matter.
            places.note(
                1,
                2,
                super::tests::word(State::Pin, 0),
                &mut Churn::default(),
            );
            places.passed();
        }
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
    fn what_was_there_before_the_daemon_did_not_begin_now() {
        let pin = word(State::Pin, 0);
        let fin = word(State::Closing, 0);
        assert_eq!(counted(&[pin, pin]), [0; 3]);
        assert_eq!(counted(&[fin, fin]), [0; 3]);
        assert_eq!(counted(&[pin, fin]), [0, 1, 0]);
    }
}
