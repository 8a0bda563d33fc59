//! What Rust's test harness says at its end.

use serde::{Deserialize, Serialize};

/// How many tests there were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Tests that passed.
    pub passed: u32,
    /// Tests that failed.
    pub failed: u32,
    /// Tests that were not run because their author said so.
    pub ignored: u32,
}

impl Tally {
    /// Finds it in a test program's output; none if the program ended before it wrote one.
    #[must_use]
    pub fn find(output: &str) -> Option<Self> {
        let line = output
            .lines()
            .rev()
            .find_map(|line| line.strip_prefix("test result: "))?;
        // "ok. 31 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 6.95s"
        let (_, counts) = line.split_once(". ")?;
        let count = |what: &str| {
            counts.split("; ").find_map(|part| {
                let (number, word) = part.split_once(' ')?;
                (word == what).then_some(number)?.parse().ok()
            })
        };
        Some(Self {
            passed: count("passed")?,
            failed: count("failed")?,
            ignored: count("ignored")?,
        })
    }

    /// Whether there were tests, and all of them ran and passed.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.passed > 0 && self.failed == 0 && self.ignored == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_harness_is_understood() {
        let output = "running 3 tests\ntest a ... ok\n\ntest result: FAILED. 31 passed; 2 failed; 1 ignored; 0 measured; 4 filtered out; \
                      finished in 6.95s\n\n";
        let tally = Tally {
            passed: 31,
            failed: 2,
            ignored: 1,
        };
        assert_eq!(Tally::find(output), Some(tally));
    }

    #[test]
    fn a_program_that_died_has_no_tally() {
        assert_eq!(Tally::find("running 3 tests\ntest a ... "), None);
        assert_eq!(Tally::find("test result: ok. 3 pass"), None);
    }

    #[test]
    fn only_tests_that_ran_and_passed_are_a_success() {
        let tally = |passed, failed, ignored| Tally {
            passed,
            failed,
            ignored,
        };
        assert!(tally(3, 0, 0).is_success());
        for bad in [tally(0, 0, 0), tally(3, 1, 0), tally(3, 0, 1)] {
            assert!(!bad.is_success(), "{bad:?}");
        }
    }
}
