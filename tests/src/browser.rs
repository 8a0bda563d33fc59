//! A headless Chromium on a host of a lab, driven by its own protocol over a pair of pipes, which no namespace is in the way of.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use serde_json::{Value, json};

use crate::wait;

/// Debian's name of the program.
const PROGRAM: &str = "chromium";
/// The descriptors on which `--remote-debugging-pipe` listens and answers.
const PIPES: [i32; 2] = [3, 4];

/// The colours that a page is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Dark on light.
    Light,
    /// Light on dark.
    Dark,
}

/// A page in a browser of its own. Dropping it ends the browser.
#[derive(Debug)]
pub struct Browser {
    child: Child,
    requests: File,
    answers: BufReader<File>,
    session: Option<String>,
    number: u64,
    profile: PathBuf,
}

impl Browser {
    /// Starts one by `spawn`, which decides on which host.
    ///
    /// # Errors
    /// When there is no Chromium, or it does not answer.
    pub fn start(spawn: impl FnOnce(Command) -> Result<Child>) -> Result<Self> {
        let (own_answers, its_answers) = std::io::pipe().context("make a pipe")?;
        let (its_requests, own_requests) = std::io::pipe().context("make a pipe")?;
        let number = own_requests.as_raw_fd();
        let profile =
            std::env::temp_dir().join(format!("lab-browser-{}-{number}", std::process::id()));
        let mut command = Command::new(PROGRAM);
        command
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
                "--remote-debugging-pipe",
            ])
            .arg(format!("--user-data-dir={}", profile.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let ends = [OwnedFd::from(its_requests), OwnedFd::from(its_answers)];
        // SAFETY: only system calls, on descriptors that the closure owns.
        unsafe {
            command.pre_exec(move || {
                // Out of the way of the places that they go to, or one would overwrite the other.
                let away = |end: &OwnedFd| match libc::fcntl(end.as_raw_fd(), libc::F_DUPFD, 10) {
                    -1 => Err(std::io::Error::last_os_error()),
                    number => Ok(number),
                };
                let [requests, answers] = [away(&ends[0])?, away(&ends[1])?];
                for (end, place) in [requests, answers].into_iter().zip(PIPES) {
                    if libc::dup2(end, place) == -1 {
                        return Err(std::io::Error::last_os_error());
                    }
                    libc::close(end);
                }
                Ok(())
            });
        }
        let child = spawn(command).with_context(|| {
            format!("start {PROGRAM}; `cargo xtask setup` installs what is missing")
        })?;
        let mut browser = Self {
            child,
            requests: File::from(OwnedFd::from(own_requests)),
            answers: BufReader::new(File::from(OwnedFd::from(own_answers))),
            session: None,
            number: 0,
            profile,
        };
        let target = browser.ask("Target.createTarget", json!({"url": "about:blank"}))?;
        let attached = browser.ask(
            "Target.attachToTarget",
            json!({"targetId": target["targetId"], "flatten": true}),
        )?;
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        browser.ask("Page.enable", json!({}))?;
        browser.ask("Runtime.enable", json!({}))?;
        Ok(browser)
    }

    /// Sends a command and waits for its answer; events in between are passed over.
    fn ask(&mut self, method: &str, parameters: Value) -> Result<Value> {
        self.number += 1;
        let mut request = json!({"id": self.number, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            request["sessionId"] = json!(session);
        }
        let mut bytes = serde_json::to_vec(&request)?;
        bytes.push(0);
        self.requests
            .write_all(&bytes)
            .with_context(|| format!("ask the browser for {method}"))?;
        loop {
            let mut bytes = Vec::new();
            self.answers.read_until(0, &mut bytes)?;
            ensure!(
                bytes.pop() == Some(0),
                "the browser ended while it was asked for {method}"
            );
            let mut answer: Value = serde_json::from_slice(&bytes)?;
            if answer["id"] != self.number {
                continue;
            }
            if !answer["error"].is_null() {
                bail!("the browser refused {method}: {}", answer["error"]);
            }
            return Ok(answer["result"].take());
        }
    }

    /// Sets the size of the window, in pixels, and whether it is a phone's.
    ///
    /// # Errors
    /// When the browser refuses.
    pub fn resize(&mut self, width: u32, height: u32, phone: bool) -> Result<()> {
        let scale = if phone { 2 } else { 1 };
        let size =
            json!({"width": width, "height": height, "deviceScaleFactor": scale, "mobile": phone});
        self.ask("Emulation.setDeviceMetricsOverride", size)?;
        Ok(())
    }

    /// Asks pages for colours.
    ///
    /// # Errors
    /// When the browser refuses.
    pub fn colours(&mut self, scheme: Scheme) -> Result<()> {
        let value = match scheme {
            Scheme::Light => "light",
            Scheme::Dark => "dark",
        };
        let feature = json!({"features": [{"name": "prefers-color-scheme", "value": value}]});
        self.ask("Emulation.setEmulatedMedia", feature)?;
        Ok(())
    }

    /// Opens a page.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn open(&mut self, url: &str) -> Result<()> {
        let opened = self.ask("Page.navigate", json!({"url": url}))?;
        match opened["errorText"].as_str() {
            Some(error) => bail!("{url} could not be opened: {error}"),
            None => Ok(()),
        }
    }

    /// What an expression comes to in the page.
    ///
    /// # Errors
    /// When it throws.
    pub fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let parameters =
            json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let mut result = self.ask("Runtime.evaluate", parameters)?;
        if !result["exceptionDetails"].is_null() {
            bail!("{expression}: {}", result["exceptionDetails"]);
        }
        Ok(result["result"]["value"].take())
    }

    /// Waits until an expression is as wanted, and returns it.
    ///
    /// # Errors
    /// When `deadline` passes first; the message holds what it was last.
    pub fn wait_for(
        &mut self,
        expression: &str,
        deadline: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        wait::until_seen(expression, deadline, || self.evaluate(expression), wanted)
    }

    /// Draws the page, all of it, into a file.
    ///
    /// # Errors
    /// When it cannot be drawn or written.
    pub fn screenshot(&mut self, file: &Path) -> Result<()> {
        let size = self.ask("Page.getLayoutMetrics", json!({}))?["cssContentSize"].take();
        let clip =
            json!({"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1});
        let parameters = json!({"format": "png", "captureBeyondViewport": true, "clip": clip});
        let drawn = self.ask("Page.captureScreenshot", parameters)?;
        let data = drawn["data"].as_str().context("a picture")?;
        let bytes = base64::engine::general_purpose::STANDARD.decode(data)?;
        std::fs::write(file, bytes).with_context(|| format!("write {}", file.display()))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}
