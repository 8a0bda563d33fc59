//! Whether this program can take over what is pinned: a look that changes nothing, and may be had while a daemon runs. The kernel is asked whether it takes
//! the program, with small maps that nobody sees and that are gone afterwards.

use std::{
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use lb_common::{
    flow::{v4, v6},
    hash::Seed,
    maps::{self as names, FLOWS4, Instance},
    net::IpVersion,
    service::Service,
};
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    Options, attach,
    error::Error,
    load::Loaded,
    migrate::Foreign,
    pins::{self, MAPS},
    resize,
    shapes::{self, possible_cpus},
};
use crate::{
    capabilities,
    dataplane::{
        maps::{Capacity, Maps, now},
        table::TableKey,
    },
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

/// What a configuration asks of the maps.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// What they would be made for, if there were none.
    pub capacity: Capacity,
    /// Whether those of another capacity hold what is configured, or why they do not.
    pub fits: &'a dyn Fn(&Capacity) -> Result<(), String>,
}

impl std::fmt::Debug for Asked<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asked")
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}

/// Looks; with what a configuration asks, if there is one to go by.
///
/// # Errors
/// When the process lacks rights, the directory is on no bpffs, or the kernel refuses to show what is in it.
pub fn upgrade_check(bpffs: &Path, asked: Option<Asked<'_>>) -> Result<UpgradeCheck, Error> {
    let rights = capabilities::effective(Path::new("/proc/self"));
    let missing = rights.map(capabilities::missing).unwrap_or_default();
    if !missing.is_empty() {
        return Err(Error::Capabilities { missing });
    }
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
    let mut like = asked.map(|asked| asked.capacity);
    if is_there {
        check.pinned_version = Some(shapes::pinned_version(&maps)?);
        match look(bpffs, &mut check, like.as_ref()) {
            Ok((verdict, capacity)) => {
                check.verdict = verdict;
                let made = asked.map_or(capacity, |asked| {
                    resize::resized(&capacity, &asked.capacity)
                });
                like = Some(made);
                let fits = asked.map_or(Ok(()), |asked| (asked.fits)(&made));
                if let Err(why) = fits {
                    refuse(&mut check, why);
                }
            }
            Err(error) => conclude(&mut check, error)?,
        }
    }
    if check.verdict != Verdict::Refused
        && let Err(error) = is_taken(like)
    {
        conclude(&mut check, error)?;
    }
    Ok(check)
}

fn refuse(check: &mut UpgradeCheck, why: String) {
    check.verdict = Verdict::Refused;
    check.why = Some(why);
}

/// What an error means for a start.
///
/// # Errors
/// It, if it says nothing of that.
fn conclude(check: &mut UpgradeCheck, error: Error) -> Result<(), Error> {
    match error {
        Error::Version { .. }
        | Error::Damaged { .. }
        | Error::Interrupted { .. }
        | Error::OldKernel { .. }
        | Error::Verifier { .. } => {
            refuse(check, error.to_string());
            Ok(())
        }
        error => Err(error),
    }
}

/// Has the kernel verify and take the program, with maps of its own that are as small as can be. It translates, guards and measures as one for maps of this
/// capacity does.
fn is_taken(like: Option<Capacity>) -> Result<(), Error> {
    let translates = |version| like.is_some_and(|capacity| capacity.translates_flows_of(version));
    let capacity = Capacity::for_flows(1_000, 1_000, 16, 64, 10_000, possible_cpus()?)
        .with_pairs(16)
        .with_affinities(100)
        .translating_flows_of(IpVersion::V4, translates(IpVersion::V4))
        .translating_flows_of(IpVersion::V6, translates(IpVersion::V6))
        .guarding(like.is_some_and(|capacity| capacity.guards))
        .measuring(like.is_some_and(|capacity| capacity.measures));
    // No packet is ever placed by these.
    let instance = Instance {
        abi_version: names::ABI_VERSION,
        reserved: 0,
        flow_seed: Seed::new([1, 2, 3]),
        fleet_seed: [1, 2, 3, 4],
    };
    Loaded::private(capacity, instance)
        .map(drop)
        .map_err(Error::of_this_kernel)
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
        Foreign::open(&maps)?.capacity(&options.capacity)
    };
    Ok(Some(resize::resized(&held, &options.capacity)))
}

/// Gives the capacity too that maps of this version would have for what is there, with flow tables as large as they are.
fn look(
    bpffs: &Path,
    check: &mut UpgradeCheck,
    wanted: Option<&Capacity>,
) -> Result<(Verdict, Capacity), Error> {
    let staged = pins::staged_in(bpffs);
    if staged.join(FLOWS4).exists() && attach::runs_staged(bpffs)? {
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
        return Ok((Verdict::Same, capacity.guarding(guards(&maps))));
    }
    let foreign = Foreign::open(&maps)?;
    (check.services, check.backends) = foreign.objects();
    let image = foreign.examine()?;
    check.flows = flows_of(image);
    check.dropped = foreign.dropped();
    let capacity = wanted.map_or(image.capacity, |wanted| foreign.capacity(wanted));
    Ok((Verdict::Migratable, capacity))
}

/// Whether a service has a guard. Who names no configuration is told of the programs that these maps need.
fn guards(maps: &Maps) -> bool {
    (0..maps.services.len()).any(|id| maps.services.get(id).traits & Service::GUARDED != 0)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn check() -> UpgradeCheck {
        UpgradeCheck {
            verdict: Verdict::Same,
            own_version: 7,
            pinned_version: Some(7),
            bpffs: PathBuf::new(),
            services: 1,
            backends: 2,
            flows: 3,
            dropped: vec![],
            interrupted: false,
            why: None,
        }
    }

    #[test]
    fn a_kernel_that_does_not_take_the_program_is_a_refusal() {
        let mut refused = check();
        let verifier = Error::Verifier {
            program: "tether",
            source: std::io::Error::from_raw_os_error(libc::EACCES),
            log: "R1 invalid mem access".into(),
        };
        conclude(&mut refused, verifier).unwrap();
        assert_eq!(refused.verdict, Verdict::Refused);
        let why = refused.why.unwrap();
        assert!(why.contains("R1 invalid mem access"), "{why}");
    }

    #[test]
    fn what_keeps_it_from_looking_is_none() {
        let mut unknown = check();
        let missing = vec!["CAP_PERFMON"];
        let error = conclude(&mut unknown, Error::Capabilities { missing }).unwrap_err();
        assert!(matches!(error, Error::Capabilities { .. }), "{error}");
        assert_eq!(unknown, check());
    }
}
