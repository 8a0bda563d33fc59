//! The pin directory: who may use it, what is in it, and how it comes and goes without a half-way state.
//!
//! Maps are pinned in a staging directory, which one rename makes the real one; removal renames it back first. So a process
//! that is killed at any moment leaves either a complete set of maps or a staging directory, which the next one removes. While the
//! flow table is resized there are two complete sets, which have all but that table in common: see [`super::resize`].

use std::{
    ffi::CString,
    fs::{self, DirBuilder, File},
    io,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::{DirBuilderExt, MetadataExt},
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::{bpf, error::Error, shapes::Opened};

pub(super) const MAPS: &str = "maps";
const STAGING: &str = "maps-new";
const ASIDE: &str = "program-new";
/// What the names of programs begin with that are pinned beside maps: see [`Pins::stage_program`].
const PROGRAM: &str = "program-";

/// What is pinned of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// The link of the XDP program.
    Xdp,
    /// The link of the program on egress.
    Local,
    /// The program of a filter on egress.
    Filter,
    /// A mark of the qdisc of that.
    Qdisc,
}

impl Sort {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Xdp => "link-",
            Self::Local => "local-",
            Self::Filter => "filter-",
            Self::Qdisc => "qdisc-",
        }
    }
}

/// A pin directory that this process has to itself.
#[derive(Clone, Debug)]
pub struct Pins {
    directory: PathBuf,
    /// Held for as long as the instance is open; the kernel lets go of it with the process.
    lock: Arc<Flock<File>>,
}

impl Pins {
    /// Creates the directory if it is not there, and locks it.
    ///
    /// # Errors
    /// When its parent is on no bpffs, or another process has it.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let parent = directory.parent().unwrap_or(directory);
        check_bpffs(parent)?;
        loop {
            match DirBuilder::new().mode(0o700).create(directory) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(Error::file(directory, "creating the pin directory")(error));
                }
                _ => {}
            }
            if let Some(pins) = Self::lock(directory)? {
                return Ok(pins);
            }
        }
    }

    /// Locks the directory if it exists.
    ///
    /// # Errors
    /// When another process has it, or it is on no bpffs: what would be removed from elsewhere is nothing of ours.
    pub fn open_existing(directory: &Path) -> Result<Option<Self>, Error> {
        loop {
            if !directory
                .try_exists()
                .map_err(Error::file(directory, "looking for the pin directory"))?
            {
                return Ok(None);
            }
            check_bpffs(directory)?;
            if let Some(pins) = Self::lock(directory)? {
                return Ok(Some(pins));
            }
        }
    }

    /// None if the directory was removed meanwhile.
    fn lock(directory: &Path) -> Result<Option<Self>, Error> {
        let file =
            File::open(directory).map_err(Error::file(directory, "opening the pin directory"))?;
        Self::lock_opened(directory, file)
    }

    /// Whoever removes the directory holds the lock meanwhile: so what is locked may be gone, and another have its name.
    fn lock_opened(directory: &Path, file: File) -> Result<Option<Self>, Error> {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => {
                let pins = Self {
                    directory: directory.to_owned(),
                    lock: Arc::new(lock),
                };
                Ok(pins.is_in_place().then_some(pins))
            }
            Err((file, Errno::EWOULDBLOCK)) => Err(Error::Busy {
                path: directory.to_owned(),
                pid: holder(&file),
            }),
            Err((_, errno)) => Err(Error::file(directory, "locking the pin directory")(
                errno.into(),
            )),
        }
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether the directory that is locked is there still. Somebody may have removed it, and another may have its name.
    pub fn is_in_place(&self) -> bool {
        let identity = |found: &fs::Metadata| (found.dev(), found.ino());
        let (locked, there) = (self.lock.metadata(), fs::metadata(&self.directory));
        matches!((locked, there), (Ok(locked), Ok(there)) if identity(&locked) == identity(&there))
    }

    /// Whether there is a set of maps.
    pub fn has_maps(&self) -> bool {
        self.maps().is_dir()
    }

    /// Where the maps are.
    pub fn maps(&self) -> PathBuf {
        self.directory.join(MAPS)
    }

    /// A new, empty directory to pin maps in before they are complete. What a killed process left in one goes.
    ///
    /// # Errors
    /// When bpffs refuses.
    pub fn stage_maps(&self) -> Result<PathBuf, Error> {
        self.discard_staged()?;
        let staging = self.staged();
        DirBuilder::new()
            .mode(0o700)
            .create(&staging)
            .map_err(Error::file(&staging, "creating"))?;
        Ok(staging)
    }

    /// Makes the staged maps the instance's maps, in one step.
    ///
    /// # Errors
    /// When bpffs refuses.
    pub fn publish_maps(&self) -> Result<(), Error> {
        let staging = self.staged();
        fs::rename(&staging, self.maps()).map_err(Error::file(&staging, "renaming to `maps`"))
    }

    /// Whether all of these maps are pinned, and no others by their names.
    pub(super) fn has_all(&self, maps: &Opened) -> bool {
        let directory = self.maps();
        maps.iter()
            .all(|(name, map)| is_pinned(map.as_fd(), &directory.join(name)))
    }

    /// Pins those of an instance's maps that are not pinned: if none is, or others have their places, all in one step.
    ///
    /// # Errors
    /// When bpffs refuses.
    pub(super) fn pin_again(&self, maps: &Opened) -> Result<(), Error> {
        let has_maps = self.has_maps();
        let are_others = |(name, map): (&&str, &OwnedFd)| {
            let path = self.maps().join(name);
            path.exists() && !is_pinned(map.as_fd(), &path)
        };
        // Others may be what these were before they were resized, below a bpffs that was mounted over them for a time.
        let is_whole = !has_maps || maps.iter().any(are_others);
        let directory = if is_whole {
            self.stage_maps()?
        } else {
            self.maps()
        };
        for (name, map) in maps {
            let path = directory.join(name);
            if !path.exists() {
                bpf::pin(map.as_fd(), &path).map_err(Error::file(&path, "pinning a map"))?;
            }
        }
        match (is_whole, has_maps) {
            (false, _) => {}
            (true, false) => self.publish_maps()?,
            (true, true) => {
                self.exchange_maps()?;
                self.discard_staged()?;
            }
        }
        Ok(())
    }

    /// Where maps are staged.
    pub fn staged(&self) -> PathBuf {
        staged_in(&self.directory)
    }

    /// Pins a program that is about to run on the staged maps beside them. By that it is known whether they are in use, should this process be killed: to
    /// ask a program that runs for its maps takes CAP_SYS_ADMIN, which a daemon has no need of otherwise.
    ///
    /// # Errors
    /// When bpffs refuses.
    pub fn stage_program(&self, program: BorrowedFd<'_>) -> Result<(), Error> {
        let staging = self.staged();
        let id = bpf::program_id(program)
            .map_err(Error::file(&staging, "asking for the id of a program for"))?;
        let path = staging.join(format!("{PROGRAM}{id}"));
        bpf::pin(program, &path).map_err(Error::file(&path, "pinning the program"))
    }

    /// Unpins programs beside the instance's maps: they were staged with them, and links hold the one that runs.
    ///
    /// # Errors
    /// When bpffs refuses.
    pub fn discard_programs(&self) -> Result<(), Error> {
        for path in programs_beside(&self.maps())? {
            fs::remove_file(&path).map_err(Error::file(&path, "unpinning"))?;
        }
        Ok(())
    }

    /// Makes the staged maps the instance's maps and those the staged ones, in one step.
    ///
    /// # Errors
    /// When bpffs refuses.
    pub fn exchange_maps(&self) -> Result<(), Error> {
        let staging = self.staged();
        rename(&staging, &self.maps(), Rename::Exchange)
            .map_err(Error::file(&staging, "exchanging with `maps`"))
    }

    /// Unpins staged maps. Returns their paths.
    ///
    /// # Errors
    /// When bpffs refuses.
    pub fn discard_staged(&self) -> Result<Vec<PathBuf>, Error> {
        let staging = self.staged();
        let mut removed = Vec::new();
        if !staging.is_dir() {
            return Ok(removed);
        }
        for path in entries(&staging)? {
            fs::remove_file(&path).map_err(Error::file(&path, "unpinning"))?;
            removed.push(path);
        }
        fs::remove_dir(&staging).map_err(Error::file(&staging, "removing"))?;
        Ok(removed)
    }

    /// Unpins the instance's maps. Returns the paths that they had.
    ///
    /// # Errors
    /// When bpffs refuses.
    pub fn discard_maps(&self) -> Result<Vec<PathBuf>, Error> {
        let mut removed = self.discard_staged()?;
        if self.has_maps() {
            // No longer an instance, from this moment on, even if this process dies before it has unpinned them all.
            let (maps, staging) = (self.maps(), self.staged());
            fs::rename(&maps, &staging).map_err(Error::file(&maps, "renaming to `maps-new`"))?;
            removed.extend(self.discard_staged()?.into_iter().map(|path| {
                path.file_name()
                    .map_or_else(|| maps.clone(), |name| maps.join(name))
            }));
        }
        Ok(removed)
    }

    /// Where the link of an interface is pinned.
    pub fn link(&self, interface: &str) -> PathBuf {
        self.of(Sort::Xdp, interface)
    }

    /// Where this is pinned of an interface.
    pub fn of(&self, sort: Sort, interface: &str) -> PathBuf {
        path(&self.directory, sort, interface)
    }

    /// All pinned links: interface name and path, sorted.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn links(&self) -> Result<Vec<(String, PathBuf)>, Error> {
        self.all_of(Sort::Xdp)
    }

    /// All that is pinned of this sort: interface name and path, sorted.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn all_of(&self, sort: Sort) -> Result<Vec<(String, PathBuf)>, Error> {
        pinned(&self.directory, sort)
    }

    /// Pins a program, in the place of the one that is pinned there, if there is one: in one step.
    ///
    /// # Errors
    /// When bpffs refuses.
    pub fn renew(&self, program: BorrowedFd<'_>, path: &Path) -> Result<(), Error> {
        self.renew_once(program, path, || Ok(()))
    }

    /// The same once something is done: a process that is killed before has the program pinned at `path` that was there, and one that is killed after has
    /// the new one pinned there, or aside.
    ///
    /// # Errors
    /// When that fails, and then all is as it was; or bpffs refuses.
    pub(super) fn renew_once(
        &self,
        program: BorrowedFd<'_>,
        path: &Path,
        done: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.discard_aside()?;
        let aside = self.aside();
        bpf::pin(program, &aside).map_err(Error::file(&aside, "pinning the program"))?;
        if let Err(error) = done() {
            self.discard_aside()?;
            return Err(error);
        }
        fs::rename(&aside, path).map_err(Error::file(path, "pinning the program"))
    }

    /// Where a program is pinned that is to have the place of another.
    pub(super) fn aside(&self) -> PathBuf {
        self.directory.join(ASIDE)
    }

    /// Removes what a killed process may have left of [`Pins::renew`].
    ///
    /// # Errors
    /// When bpffs refuses.
    pub fn discard_aside(&self) -> Result<(), Error> {
        let aside = self.aside();
        match fs::remove_file(&aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::file(&aside, "unpinning")(error))
            }
            _ => Ok(()),
        }
    }

    /// Removes the directory, which has to be empty.
    ///
    /// # Errors
    /// When it is not.
    pub fn remove(self) -> Result<(), Error> {
        fs::remove_dir(&self.directory).map_err(Error::file(
            &self.directory,
            "removing the pin directory (anything left in it is not tether's)",
        ))
    }
}

/// Whether a path is this map's.
fn is_pinned(map: BorrowedFd<'_>, path: &Path) -> bool {
    matches!((bpf::map_id(map), bpf::pinned_map(path)), (Ok(map), Ok(found)) if map == found)
}

/// All links that are pinned in a directory, whoever has it: interface name and path, sorted.
///
/// # Errors
/// When the directory cannot be read.
pub fn links(directory: &Path) -> Result<Vec<(String, PathBuf)>, Error> {
    pinned(directory, Sort::Xdp)
}

/// Where something of an interface is pinned below a pin directory.
pub fn path(directory: &Path, sort: Sort, interface: &str) -> PathBuf {
    directory.join(format!("{}{}", sort.prefix(), escape(interface)))
}

fn pinned(directory: &Path, sort: Sort) -> Result<Vec<(String, PathBuf)>, Error> {
    let mut pinned: Vec<_> = entries(directory)?
        .into_iter()
        .filter_map(|path| {
            let name = path.file_name()?.to_str()?.strip_prefix(sort.prefix())?;
            Some((unescape(name), path))
        })
        .collect();
    pinned.sort();
    Ok(pinned)
}

/// What becomes of what has the new name already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rename {
    /// It gets the old one.
    Exchange,
    /// It stays, and the call fails.
    Refuse,
}

/// Renames by renameat2(2), which the C library of static builds does not have.
///
/// # Errors
/// The kernel's.
pub(super) fn rename(from: &Path, to: &Path, how: Rename) -> io::Result<()> {
    // include/uapi/linux/fs.h
    const RENAME_NOREPLACE: libc::c_uint = 1 << 0;
    const RENAME_EXCHANGE: libc::c_uint = 1 << 1;
    let path = |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other);
    let (from, to) = (path(from)?, path(to)?);
    let flags = match how {
        Rename::Exchange => RENAME_EXCHANGE,
        Rename::Refuse => RENAME_NOREPLACE,
    };
    // SAFETY: both paths are C strings that outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            libc::AT_FDCWD,
            from.as_ptr(),
            libc::AT_FDCWD,
            to.as_ptr(),
            flags,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Whether what is to be created in a directory would be on a bpffs; the directory itself need not exist.
///
/// # Errors
/// When it cannot be looked at.
pub fn is_on_bpffs(directory: &Path) -> io::Result<bool> {
    let mut place = Some(directory);
    while let Some(path) = place {
        match statfs(path) {
            Ok(found) => return Ok(found.filesystem_type() == BPF_FS_MAGIC),
            Err(Errno::ENOENT) => place = path.parent(),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(false)
}

/// The programs that are pinned beside maps.
pub(super) fn programs_beside(maps: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = entries(maps)?;
    found.retain(|path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(PROGRAM))
    });
    Ok(found)
}

/// Where maps are staged in a pin directory.
pub(super) fn staged_in(directory: &Path) -> PathBuf {
    directory.join(STAGING)
}

/// Refuses a directory that is on no bpffs.
pub(super) fn check_bpffs(path: &Path) -> Result<(), Error> {
    match statfs(path) {
        Ok(found) if found.filesystem_type() == BPF_FS_MAGIC => Ok(()),
        Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR) => Err(Error::NoBpffs {
            path: path.to_owned(),
        }),
        Err(errno) => Err(Error::file(path, "looking for a bpffs")(errno.into())),
    }
}

/// The process that has locked a file, as the kernel tells. None if that is not to be seen from this process's namespaces, or the lock
/// was given up meanwhile.
fn holder(file: &File) -> Option<u32> {
    let found = file.metadata().ok()?;
    let (major, minor) = (
        nix::sys::stat::major(found.dev()),
        nix::sys::stat::minor(found.dev()),
    );
    let identity = format!("{major:02x}:{minor:02x}:{}", found.ino());
    // `1: FLOCK  ADVISORY  WRITE 4711 00:1a:815 0 EOF`, and `1: -> FLOCK …` for one who waits.
    fs::read_to_string("/proc/locks")
        .ok()?
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find_map(|words| match words[..] {
            [_, "FLOCK", _, _, pid, file, ..] if file == identity => pid.parse().ok(),
            _ => None,
        })
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .map_err(Error::file(directory, "listing"))
}

/// An interface's name as a file name: bpffs reserves dots (`eth0.100` is a VLAN's usual name).
fn escape(interface: &str) -> String {
    interface.replace('%', "%25").replace('.', "%2e")
}

fn unescape(name: &str) -> String {
    name.replace("%2e", ".").replace("%25", "%")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn names_of_interfaces_survive_as_names_of_files(name in "[a-z0-9.%_@-]{1,15}") {
            let escaped = escape(&name);
            prop_assert!(!escaped.contains('.'), "{}", escaped);
            prop_assert_eq!(unescape(&escaped), name);
        }
    }

    #[test]
    fn a_directory_outside_a_bpffs_is_refused_with_the_remedy() {
        let error = Pins::open(Path::new("/proc/self/tether")).unwrap_err();
        assert!(matches!(error, Error::NoBpffs { .. }), "{error}");
        assert!(error.to_string().contains("mount -t bpf bpf /sys/fs/bpf"));
    }

    #[test]
    fn a_directory_that_was_opened_and_removed_is_not_taken_for_the_one_that_has_its_name() {
        let directory = std::env::temp_dir().join(format!("tether-pins-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let removed = File::open(&directory).unwrap();
        fs::remove_dir(&directory).unwrap();
        fs::create_dir(&directory).unwrap();
        assert!(Pins::lock_opened(&directory, removed).unwrap().is_none());
        let there = File::open(&directory).unwrap();
        assert!(Pins::lock_opened(&directory, there).unwrap().is_some());
        fs::remove_dir(&directory).unwrap();
    }

    #[test]
    fn a_directory_whose_parent_is_missing_is_refused_with_the_remedy() {
        let error = Pins::open(Path::new("/proc/no-such-directory/tether")).unwrap_err();
        assert!(matches!(error, Error::NoBpffs { .. }), "{error}");
    }
}
