//! Places for answers that take a thread, or last for as long as their reader likes.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::peer::Right;

/// As many for those who may only look as for those who may do more: neither keeps the other out.
#[derive(Clone, Debug)]
pub(super) struct Places {
    owners: Arc<Semaphore>,
    lookers: Arc<Semaphore>,
}

impl Places {
    /// So many for each.
    pub(super) fn of(most: usize) -> Self {
        Self {
            owners: Arc::new(Semaphore::new(most)),
            lookers: Arc::new(Semaphore::new(most)),
        }
    }

    /// Takes one for a peer, for as long as it is held; none if all are taken.
    pub(super) fn take(&self, right: Right) -> Option<OwnedSemaphorePermit> {
        let places = match right {
            Right::Everything => &self.owners,
            Right::Read | Right::Nothing => &self.lookers,
        };
        places.clone().try_acquire_owned().ok()
    }

    /// How many are left for those who may do everything.
    #[cfg(test)]
    pub(super) fn free(&self) -> usize {
        self.owners.available_permits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_only_look_leaves_the_others_theirs() {
        let places = Places::of(2);
        let held: Vec<_> = (0..3).map(|_| places.take(Right::Read)).collect();
        assert_eq!(
            held.iter().map(Option::is_some).collect::<Vec<_>>(),
            [true, true, false]
        );
        assert!(places.take(Right::Nothing).is_none());
        let owner = [(); 2].map(|()| places.take(Right::Everything));
        assert!(owner.iter().all(Option::is_some));
        assert!(places.take(Right::Everything).is_none());
        drop(held);
        assert!(places.take(Right::Read).is_some());
        assert_eq!(places.free(), 0);
    }
}
