//! From facts to findings: pure.

mod backend;
mod host;
mod interface;

pub(super) use self::backend::largest;
use super::{Report, facts::Facts};

/// Bytes of a packet as the internet's links carry it.
const INTERNET_MTU: u32 = 1500;

/// Judges everything.
pub fn examine(facts: &Facts) -> Report {
    let mut findings = Vec::new();
    host::examine(facts, &mut findings);
    interface::examine(facts, &mut findings);
    backend::examine(facts, &mut findings);
    Report { findings }
}

/// Names with commas between them.
fn listed<T: ToString>(all: impl IntoIterator<Item = T>) -> String {
    let all: Vec<String> = all.into_iter().map(|one| one.to_string()).collect();
    all.join(", ")
}

#[cfg(test)]
mod tests;
