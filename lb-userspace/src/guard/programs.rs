//! Sees to it that programs run that guard services once the first service has a guard: they are loaded only then, since the kernel's verifier takes its
//! time over them.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, task::spawn_blocking};

use crate::{shutdown, status::Status};

/// How long after a failure it is tried again.
const AGAIN: Duration = Duration::from_secs(10);
/// What services with a guard are said to lack until it is in force.
const LOADING: &str = "the programs that guard services are being loaded, which takes some seconds; until then it is served unguarded";

/// What has such programs run, if they do not yet; the error is for people.
pub type Load = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Watches until `shutdown` turns true or the sender of `status` is gone. `missing` says why guards are not in force, while they are not. `runs` is true if
/// such programs run already.
pub async fn run(
    mut status: watch::Receiver<Arc<Status>>,
    runs: bool,
    load: Load,
    missing: watch::Sender<Option<String>>,
    mut shutdown: watch::Receiver<bool>,
) {
    let is_guarded = |status: &Arc<Status>| {
        let mut services = status.services.iter();
        services.any(|service| service.guard.is_some())
    };
    if !runs {
        tokio::select! {
            () = shutdown::requested(&mut shutdown) => return,
            found = async { status.wait_for(is_guarded).await.is_ok() } => if !found {
                return;
            },
        }
        missing.send_replace(Some(LOADING.to_owned()));
        loop {
            let attempt = {
                let load = Arc::clone(&load);
                spawn_blocking(move || load()).await
            };
            let error = match attempt {
                Ok(Ok(())) => break,
                Ok(Err(error)) => error,
                Err(error) => error.to_string(),
            };
            tracing::error!(%error, "the programs that guard services cannot be loaded: services with a guard are served unguarded; trying again");
            missing.send_replace(Some(format!(
                "its guard is not in force, since the programs for it cannot be loaded: {error}"
            )));
            tokio::select! {
                () = shutdown::requested(&mut shutdown) => return,
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
        tracing::info!("the programs that guard services are in force");
        missing.send_replace(None);
    }
    shutdown::requested(&mut shutdown).await;
}

#[cfg(test)]
mod tests {
    use std::{
        net::IpAddr,
        sync::atomic::{AtomicU32, Ordering},
    };

    use super::*;
    use crate::status::{GuardStatus, tests};

    fn status(is_guarded: bool) -> Arc<Status> {
        let mut service = tests::service(IpAddr::from([10, 0, 0, 1]));
        service.guard = is_guarded.then(GuardStatus::default);
        Arc::new(Status {
            services: vec![service],
            ..tests::empty()
        })
    }

    /// Tells when `missing` is as it should be. Time passes when nothing else is to be done.
    async fn reach(missing: &mut watch::Receiver<Option<String>>, wanted: Option<&str>) {
        let is_so = |text: &Option<String>| match (text, wanted) {
            (None, None) => true,
            (Some(text), Some(wanted)) => text.contains(wanted),
            _ => false,
        };
        let reached = tokio::time::timeout(Duration::from_secs(60), missing.wait_for(is_so));
        reached.await.expect("in time").unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn programs_are_loaded_with_the_first_guard_and_tried_again() {
        let (statuses, watched) = watch::channel(status(false));
        let (missing, mut said) = watch::channel(None);
        let (stop, stopping) = watch::channel(false);
        let calls = Arc::new(AtomicU32::new(0));
        let load: Load = {
            let calls = Arc::clone(&calls);
            Arc::new(move || match calls.fetch_add(1, Ordering::Relaxed) {
                0 => Err("no memory".to_owned()),
                _ => Ok(()),
            })
        };
        let running = tokio::spawn(run(watched, false, load, missing, stopping));
        statuses.send_replace(status(false));
        tokio::time::sleep(2 * AGAIN).await;
        assert_eq!(calls.load(Ordering::Relaxed), 0, "nobody asked");
        statuses.send_replace(status(true));
        reach(&mut said, Some("no memory")).await;
        reach(&mut said, None).await;
        assert_eq!(calls.load(Ordering::Relaxed), 2);
        stop.send_replace(true);
        running.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_runs_already_is_not_loaded_again() {
        let (_statuses, watched) = watch::channel(status(true));
        let (missing, said) = watch::channel(None);
        let (stop, stopping) = watch::channel(false);
        let load: Load = Arc::new(|| panic!("it runs"));
        let running = tokio::spawn(run(watched, true, load, missing, stopping));
        tokio::time::sleep(2 * AGAIN).await;
        assert_eq!(*said.borrow(), None);
        stop.send_replace(true);
        running.await.unwrap();
    }
}
