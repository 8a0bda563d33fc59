//! Waiting for a fact with a deadline: the only way that tests and the demo synchronise.

use std::fmt::Debug;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at. Short against everything that is waited for, long against the cost of looking.
const EVERY: Duration = Duration::from_millis(10);

/// How many times longer than they say deadlines are: `LAB_PATIENCE` of the environment, which slow machines set. What must hold
/// for a while is looked at for no longer than that.
static PATIENCE: LazyLock<u32> = LazyLock::new(|| {
    let Ok(text) = std::env::var("LAB_PATIENCE") else {
        return 1;
    };
    text.parse()
        .unwrap_or_else(|_| panic!("LAB_PATIENCE is a whole number, and not {text:?}"))
});

/// A deadline on this machine.
#[must_use]
pub fn scaled(deadline: Duration) -> Duration {
    deadline * *PATIENCE
}

/// Looks at `probe` until it gives a value, and returns it.
///
/// # Errors
/// When `deadline` passes first; the message says what was waited for.
pub fn until<T>(what: &str, deadline: Duration, mut probe: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = scaled(deadline);
    let started = Instant::now();
    loop {
        if let Some(value) = probe() {
            return Ok(value);
        }
        if started.elapsed() >= deadline {
            bail!("waited {deadline:?} in vain: {what}");
        }
        std::thread::sleep(EVERY);
    }
}

/// How often something is looked at that costs a process each time.
const EVERY_COSTLY: Duration = Duration::from_millis(50);

/// Looks at `probe`, which may be costly, until its value satisfies `accept`, and returns that value.
///
/// # Errors
/// When `deadline` passes first, or `probe` fails at the deadline; the message holds the last thing seen.
pub fn until_seen<T: Debug>(
    what: &str,
    deadline: Duration,
    mut probe: impl FnMut() -> Result<T>,
    accept: impl Fn(&T) -> bool,
) -> Result<T> {
    let deadline = scaled(deadline);
    let started = Instant::now();
    loop {
        let seen = probe();
        if let Ok(value) = &seen
            && accept(value)
        {
            return seen;
        }
        if started.elapsed() >= deadline {
            match seen {
                Ok(value) => bail!("waited {deadline:?} in vain: {what}; last seen: {value:#?}"),
                Err(error) => return Err(error.context(format!("waited in vain: {what}"))),
            }
        }
        std::thread::sleep(EVERY_COSTLY);
    }
}

/// Checks that `probe` holds, again and again, for the whole of `span`: for facts that must not change.
///
/// # Errors
/// At the first look that it does not hold.
pub fn holds(what: &str, span: Duration, mut probe: impl FnMut() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    while started.elapsed() < span {
        if !probe()? {
            bail!("stopped being true after {:?}: {what}", started.elapsed());
        }
        std::thread::sleep(EVERY_COSTLY);
    }
    Ok(())
}
