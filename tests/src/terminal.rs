//! Terminals, to see what commands show people on them.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::pty::{Winsize, openpty};

use crate::namespace::Namespace;
use crate::{tether, wait};

/// Loading and verifying, on a busy machine, takes many seconds.
const SOON: Duration = Duration::from_secs(60);

/// A command on a terminal of 80 by 24 characters. Dropping it kills it.
#[derive(Debug)]
pub struct Terminal {
    keys: File,
    shown: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
    child: Child,
}

impl Terminal {
    /// Starts `tether` with these arguments, and these variables beside the usual ones of a terminal.
    ///
    /// # Errors
    /// When there is no terminal to be had, or it cannot be started.
    pub fn start(host: &Namespace, arguments: &[&str], variables: &[(&str, &str)]) -> Result<Self> {
        let size = Winsize {
            ws_row: 24,
            ws_col: 80,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let both = openpty(&size, None)?;
        // Others than these two are inherited by whatever is started meanwhile, which would keep the terminal open.
        let (master, slave) = (both.master.try_clone()?, both.slave.try_clone()?);
        drop(both);
        // With a session of its own: else the terminal that has the say over it is that of whoever runs this.
        let mut command = Command::new("setsid");
        command
            .arg("--ctty")
            .arg(tether::program()?)
            .args(arguments)
            .env("TERM", "xterm")
            .env_remove("NO_COLOR")
            .envs(variables.iter().copied())
            .stdin(slave.try_clone()?)
            .stdout(slave.try_clone()?)
            .stderr(slave);
        let child = host.spawn(command)?;
        let keys = File::from(master);
        let mut screen = keys.try_clone()?;
        let shown = Arc::new(Mutex::new(Vec::new()));
        let on_screen = Arc::clone(&shown);
        let reader = std::thread::spawn(move || {
            let mut some = [0; 4_096];
            // An error says that nobody has the terminal open any more.
            while let Ok(count @ 1..) = screen.read(&mut some) {
                on_screen
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .extend_from_slice(&some[..count]);
            }
        });
        Ok(Self {
            keys,
            shown,
            reader: Some(reader),
            child,
        })
    }

    /// All that it was sent.
    pub fn text(&self) -> String {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&shown).into_owned()
    }

    /// Waits until it was sent this. Of a screen only what changes is written, and no space: whole words are what can be waited for.
    ///
    /// # Errors
    /// When it does not come; the message holds what was sent.
    pub fn wait_to_show(&self, text: &str) -> Result<()> {
        wait::until_seen(
            &format!("{text:?} is shown"),
            SOON,
            || Ok(self.text()),
            |shown| shown.contains(text),
        )
        .map(drop)
    }

    /// Presses keys, one after the other.
    ///
    /// # Errors
    /// When nobody has the terminal open any more.
    pub fn press(&mut self, keys: &str) -> Result<()> {
        Ok(self.keys.write_all(keys.as_bytes())?)
    }

    /// Waits for the command's end, and gives that and all that was shown.
    ///
    /// # Errors
    /// When it goes on; the message holds what was shown.
    ///
    /// # Panics
    /// If reading what was shown has panicked.
    pub fn wait_to_end(&mut self) -> Result<(ExitStatus, String)> {
        let child = &mut self.child;
        let ended = wait::until("the command ends", SOON, || child.try_wait().transpose());
        let status = ended.with_context(|| self.text())??;
        if let Some(reader) = self.reader.take() {
            reader.join().expect("a reader does not panic");
        }
        Ok((status, self.text()))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
