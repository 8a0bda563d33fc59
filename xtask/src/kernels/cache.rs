//! What is fetched once and kept: the emulator and kernels, each in a directory of its own below the target directory.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use crate::cargo;

/// How long something is used without looking for a newer one.
const FRESH: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// In each directory, written last: the version of what is in it.
const VERSION: &str = "version";

/// The directory, which this process has for itself.
pub(crate) struct Cache {
    directory: PathBuf,
    _lock: Flock<File>,
}

impl Cache {
    /// Opens it.
    ///
    /// # Errors
    /// If it cannot be made, or another process uses it.
    pub(crate) fn open() -> Result<Self> {
        let directory = cargo::target_directory()?.join("kernels");
        fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
        let path = directory.join("lock");
        let file = File::create(&path).with_context(|| path.display().to_string())?;
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, Errno::EWOULDBLOCK)) => bail!(
                "another `cargo xtask kernels` uses {}; wait for its end",
                directory.display()
            ),
            Err((_, error)) => bail!("lock {}: {error}", path.display()),
        };
        Ok(Self {
            directory,
            _lock: lock,
        })
    }

    /// A place in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The directory `name`, filled with the newest version of what belongs there.
    ///
    /// `newest` is asked once a week for the newest version and what is needed to make it, in a directory for its own use; `fill`
    /// makes it. Where that fails, an older version does.
    ///
    /// # Errors
    /// If there is no older version.
    pub(crate) fn provide<T>(
        &self,
        name: &str,
        newest: impl FnOnce(&Path) -> Result<(String, T)>,
        fill: impl FnOnce(T, &Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let directory = self.path(name);
        let marker = directory.join(VERSION);
        let present = fs::read_to_string(&marker).ok();
        if present.is_some() && is_fresh(&marker) {
            return Ok(directory);
        }
        let work = self.path(&format!("{name}.new"));
        let renewed = renew(&directory, &work, present.as_deref(), newest, fill);
        // Absent if nothing was made there.
        let _ = fs::remove_dir_all(&work);
        match (renewed, present) {
            (Ok(()), _) => {}
            (Err(error), Some(version)) => {
                eprintln!(
                    "kernels: no newer {name} than {version}, which is used: {error:#}",
                    version = version.trim()
                );
            }
            (Err(error), None) => return Err(error.context(format!("fetching {name}"))),
        }
        Ok(directory)
    }
}

fn renew<T>(
    directory: &Path,
    work: &Path,
    present: Option<&str>,
    newest: impl FnOnce(&Path) -> Result<(String, T)>,
    fill: impl FnOnce(T, &Path) -> Result<()>,
) -> Result<()> {
    let _ = fs::remove_dir_all(work);
    let content = work.join("content");
    fs::create_dir_all(&content).with_context(|| content.display().to_string())?;
    let (version, needed) = newest(&work.join("apt"))?;
    if present == Some(&version) {
        // Written again for its time.
        return Ok(fs::write(directory.join(VERSION), version)?);
    }
    fill(needed, &content)?;
    fs::write(content.join(VERSION), version)?;
    if directory.exists() {
        fs::remove_dir_all(directory)?;
    }
    Ok(fs::rename(&content, directory)?)
}

fn is_fresh(marker: &Path) -> bool {
    let age = fs::metadata(marker)
        .and_then(|marker| marker.modified())
        .map(|modified| SystemTime::now().duration_since(modified));
    // A time in the future is of no use.
    age.is_ok_and(|age| age.is_ok_and(|age| age < FRESH))
}
