//! Links: a program on interfaces, so that it stays there, is replaced atomically, and is found again.
//!
//! A link that was created but is not yet pinned goes away with its process, and a pinned one stays: a kill at any moment leaves an
//! interface either attached by a pinned link or not at all.

use std::{
    fs, io,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
};

use super::{
    bpf::{Link, LinkInfo, XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE, pinned_program},
    device::{self, XdpState},
    error::Error,
    pins::{Pins, Rename, links, programs_beside, rename, staged_in},
    shapes::possible_cpus,
};
use crate::failpoint;

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// By the driver, before anything else.
    Native,
    /// By the network stack, on packets that it has made copies of: several times slower.
    Generic,
}

/// An interface with the program on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Its name.
    pub interface: String,
    /// How.
    pub mode: XdpMode,
    /// Why it is generic, or what else an operator should know; it was logged too.
    pub warning: Option<String>,
    /// The link's id: the same after a replacement.
    pub link: u32,
}

/// How an interface was found, and left.
#[derive(Debug)]
pub enum Seen {
    /// The program was on it.
    Still(XdpMode),
    /// It was not, and is now.
    Again(Attached),
    /// It is not: why.
    Not(Error),
}

/// A link that is pinned.
struct Pinned {
    interface: String,
    path: PathBuf,
    link: Link,
    info: LinkInfo,
    place: Place,
}

/// Where a link is attached.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// To the interface with its index, in this network namespace.
    Here,
    /// To an interface in another network namespace.
    Elsewhere,
    /// Nowhere: its interface is gone, or somebody detached it.
    Nowhere,
}

/// What is to be done with one interface.
enum Step {
    /// Replace the program of the pinned link at this position.
    Replace(usize, XdpState),
    /// Attach anew to this index.
    Fresh(u32),
}

/// Attaches `program` to `interfaces` and detaches the other links of this pin directory. An interface that has gone since a program was attached to it keeps
/// no other from it: what a daemon that runs goes on without is nothing that the next one may not begin without.
///
/// # Errors
/// When one interface cannot be attached, or all have gone. What this call made is undone.
pub(super) fn attach_all(
    pins: &Pins,
    program: BorrowedFd<'_>,
    interfaces: &[String],
) -> Result<Vec<Attached>, Error> {
    let attached = attach(pins, program, interfaces)?;
    for pinned in pinned_links(pins.directory())? {
        if interfaces.contains(&pinned.interface) {
            continue;
        }
        if pinned.place == Place::Elsewhere {
            tracing::warn!(
                interface = pinned.interface, pin = %pinned.path.display(),
                "this pinned link is attached in another network namespace and is left alone"
            );
            continue;
        }
        discard(&pinned.link, &pinned.path)?;
        tracing::info!(
            interface = pinned.interface,
            "detached: no longer configured"
        );
    }
    Ok(attached)
}

/// Whether a pinned link holds the program on each of `interfaces`.
///
/// # Errors
/// When the pins cannot be read.
pub(super) fn is_attached(pins: &Pins, interfaces: &[String]) -> Result<bool, Error> {
    let pinned = pinned_links(pins.directory())?;
    Ok(interfaces
        .iter()
        .all(|interface| matches!(step(interface, &pinned), Ok(Step::Replace(..)))))
}

/// Attaches `program` to `interfaces`; other links stay.
///
/// # Errors
/// As [`attach_all`].
pub(super) fn attach(
    pins: &Pins,
    program: BorrowedFd<'_>,
    interfaces: &[String],
) -> Result<Vec<Attached>, Error> {
    let mut pinned = pinned_links(pins.directory())?;
    // All interfaces are looked at before the first is touched: an error found here has changed nothing.
    let (mut steps, mut gone) = (Vec::new(), None);
    for interface in interfaces {
        match step(interface, &pinned) {
            Ok(step) => steps.push((interface, step)),
            Err(error @ Error::NoInterface { .. }) if has_gone(interface, &pinned) => {
                gone = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    if let Some(error) = gone {
        if steps.is_empty() {
            return Err(error);
        }
        tracing::warn!(%error, "an interface has gone since the program was attached to it; the others have theirs replaced without it");
    }

    let mut attached = Vec::new();
    let mut fresh = Vec::new();
    for (interface, step) in &steps {
        if let Step::Replace(at, state) = step {
            attached.push(replace(pins, program, interface, &mut pinned, *at, *state)?);
        }
    }
    for (interface, step) in &steps {
        if let Step::Fresh(index) = step {
            match attach_fresh(pins, program, interface, *index, &pinned) {
                Ok((link, one)) => {
                    attached.push(one);
                    fresh.push((link, pins.link(interface)));
                }
                Err(error) => {
                    for (link, path) in &fresh {
                        if let Err(error) = discard(link, path) {
                            tracing::error!(%error, "undoing an attachment failed");
                        }
                    }
                    return Err(error);
                }
            }
        }
    }
    attached.sort_by_key(|one| interfaces.iter().position(|name| *name == one.interface));
    Ok(attached)
}

/// Attaches `program` to those of `interfaces` that do not have it. What is wrong with one keeps no other from it.
///
/// # Errors
/// When the pins cannot be read, or get no names.
pub(super) fn attach_each(
    pins: &Pins,
    program: BorrowedFd<'_>,
    interfaces: &[String],
) -> Result<Vec<(String, Seen)>, Error> {
    let mut pinned = pinned_links(pins.directory())?;
    let steps: Vec<Result<Step, Error>> = interfaces
        .iter()
        .map(|interface| step(interface, &pinned))
        .collect();
    // Before any link is made, which takes a pin that has its interface's name for a stale one.
    for (interface, step) in interfaces.iter().zip(&steps) {
        if let Ok(Step::Replace(at, _)) = step {
            settle_name(pins, interface, &mut pinned, *at)?;
        }
    }
    let see = |(interface, step): (&String, Result<Step, Error>)| {
        let seen = match step {
            Ok(Step::Replace(_, state)) => Seen::Still(mode_of(state)),
            Ok(Step::Fresh(index)) => {
                match attach_fresh(pins, program, interface, index, &pinned) {
                    Ok((_, attached)) => Seen::Again(attached),
                    Err(error) => Seen::Not(error),
                }
            }
            Err(error) => Seen::Not(error),
        };
        (interface.clone(), seen)
    };
    Ok(interfaces.iter().zip(steps).map(see).collect())
}

/// Opens the links that hold a program on an interface of this network namespace, with the interface's names. For as long as one is open, the program stays
/// there, whatever becomes of the pin.
///
/// # Errors
/// When the pins cannot be read.
pub(super) fn hold(pins: &Pins) -> Result<Vec<(String, Link)>, Error> {
    let pinned = pinned_links(pins.directory())?.into_iter();
    Ok(pinned
        .filter(|pinned| pinned.place == Place::Here)
        .map(|pinned| (pinned.interface, pinned.link))
        .collect())
}

/// Pins such links again whose pins are gone: somebody has removed them, or mounted a bpffs over theirs. They get `program`, which may have come to the
/// pinned ones meanwhile.
///
/// # Errors
/// When the pins cannot be read, or made.
pub(super) fn pin_again(
    pins: &Pins,
    program: BorrowedFd<'_>,
    held: &[(String, Link)],
) -> Result<(), Error> {
    let pinned = pinned_links(pins.directory())?;
    for (interface, link) in held {
        let info = link
            .info()
            .map_err(device_error(interface, "asking for its link"))?;
        let path = pins.link(interface);
        let is_pinned = pinned
            .iter()
            .any(|pinned| pinned.info.id == info.id || pinned.path == path);
        if !is_pinned && place_of(interface, &info)? == Place::Here {
            // What is pinned counts as what has the program: so that comes last.
            link.update(program)
                .and_then(|()| link.pin(&path))
                .map_err(Error::file(&path, "pinning the link again"))?;
            tracing::warn!(
                interface,
                "the pin of the interface's link was removed; it is pinned again"
            );
        }
    }
    Ok(())
}

/// How a program is attached that was found on an interface.
fn mode_of(state: XdpState) -> XdpMode {
    match state {
        XdpState::Generic(_) => XdpMode::Generic,
        XdpState::None | XdpState::Native(_) | XdpState::Other(_) => XdpMode::Native,
    }
}

/// Replaces the program of all pinned links, on whatever interfaces, each atomically. `after_each` is told.
///
/// # Errors
/// When the kernel refuses one.
pub(super) fn switch_all(
    pins: &Pins,
    program: BorrowedFd<'_>,
    after_each: &mut dyn FnMut(),
) -> Result<(), Error> {
    for pinned in pinned_links(pins.directory())? {
        match pinned.link.update(program) {
            // Its interface is gone, and no packet meets its program.
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
            Err(error) => {
                return Err(Error::file(&pinned.path, "replacing the link's program")(
                    error,
                ));
            }
            Ok(()) => after_each(),
        }
    }
    Ok(())
}

/// Whether a link that is pinned in a directory runs a program that was made for the maps that are staged there.
///
/// # Errors
/// When pins cannot be read.
pub(super) fn runs_staged(pins: &Path) -> Result<bool, Error> {
    let links = pinned_links(pins)?;
    for path in programs_beside(&staged_in(pins))? {
        let program = pinned_program(&path).map_err(Error::file(&path, "opening the program"))?;
        if links.iter().any(|pinned| pinned.info.program == program) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Detaches a link and removes its pin.
pub(super) fn discard(link: &Link, path: &PathBuf) -> Result<(), Error> {
    link.detach()
        .map_err(Error::file(path, "detaching the link"))?;
    failpoint::pass(failpoint::Place::LinkDetached);
    fs::remove_file(path).map_err(Error::file(path, "unpinning the link"))
}

fn pinned_links(pins: &Path) -> Result<Vec<Pinned>, Error> {
    links(pins)?
        .into_iter()
        .map(|(interface, path)| {
            let (link, info) = Link::from_pin(&path)
                .and_then(|link| link.info().map(|info| (link, info)))
                .map_err(|source| match source.raw_os_error() {
                    Some(libc::EINVAL) => Error::Damaged {
                        path: path.clone(),
                        what: "it is no XDP link".into(),
                    },
                    _ => Error::file(&path, "opening the pinned link")(source),
                })?;
            let place = place_of(&interface, &info)?;
            Ok(Pinned {
                interface,
                path,
                link,
                info,
                place,
            })
        })
        .collect()
}

fn place_of(interface: &str, info: &LinkInfo) -> Result<Place, Error> {
    if info.ifindex == 0 {
        return Ok(Place::Nowhere);
    }
    let state =
        device::xdp(info.ifindex).map_err(device_error(interface, "asking for its XDP program"))?;
    let is_here = state.is_some_and(|state| state.program() == Some(info.program));
    Ok(if is_here {
        Place::Here
    } else {
        Place::Elsewhere
    })
}

fn device_error(interface: &str, doing: &'static str) -> impl FnOnce(io::Error) -> Error {
    let interface = interface.to_owned();
    move |source| Error::Device {
        interface,
        doing,
        source,
    }
}

fn step(interface: &str, pinned: &[Pinned]) -> Result<Step, Error> {
    let missing = || Error::NoInterface {
        interface: interface.to_owned(),
    };
    let index = device::index(interface).ok_or_else(missing)?;
    let state = device::xdp(index)
        .map_err(device_error(interface, "asking for its XDP program"))?
        .ok_or_else(missing)?;
    // By index and not by name: an interface may have been renamed since.
    let ours = pinned
        .iter()
        .position(|pinned| pinned.place == Place::Here && pinned.info.ifindex == index);
    if let Some(at) = ours {
        return Ok(Step::Replace(at, state));
    }
    if let Some(program) = state.program() {
        return Err(foreign(interface, program));
    }
    let nature =
        device::nature(index).map_err(device_error(interface, "asking what sort it is"))?;
    if let Some(bond) = nature.port_of_bond {
        return Err(Error::BondPort {
            interface: interface.to_owned(),
            bond: device::name(bond),
        });
    }
    match pinned
        .iter()
        .find(|pinned| pinned.interface == interface && pinned.place == Place::Elsewhere)
    {
        Some(pinned) => Err(Error::Elsewhere {
            interface: interface.to_owned(),
            path: pinned.path.clone(),
        }),
        None => Ok(Step::Fresh(index)),
    }
}

/// Whether a program was attached to the interface of this name, and the interface went away with it.
fn has_gone(interface: &str, pinned: &[Pinned]) -> bool {
    pinned
        .iter()
        .any(|pinned| pinned.interface == interface && pinned.place == Place::Nowhere)
}

fn foreign(interface: &str, program: u32) -> Error {
    let name = aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .find(|info| info.id() == program)
        .and_then(|info| info.name_as_str().map(str::to_owned));
    Error::Foreign {
        interface: interface.to_owned(),
        program,
        name,
    }
}

fn replace(
    pins: &Pins,
    program: BorrowedFd<'_>,
    interface: &str,
    pinned: &mut [Pinned],
    at: usize,
    state: XdpState,
) -> Result<Attached, Error> {
    failpoint::pass(failpoint::Place::ProgramOld);
    pinned[at].link.update(program).map_err(|source| {
        if source.raw_os_error() == Some(libc::ENOLINK) {
            Error::NoInterface {
                interface: interface.to_owned(),
            }
        } else {
            Error::Attach {
                interface: interface.to_owned(),
                source,
            }
        }
    })?;
    failpoint::pass(failpoint::Place::ProgramReplaced);
    settle_name(pins, interface, pinned, at)?;
    let mode = mode_of(state);
    let warning = match mode {
        XdpMode::Generic => {
            let reason = "it was attached in generic mode before; `tether cleanup` and a new start try native mode again";
            let merging = device::merging(interface)
                .map_err(device_error(interface, "reading its offloads"))?;
            let warning = match merging {
                Some(merging) => format!(
                    "{reason}; {merging} is on and merges packets before tether sees them: turn it off (`ethtool -K {interface} gro off lro off`)"
                ),
                None => reason.to_owned(),
            };
            Some(warning)
        }
        XdpMode::Native => None,
    };
    if let Some(warning) = &warning {
        tracing::warn!(interface, "generic mode: {warning}");
    }
    Ok(Attached {
        interface: interface.to_owned(),
        mode,
        warning,
        link: pinned[at].info.id,
    })
}

/// Gives a pinned link the name of its interface, should that have been renamed since.
fn settle_name(
    pins: &Pins,
    interface: &str,
    pinned: &mut [Pinned],
    at: usize,
) -> Result<(), Error> {
    let wanted = pins.link(interface);
    if pinned[at].path == wanted {
        return Ok(());
    }
    let holder = pinned.iter().position(|pinned| pinned.path == wanted);
    // Exchanged, and not replaced: the other pin may be that of an interface which now bears another name itself.
    let how = match holder {
        Some(_) => Rename::Exchange,
        None => Rename::Refuse,
    };
    rename(&pinned[at].path, &wanted, how).map_err(Error::file(
        &pinned[at].path,
        "giving the pin its interface's new name",
    ))?;
    let old_path = std::mem::replace(&mut pinned[at].path, wanted);
    let old_name = std::mem::replace(&mut pinned[at].interface, interface.to_owned());
    if let Some(holder) = holder {
        pinned[holder].path = old_path;
        pinned[holder].interface = old_name;
    }
    Ok(())
}

fn attach_fresh(
    pins: &Pins,
    program: BorrowedFd<'_>,
    interface: &str,
    index: u32,
    pinned: &[Pinned],
) -> Result<(Link, Attached), Error> {
    let (link, mode, warning) = create_link(program, interface, index)?;
    let failed = |source| Error::Attach {
        interface: interface.to_owned(),
        source,
    };
    let info = link.info().map_err(failed)?;
    let path = pins.link(interface);
    if let Some(stale) = pinned.iter().find(|pinned| pinned.path == path) {
        discard(&stale.link, &stale.path)?;
    }
    failpoint::pass(failpoint::Place::LinkAttached);
    link.pin(&path)
        .map_err(Error::file(&path, "pinning the link"))?;
    failpoint::pass(failpoint::Place::LinkPinned);
    if let Some(warning) = &warning {
        tracing::warn!(interface, "generic mode: {warning}");
    }
    Ok((
        link,
        Attached {
            interface: interface.to_owned(),
            mode,
            warning,
            link: info.id,
        },
    ))
}

fn create_link(
    program: BorrowedFd<'_>,
    interface: &str,
    index: u32,
) -> Result<(Link, XdpMode, Option<String>), Error> {
    let refused = |source: io::Error| match source.raw_os_error() {
        // Somebody attached a program since this interface was looked at.
        Some(libc::EBUSY | libc::EEXIST) => {
            let program = device::xdp(index)
                .ok()
                .flatten()
                .and_then(XdpState::program)
                .unwrap_or(0);
            foreign(interface, program)
        }
        Some(libc::ENODEV) => Error::NoInterface {
            interface: interface.to_owned(),
        },
        _ => Error::Attach {
            interface: interface.to_owned(),
            source,
        },
    };
    let queues = device::virtio_queues(interface)
        .map_err(device_error(interface, "asking for its driver and queues"))?;
    let cpus = possible_cpus()?;
    if let Some(queues) = queues
        && queues.crash_virtio(cpus)
    {
        return Err(Error::VirtioQueues {
            interface: interface.to_owned(),
            combined: queues.combined,
            maximum: queues.maximum,
            cpus,
        });
    }
    let native_error = match Link::create(program, index, XDP_FLAGS_DRV_MODE) {
        Ok(link) => return Ok((link, XdpMode::Native, None)),
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EBUSY | libc::EEXIST | libc::ENODEV | libc::EPERM)
            ) =>
        {
            return Err(refused(error));
        }
        Err(error) => error,
    };
    let nature =
        device::nature(index).map_err(device_error(interface, "asking what sort it is"))?;
    let reason = match nature.vlan_on {
        Some(parent) => format!(
            "it is a VLAN device, which has no native XDP; tether reads VLAN tags itself, so put {} into `interfaces` in its place",
            device::name(parent)
        ),
        None => why_not_native(&native_error),
    };
    let merging =
        device::merging(interface).map_err(device_error(interface, "reading its offloads"))?;
    if let Some(merging) = merging {
        return Err(Error::Merging {
            interface: interface.to_owned(),
            reason,
            merging,
        });
    }
    Link::create(program, index, XDP_FLAGS_SKB_MODE)
        .map(|link| {
            let warning = format!("{reason}; expect a fraction of the packet rate");
            (link, XdpMode::Generic, Some(warning))
        })
        .map_err(refused)
}

fn why_not_native(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => "its driver has no native XDP".into(),
        Some(libc::EINVAL | libc::ERANGE | libc::E2BIG) => format!(
            "its driver refuses native XDP as the interface is set up, most often for its MTU or an offload ({error}; the kernel log may say more)"
        ),
        Some(libc::ENOMEM | libc::ENOSPC) => format!(
            "its driver has too few queues or too little memory for native XDP ({error}; fewer queues may help: `ethtool -L`)"
        ),
        _ => format!("its driver refuses native XDP ({error})"),
    }
}
