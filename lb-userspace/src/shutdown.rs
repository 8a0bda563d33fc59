//! How the daemon's parts are told to end: a watched flag.

use tokio::sync::watch;

/// Waits until the flag is true, or nobody is left to set it.
pub async fn requested(flag: &mut watch::Receiver<bool>) {
    // An error says that the sender is gone: then there is nothing left to work for either.
    drop(flag.wait_for(|stop| *stop).await);
}
