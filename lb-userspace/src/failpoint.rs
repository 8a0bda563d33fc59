//! Places between two steps of which the second could be missing: where a test ends the process, to see that what comes after that
//! finds nothing half done. Passing one does nothing unless somebody observes, and the shipped program does not.

use std::sync::OnceLock;

/// Names each place once, so that none is missing from [`Place::ALL`].
macro_rules! places {
    ($($place:ident = $name:literal,)*) => {
        /// One of them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Place {
            $(#[doc = $name] $place,)*
        }

        impl Place {
            /// Every place that there is.
            pub const ALL: &[Self] = &[$(Self::$place,)*];

            /// What people call it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$place => $name,)*
                }
            }
        }
    };
}

places! {
    MapPinned = "after pinning a map",
    MapsComplete = "before publishing the maps",
    MapsPublished = "after publishing the maps",
    ResizeStepDone = "after a step of a resize",
    ProgramMissing = "before a program that packets are handed on to is in its place",
    LinkAttached = "between attaching a link and pinning it",
    LinkPinned = "after pinning a link",
    ProgramOld = "before a link's program is replaced",
    ProgramReplaced = "after a link's program is replaced",
    LinkDetached = "between detaching a link and unpinning it",
    ReplyLinkAttached = "between attaching the program for replies from this host and pinning its link",
    RepliesSwitched = "between switching the program for replies from this host and the first link of a resize",
    OperationDue = "before an operation",
    OperationsDone = "after all operations",
    MemoryWritten = "between writing and renaming what is remembered",
    MemoryRenamed = "after renaming what is remembered",
}

static OBSERVER: OnceLock<fn(Place)> = OnceLock::new();

/// Has `observer` told of each place that is passed from now on, by the thread that passes it. The first observer stays.
pub fn observe(observer: fn(Place)) {
    let _ = OBSERVER.set(observer);
}

/// Tells the observer, if there is one.
pub(crate) fn pass(place: Place) {
    if let Some(observer) = OBSERVER.get() {
        observer(place);
    }
}
