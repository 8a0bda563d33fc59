//! Whether a file is another than it was.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

/// What tells one content of a path from another without reading it; none if nothing is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen(Option<[i128; 5]>);

impl Seen {
    /// What is there now.
    pub(crate) fn at(path: &Path) -> Self {
        let time = |seconds: i64, nanoseconds: i64| {
            i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds)
        };
        Self(fs::metadata(path).ok().map(|file| {
            [
                file.dev().into(),
                file.ino().into(),
                file.size().into(),
                time(file.mtime(), file.mtime_nsec()),
                time(file.ctime(), file.ctime_nsec()),
            ]
        }))
    }
}
