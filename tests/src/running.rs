//! A command line that goes on while the test does.

use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::namespace::Namespace;
use crate::wait;

/// A process and what it says. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Running {
    /// Starts `command` on `host`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(host: &Namespace, mut command: Command) -> Result<Self> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut running = Self {
            child: host.spawn(command)?,
            said: Arc::default(),
            readers: vec![],
        };
        let output = running.child.stdout.take().context("standard output")?;
        let errors = running.child.stderr.take().context("standard error")?;
        running.read(output);
        running.read(errors);
        Ok(running)
    }

    fn read(&mut self, stream: impl Read + Send + 'static) {
        let said = self.said.clone();
        self.readers.push(std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                said.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(line);
            }
        }));
    }

    /// The lines so far.
    #[must_use]
    pub fn said(&self) -> Vec<String> {
        self.said
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits until its last line so far has `text` in it.
    ///
    /// # Errors
    /// When `deadline` passes first; the message holds what it said.
    pub fn wait_to_say(&self, text: &str, deadline: Duration) -> Result<()> {
        wait::until(text, deadline, || {
            let said = self.said();
            said.last().filter(|line| line.contains(text)).map(drop)
        })
        .with_context(|| self.said().join("\n"))
    }

    /// Waits for its end, and gives that and all it said.
    ///
    /// # Errors
    /// When `deadline` passes first; the message holds what it said.
    pub fn wait_to_end(&mut self, deadline: Duration) -> Result<(ExitStatus, Vec<String>)> {
        let child = &mut self.child;
        let ended = wait::until("the command ends", deadline, || {
            child.try_wait().transpose()
        });
        let status = ended.with_context(|| self.said().join("\n"))??;
        for reader in self.readers.drain(..) {
            reader.join().expect("readers do not panic");
        }
        Ok((status, self.said()))
    }

    /// Whether it has not ended.
    ///
    /// # Errors
    /// When that cannot be told.
    pub fn goes_on(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
