//! One daemon for a state directory: a locked file with the daemon's pid in it.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

/// Name of the locked file in the state directory.
const LOCK: &str = "lock";
/// Name of the admin socket in the state directory.
pub const SOCKET: &str = "admin.sock";

/// Why a state directory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another daemon has it.
    #[error(
        "{}: the state directory belongs to a running daemon{}; stop that one first (its flows stay), or give this one a `state_dir`, and a `bpffs`, of its own",
        path.display(),
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    Taken {
        /// The directory.
        path: PathBuf,
        /// Process id of the daemon, if it wrote it yet.
        pid: Option<u32>,
    },
    /// A file operation failed.
    #[error("{}: {doing}: {source}; run as root, or set `state_dir` to a directory that can be written", path.display())]
    File {
        /// What it was about.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

/// A state directory that is ours. Dropping it gives it up and leaves its files, as the end of the process does.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    lock: Flock<File>,
}

impl StateDir {
    /// Takes a state directory, which is made if there is none.
    ///
    /// # Errors
    /// When another process has it, or it cannot be made or written.
    pub fn take(path: &Path) -> Result<Self, Error> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(failed(path, "creating the state directory"))?;
        let file_path = path.join(LOCK);
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&file_path)
                .map_err(failed(&file_path, "opening the lock"))?;
            let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => lock,
                Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
                    let mut text = String::new();
                    // Without its pid the message is still true.
                    let pid = file
                        .read_to_string(&mut text)
                        .ok()
                        .and_then(|_| text.trim().parse().ok());
                    return Err(Error::Taken {
                        path: path.to_owned(),
                        pid,
                    });
                }
                Err((_, errno)) => {
                    return Err(failed(&file_path, "locking")(errno.into()));
                }
            };
            // Who removes the directory holds the lock meanwhile: what we locked may be a file that is gone.
            if !is_at(&lock, &file_path) {
                continue;
            }
            // It is for a message alone: a full disk is no reason to leave the data path to itself.
            if let Err(error) = write_pid(&mut lock) {
                tracing::warn!(file = %file_path.display(), %error, "the lock is held, and its process id could not be written to it");
            }
            return Ok(Self {
                path: path.to_owned(),
                lock,
            });
        }
    }

    /// Takes the directory again if somebody has removed it, or the lock in it. True if that was so.
    ///
    /// # Errors
    /// As [`StateDir::take`].
    pub fn retake(&mut self) -> Result<bool, Error> {
        if is_at(&self.lock, &self.path.join(LOCK)) {
            return Ok(false);
        }
        *self = Self::take(&self.path)?;
        Ok(true)
    }

    /// Path of the admin socket.
    pub fn socket(&self) -> PathBuf {
        self.path.join(SOCKET)
    }

    /// Removes what a daemon keeps in the directory, and the directory if nothing else is in it. `kept` names the files beside lock and socket.
    ///
    /// # Errors
    /// When one of the files cannot be removed.
    pub fn remove(self, kept: &[&str]) -> Result<(), Error> {
        // The lock goes last: until then nobody else can have the directory.
        for name in kept.iter().chain(&[SOCKET, LOCK]) {
            let file = self.path.join(name);
            match fs::remove_file(&file) {
                Ok(()) => (),
                Err(error) if error.kind() == io::ErrorKind::NotFound => (),
                Err(error) => return Err(failed(&file, "removing")(error)),
            }
        }
        match fs::remove_dir(&self.path) {
            Ok(()) => Ok(()),
            // It is the operator's, with things of theirs in it, or another daemon has just begun to use it.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(failed(&self.path, "removing")(error)),
        }
    }
}

/// Whether an open file is the one at `path`.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(held), Ok(found)) => (held.dev(), held.ino()) == (found.dev(), found.ino()),
        _ => false,
    }
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

fn failed(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File {
        path,
        doing,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(test: &str) -> PathBuf {
        std::env::temp_dir().join(format!("tether-lock-{}-{test}", std::process::id()))
    }

    #[test]
    fn a_second_daemon_is_told_the_pid_of_the_first() {
        let path = directory("second");
        let first = StateDir::take(&path).unwrap();
        let error = StateDir::take(&path).unwrap_err().to_string();
        assert!(
            error.contains(&format!("(pid {})", std::process::id())),
            "{error}"
        );
        drop(first);
        StateDir::take(&path).unwrap().remove(&[]).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_directory_that_was_removed_is_taken_again_unless_another_has_it() {
        let path = directory("removed");
        let mut state = StateDir::take(&path).unwrap();
        assert!(!state.retake().unwrap());
        fs::remove_dir_all(&path).unwrap();
        assert!(state.retake().unwrap());
        assert!(!state.retake().unwrap());
        StateDir::take(&path).unwrap_err();

        fs::remove_file(path.join(LOCK)).unwrap();
        let other = StateDir::take(&path).unwrap();
        let error = state.retake().unwrap_err();
        assert!(matches!(error, Error::Taken { .. }), "{error}");
        drop(state);
        other.remove(&[]).unwrap();
    }

    #[test]
    fn a_lock_that_nothing_can_be_written_to_is_a_lock() {
        let path = directory("full");
        fs::create_dir_all(&path).unwrap();
        std::os::unix::fs::symlink("/dev/full", path.join(LOCK)).unwrap();
        let mut state = StateDir::take(&path).unwrap();
        assert!(!state.retake().unwrap());
        state.remove(&[]).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn what_is_not_ours_stays_in_the_directory() {
        let path = directory("foreign");
        let state = StateDir::take(&path).unwrap();
        fs::write(path.join("memory"), "ours").unwrap();
        fs::write(path.join("letter"), "theirs").unwrap();
        state.remove(&["memory"]).unwrap();
        let left: Vec<_> = fs::read_dir(&path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["letter"]);
        fs::remove_dir_all(&path).unwrap();
    }
}
