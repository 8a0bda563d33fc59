//! Reading the configuration again, for SIGHUP, for the admin API and for the watch over the file alike.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use tokio::sync::{Mutex, mpsc, oneshot};

use crate::{
    config::{self, Config, Problems, Seen},
    model::Trust,
    reconcile::Command,
};

/// Reads the configuration again and hands it to the reconciler.
#[derive(Debug)]
pub struct Reloader {
    path: PathBuf,
    commands: mpsc::Sender<Command>,
    /// Makes reloads follow one another. The digest of the text that was read last; none if it could not be.
    turn: Mutex<Option<u64>>,
    named: Mutex<Named>,
}

/// Files, each as it was before it was read; at the start, soon after.
type Files = BTreeMap<PathBuf, Seen>;

/// Files that configurations name beside their own.
#[derive(Debug)]
struct Named {
    /// What the one in force was read from.
    in_force: Files,
    /// What the one would be read from that was refused since, if one was.
    refused: Files,
}

impl Reloader {
    /// For the file of a configuration, which is in force.
    pub fn new(first: &Config, commands: mpsc::Sender<Command>) -> Self {
        Self {
            path: first.path.clone(),
            commands,
            turn: Mutex::new(Some(first.digest)),
            named: Mutex::new(Named {
                in_force: seen(named_by(first)),
                refused: Files::new(),
            }),
        }
    }

    /// Files that the configuration in force has been read from, beside its own, and those that one would be read from which was refused since; each
    /// as it was then.
    pub(crate) async fn named(&self) -> BTreeMap<PathBuf, Seen> {
        let named = self.named.lock().await;
        let mut all = named.in_force.clone();
        all.extend(named.refused.clone());
        all
    }

    /// Reads the file and has it applied. Gives the generation that it became.
    ///
    /// # Errors
    /// Everything that is wrong with it. The daemon then keeps what it has, and its status says why.
    pub async fn reload(&self) -> Result<u64, Vec<String>> {
        let mut last = self.turn.lock().await;
        let text = self.text().await;
        self.take(&mut last, text).await
    }

    /// The same if the file's text is another than when it was last read, by whatever.
    pub async fn reload_if_changed(&self) {
        let mut last = self.turn.lock().await;
        let text = self.text().await;
        if text.as_ref().ok().map(|text| config::digest(text)) != *last {
            // Its errors are logged and in the status; there is nobody else to tell.
            drop(self.take(&mut last, text).await);
        }
    }

    async fn take(
        &self,
        last: &mut Option<u64>,
        text: Result<String, Vec<String>>,
    ) -> Result<u64, Vec<String>> {
        *last = text.as_ref().ok().map(|text| config::digest(text));
        let errors = match text {
            Ok(text) => {
                let text = Arc::<str>::from(text);
                let of_text = Arc::clone(&text);
                // Before they are read: what they become from now on is news.
                let named = unblocked(move || Ok(seen(config::files_named_in(&of_text)))).await;
                let named = named.unwrap_or_default();
                match self.take_text(text).await {
                    Ok(generation) => {
                        tracing::info!(path = %self.path.display(), generation, "configuration reloaded");
                        *self.named.lock().await = Named {
                            in_force: named,
                            refused: Files::new(),
                        };
                        return Ok(generation);
                    }
                    Err(errors) => {
                        // What is wrong may be mended in another file than the configuration's own.
                        self.named.lock().await.refused = named;
                        errors
                    }
                }
            }
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

    async fn take_text(&self, text: Arc<str>) -> Result<u64, Vec<String>> {
        let config = self.parse(text).await?;
        self.apply(config).await.map_err(|error| vec![error])
    }

    async fn text(&self) -> Result<String, Vec<String>> {
        let path = self.path.clone();
        unblocked(move || config::read(&path)).await
    }

    async fn parse(&self, text: Arc<str>) -> Result<Config, Vec<String>> {
        let path = self.path.clone();
        let loaded = unblocked(move || config::parse(&path, &text)).await?;
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

/// Files as they are now.
fn seen(paths: impl IntoIterator<Item = PathBuf>) -> Files {
    let with_seen = |path: PathBuf| {
        let seen = Seen::at(&path);
        (path, seen)
    };
    paths.into_iter().map(with_seen).collect()
}

/// The files that a configuration names and is read from: of authorities, and of prefixes.
fn named_by(config: &Config) -> impl Iterator<Item = PathBuf> {
    let lists = config.services.iter();
    let lists = lists.flat_map(|service| service.list_files.iter().cloned());
    let checks = config.services.iter().flat_map(|service| {
        let of_backends = service.backends.iter().map(|backend| &backend.check);
        of_backends.chain([&service.check])
    });
    checks
        .filter_map(|check| match &check.kind.tls()?.trust {
            Trust::Authorities(authorities) => Some(authorities.path().to_owned()),
            Trust::System | Trust::Anyone => None,
        })
        .chain(lists)
}

/// Reads files where that hinders nobody.
async fn unblocked<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Problems> + Send + 'static,
) -> Result<T, Vec<String>> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| vec![format!("the configuration could not be read: {error}")])?
        .map_err(|problems| problems.iter().map(ToString::to_string).collect())
}
