//! Which tests run in a guest, and how they are built.

use std::{convert::Infallible, path::PathBuf, str::FromStr};

use anyhow::{Result, bail};
use lab_guest::{Plan, Program};

use super::{
    Options, PATIENCE,
    image::{self, Contents},
};
use crate::{
    cargo::{Built, TestProgram},
    exec,
};

/// Modules that tests use without the kernel asking for them.
const MODULES: [&str; 8] = [
    "veth",
    "bridge",
    "8021q",
    "bonding",
    "dummy",
    "ipip",
    "virtio_net",
    "virtio_pci",
];
/// The daemon that tests of package `lab` run.
const DAEMON: &str = "tether-under-test";
/// How long a test program may take, in seconds: many times what it does, since other work may be going on.
const LIMIT_S: u64 = 2 * 60 * 60;

/// A test program, or some of its tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Only {
    program: String,
    part: Option<String>,
}

impl FromStr for Only {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let (program, part) = match text.split_once(':') {
            Some((program, part)) => (program, Some(part.to_owned())),
            None => (text, None),
        };
        Ok(Self {
            program: program.to_owned(),
            part,
        })
    }
}

/// The filters that a test program is asked for with; none if it is not asked for. An empty list is all of its tests.
fn asked_for<'a>(only: &'a [Only], test: &str) -> Option<Vec<&'a str>> {
    let asked = only.iter().filter(|only| only.program == test);
    let parts: Vec<_> = asked.map(|only| only.part.as_deref()).collect();
    if parts.is_empty() {
        return None;
    }
    // Who asks for all of them and for some asks for all.
    Some(parts.into_iter().collect::<Option<_>>().unwrap_or_default())
}

/// How much is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Extent {
    Smoke,
    Usual,
    Floods,
}

impl Options {
    fn extent(&self) -> Extent {
        match self {
            Self { smoke: true, .. } => Extent::Smoke,
            Self { floods: true, .. } => Extent::Floods,
            _ => Extent::Usual,
        }
    }
}

/// Programs and what to do with them.
pub(super) struct Tests {
    init: PathBuf,
    helpers: Vec<(&'static str, PathBuf)>,
    tests: Vec<TestProgram>,
    pub(super) plan: Plan,
}

impl Tests {
    /// Builds all tests, and chooses.
    pub(super) fn build(options: &Options) -> Result<Self> {
        // The same packages as everywhere, so that dependencies are compiled once.
        let mut build = exec::cargo();
        build.args(["test", "--no-run", "--workspace", "--exclude", "lb-ebpf"]);
        for name in to_build(&options.only) {
            build.args(["--test", name]);
        }
        let built = Built::by(&mut build)?;
        let mut tests = vec![];
        let mut programs = vec![];
        for package in ["lab", "lab-guest", "lb-userspace"] {
            for test in built.integration_tests(package) {
                let filters = if options.only.is_empty() {
                    choose(package, &test.name, options.extent()).map(<[_]>::to_vec)
                } else {
                    asked_for(&options.only, &test.name)
                };
                if let Some(filters) = filters {
                    programs.push(program(&test, &filters));
                    tests.push(test);
                }
            }
        }
        let absent = |only: &&Only| !tests.iter().any(|test| test.name == only.program);
        if let Some(Only { program, .. }) = options.only.iter().find(absent) {
            bail!("there is no test program called {program} in lab, lab-guest or lb-userspace");
        }
        if programs.is_empty() {
            bail!("cargo reported no test program that runs in a guest");
        }
        Ok(Self {
            init: built.executable("lab-guest")?,
            helpers: vec![(DAEMON, built.executable(DAEMON)?)],
            tests,
            plan: Plan {
                modules: MODULES.map(str::to_owned).into(),
                environment: [("LAB_PATIENCE", PATIENCE), ("RUST_BACKTRACE", "1")]
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .into(),
                programs,
            },
        })
    }

    pub(super) fn contents(&self) -> Contents<'_> {
        Contents {
            init: &self.init,
            helpers: &self.helpers,
            tests: &self.tests,
            plan: &self.plan,
        }
    }
}

/// The test programs to be built, by name, if only these are asked for; or else all that there are.
fn to_build(only: &[Only]) -> Vec<&str> {
    if only.is_empty() {
        return vec!["*"];
    }
    // With a test program cargo builds its package's other programs: those of one that is there for sure bring the guest's first process, and
    // those of another the daemon.
    let with_programs = ["guest", "packet"].into_iter();
    with_programs
        .chain(only.iter().map(|only| only.program.as_str()))
        .collect()
}

/// Whether a test program depends on the kernel and so is run, and with which filters; none are needed for all of its tests.
fn choose(package: &str, test: &str, extent: Extent) -> Option<&'static [&'static str]> {
    const ALL: &[&str] = &[];
    let (least, filters) = match (package, test) {
        // It has a guest of its own: see `systemd`.
        ("lab-guest", "systemd") => return None,
        // Programs that watch take a verifier as long again.
        ("lab", "packet") if extent == Extent::Smoke => (
            Extent::Smoke,
            &["forward::", "a_flow_comes_through_all_programs"][..],
        ),
        ("lab", "packet") => (Extent::Smoke, ALL),
        ("lab-guest", _) if extent == Extent::Smoke => {
            (Extent::Smoke, &["vlan::ipip_leaves_by_the_vlan_that"][..])
        }
        ("lab-guest", _) => (
            Extent::Usual,
            &[
                "bond::",
                "virtio_net::ipip",
                "vlan::a_pod_answers_by_the_vlan",
                "vlan::dnat_goes_both_ways_by_a_vlan_within_another_in_ipv6",
                "vlan::ipip_leaves_by_the_vlan_that",
                "vlan::l2_leaves_by_two_vlans_with_what_came_by_one_in_ipv6",
                "vlan::nat_goes_both_ways_by_a_vlan_within_another",
            ][..],
        ),
        ("lab", "packet_flood") => (Extent::Floods, ALL),
        // It compares all of the maps after each packet, which is the processor's work and no kernel's.
        ("lab", "packet_explain") => (
            Extent::Usual,
            &["a_rehearsal_agrees_with_the_packet_in_ipip"][..],
        ),
        // Each start of a daemon takes minutes where all is emulated: of labs, as of VLANs above, one of each way to forward, in one version of IP
        // or the other.
        ("lab", "websocket") => (
            Extent::Usual,
            &[
                "ipip_encapsulates_to_the_next_hop",
                "l2_rewrites_macs_alone_in_ipv6",
            ][..],
        ),
        // Modes whose replies come back: in XDP, and by a classifier where the backend is on the host.
        ("lab", "translation") => (
            Extent::Usual,
            &[
                "nat_hides_clients_in_ipv6",
                "dnat_keeps_clients_addresses_in_ipv6",
            ][..],
        ),
        ("lab", "local") => (
            Extent::Usual,
            &["pods_behind_veths_beside_remote_backends_of_nat"][..],
        ),
        ("lb-userspace", "kernel") => (Extent::Usual, ALL),
        ("lab", _) if test.starts_with("packet_") => (Extent::Usual, ALL),
        _ => return None,
    };
    (extent >= least).then_some(filters)
}

fn program(test: &TestProgram, filters: &[&str]) -> Program {
    let filters = filters.iter().map(|filter| (*filter).to_owned());
    Program {
        name: test.name.clone(),
        path: image::place_of(test),
        // Labs measure time, so tests run one after the other.
        arguments: filters.chain(["--test-threads=1".to_owned()]).collect(),
        limit_s: LIMIT_S,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_depends_on_the_kernel_runs_and_floods_when_asked_for() {
        for (package, test) in [("lab", "packet"), ("lb-userspace", "kernel")] {
            assert_eq!(
                choose(package, test, Extent::Usual),
                Some(&[][..]),
                "{test}"
            );
        }
        for extent in [Extent::Smoke, Extent::Usual, Extent::Floods] {
            assert!(choose("lab", "packet", extent).is_some());
            assert!(choose("lab-guest", "guest", extent).is_some());
            assert_eq!(choose("lab-guest", "systemd", extent), None);
            assert_eq!(choose("lab", "torture", extent), None);
            assert_eq!(choose("lb-userspace", "reconcile_loop", extent), None);
            let floods = choose("lab", "packet_flood", extent).is_some();
            assert_eq!(floods, extent == Extent::Floods);
        }
        assert_eq!(choose("lab", "packet_watch", Extent::Smoke), None);
    }

    #[test]
    fn no_more_is_built_than_is_asked_for() {
        assert_eq!(to_build(&[]), ["*"]);
        let Ok(only) = "packet_watch".parse();
        assert_eq!(to_build(&[only]), ["guest", "packet", "packet_watch"]);
    }

    #[test]
    fn a_program_is_asked_for_as_a_whole_or_by_parts() {
        let of = |texts: &[&str]| -> Vec<Only> {
            let parsed = texts.iter().map(|text| text.parse());
            parsed.map(|Ok(only)| only).collect()
        };
        let only = of(&["guest:bond", "packet", "guest:vlan::l2"]);
        assert_eq!(asked_for(&only, "guest"), Some(vec!["bond", "vlan::l2"]));
        assert_eq!(asked_for(&only, "packet"), Some(vec![]));
        assert_eq!(asked_for(&only, "packet_watch"), None);
        let all = of(&["guest:bond", "guest"]);
        assert_eq!(asked_for(&all, "guest"), Some(vec![]));
    }

    /// The functions of a module, by the names that its tests have.
    fn functions(module: &str, source: &str) -> Vec<String> {
        let names = source.lines().filter_map(|line| {
            let (name, _) = line.strip_prefix("fn ")?.split_once('(')?;
            Some(format!("{module}{name}"))
        });
        names.collect()
    }

    #[test]
    fn of_labs_and_devices_those_run_that_are_named() {
        // By test program and module.
        const SOURCES: [(&str, &str, &str); 7] = [
            (
                "websocket",
                "",
                include_str!("../../../tests/tests/websocket.rs"),
            ),
            (
                "translation",
                "",
                include_str!("../../../tests/tests/translation.rs"),
            ),
            ("local", "", include_str!("../../../tests/tests/local.rs")),
            (
                "packet_explain",
                "",
                include_str!("../../../tests/tests/packet_explain.rs"),
            ),
            (
                "guest",
                "bond::",
                include_str!("../../../guest/tests/guest/bond.rs"),
            ),
            (
                "guest",
                "virtio_net::",
                include_str!("../../../guest/tests/guest/virtio_net.rs"),
            ),
            (
                "guest",
                "vlan::",
                include_str!("../../../guest/tests/guest/vlan.rs"),
            ),
        ];
        for (package, test) in [
            ("lab", "websocket"),
            ("lab", "translation"),
            ("lab", "local"),
            ("lab", "packet_explain"),
            ("lab-guest", "guest"),
        ] {
            let sources = SOURCES.iter().filter(|(program, ..)| *program == test);
            let names: Vec<String> = sources
                .flat_map(|(_, module, source)| functions(module, source))
                .collect();
            let filters = choose(package, test, Extent::Usual).unwrap_or_default();
            assert!(!filters.is_empty());
            for filter in filters {
                let found = names.iter().filter(|name| name.contains(filter)).count();
                // Of a test that has another name by now nobody would be told, and one that is not meant takes minutes.
                let is_meant = if filter.ends_with("::") {
                    found > 0
                } else {
                    found == 1
                };
                assert!(is_meant, "{filter} is part of {found} names");
            }
        }
    }
}
