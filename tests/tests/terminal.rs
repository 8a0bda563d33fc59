//! Commands on a terminal, as people have them: colours, unless nobody wants any, and `tether top`.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lab::config::Config;
use lab::namespace::Namespace;
use lab::stage::Stage;
use lab::tether::{self, CONFIG_PATH};
use lab::topology::{Place, Topology};
use lab::wait;
use nix::pty::{Winsize, openpty};

/// Loading and verifying, on a busy machine, takes many seconds.
const SOON: Duration = Duration::from_secs(60);
/// What colours and movements begin with (ECMA-48, 5.4).
const ESCAPE: &str = "\x1b[";
/// Xterm's own: to a screen beside the one that was there, and back.
const TO_ANOTHER_SCREEN: &str = "\x1b[?1049h";
const BACK: &str = "\x1b[?1049l";

/// A command on a terminal of 80 by 24 characters. Dropping it kills it.
struct Terminal {
    keys: File,
    shown: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
    child: Child,
}

impl Terminal {
    /// Starts `tether` with these arguments, and these variables beside the usual ones of a terminal.
    fn start(host: &Namespace, arguments: &[&str], variables: &[(&str, &str)]) -> Result<Self> {
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
    fn text(&self) -> String {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&shown).into_owned()
    }

    fn wait_to_show(&self, text: &str) -> Result<()> {
        wait::until_seen(
            &format!("{text:?} is shown"),
            SOON,
            || Ok(self.text()),
            |shown| shown.contains(text),
        )
        .map(drop)
    }

    fn press(&mut self, key: &str) -> Result<()> {
        Ok(self.keys.write_all(key.as_bytes())?)
    }

    /// Waits for the command's end, and gives that and all that was shown.
    fn wait_to_end(&mut self) -> Result<(ExitStatus, String)> {
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

#[test]
fn colours_are_for_terminals_and_for_who_wants_them() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Segment), 731, |_| {})?;
    let shown = |variables: &[(&str, &str)]| -> Result<String> {
        let mut terminal = Terminal::start(stage.lab.balancer(), &["services"], variables)?;
        let (status, text) = terminal.wait_to_end()?;
        assert!(status.success() && text.contains("chat"), "{text}");
        Ok(text)
    };
    let usual = shown(&[])?;
    assert!(usual.contains("\x1b[32mok\x1b[0m"), "{usual:?}");
    for unwanted in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let plain = shown(&[unwanted])?;
        assert!(!plain.contains(ESCAPE), "{unwanted:?}: {plain:?}");
    }
    // One that is empty says nothing.
    assert!(shown(&[("NO_COLOR", "")])?.contains(ESCAPE));
    assert!(!stage.tether.succeed(&["services"])?.contains(ESCAPE));
    stage.close();
    Ok(())
}

#[test]
fn the_log_has_colours_where_they_are_wanted() -> Result<()> {
    let lab = Topology::new(Place::Segment).build()?;
    let host = lab.balancer();
    host.write(CONFIG_PATH, &Config::new(lab.topology()).text())?;
    let has_colours = |variables: &[(&str, &str)]| -> Result<bool> {
        let daemon = Terminal::start(host, &["run", "--config", CONFIG_PATH], variables)?;
        daemon.wait_to_show(" ready")?;
        Ok(daemon.text().contains(ESCAPE))
    };
    assert!(has_colours(&[])?);
    assert!(!has_colours(&[("NO_COLOR", "1")])?);
    assert!(!has_colours(&[("TERM", "dumb")])?);
    Ok(())
}

#[test]
fn top_shows_what_there_is_and_leaves_the_terminal_as_it_was() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Segment), 732, |_| {})?;
    let mut top = Terminal::start(stage.lab.balancer(), &["top"], &[])?;
    for text in ["BACKEND", "chat/b1", "chat/b2", "chat/b3"] {
        top.wait_to_show(text)?;
    }
    top.press("v")?;
    top.wait_to_show("SERVICE")?;
    top.press("q")?;
    let (status, text) = top.wait_to_end()?;
    assert!(status.success(), "{text:?}");
    let (_, after) = text
        .split_once(TO_ANOTHER_SCREEN)
        .context("a screen of its own")?;
    let (_, after) = after.rsplit_once(BACK).context("the one before")?;
    assert!(!after.contains("chat"), "{after:?}");
    stage.close();
    Ok(())
}
