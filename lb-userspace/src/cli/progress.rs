//! What a command that waits says meanwhile: one line on standard error that changes in its place. Only on a terminal, so that no file and no program gets
//! any of it, and gone before anything else is said.

use std::{
    cell::RefCell,
    env,
    io::{self, IsTerminal as _, Write as _},
};

/// To the line's begin, and all of it erased (ECMA-48, 8.3.41).
const ERASE: &str = "\r\x1b[2K";

/// The line. Dropping it takes it away.
#[derive(Debug)]
pub(super) struct Progress {
    is_wanted: bool,
    /// What stands there.
    line: RefCell<String>,
}

impl Progress {
    /// Where standard error is a terminal that can erase.
    pub(super) fn on_stderr() -> Self {
        let is_dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            is_wanted: io::stderr().is_terminal() && !is_dumb,
            line: RefCell::default(),
        }
    }

    /// Nowhere.
    pub(super) fn none() -> Self {
        Self {
            is_wanted: false,
            line: RefCell::default(),
        }
    }

    /// Puts a line in the place of the one before. One that is wider than the terminal could not be taken away.
    pub(super) fn say(&self, line: &str) {
        if self.is_wanted && self.line.replace(line.to_owned()) != line {
            write(line);
        }
    }

    /// Takes the line away.
    pub(super) fn clear(&self) {
        if !self.line.take().is_empty() {
            write("");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn write(line: &str) {
    // Nothing is lost with it.
    let _ = write!(io::stderr(), "{ERASE}{line}");
}
