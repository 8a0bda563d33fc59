//! Places between two steps of which the second could be missing: where a test ends the process, to see that what comes after that
//! finds nothing half done. Passing one does nothing unless somebody observes, and the shipped program does not.

use std::sync::OnceLock;

static OBSERVER: OnceLock<fn(&'static str)> = OnceLock::new();

/// Has `observer` told of each place that is passed from now on, by the thread that passes it. The first observer stays.
pub fn observe(observer: fn(&'static str)) {
    let _ = OBSERVER.set(observer);
}

/// Tells the observer, if there is one.
pub(crate) fn pass(place: &'static str) {
    if let Some(observer) = OBSERVER.get() {
        observer(place);
    }
}
