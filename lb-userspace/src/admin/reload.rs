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
    /// Makes reloads follow one another.
    turn: Mutex<()>,
}

impl Reloader {
    /// For the configuration file at `path`.
    pub fn new(path: PathBuf, commands: mpsc::Sender<Command>) -> Self {
        Self {
            path,
            commands,
            turn: Mutex::new(()),
        }
    }

    /// Reads the file and has it applied. Gives the generation that it became.
    ///
    /// # Errors
    /// Everything that is wrong with it. The daemon then keeps what it has, and its status says why.
    pub async fn reload(&self) -> Result<u64, Vec<String>> {
        let _turn = self.turn.lock().await;
        let errors = match self.read().await {
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

    async fn read(&self) -> Result<Config, Vec<String>> {
        let path = self.path.clone();
        let loaded = tokio::task::spawn_blocking(move || config::load(&path))
            .await
            .map_err(|error| vec![format!("the configuration could not be read: {error}")])?
            .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        Ok(loaded.config)
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
