//! The parts of the daemon: tasks that run until they are told to end.

use std::{future::Future, time::Duration};

use anyhow::{Result, anyhow};
use tokio::{
    task::{JoinError, JoinSet},
    time::Instant,
};

use crate::chain::chain;

/// Time in which the parts end once they are told to.
pub(super) const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// How a part ended: its name, and with what.
type Ended = (&'static str, Result<()>);

/// The parts that run until they are told to stop, by their names.
#[derive(Default)]
pub(super) struct Parts {
    running: JoinSet<Ended>,
    /// The first that ended without an error, and until when another may turn out to be the reason.
    follower: Option<(&'static str, Instant)>,
}

impl Parts {
    pub(super) fn start(
        &mut self,
        name: &'static str,
        part: impl Future<Output = Result<()>> + Send + 'static,
    ) {
        self.running.spawn(async move { (name, part.await) });
    }

    /// The same for a part that has no errors of its own.
    pub(super) fn start_infallible(
        &mut self,
        name: &'static str,
        part: impl Future<Output = ()> + Send + 'static,
    ) {
        self.start(name, async move {
            part.await;
            Ok(())
        });
    }

    /// Waits until a part ends by itself, which none should, and says why.
    ///
    /// A part that fails takes others with it, which end without an error of their own, and maybe before it: they are not the reason
    /// if another is found within [`STOP_PATIENCE`]. Who waits may turn to something else meanwhile, and wait again: nothing is lost by that.
    pub(super) async fn failure(&mut self) -> anyhow::Error {
        loop {
            let ended = match self.follower {
                None => self.running.join_next().await,
                Some((name, until)) => {
                    match tokio::time::timeout_at(until, self.running.join_next()).await {
                        Ok(Some(ended)) => Some(ended),
                        Ok(None) | Err(_) => return reason(Some(Ok((name, Ok(()))))),
                    }
                }
            };
            match ended {
                Some(Ok((name, Ok(())))) => {
                    let first = (name, Instant::now() + STOP_PATIENCE);
                    self.follower = self.follower.or(Some(first));
                }
                other => return reason(other),
            }
        }
    }

    /// Waits for all to end as they were told to; not for ever.
    pub(super) async fn end(&mut self) {
        let all = async {
            while let Some(ended) = self.running.join_next().await {
                match ended {
                    Ok((_, Ok(()))) => (),
                    Ok((name, Err(error))) => {
                        tracing::warn!("{name} ended with {}", chain(error.as_ref()));
                    }
                    Err(error) => tracing::error!("a part of the daemon panicked: {error}"),
                }
            }
        };
        if tokio::time::timeout(STOP_PATIENCE, all).await.is_err() {
            tracing::warn!("not everything ended in time; leaving it behind");
        }
    }
}

/// Why the daemon ends with a part that ended so.
fn reason(ended: Option<Result<Ended, JoinError>>) -> anyhow::Error {
    match ended {
        None => anyhow!("no part is running"),
        Some(Ok((name, Ok(())))) => anyhow!("{name} ended without being told to"),
        Some(Ok((name, Err(error)))) => error.context(format!("{name} failed")),
        Some(Err(error)) => anyhow!("a part of the daemon panicked: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Why the daemon fails with parts that end so, each after so many milliseconds. Time is not waited for.
    fn failure(parts: Vec<(&'static str, u64, Result<()>)>) -> String {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap()
            .block_on(async {
                let mut all = Parts::default();
                for (name, after_ms, end) in parts {
                    all.start(name, async move {
                        tokio::time::sleep(Duration::from_millis(after_ms)).await;
                        end
                    });
                }
                chain(all.failure().await.as_ref())
            })
    }

    fn patience_ms() -> u64 {
        STOP_PATIENCE.as_millis() as u64
    }

    #[test]
    fn a_part_that_fails_is_the_reason() {
        let text = failure(vec![
            ("the cause", 10, Err(anyhow!("no socket"))),
            ("another", 1_000_000, Ok(())),
        ]);
        assert_eq!(text, "the cause failed: no socket");
    }

    #[test]
    fn parts_that_it_took_with_it_do_not_mask_the_reason() {
        let text = failure(vec![
            ("a follower", 10, Ok(())),
            ("the cause", patience_ms(), Err(anyhow!("no socket"))),
            ("another follower", 20, Ok(())),
        ]);
        assert_eq!(text, "the cause failed: no socket");
    }

    #[test]
    fn a_part_that_ends_alone_is_the_reason_after_a_while() {
        let text = failure(vec![
            ("the part", 10, Ok(())),
            ("too late", patience_ms() + 11, Err(anyhow!("no socket"))),
        ]);
        assert_eq!(text, "the part ended without being told to");
        let text = failure(vec![("the only part", 10, Ok(()))]);
        assert_eq!(text, "the only part ended without being told to");
    }

    // Time passes when nothing else is to be done.
    #[tokio::test(start_paused = true)]
    async fn a_part_that_ends_alone_is_the_reason_though_other_things_are_seen_to_meanwhile() {
        let mut parts = Parts::default();
        parts.start("the part", async { Ok(()) });
        parts.start("another", std::future::pending());
        let begun = Instant::now();
        let mut looks = tokio::time::interval(STOP_PATIENCE / 2);
        // As the daemon waits: it sees to the interfaces as often.
        let error = loop {
            tokio::select! {
                failure = parts.failure() => break failure,
                _ = looks.tick() => assert!(begun.elapsed() <= 2 * STOP_PATIENCE),
            }
        };
        assert_eq!(error.to_string(), "the part ended without being told to");
    }

    #[tokio::test]
    async fn a_panic_is_a_reason_too() {
        let mut parts = Parts::default();
        parts.start("a follower", async { Ok(()) });
        parts.start("the cause", async { panic!("on purpose") });
        let text = parts.failure().await.to_string();
        assert!(
            text.contains("panicked") && text.contains("on purpose"),
            "{text}"
        );
    }
}
