//! A disk that hangs holds up what must be remembered, and nothing else.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
};

use lb_common::backend::Serving;
use lb_userspace::{desired::Refusal, model::Health};
use nix::{sys::stat::Mode, unistd::mkfifo};

use super::{Daemon, Machine, PATIENCE, running, serves, slots_of};

/// A pipe in the place of a file that is to be written: whoever opens it waits until this is dropped.
struct Hung(PathBuf);

impl Hung {
    fn new(file: PathBuf) -> Self {
        mkfifo(&file, Mode::S_IRWXU).unwrap();
        Self(file)
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        // Whoever comes from now on makes a file there.
        let aside = self.0.with_extension("pipe");
        drop(fs::rename(&self.0, &aside));
        let mut reader = OpenOptions::new();
        drop(reader.read(true).custom_flags(libc::O_NONBLOCK).open(aside));
    }
}

/// Asks until it is done: the disk takes a moment until it is itself again.
async fn drain_at_last(daemon: &Daemon, backend: &str) {
    let drained = async { while daemon.drain(backend).await.is_err() {} };
    tokio::time::timeout(PATIENCE, drained).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_hangs_keeps_no_verdict_from_being_applied() {
    let machine = Machine::new("disk");
    let daemon = running(&machine).await;
    let hung = Hung::new(machine.directory.join("runtime.json.new"));
    let refused = tokio::time::timeout(PATIENCE, daemon.drain("b2")).await;
    assert!(
        matches!(refused, Ok(Err(Refusal::Failed(_)))),
        "{refused:?}"
    );
    daemon.verdict("b1", "10.0.1.11:80", Health::Down).await;
    daemon
        .until("b1 is dead", |status| serves(status, "b1", Serving::None))
        .await;
    assert_eq!(slots_of(&machine.maps, 1), 0);
    assert!(
        slots_of(&machine.maps, 2) > 0,
        "what was refused is not done"
    );

    drop(hung);
    drain_at_last(&daemon, "b2").await;
    let saved = fs::read_to_string(machine.directory.join("runtime.json")).unwrap();
    assert!(
        saved.contains(r#""drained":[{"service":"chat","backend":"b2"}]"#),
        "{saved}"
    );
    daemon.stop().await;
}
