//! Lines on the way to whoever reads the log. Who logs one waits for nobody: a thread writes them.
//!
//! A reader that hangs without dying lets its pipe fill, and whoever writes to that waits from then on. If that were the task that logs, a log that nobody
//! reads would end the reconciler's work, or the checks. So what finds no room here is lost, and counted.

use std::{
    cell::Cell,
    io, mem,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Most bytes that wait: several thousand lines.
pub(super) const ROOM: usize = 1 << 20;

thread_local! {
    /// Whether this thread is the one that writes.
    static IS_WRITER: Cell<bool> = const { Cell::new(false) };
}

/// The lines that wait.
pub(super) struct Queue {
    held: Mutex<Held>,
    /// Something waits.
    arrived: Condvar,
    /// Nothing does any more.
    emptied: Condvar,
}

struct Held {
    lines: Vec<u8>,
    /// How many were lost since those that wait came, and not told yet.
    lost: u64,
    /// How many were lost ever.
    lost_ever: u64,
    has_writer: bool,
    is_writing: bool,
}

impl Queue {
    pub(super) const fn new() -> Self {
        Self {
            held: Mutex::new(Held {
                lines: Vec::new(),
                lost: 0,
                lost_ever: 0,
                has_writer: false,
                is_writing: false,
            }),
            arrived: Condvar::new(),
            emptied: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a line, if there is room.
    fn put(&self, line: &[u8]) {
        let mut held = self.lock();
        // Once one is lost so are all, until the writer tells it: there is one gap, and where it is said to be.
        let fits = held.lines.is_empty() || held.lines.len() + line.len() <= ROOM;
        if IS_WRITER.get() || (fits && held.lost == 0) {
            held.lines.extend_from_slice(line);
            self.arrived.notify_one();
        } else {
            held.lost += 1;
            held.lost_ever += 1;
        }
    }

    /// Takes last words, for which there is room, if somebody writes them. False if nobody does.
    pub(super) fn put_last(&self, words: &str) -> bool {
        let mut held = self.lock();
        if held.has_writer {
            held.lines.extend_from_slice(words.as_bytes());
            self.arrived.notify_one();
        }
        held.has_writer
    }

    /// How many lines were lost, or could not be written.
    pub(super) fn lost_ever(&self) -> u64 {
        self.lock().lost_ever
    }

    /// Claims to be who writes the lines. False if somebody is already.
    pub(super) fn claim(&self) -> bool {
        !mem::replace(&mut self.lock().has_writer, true)
    }

    /// Gives up that claim.
    pub(super) fn disclaim(&self) {
        self.lock().has_writer = false;
    }

    /// Writes lines as they come, for ever, and logs how many were lost where they are missing.
    pub(super) fn write_to(&self, mut out: impl io::Write) {
        IS_WRITER.set(true);
        loop {
            let (lines, lost) = self.take();
            if lost > 0 {
                tracing::error!(
                    lines = lost,
                    "nobody read the log for a while, and lines of it are lost"
                );
                self.told(lost);
            }
            // One by one: of those that come while nothing can be written, as on a full disk, only those are missing.
            let lines = lines.split_inclusive(|byte| *byte == b'\n');
            let unwritten = lines.filter(|line| out.write_all(line).is_err()).count();
            self.written(unwritten as u64);
        }
    }

    /// Waits for lines; gives them, and how many are lost that came after them.
    fn take(&self) -> (Vec<u8>, u64) {
        let idle = |held: &mut Held| held.lines.is_empty() && held.lost == 0;
        let mut held = self
            .arrived
            .wait_while(self.lock(), idle)
            .unwrap_or_else(PoisonError::into_inner);
        held.is_writing = true;
        (mem::take(&mut held.lines), held.lost)
    }

    /// It is told that so many lines are lost.
    fn told(&self, lost: u64) {
        self.lock().lost -= lost;
    }

    /// What was taken is written, but for so many lines.
    fn written(&self, unwritten: u64) {
        let mut held = self.lock();
        held.is_writing = false;
        held.lost_ever += unwritten;
        self.emptied.notify_all();
    }

    /// Waits until all is written, but only so long.
    pub(super) fn settle(&self, patience: Duration) {
        let waits = |held: &mut Held| {
            let is_idle = held.lines.is_empty() && held.lost == 0 && !held.is_writing;
            held.has_writer && !is_idle
        };
        drop(
            self.emptied
                .wait_timeout_while(self.lock(), patience, waits),
        );
    }
}

impl io::Write for &Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_is_lost_in_one_piece_and_counted() {
        let queue = Queue::new();
        let line = vec![b'x'; ROOM / 4];
        for _ in 0..4 {
            queue.put(&line);
        }
        assert_eq!(queue.lost_ever(), 0);
        queue.put(b"lost\n");
        queue.put(b"\n");
        assert_eq!(queue.lost_ever(), 2);
        let (lines, lost) = queue.take();
        assert_eq!((lines.len(), lost), (ROOM, 2));

        // Nothing comes between them and the word of it.
        queue.put(b"lost as well\n");
        queue.told(2);
        queue.written(0);
        assert_eq!(queue.take(), (vec![], 1));
        queue.told(1);
        queue.written(0);
        queue.put(b"one\n");
        queue.put(b"two\n");
        assert_eq!(queue.take(), (b"one\ntwo\n".to_vec(), 0));
        queue.written(4);
        assert_eq!(queue.lost_ever(), 7);
    }

    #[test]
    fn a_gap_is_not_filled_by_a_line_that_would_fit() {
        let queue = Queue::new();
        queue.put(&vec![b'x'; ROOM - 2]);
        queue.put(b"long\n");
        queue.put(b"\n");
        let (lines, lost) = queue.take();
        assert_eq!((lines.len(), lost), (ROOM - 2, 2));
    }

    #[test]
    fn a_line_longer_than_all_room_is_taken_if_none_waits() {
        let queue = Queue::new();
        queue.put(&vec![b'x'; ROOM + 1]);
        let (lines, lost) = queue.take();
        assert_eq!((lines.len(), lost), (ROOM + 1, 0));
    }

    #[test]
    fn where_nobody_writes_nothing_is_waited_for() {
        let queue = Queue::new();
        assert!(!queue.put_last("words\n"));
        queue.put(b"line\n");
        queue.settle(Duration::MAX);
        assert!(queue.claim());
        assert!(!queue.claim());
        queue.settle(Duration::ZERO);
        assert!(queue.put_last("words\n"));
        assert_eq!(queue.take(), (b"line\nwords\n".to_vec(), 0));
        queue.written(0);
        queue.settle(Duration::MAX);
    }
}
