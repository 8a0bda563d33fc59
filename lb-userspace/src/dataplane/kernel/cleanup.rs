//! Removing every trace of an instance from the kernel.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use super::{attach::discard, bpf::Link, error::Error, local, pins::Pins};

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Interfaces from which a program was detached.
    pub interfaces: Vec<String>,
    /// Pinned maps.
    pub maps: Vec<PathBuf>,
    /// The pin directory.
    pub directory: Option<PathBuf>,
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(directory) = &self.directory else {
            return writeln!(f, "nothing to remove");
        };
        for interface in &self.interfaces {
            writeln!(f, "detached from {interface}")?;
        }
        for map in &self.maps {
            writeln!(f, "removed {}", map.display())?;
        }
        writeln!(f, "removed {}", directory.display())
    }
}

/// Detaches an instance's links, removes its maps, then its pin directory. What is gone already is no error.
///
/// # Errors
/// When a daemon is using the instance, or the kernel refuses; a second call goes on where this one stopped.
pub fn cleanup(bpffs: &Path) -> Result<Removed, Error> {
    let mut removed = Removed::default();
    let Some(pins) = Pins::open_existing(bpffs)? else {
        return Ok(removed);
    };
    for (interface, path) in pins.links()? {
        match Link::from_pin(&path) {
            Ok(link) => {
                // Its interface may be gone, or somebody have detached it: then what is there is not ours.
                let is_attached = link.info().is_ok_and(|info| info.ifindex != 0);
                discard(&link, &path)?;
                if is_attached {
                    removed.interfaces.push(interface);
                }
            }
            // Something else under a link's name: without its pin it is nothing of ours any more.
            Err(_) => fs::remove_file(&path).map_err(Error::file(&path, "unpinning"))?,
        }
    }
    for interface in local::discard_all(&pins)? {
        if !removed.interfaces.contains(&interface) {
            removed.interfaces.push(interface);
        }
    }
    pins.discard_aside()?;
    removed.maps = pins.discard_maps()?;
    pins.remove()?;
    removed.directory = Some(bpffs.to_owned());
    Ok(removed)
}
