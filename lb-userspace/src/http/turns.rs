//! Work that keeps a CPU busy for a while: done beside the threads that checks of health wait for, and little of it at a time.

use std::sync::Arc;

use tokio::{sync::Semaphore, task::spawn_blocking};

/// So much of it at a time.
#[derive(Clone, Debug)]
pub(crate) struct Turns(Arc<Semaphore>);

impl Turns {
    pub(crate) fn of(most: usize) -> Self {
        Self(Arc::new(Semaphore::new(most)))
    }

    /// Does some when it has its turn, which may take its time. To its end, whoever goes meanwhile: else those who ask and go would have much done at once.
    ///
    /// # Errors
    /// When it panics.
    pub(crate) async fn take<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, String> {
        let turn = self.0.clone().acquire_owned().await;
        let turn = turn.map_err(|error| error.to_string())?;
        let done = spawn_blocking(move || {
            let _turn = turn;
            work()
        });
        done.await.map_err(|error| error.to_string())
    }
}
