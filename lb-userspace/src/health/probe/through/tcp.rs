//! A client's end of one TCP connection (RFC 9293), as small as a check needs it: pure.
//!
//! It asks, sends a request in order, takes in an answer in order, and ends with a RST; it never sends a FIN. What comes out of order, or beyond the
//! window that it told, is left to the other side to send again. No option but the largest segment is told, so none has to be understood.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use lb_common::tcp::{ACK, FIN, RST, SYN};

/// PSH flag.
const PSH: u8 = 0x08;
/// The largest segments sent and asked for, in bytes of data: with its headers and a tunnel's one fits into 1,280 bytes, which every way carries.
const MOST_DATA: u16 = 1_180;
/// What a peer takes that tells nothing (RFC 9293, section 3.7.1), and at the least one that tells: a request is not to become thousands of packets.
const LEAST_DATA: u16 = 536;
/// Bytes that are kept for whoever reads, at most: the window that is told.
pub(super) const WINDOW: usize = u16::MAX as usize;
/// Bytes that wait to be sent and acknowledged, at most.
const MOST_UNSENT: usize = 64 << 10;
/// Time to the first repetition; each takes twice as long as the one before.
const FIRST_PATIENCE: Duration = Duration::from_millis(200);
/// Repetitions by which it grows.
const MOST_DOUBLINGS: u32 = 6;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The SYN is not answered.
    Asking,
    /// It was, by a RST.
    Refused,
    /// It stands.
    Open,
    /// It was ended by a RST of the other side.
    Reset,
}

/// A segment, of either side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) flags: u8,
    pub(super) window: u16,
    /// The largest segment that its sender takes, if it tells.
    pub(super) mss: Option<u16>,
    pub(super) data: Vec<u8>,
}

/// The connection.
#[derive(Debug)]
pub(super) struct Tcp {
    state: State,
    /// The SYN is to be sent.
    asks: bool,
    /// The first byte that is not acknowledged, the next to be sent, and the end of all that was sent.
    unacknowledged: u32,
    next: u32,
    sent: u32,
    /// From `unacknowledged` on.
    outgoing: VecDeque<u8>,
    window: u16,
    largest: u16,
    /// The next byte that is expected.
    expected: u32,
    incoming: Vec<u8>,
    /// All has come.
    is_done: bool,
    owes_ack: bool,
    /// To a segment of another connection.
    rebuff: Option<u32>,
    repetitions: u32,
}

impl Tcp {
    /// A connection that is to be asked for, with this initial sequence number.
    pub(super) fn new(isn: u32) -> Self {
        Self {
            state: State::Asking,
            asks: true,
            unacknowledged: isn,
            next: isn,
            sent: isn,
            outgoing: VecDeque::new(),
            window: 0,
            largest: LEAST_DATA,
            expected: 0,
            incoming: Vec::new(),
            is_done: false,
            owes_ack: false,
            rebuff: None,
            repetitions: 0,
        }
    }

    pub(super) fn state(&self) -> State {
        self.state
    }

    /// Whether the other side has sent all that it will.
    pub(super) fn is_done(&self) -> bool {
        self.is_done
    }

    /// Whether more can be given to be sent.
    pub(super) fn has_room(&self) -> bool {
        self.outgoing.len() < MOST_UNSENT
    }

    /// Takes in what is to be sent.
    pub(super) fn give(&mut self, data: &[u8]) {
        self.outgoing.extend(data);
    }

    /// What has come since the last call.
    pub(super) fn take(&mut self) -> Vec<u8> {
        // Whoever waits for the window to open again is told.
        self.owes_ack |= self.incoming.len() > WINDOW / 2;
        std::mem::take(&mut self.incoming)
    }

    /// The time after which something is to be sent again; none if all is acknowledged.
    fn patience(&self) -> Option<Duration> {
        let waits = match self.state {
            State::Asking => true,
            State::Open => !self.outgoing.is_empty(),
            State::Refused | State::Reset => false,
        };
        waits.then(|| FIRST_PATIENCE * (1 << self.repetitions.min(MOST_DOUBLINGS)))
    }

    /// That time has passed.
    pub(super) fn repeat(&mut self) {
        self.repetitions += 1;
        self.asks = self.state == State::Asking;
        self.next = self.unacknowledged;
        // A window that was closed may be open, of which only a segment's answer tells.
        self.window = self.window.max(1);
    }

    /// The next segment to be sent, if there is one.
    pub(super) fn next_out(&mut self) -> Option<Segment> {
        if let Some(seq) = self.rebuff.take() {
            return Some(self.segment(seq, RST, vec![]));
        }
        match self.state {
            State::Asking if self.asks => {
                self.asks = false;
                self.sent = self.unacknowledged.wrapping_add(1);
                let mut syn = self.segment(self.unacknowledged, SYN, vec![]);
                syn.mss = Some(MOST_DATA);
                Some(syn)
            }
            State::Open => self.data().or_else(|| {
                let owes = std::mem::take(&mut self.owes_ack);
                owes.then(|| self.segment(self.next, ACK, vec![]))
            }),
            State::Asking | State::Refused | State::Reset => None,
        }
    }

    fn data(&mut self) -> Option<Segment> {
        let in_flight = self.next.wrapping_sub(self.unacknowledged) as usize;
        let room = usize::from(self.window).saturating_sub(in_flight);
        let rest = self.outgoing.len().saturating_sub(in_flight);
        let length = rest.min(room).min(self.largest.into());
        if length == 0 {
            return None;
        }
        let data: Vec<u8> = self
            .outgoing
            .range(in_flight..in_flight + length)
            .copied()
            .collect();
        let seq = self.next;
        self.next = seq.wrapping_add(length as u32);
        if is_after(self.next, self.sent) {
            self.sent = self.next;
        }
        self.owes_ack = false;
        Some(self.segment(seq, PSH | ACK, data))
    }

    fn segment(&self, seq: u32, flags: u8, data: Vec<u8>) -> Segment {
        Segment {
            seq,
            ack: if flags & ACK == 0 { 0 } else { self.expected },
            flags,
            window: WINDOW.saturating_sub(self.incoming.len()) as u16,
            mss: None,
            data,
        }
    }

    /// The segments by which the other side forgets the connection, whatever it has received of it.
    pub(super) fn end(&self) -> Vec<Segment> {
        match self.state {
            State::Asking if self.sent == self.unacknowledged => vec![],
            State::Asking => vec![self.segment(self.sent, RST, vec![])],
            State::Open => {
                let mut ends = vec![self.segment(self.sent, RST | ACK, vec![])];
                if self.sent != self.unacknowledged {
                    ends.push(self.segment(self.unacknowledged, RST | ACK, vec![]));
                }
                ends
            }
            State::Refused | State::Reset => vec![],
        }
    }

    /// Takes in a segment of the other side.
    pub(super) fn receive(&mut self, segment: &Segment) {
        match self.state {
            State::Asking => self.receive_answer(segment),
            State::Open => self.receive_more(segment),
            State::Refused | State::Reset => {}
        }
    }

    /// RFC 9293, section 3.10.7.3. Two that ask each other at once are not provided for.
    fn receive_answer(&mut self, segment: &Segment) {
        let has = |flag: u8| segment.flags & flag != 0;
        if !has(ACK) {
            return;
        }
        if self.sent == self.unacknowledged || segment.ack != self.sent {
            // Of a connection before this one, which the other side has not forgotten.
            if !has(RST) {
                self.rebuff = Some(segment.ack);
            }
            return;
        }
        if has(RST) {
            self.state = State::Refused;
        } else if has(SYN) {
            self.state = State::Open;
            self.unacknowledged = self.sent;
            self.next = self.sent;
            self.expected = segment.seq.wrapping_add(1);
            self.window = segment.window;
            self.largest = segment.mss.unwrap_or(0).clamp(LEAST_DATA, MOST_DATA);
            self.owes_ack = true;
            self.repetitions = 0;
        }
    }

    /// RFC 9293, section 3.10.7.4.
    fn receive_more(&mut self, segment: &Segment) {
        let has = |flag: u8| segment.flags & flag != 0;
        if has(RST) {
            if (segment.seq.wrapping_sub(self.expected) as usize) < WINDOW {
                self.state = State::Reset;
            }
            return;
        }
        if has(SYN) {
            self.owes_ack = true;
            return;
        }
        if !has(ACK) {
            return;
        }
        let acknowledged = segment.ack.wrapping_sub(self.unacknowledged) as usize;
        if acknowledged <= self.sent.wrapping_sub(self.unacknowledged) as usize {
            self.window = segment.window;
            if acknowledged > 0 {
                self.outgoing.drain(..acknowledged.min(self.outgoing.len()));
                self.unacknowledged = segment.ack;
                self.repetitions = 0;
                if is_after(self.unacknowledged, self.next) {
                    self.next = self.unacknowledged;
                }
            }
        }
        if !segment.data.is_empty() || has(FIN) {
            self.owes_ack = true;
            self.receive_data(segment, has(FIN));
        }
    }

    fn receive_data(&mut self, segment: &Segment, is_last: bool) {
        // What begins after what is expected leaves a gap, and this is a very large number then.
        let known = self.expected.wrapping_sub(segment.seq) as usize;
        let Some(fresh) = segment.data.get(known..) else {
            return;
        };
        if self.is_done {
            return;
        }
        let taken = fresh.len().min(WINDOW.saturating_sub(self.incoming.len()));
        self.incoming.extend(&fresh[..taken]);
        self.expected = self.expected.wrapping_add(taken as u32);
        if is_last && taken == fresh.len() {
            self.expected = self.expected.wrapping_add(1);
            self.is_done = true;
        }
    }
}

/// When something is to be sent again: counted from when it was sent, or from when something before it was acknowledged (RFC 6298, section 5). Nothing else that is
/// heard puts it off.
#[derive(Debug, Default)]
pub(super) struct Timer(Option<Started>);

/// For the first byte that is not acknowledged, after so many repetitions, until when.
#[derive(Clone, Copy, Debug)]
struct Started {
    unacknowledged: u32,
    repetitions: u32,
    due: Instant,
}

impl Timer {
    /// When it is, for a connection that has sent all that it can; none if all is acknowledged.
    pub(super) fn due(&mut self, tcp: &Tcp, now: Instant) -> Option<Instant> {
        let started = tcp.patience().map(|patience| Started {
            unacknowledged: tcp.unacknowledged,
            repetitions: tcp.repetitions,
            due: now + patience,
        });
        self.0 = match (self.0, started) {
            (Some(before), Some(new))
                if (before.unacknowledged, before.repetitions)
                    == (new.unacknowledged, new.repetitions) =>
            {
                Some(before)
            }
            _ => started,
        };
        self.0.map(|started| started.due)
    }
}

/// Whether a sequence number comes after another.
fn is_after(one: u32, other: u32) -> bool {
    (one.wrapping_sub(other) as i32) > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const ISN: u32 = u32::MAX - 1;
    const THEIRS: u32 = 7_000;

    fn from_peer(seq: u32, ack: u32, flags: u8, data: &[u8]) -> Segment {
        Segment {
            seq,
            ack,
            flags,
            window: 1_000,
            mss: None,
            data: data.to_vec(),
        }
    }

    fn all(tcp: &mut Tcp) -> Vec<Segment> {
        std::iter::from_fn(|| tcp.next_out()).collect()
    }

    /// Sequence number, flags and length of what is sent.
    fn sent(tcp: &mut Tcp) -> Vec<(u32, u8, usize)> {
        let told = |one: Segment| (one.seq.wrapping_sub(ISN), one.flags, one.data.len());
        all(tcp).into_iter().map(told).collect()
    }

    fn open() -> Tcp {
        let mut tcp = Tcp::new(ISN);
        assert_eq!(sent(&mut tcp), [(0, SYN, 0)]);
        tcp.receive(&from_peer(THEIRS, ISN.wrapping_add(1), SYN | ACK, &[]));
        assert_eq!(tcp.state(), State::Open);
        assert_eq!(sent(&mut tcp), [(1, ACK, 0)]);
        tcp
    }

    #[test]
    fn a_syn_is_repeated_until_it_is_answered_and_an_open_connection_is_ended_by_a_reset() {
        let mut tcp = Tcp::new(ISN);
        assert!(tcp.end().is_empty());
        let syn = all(&mut tcp);
        assert_eq!((syn.len(), syn[0].mss, syn[0].ack), (1, Some(MOST_DATA), 0));
        assert!(sent(&mut tcp).is_empty());
        let first = tcp.patience().unwrap();
        tcp.repeat();
        assert_eq!(tcp.patience(), Some(first * 2));
        assert_eq!(sent(&mut tcp), [(0, SYN, 0)]);
        assert_eq!(tcp.end()[0].seq, ISN.wrapping_add(1));
        tcp.receive(&from_peer(THEIRS, ISN.wrapping_add(1), SYN | ACK, &[]));
        assert_eq!(tcp.patience(), None);
        let ends = tcp.end();
        assert_eq!(ends.len(), 1);
        assert_eq!(
            (ends[0].seq, ends[0].flags),
            (ISN.wrapping_add(1), RST | ACK)
        );
        assert_eq!(ends[0].ack, THEIRS + 1);
    }

    #[test]
    fn only_an_answer_to_this_syn_counts() {
        let mut tcp = Tcp::new(ISN);
        all(&mut tcp);
        // Of a connection before: it is told that this is none of it.
        tcp.receive(&from_peer(THEIRS, 99, ACK, &[]));
        assert_eq!(tcp.state(), State::Asking);
        assert_eq!(all(&mut tcp)[0].seq, 99);
        for (ack, flags) in [(99, RST | ACK), (0, RST), (0, SYN)] {
            tcp.receive(&from_peer(THEIRS, ack, flags, &[]));
            assert_eq!((tcp.state(), tcp.next_out()), (State::Asking, None));
        }
        tcp.receive(&from_peer(0, ISN.wrapping_add(1), RST | ACK, &[]));
        assert_eq!(tcp.state(), State::Refused);
        assert_eq!((tcp.end(), tcp.patience()), (vec![], None));
    }

    #[test]
    fn a_request_keeps_to_the_window_and_is_repeated_from_what_is_not_acknowledged() {
        let mut tcp = open();
        tcp.give(&[1; 1_500]);
        assert_eq!(
            sent(&mut tcp),
            [(1, PSH | ACK, 536), (537, PSH | ACK, 464)],
            "segments of 536, a window of 1,000"
        );
        tcp.receive(&from_peer(THEIRS + 1, ISN.wrapping_add(537), ACK, &[]));
        assert_eq!(sent(&mut tcp), [(1_001, PSH | ACK, 500)]);
        tcp.repeat();
        assert_eq!(
            sent(&mut tcp),
            [(537, PSH | ACK, 536), (1_073, PSH | ACK, 428)]
        );
        // Both received: what is acknowledged by a repetition's end is not sent a third time.
        tcp.receive(&from_peer(THEIRS + 1, ISN.wrapping_add(1_501), ACK, &[]));
        assert_eq!((sent(&mut tcp), tcp.patience()), (vec![], None));
        // An acknowledgement of what was never sent.
        tcp.receive(&from_peer(THEIRS + 1, ISN.wrapping_add(9_000), ACK, &[]));
        assert_eq!(tcp.end()[0].seq, ISN.wrapping_add(1_501));
    }

    #[test]
    fn a_peer_that_takes_tiny_segments_gets_those_that_every_peer_must_take() {
        let mut tcp = Tcp::new(ISN);
        all(&mut tcp);
        let mut answer = from_peer(THEIRS, ISN.wrapping_add(1), SYN | ACK, &[]);
        answer.mss = Some(1);
        tcp.receive(&answer);
        tcp.give(&[1; 600]);
        assert_eq!(sent(&mut tcp), [(1, PSH | ACK, 536), (537, PSH | ACK, 64)]);
    }

    #[test]
    fn nothing_that_is_heard_puts_a_repetition_off_but_an_acknowledgement() {
        let begin = Instant::now();
        let later = |ms| begin + Duration::from_millis(ms);
        let mut timer = Timer::default();
        let mut tcp = open();
        assert_eq!(timer.due(&tcp, begin), None);
        tcp.give(&[1; 700]);
        all(&mut tcp);
        assert_eq!(timer.due(&tcp, begin), Some(later(200)));
        // Data, and acknowledgements of what was acknowledged before.
        for data in [&b""[..], b"data"] {
            tcp.receive(&from_peer(THEIRS + 1, ISN.wrapping_add(1), ACK, data));
            all(&mut tcp);
            assert_eq!(timer.due(&tcp, later(150)), Some(later(200)));
        }
        tcp.receive(&from_peer(THEIRS + 5, ISN.wrapping_add(537), ACK, &[]));
        assert_eq!(timer.due(&tcp, later(160)), Some(later(360)));
        tcp.repeat();
        all(&mut tcp);
        assert_eq!(timer.due(&tcp, later(360)), Some(later(760)));
        tcp.receive(&from_peer(THEIRS + 5, ISN.wrapping_add(701), ACK, &[]));
        assert_eq!(timer.due(&tcp, later(400)), None);
    }

    #[test]
    fn a_closed_window_is_probed() {
        let mut tcp = open();
        let mut closed = from_peer(THEIRS + 1, ISN.wrapping_add(1), ACK, &[]);
        closed.window = 0;
        tcp.receive(&closed);
        tcp.give(&[1; 10]);
        assert!(sent(&mut tcp).is_empty());
        assert!(tcp.patience().is_some());
        tcp.repeat();
        assert_eq!(sent(&mut tcp), [(1, PSH | ACK, 1)]);
    }

    #[test]
    fn an_answer_is_taken_in_order_and_once() {
        let mut tcp = open();
        let own = ISN.wrapping_add(1);
        tcp.receive(&from_peer(THEIRS + 4, own, ACK, b"def"));
        assert_eq!(all(&mut tcp)[0].ack, THEIRS + 1, "there is a gap");
        tcp.receive(&from_peer(THEIRS + 1, own, ACK, b"abc"));
        tcp.receive(&from_peer(THEIRS + 1, own, ACK, b"abcd"));
        tcp.receive(&from_peer(THEIRS + 5, own, ACK | FIN, b"ef"));
        tcp.receive(&from_peer(THEIRS + 5, own, ACK | FIN, b"ef"));
        tcp.receive(&from_peer(THEIRS + 8, own, ACK, b"beyond the end"));
        assert_eq!(tcp.take(), b"abcdef");
        assert!(tcp.is_done());
        assert_eq!(all(&mut tcp)[0].ack, THEIRS + 8);
    }

    #[test]
    fn no_more_is_taken_than_the_window_that_was_told() {
        let mut tcp = open();
        let own = ISN.wrapping_add(1);
        let mut seq = THEIRS + 1;
        for _ in 0..70 {
            tcp.receive(&from_peer(seq, own, ACK, &[0; 1_000]));
            seq = seq.wrapping_add(1_000);
        }
        assert_eq!(all(&mut tcp)[0].window, 0);
        assert_eq!(tcp.take().len(), WINDOW);
        assert_eq!(usize::from(all(&mut tcp)[0].window), WINDOW);
    }

    #[test]
    fn a_reset_must_be_within_the_window() {
        let mut tcp = open();
        tcp.receive(&from_peer(THEIRS, 0, RST, &[]));
        assert_eq!(tcp.state(), State::Open);
        tcp.receive(&from_peer(THEIRS + 1, 0, RST, &[]));
        assert_eq!((tcp.state(), tcp.end()), (State::Reset, vec![]));
    }
}
