//! Whether this program can take over what is pinned: a look that changes nothing, and may be had while a daemon runs.

use std::{
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use lb_common::{
    flow::{v4, v6},
    maps::{self as names, FLOWS4},
};
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    Options, attach,
    error::Error,
    migrate::Foreign,
    pins::{self, MAPS},
    resize, shapes,
};
use crate::dataplane::{
    maps::{Capacity, Maps, now},
    table::TableKey,
};

/// What a start of this program would do with the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// There are none: it would make them.
    Nothing,
    /// They are of this version: it would go on with them, and replace the program of each link atomically.
    Same,
    /// They are of another version: it would take over what is in them.
    Migratable,
    /// It would refuse to start, and leave them and the forwarding as they are.
    Refused,
}

/// What there is, and what would come of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct UpgradeCheck {
    /// What a start would do.
    pub verdict: Verdict,
    /// Version of this program's layouts.
    pub own_version: u32,
    /// Version of the pinned maps' layouts, if there are any.
    pub pinned_version: Option<u32>,
    /// The pin directory.
    pub bpffs: PathBuf,
    /// Services in the maps.
    pub services: usize,
    /// Backends in the maps, those that are gone from the configuration and drain among them.
    pub backends: usize,
    /// Flows in the maps that would be kept.
    pub flows: u64,
    /// What these maps have and this version does not know: it would be left behind, and would be zero after a way back.
    pub dropped: Vec<String>,
    /// Whether a migration or a resize was interrupted and would be completed first.
    pub interrupted: bool,
    /// Why it would refuse, and what to do.
    pub why: Option<String>,
}

/// Looks.
///
/// # Errors
/// When the directory is on no bpffs, or the kernel refuses to show what is in it.
pub fn upgrade_check(bpffs: &Path) -> Result<UpgradeCheck, Error> {
    let mut check = UpgradeCheck {
        verdict: Verdict::Nothing,
        own_version: names::ABI_VERSION,
        pinned_version: None,
        bpffs: bpffs.to_owned(),
        services: 0,
        backends: 0,
        flows: 0,
        dropped: vec![],
        interrupted: false,
        why: None,
    };
    pins::check_bpffs(bpffs.parent().unwrap_or(bpffs))?;
    let maps = bpffs.join(MAPS);
    let is_there = maps
        .try_exists()
        .map_err(Error::file(&maps, "looking for pinned maps"))?;
    if !is_there {
        return Ok(check);
    }
    check.pinned_version = Some(shapes::pinned_version(&maps)?);
    match look(bpffs, &mut check) {
        Ok(verdict) => check.verdict = verdict,
        Err(
            error @ (Error::Version { .. } | Error::Damaged { .. } | Error::Interrupted { .. }),
        ) => {
            check.verdict = Verdict::Refused;
            check.why = Some(error.to_string());
        }
        Err(error) => return Err(error),
    }
    Ok(check)
}

/// The capacity that maps which are pinned would have once [`Kernel::open`](super::Kernel::open) had opened them; none if there are none.
///
/// # Errors
/// When they cannot be looked at, or would not be taken over.
pub fn foreseen_capacity(options: &Options) -> Result<Option<Capacity>, Error> {
    let maps = options.bpffs.join(MAPS);
    if !maps.is_dir() {
        return Ok(None);
    }
    let held = if shapes::pinned_version(&maps)? == names::ABI_VERSION {
        shapes::pinned_capacity(&maps)?
    } else {
        Foreign::open(&maps)?.capacity()
    };
    Ok(Some(resize::resized(&held, &options.capacity)))
}

fn look(bpffs: &Path, check: &mut UpgradeCheck) -> Result<Verdict, Error> {
    let staged = pins::staged_in(bpffs);
    if staged.join(FLOWS4).exists() && attach::is_used(bpffs, shapes::pinned_id(&staged, FLOWS4)?)?
    {
        check.interrupted = true;
        let version = shapes::pinned_version(&staged)?;
        if version != names::ABI_VERSION {
            return Err(Error::Interrupted {
                path: staged,
                version,
            });
        }
    }
    let maps = bpffs.join(MAPS);
    if check.pinned_version == Some(names::ABI_VERSION) {
        let (opened, capacity, _) = shapes::open_pinned(&maps)?;
        let maps = Maps::of_kernel(capacity, |name| opened[name].as_fd())
            .map_err(|errno| shapes::refused_call("mapping the maps' memory")(errno.into()))?;
        let services = (0..maps.services.len()).filter(|id| maps.services.get(*id).identity != 0);
        (check.services, check.backends) = (services.count(), maps.backend_ids().count());
        check.flows = flows_of(&maps);
        return Ok(Verdict::Same);
    }
    let foreign = Foreign::open(&maps)?;
    (check.services, check.backends) = foreign.objects();
    check.flows = flows_of(foreign.examine()?);
    check.dropped = foreign.dropped();
    Ok(Verdict::Migratable)
}

fn flows_of(maps: &Maps) -> u64 {
    flows::<v4::Key>(maps) + flows::<v6::Key>(maps)
}

/// Entries that live.
fn flows<K: TableKey>(maps: &Maps) -> u64 {
    let (table, now) = (K::table(maps), now());
    let places = (0..table.buckets())
        .flat_map(|bucket| (0..lb_common::flow::bucket::WAYS).map(move |way| (bucket, way)));
    places
        .filter_map(|place| table.read(place))
        .filter(|(_, word)| word.is_live() && !word.is_vacant(now))
        .count() as u64
}
