//! Who talks across a lab: backends that say their name and echo, and clients that check every byte.

pub mod backend;
pub mod client;
mod conversation;
pub mod crowd;
pub mod dns;
pub mod exchange;
pub mod raw;
mod wire;

use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::namespace::Namespace;

/// A single-threaded runtime inside a namespace: every socket that its tasks make belongs to that host.
#[derive(Debug)]
struct Host {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Host {
    fn start(namespace: &Namespace, name: &str) -> Result<Self> {
        raise_descriptor_limit()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start a runtime")?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = namespace.thread(name, move || {
            // Either way it ends is an order to stop: a message, or the sender's death.
            let _ = runtime.block_on(stopped);
        })?;
        Ok(Self {
            handle,
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Every connection is two descriptors of this process: take all that the hard limit gives.
fn raise_descriptor_limit() -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raise RLIMIT_NOFILE")?;
    }
    Ok(())
}
