//! Reading the configuration again, for SIGHUP and for the admin API alike.

use std::path::PathBuf;

use tokio::sync::{Mutex, mpsc, oneshot};

use crate::{
    config::{self, Config},
    reconcile::Command,
};

/// Reads the configuration again and hands it to the reconciler.
#[derive(Debug)]
pub struct Reloader {
    path: PathBuf,
    commands: mpsc::Sender<Command>,
    /// What the daemon started with: some of it holds until it ends. The lock makes reloads follow one another.
    first: Mutex<Config>,
}

impl Reloader {
    /// `first` is the configuration that the daemon started with.
    pub fn new(first: Config, commands: mpsc::Sender<Command>) -> Self {
        Self {
            path: first.path.clone(),
            commands,
            first: Mutex::new(first),
        }
    }

    /// Reads the file and has it applied. Gives the generation that it became.
    ///
    /// # Errors
    /// Everything that is wrong with it. The daemon then keeps what it has, and its status says why.
    pub async fn reload(&self) -> Result<u64, Vec<String>> {
        let first = self.first.lock().await;
        let errors = match self.read(&first).await {
            Ok(config) => match self.apply(config).await {
                Ok(generation) => {
                    tracing::info!(path = %self.path.display(), generation, "configuration reloaded");
                    return Ok(generation);
                }
                Err(error) => vec![error],
            },
            Err(errors) => errors,
        };
        for error in &errors {
            tracing::error!(error, "configuration refused; the one in force stays");
        }
        let rejected = Command::RejectedConfig {
            error: errors.join("\n"),
        };
        // If nobody listens any more the daemon is ending, and so is its status.
        drop(self.commands.send(rejected).await);
        Err(errors)
    }

    async fn read(&self, first: &Config) -> Result<Config, Vec<String>> {
        let path = self.path.clone();
        let loaded = tokio::task::spawn_blocking(move || config::load(&path))
            .await
            .map_err(|error| vec![format!("the configuration could not be read: {error}")])?
            .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        let fixed = fixed_changes(first, &loaded.config);
        if fixed.is_empty() {
            Ok(loaded.config)
        } else {
            let file = self.path.display();
            Err(fixed
                .into_iter()
                .map(|what| {
                    format!(
                        "{file}: {what} cannot change while the daemon runs; restart it, which cuts no flow"
                    )
                })
                .collect())
        }
    }

    async fn apply(&self, config: Config) -> Result<u64, String> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Reload {
            config: Box::new(config),
            reply,
        };
        let ended = || "the daemon is stopping".to_owned();
        self.commands.send(command).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }
}

/// What differs of the settings that hold until the daemon ends.
fn fixed_changes(first: &Config, now: &Config) -> Vec<&'static str> {
    [
        (first.interfaces != now.interfaces, "`interfaces`"),
        (first.state_dir != now.state_dir, "`state_dir`"),
        (first.bpffs != now.bpffs, "`bpffs`"),
        (first.fleet_seed != now.fleet_seed, "`fleet_seed`"),
        (first.metrics != now.metrics, "`metrics.listen`"),
        (first.limits != now.limits, "`limits`"),
    ]
    .into_iter()
    .filter_map(|(changed, what)| changed.then_some(what))
    .collect()
}
