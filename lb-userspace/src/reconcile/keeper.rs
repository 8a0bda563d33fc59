//! Has what is remembered saved by a thread of its own: a disk that hangs is waited for once, and only for so long. What does not rest on it goes on.

use std::{
    io,
    sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError},
    thread,
    time::Duration,
};

use tokio::runtime::{Handle, RuntimeFlavor};

use super::memory::Memory;

/// How long the disk is waited for: shorter than whoever asks for a change waits for its answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Whoever has memories saved, one at a time: they have one file.
pub(super) struct Keeper {
    patience: Duration,
    /// A save that was not waited for to its end: the memory that it saves, or why it could not.
    underway: Option<Receiver<io::Result<Memory>>>,
}

impl Keeper {
    pub(super) fn new(patience: Duration) -> Self {
        Self {
            patience,
            underway: None,
        }
    }

    /// Whether a save was given up on, and it was not found yet that it has come to its end.
    pub(super) fn is_underway(&self) -> bool {
        self.underway.is_some()
    }

    /// The memory that a save has saved after all which was given up on, once.
    ///
    /// # Errors
    /// While it is still under way: nothing can be saved meanwhile.
    pub(super) fn late(&mut self) -> io::Result<Option<Memory>> {
        let Some(underway) = &self.underway else {
            return Ok(None);
        };
        match underway.try_recv() {
            Err(TryRecvError::Empty) => Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "the disk has not answered since something was saved the last time",
            )),
            ended => {
                self.underway = None;
                Ok(ended.ok().and_then(Result::ok))
            }
        }
    }

    /// Has a memory saved, and gives it back once it is. Only while no save is under way.
    ///
    /// # Errors
    /// When it could not be saved; or not yet: then [`Keeper::late`] tells later what has become of it.
    pub(super) fn keep(
        &mut self,
        memory: Memory,
        save: impl FnOnce(&Memory) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Memory> {
        let (tell, underway) = mpsc::sync_channel(1);
        thread::Builder::new()
            .name("memory".to_owned())
            .spawn(move || {
                let saved = save(&memory).map(|()| memory);
                // Nobody hears it once the reconciler has ended.
                drop(tell.send(saved));
            })?;
        match hindering_nobody(|| underway.recv_timeout(self.patience)) {
            Ok(saved) => saved,
            Err(RecvTimeoutError::Timeout) => {
                self.underway = Some(underway);
                Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!(
                        "the disk has not answered within {} s",
                        self.patience.as_secs()
                    ),
                ))
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err(io::Error::other("the thread that saves it has panicked"))
            }
        }
    }
}

/// Waits for something without keeping a runtime's worker from other tasks.
fn hindering_nobody<T>(wait: impl FnOnce() -> T) -> T {
    let is_worker = Handle::try_current()
        .is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread);
    if is_worker {
        tokio::task::block_in_place(wait)
    } else {
        // There is no other thread that could take over from this one.
        wait()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pace::Moment;

    /// One that differs from others by a number.
    fn memory(number: u64) -> Memory {
        Memory::default().with_starting(std::iter::once((number, Moment(1), 3)))
    }

    #[test]
    fn what_is_saved_at_last_after_it_was_given_up_on_is_known() {
        let mut keeper = Keeper::new(Duration::ZERO);
        let (answer, disk) = mpsc::channel();
        let error = keeper
            .keep(memory(1), move |_| disk.recv().unwrap())
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let error = keeper.late().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
        assert!(keeper.is_underway());

        answer.send(Ok(())).unwrap();
        let late = loop {
            match keeper.late() {
                Ok(late) => break late,
                Err(_) => thread::yield_now(),
            }
        };
        assert_eq!(late, Some(memory(1)));
        assert!(!keeper.is_underway());
        assert_eq!(keeper.late().unwrap(), None);
    }

    #[test]
    fn what_came_of_a_save_is_what_it_said() {
        let mut keeper = Keeper::new(Duration::from_secs(60));
        let kept = keeper.keep(memory(1), |saved| {
            assert_eq!(*saved, memory(1));
            Ok(())
        });
        assert_eq!(kept.unwrap(), memory(1));
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let error = keeper.keep(memory(2), move |_| Err(full())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(!keeper.is_underway());
    }
}
