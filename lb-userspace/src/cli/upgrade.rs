//! `tether upgrade-check`: whether this program can go on where another left off.

use std::path::PathBuf;

use clap::Args;

use super::{BPFFS, Failure, load, print_json, progress::Progress};
use crate::{
    config::Config,
    daemon,
    dataplane::{
        kernel::{Asked, UpgradeCheck, Verdict, upgrade_check},
        layouts::Layouts,
        maps::Capacity,
    },
    reconcile,
};

/// What `tether upgrade-check` ends with.
pub(super) const EXIT_STATUS: &str = "Exit status: 0 this program can take over, or nothing is pinned; 1 it could not look; 2 the command line or the \
    configuration is wrong; 3 it would refuse.";

/// What it says meanwhile.
const LOOKS: &str = "the kernel's verifier looks at this program";

#[derive(Args, Debug, PartialEq, Eq)]
pub(super) struct UpgradeCheckCommand {
    /// The configuration that names the pin directory, and that the maps are to hold.
    #[arg(long, value_name = "FILE", conflicts_with = "bpffs")]
    config: Option<PathBuf>,
    /// The pin directory.
    #[arg(long, value_name = "DIR", default_value = BPFFS)]
    bpffs: PathBuf,
    /// As one line of JSON.
    #[arg(long)]
    json: bool,
    /// Print what is where in this program's maps instead.
    #[arg(long, conflicts_with_all = ["config", "bpffs", "json"])]
    layouts: bool,
}

impl UpgradeCheckCommand {
    /// Looks, and says what it saw.
    pub(super) fn run(&self) -> Result<(), Failure> {
        if self.layouts {
            put!("{}", Layouts::own());
            return Ok(());
        }
        let progress = Progress::on_stderr();
        let check = match &self.config {
            Some(path) => {
                let config = load(path, |_| ())?;
                check_start(&config, &progress)?
            }
            None => {
                progress.say(LOOKS);
                upgrade_check(&self.bpffs, None)?
            }
        };
        progress.clear();
        if self.json {
            print_json(&check)?;
        } else {
            put!("{}", text(&check));
        }
        match (check.verdict, check.why) {
            (Verdict::Refused, Some(why)) => Err(Failure::Refused(why)),
            _ => Ok(()),
        }
    }
}

/// Whether a daemon of this program would start with a configuration, and what it would keep.
///
/// # Errors
/// When that cannot be found out.
pub(super) fn check_start(config: &Config, progress: &Progress) -> anyhow::Result<UpgradeCheck> {
    progress.say(LOOKS);
    let fits = |capacity: &Capacity| reconcile::would_fit(config, capacity);
    let asked = Asked {
        capacity: daemon::options(config)?.capacity,
        fits: &fits,
    };
    Ok(upgrade_check(&config.bpffs, Some(asked))?)
}

fn text(check: &UpgradeCheck) -> String {
    let own = check.own_version;
    let pinned = check.pinned_version.unwrap_or(own);
    let directory = check.bpffs.display();
    let mut text = match check.verdict {
        Verdict::Nothing => format!(
            "nothing is pinned in {directory}; this tether would begin anew (layout version {own})\n"
        ),
        Verdict::Same => format!(
            "the maps in {directory} have this tether's layout version {own}; it would go on with them, and replace the program of each link atomically\n"
        ),
        Verdict::Migratable => format!(
            "the maps in {directory} have layout version {pinned}; this tether would take over what is in them, to version {own}\n"
        ),
        Verdict::Refused if check.pinned_version.is_none() => format!(
            "nothing is pinned in {directory}; this tether (version {own}) would refuse to start\n"
        ),
        Verdict::Refused => format!(
            "the maps in {directory} have layout version {pinned}; this tether (version {own}) would refuse to start, and forwarding would go on as it is\n"
        ),
    };
    if check.interrupted && check.verdict != Verdict::Refused {
        text += "a change of the maps was interrupted; it would complete that first\n";
    }
    if matches!(check.verdict, Verdict::Same | Verdict::Migratable) {
        let (services, backends, flows) = (check.services, check.backends, check.flows);
        text += &format!("kept: {services} services, {backends} backends, {flows} flows\n");
    }
    if !check.dropped.is_empty() {
        text += &format!(
            "left behind, since this tether does not know it: {}\n",
            check.dropped.join(", ")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_verdict_is_said_with_what_comes_of_it() {
        let check = UpgradeCheck {
            verdict: Verdict::Migratable,
            own_version: 8,
            pinned_version: Some(7),
            bpffs: "/sys/fs/bpf/tether".into(),
            services: 2,
            backends: 5,
            flows: 1_000,
            dropped: vec!["backend.limit".into()],
            interrupted: false,
            why: None,
        };
        assert_eq!(
            text(&check),
            "the maps in /sys/fs/bpf/tether have layout version 7; this tether would take over what is in them, to version 8\n\
             kept: 2 services, 5 backends, 1000 flows\n\
             left behind, since this tether does not know it: backend.limit\n"
        );
        let refused = UpgradeCheck {
            verdict: Verdict::Refused,
            ..check.clone()
        };
        assert!(text(&refused).contains("forwarding would go on as it is"));
        let refused_anew = UpgradeCheck {
            pinned_version: None,
            ..refused
        };
        assert!(!text(&refused_anew).contains("forwarding"));
        let nothing = UpgradeCheck {
            verdict: Verdict::Nothing,
            pinned_version: None,
            dropped: vec![],
            ..check
        };
        assert_eq!(
            text(&nothing),
            "nothing is pinned in /sys/fs/bpf/tether; this tether would begin anew (layout version 8)\n"
        );
    }
}
