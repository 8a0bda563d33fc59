//! This program once more, in the cluster's network: it says `open` when it is ready, answers each line with a line, and ends with its standard input.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::cluster::Cluster;

/// Ends when it is dropped.
pub(crate) struct Helper {
    process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Helper {
    /// Starts it with `arguments`, and waits until it is ready.
    ///
    /// # Errors
    /// When it cannot be started, or ends before it is ready; it has said why on standard error.
    pub(crate) fn start(cluster: &Cluster, arguments: &[&str]) -> Result<Self> {
        let program = std::env::current_exe()?;
        let program = program.to_string_lossy();
        let command = [&[&*program], arguments].concat();
        let mut process = cluster
            .on("lab", &command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let orders = process.stdin.take().context("standard input")?;
        let answers = BufReader::new(process.stdout.take().context("standard output")?);
        let mut helper = Self {
            process,
            orders,
            answers,
        };
        ensure!(helper.line()? == "open", "`{arguments:?}` ended");
        Ok(helper)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// Its answer to a line.
    ///
    /// # Errors
    /// When it has ended.
    pub(crate) fn ask(&mut self, what: &str) -> Result<String> {
        writeln!(self.orders, "{what}")?;
        self.line()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
