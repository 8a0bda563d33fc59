//! What `cargo xtask kernels` and the first process of its guests say to each other.
//!
//! The plan lies in the guest's file system. Records come back over the second serial port, one line of JSON each, so that
//! nothing the kernel writes to its console can get between them. [`Record::Done`] is the last: a guest that falls silent
//! before it has crashed.

mod tally;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use tally::Tally;

/// Where the guest finds its [`Plan`].
pub const PLAN: &str = "/lab/plan.json";
/// The guest's first process.
pub const INIT: &str = "/init";
/// Where the guest writes its [`Record`]s.
pub const RECORDS: &str = "/dev/ttyS1";
/// The hardware addresses of the guest's two network cards, which are each other's only neighbour.
pub const CARDS: [&str; 2] = ["52:54:00:00:00:01", "52:54:00:00:00:02"];

/// Where a guest that systemd runs finds the scripts of Tether's package.
pub const SCRIPTS: &str = "/lab/package";
/// A group there that nobody is a member of, by name and number.
pub const GROUP: (&str, u32) = ("watchers", 990);

/// What a guest is to do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Kernel modules to load first. One that cannot be loaded ends the guest.
    pub modules: Vec<String>,
    /// Environment of the programs.
    pub environment: BTreeMap<String, String>,
    /// Test programs, run one after the other.
    pub programs: Vec<Program>,
}

/// One test program, made by Rust's test harness.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// What reports call it.
    pub name: String,
    /// Where it is in the guest.
    pub path: String,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// How long it may take, in seconds; then it is killed.
    pub limit_s: u64,
}

/// One line of the guest's report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Record {
    /// The guest is up and has its modules.
    Booted {
        /// The kernel's release, as `uname -r` tells it.
        release: String,
    },
    /// A program starts.
    Started {
        /// Its name.
        program: String,
    },
    /// A program has ended.
    Finished(Finished),
    /// All programs have ended.
    Done,
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    /// Its name.
    pub program: String,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// What it says of its tests; nothing if it did not get as far as saying it.
    pub tally: Option<Tally>,
    /// How its process ended, in words.
    pub status: String,
    /// Whether its process and all of its tests succeeded, and there was at least one.
    pub succeeded: bool,
    /// The end of its output; empty if it succeeded.
    pub output: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_line() {
        let record = Record::Finished(Finished {
            program: "packet".into(),
            seconds: 1.5,
            tally: None,
            status: "signal: 9 (SIGKILL)".into(),
            succeeded: false,
            output: "two\nlines\r\n".into(),
        });
        let line = serde_json::to_string(&record).unwrap();
        assert!(!line.contains(['\n', '\r']), "{line}");
        assert_eq!(serde_json::from_str::<Record>(&line).unwrap(), record);
    }
}
