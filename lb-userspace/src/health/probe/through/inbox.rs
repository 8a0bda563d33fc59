//! What has come for the check of one port and waits to be taken in: little, whoever sends.

use std::{collections::VecDeque, net::SocketAddr, sync::Mutex};

use tokio::sync::Notify;

use super::{
    lock,
    tcp::{Segment, WINDOW},
};

/// Segments that wait, at most, however short they are.
const MOST_WAITING: usize = 256;

/// Segments from a VIP. Those that find no room are sent again by whoever means them.
#[derive(Debug)]
pub(super) struct Inbox {
    vip: SocketAddr,
    waiting: Mutex<Waiting>,
    came: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    /// A check is under way.
    is_open: bool,
    segments: VecDeque<Segment>,
    /// Data in all of them.
    bytes: usize,
}

impl Inbox {
    /// Closed.
    pub(super) fn new(vip: SocketAddr) -> Self {
        Self {
            vip,
            waiting: Mutex::default(),
            came: Notify::new(),
        }
    }

    /// The VIP and the port that segments are expected from.
    pub(super) fn vip(&self) -> SocketAddr {
        self.vip
    }

    /// Takes in what comes from now on.
    pub(super) fn open(&self) {
        *lock(&self.waiting) = Waiting {
            is_open: true,
            ..Waiting::default()
        };
    }

    /// Takes in nothing more, and forgets what waits.
    pub(super) fn close(&self) {
        *lock(&self.waiting) = Waiting::default();
    }

    /// Takes in a segment if it is expected and there is room: a sender that keeps to the window that it was told finds some.
    pub(super) fn put(&self, from: SocketAddr, segment: Segment) {
        let mut waiting = lock(&self.waiting);
        let bytes = waiting.bytes + segment.data.len();
        if from != self.vip
            || !waiting.is_open
            || waiting.segments.len() == MOST_WAITING
            || bytes > WINDOW
        {
            return;
        }
        waiting.bytes = bytes;
        waiting.segments.push_back(segment);
        drop(waiting);
        self.came.notify_one();
    }

    /// The next segment, as soon as there is one. One task may wait.
    pub(super) async fn next(&self) -> Segment {
        loop {
            // However fast they come, others get their turn, and so does the end of the check.
            tokio::task::coop::consume_budget().await;
            if let Some(segment) = self.take() {
                return segment;
            }
            // One that has come since is remembered.
            self.came.notified().await;
        }
    }

    fn take(&self) -> Option<Segment> {
        let mut waiting = lock(&self.waiting);
        let segment = waiting.segments.pop_front()?;
        waiting.bytes -= segment.data.len();
        Some(segment)
    }
}

#[cfg(test)]
mod tests {
    use lb_common::tcp::ACK;

    use super::*;

    fn vip() -> SocketAddr {
        "198.51.100.1:80".parse().unwrap()
    }

    fn segment(length: usize) -> Segment {
        Segment {
            seq: 1,
            ack: 2,
            flags: ACK,
            window: 3,
            mss: None,
            data: vec![0; length],
        }
    }

    fn lengths(inbox: &Inbox) -> Vec<usize> {
        std::iter::from_fn(|| inbox.take())
            .map(|segment| segment.data.len())
            .collect()
    }

    #[test]
    fn only_what_the_vip_sends_during_a_check_waits() {
        let inbox = Inbox::new(vip());
        inbox.put(vip(), segment(1));
        inbox.open();
        for stranger in ["198.51.100.1:81", "198.51.100.2:80"] {
            inbox.put(stranger.parse().unwrap(), segment(2));
        }
        inbox.put(vip(), segment(3));
        assert_eq!(lengths(&inbox), [3]);
        inbox.put(vip(), segment(4));
        inbox.close();
        inbox.put(vip(), segment(5));
        assert_eq!(lengths(&inbox), [0; 0]);
        inbox.open();
        assert_eq!(lengths(&inbox), [0; 0]);
    }

    #[test]
    fn no_more_waits_than_the_window_and_a_number_of_segments() {
        let inbox = Inbox::new(vip());
        inbox.open();
        inbox.put(vip(), segment(WINDOW + 1));
        inbox.put(vip(), segment(WINDOW - 1));
        inbox.put(vip(), segment(2));
        inbox.put(vip(), segment(1));
        assert_eq!(lengths(&inbox), [WINDOW - 1, 1]);
        for _ in 0..=MOST_WAITING {
            inbox.put(vip(), segment(0));
        }
        assert_eq!(lengths(&inbox).len(), MOST_WAITING);
        inbox.put(vip(), segment(WINDOW));
        assert_eq!(lengths(&inbox), [WINDOW], "there is room again");
    }

    #[tokio::test]
    async fn who_waits_gets_what_comes() {
        let inbox = Inbox::new(vip());
        inbox.open();
        let (got, ()) = tokio::join!(inbox.next(), async {
            inbox.put("198.51.100.2:80".parse().unwrap(), segment(1));
            inbox.put(vip(), segment(2));
        });
        assert_eq!(got.data.len(), 2);
    }
}
