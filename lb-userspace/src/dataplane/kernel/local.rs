//! The program on egress (TC) that translates what backends on this host send back: on every interface of the configuration, once there is such a
//! backend, and from then on until cleanup.
//!
//! From Linux 6.6 on it hangs on a TCX link, which is pinned, and replaced atomically, as the XDP program's is. Before that it is a filter in a clsact
//! qdisc, whose priority and handle are fixed; a pin of its program says that it is there, and another that the qdisc is tether's own.
//! Other programs on the same interface stay, whatever they hang on.
//!
//! | pin | what |
//! |---|---|
//! | `local-eth0` | the TCX link |
//! | `filter-eth0` | the program of the filter |
//! | `qdisc-eth0` | a program, for a mark: the clsact qdisc is tether's, and goes with the filter unless others use it then |
//! | `program-new` | the program of a filter whose own pin is behind: it was replaced by a process that was killed then |

mod filter;
mod names;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

pub(super) use self::filter::settle;
use self::filter::{filter_of, put_filter};
use super::{
    attach::discard,
    bpf::{self, Kind, Link},
    device,
    error::Error,
    pins::{self, Pins, Sort},
};
use crate::failpoint;

/// By what means the program is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Means {
    /// A TCX link, or where this kernel has none, a filter.
    #[default]
    Best,
    /// A filter, whatever this kernel has.
    Filter,
}

/// The program, and where it belongs.
#[derive(Debug)]
pub struct LocalReplies(Mutex<Hook>);

#[derive(Debug)]
struct Hook {
    program: Result<OwnedFd, String>,
    pins: Arc<Pins>,
    interfaces: Vec<String>,
    means: Means,
    /// There is, or was, a backend on this host.
    is_wanted: bool,
    /// Links that are kept open, by their interfaces: one whose pin somebody removes, or mounts a bpffs over, stays where it is, and is pinned again.
    held: BTreeMap<String, Link>,
    /// Interfaces whose clsact qdisc is tether's, by index: also once somebody has removed the mark of that.
    qdiscs: BTreeSet<u32>,
}

/// What is pinned of one interface.
#[derive(Debug)]
struct Pinned {
    interface: String,
    sort: Sort,
    path: PathBuf,
}

impl LocalReplies {
    /// With the program, or why the kernel did not take it. It is wanted if it is there already.
    ///
    /// # Errors
    /// When the pins cannot be read.
    pub(super) fn new(
        program: Result<OwnedFd, String>,
        pins: Arc<Pins>,
        interfaces: Vec<String>,
    ) -> Result<Self, Error> {
        let is_wanted = !pinned(&pins)?.is_empty();
        Ok(Self(Mutex::new(Hook {
            program,
            pins,
            interfaces,
            means: Means::default(),
            is_wanted,
            held: BTreeMap::new(),
            qdiscs: BTreeSet::new(),
        })))
    }

    fn hook(&self) -> MutexGuard<'_, Hook> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has it attached by these means, where it is not yet.
    pub fn set_means(&self, means: Means) {
        self.hook().means = means;
    }

    /// Sees to it that what backends on this host send back is translated, on all interfaces that there are. To be asked for before a packet goes to the
    /// first of them; what is in order stays as it is.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn open(&self) -> Result<(), Error> {
        let mut hook = self.hook();
        if hook.is_wanted && hook.is_attached()? {
            return Ok(());
        }
        hook.attach()?;
        hook.is_wanted = true;
        Ok(())
    }

    /// If it is wanted, replaces it, or attaches it, on all interfaces that are configured and there.
    ///
    /// # Errors
    /// When that fails.
    pub(super) fn renew(&self) -> Result<(), Error> {
        let mut hook = self.hook();
        // What the kernel has not taken serves nobody, and who wanted it is told so.
        if hook.is_wanted && hook.program.is_ok() {
            hook.attach()?;
        }
        Ok(())
    }

    /// Takes it off interfaces that are configured no more.
    ///
    /// # Errors
    /// When that fails.
    pub(super) fn discard_others(&self) -> Result<(), Error> {
        let hook = self.hook();
        for pinned in pinned(&hook.pins)? {
            if hook.interfaces.contains(&pinned.interface) {
                continue;
            }
            if pinned.is_elsewhere()? {
                tracing::warn!(
                    interface = pinned.interface, pin = %pinned.path.display(),
                    "this pinned link is attached in another network namespace and is left alone"
                );
                continue;
            }
            pinned.discard()?;
        }
        Ok(())
    }

    /// Whether it is where it is wanted.
    ///
    /// # Errors
    /// When the pins cannot be read.
    pub(super) fn is_in_order(&self) -> Result<bool, Error> {
        let hook = self.hook();
        Ok(!hook.is_wanted || hook.program.is_err() || hook.is_attached()?)
    }
}

impl Hook {
    /// The interfaces that there are, with their indices. By one that is gone nothing leaves, and whoever attaches the XDP program says so: it keeps nobody
    /// from being served by the others.
    fn present(&self) -> impl Iterator<Item = (&String, u32)> {
        let interfaces = self.interfaces.iter();
        interfaces.filter_map(|interface| Some((interface, device::index(interface)?)))
    }

    fn is_attached(&self) -> Result<bool, Error> {
        for (interface, index) in self.present() {
            let is_there = match self.link(interface)? {
                Some(link) => whereabouts(&link, interface)? == Whereabouts::Here(index),
                None => filter_of(&self.pins, interface, index)?,
            };
            if !is_there {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn attach(&mut self) -> Result<(), Error> {
        let program = self.program.as_ref().map_err(|reason| Error::NoLocal {
            reason: reason.clone(),
        })?;
        // The kernel takes no program twice on one interface: a link that is there already has to be found.
        follow_names(&self.pins)?;
        let (mut outcome, mut held) = (Ok(()), Vec::new());
        for (interface, index) in self.present() {
            match self.attach_to(program.as_fd(), interface, index) {
                Ok(link) => held.extend(link.map(|link| (interface.clone(), link))),
                // What is wrong with one keeps no other from it.
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        let is_own = |interface: &str| self.pins.of(Sort::Qdisc, interface).exists();
        let own = self.present().filter(|(interface, _)| is_own(interface));
        let own: Vec<u32> = own.map(|(_, index)| index).collect();
        self.qdiscs.extend(own);
        self.held.extend(held);
        outcome
    }

    /// Gives the link that holds it there; none if it is a filter.
    fn attach_to(
        &self,
        program: BorrowedFd<'_>,
        interface: &str,
        index: u32,
    ) -> Result<Option<Link>, Error> {
        let failed = |source| Error::AttachLocal {
            interface: interface.to_owned(),
            source,
        };
        let path = self.pins.of(Sort::Local, interface);
        if !path.exists()
            && let Some(link) = self.held.get(interface)
            && whereabouts(link, interface)? == Whereabouts::Here(index)
        {
            link.pin(&path)
                .map_err(Error::file(&path, "pinning the link again"))?;
        }
        if let Some(link) = self.link(interface)? {
            match whereabouts(&link, interface)? {
                Whereabouts::Here(found) if found == index => {
                    link.update(program).map_err(failed)?;
                    return Ok(Some(link));
                }
                Whereabouts::Here(_) | Whereabouts::Nowhere => discard(&link, &path)?,
                Whereabouts::Elsewhere => {
                    return Err(Error::Elsewhere {
                        interface: interface.to_owned(),
                        path,
                    });
                }
            }
        }
        let has_filter = self.pins.of(Sort::Filter, interface).exists();
        if self.means == Means::Best && !has_filter {
            match Link::create_egress(program, index) {
                Ok(link) => {
                    failpoint::pass(failpoint::Place::ReplyLinkAttached);
                    link.pin(&path)
                        .map_err(Error::file(&path, "pinning the link"))?;
                    return Ok(Some(link));
                }
                // Linux before 6.6 knows no such link.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        self.set_filter(program, interface, index)?;
        Ok(None)
    }

    /// The pinned link of an interface.
    fn link(&self, interface: &str) -> Result<Option<Link>, Error> {
        let path = self.pins.of(Sort::Local, interface);
        if !path.exists() {
            return Ok(None);
        }
        open_link(&path).map(Some)
    }
}

/// The id of the program on an interface's egress that is held by a link, by the pins in a directory, which is only read. None if there is no such link.
pub fn linked(bpffs: &Path, interface: &str) -> Option<u32> {
    let link = open_link(&pins::path(bpffs, Sort::Local, interface)).ok()?;
    Some(link.info().ok()?.program)
}

fn open_link(path: &Path) -> Result<Link, Error> {
    Link::from_pin_of(path, Kind::Tcx).map_err(|source| match source.raw_os_error() {
        Some(libc::EINVAL) => Error::Damaged {
            path: path.to_owned(),
            what: "it is no TCX link".into(),
        },
        _ => Error::file(path, "opening the pinned link")(source),
    })
}

/// The same; none if something else is under a link's name, of which whoever attaches there says so.
fn open_sound(path: &Path) -> Result<Option<Link>, Error> {
    match open_link(path) {
        Err(Error::Damaged { .. }) => Ok(None),
        link => link.map(Some),
    }
}

/// Where a link is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whereabouts {
    /// To the interface with this index, in this network namespace.
    Here(u32),
    /// To an interface in another network namespace.
    Elsewhere,
    /// Nowhere: its interface is gone, or somebody detached it.
    Nowhere,
}

/// Where a link is that is pinned for an interface.
fn whereabouts(link: &Link, interface: &str) -> Result<Whereabouts, Error> {
    let failed = |source| Error::Device {
        interface: interface.to_owned(),
        doing: "asking for its programs on egress",
        source,
    };
    let info = link.info().map_err(failed)?;
    if info.ifindex == 0 {
        return Ok(Whereabouts::Nowhere);
    }
    match bpf::programs_of(info.ifindex, bpf::BPF_TCX_EGRESS) {
        Ok(programs) if programs.contains(&info.program) => Ok(Whereabouts::Here(info.ifindex)),
        Err(error) if error.raw_os_error() != Some(libc::ENODEV) => Err(failed(error)),
        _ => Ok(Whereabouts::Elsewhere),
    }
}

/// Gives links, and the marks of filters and of their qdiscs, the names that their interfaces have by now.
///
/// # Errors
/// When the kernel cannot be asked, or bpffs refuses.
pub(super) fn follow_names(pins: &Pins) -> Result<(), Error> {
    names::follow_links(pins)?;
    names::follow_filters(pins)
}

/// All that is pinned, the filters before their qdiscs.
fn pinned(pins: &Pins) -> Result<Vec<Pinned>, Error> {
    let mut all = Vec::new();
    for sort in [Sort::Local, Sort::Filter, Sort::Qdisc] {
        for (interface, path) in pins.all_of(sort)? {
            all.push(Pinned {
                interface,
                sort,
                path,
            });
        }
    }
    Ok(all)
}

impl Pinned {
    /// Whether it is a link that is attached in another network namespace. (Filters are looked for in this one only.)
    fn is_elsewhere(&self) -> Result<bool, Error> {
        match self.sort {
            Sort::Local => match open_sound(&self.path)? {
                Some(link) => Ok(whereabouts(&link, &self.interface)? == Whereabouts::Elsewhere),
                None => Ok(false),
            },
            Sort::Xdp | Sort::Filter | Sort::Qdisc => Ok(false),
        }
    }

    /// Undoes it, and removes the pin.
    fn discard(&self) -> Result<(), Error> {
        let Self { sort, path, .. } = self;
        match sort {
            Sort::Xdp => return Ok(()),
            Sort::Local => match open_link(path) {
                Ok(link) => return discard(&link, path),
                // Something else under a link's name: without its pin it is nothing of ours any more.
                Err(error) => tracing::debug!(%error, "a pin is removed"),
            },
            Sort::Filter => self.remove_filter().map_err(self.failed())?,
            Sort::Qdisc => self.remove_qdisc().map_err(self.failed())?,
        }
        fs::remove_file(path).map_err(Error::file(path, "unpinning"))
    }

    fn failed(&self) -> impl FnOnce(io::Error) -> Error {
        Error::file(&self.path, "removing what is marked by it")
    }
}

/// Replaces the program wherever it is, each atomically, by one that the kernel has taken.
///
/// # Errors
/// When the kernel refuses one.
pub(super) fn switch_all(pins: &Pins, program: Result<BorrowedFd<'_>, &str>) -> Result<(), Error> {
    let Ok(program) = program else {
        return Ok(());
    };
    for pinned in pinned(pins)? {
        let failed = |source| Error::AttachLocal {
            interface: pinned.interface.clone(),
            source,
        };
        match pinned.sort {
            Sort::Xdp | Sort::Qdisc => {}
            Sort::Local => {
                let Some(link) = open_sound(&pinned.path)? else {
                    continue;
                };
                match link.update(program) {
                    // Its interface is gone, and no packet meets its program.
                    Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
                    updated => updated.map_err(failed)?,
                }
            }
            Sort::Filter => {
                let Some(index) = device::index(&pinned.interface) else {
                    continue;
                };
                if filter_of(pins, &pinned.interface, index)? {
                    put_filter(pins, program, &pinned.interface, index)?;
                }
            }
        }
    }
    Ok(())
}

/// Removes all of it. Gives the interfaces.
///
/// # Errors
/// When the kernel refuses; a second call goes on where this one stopped.
pub(super) fn discard_all(pins: &Pins) -> Result<Vec<String>, Error> {
    settle(pins)?;
    follow_names(pins)?;
    let mut interfaces = Vec::new();
    for pinned in pinned(pins)? {
        pinned.discard()?;
        if !interfaces.contains(&pinned.interface) {
            interfaces.push(pinned.interface);
        }
    }
    Ok(interfaces)
}
