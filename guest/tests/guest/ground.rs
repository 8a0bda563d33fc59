//! What these tests have in common: a lab whose uplink is of another kind, and connections through it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use lab::address::{balancer, on_link};
use lab::peer::client::Connection;
use lab::peer::crowd;
use lab::stage::Stage;
use lab::status::Attachment;
use lab::topology::{Lab, UPLINK};
use lb_common::net::IpVersion;

/// For everything that takes no longer than a few packets.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Enough for every backend to get some, few enough for an emulated machine.
pub(crate) const CONNECTIONS: usize = 60;

/// What to tell somebody whose kernel lacks `device`.
pub(crate) fn lacking(device: &str) -> String {
    format!("this kernel has no {device}; `cargo xtask kernels` runs these tests in one that has")
}

/// Takes the balancer's link away, so that another can take its place.
pub(crate) fn unplug(lab: &Lab) -> Result<()> {
    lab.balancer().ip(&format!("link delete {UPLINK}"))
}

/// Gives the balancer's new uplink the old one's addresses and routes.
pub(crate) fn plugged(lab: &Lab) -> Result<()> {
    lab.balancer().ip(&format!(
        "link set {UPLINK} up
         address add {} dev {UPLINK}
         route add default via 10.0.2.1",
        on_link(balancer(IpVersion::V4))
    ))
}

/// Opens connections through the balancer and lets each echo.
pub(crate) fn converse(stage: &Stage) -> Result<Vec<Connection>> {
    let connections = stage.clients.open(CONNECTIONS, stage.plan(), |_| {})?;
    assert_echo(&connections);
    let spread = crowd::spread(&connections);
    assert_eq!(
        spread.len(),
        stage.backends.len(),
        "every backend has some: {spread:?}"
    );
    Ok(connections)
}

/// Each connection echoes, and none has ever broken.
pub(crate) fn assert_echo(connections: &[Connection]) {
    assert_eq!(crowd::echo_all(connections), [""; 0]);
    assert_eq!(crowd::breaks(connections), [""; 0]);
}

/// The program runs in the driver of the uplink.
pub(crate) fn assert_native(stage: &Stage) -> Result<()> {
    let status = stage.tether.status().context("ask the daemon")?;
    let native = Attachment {
        interface: UPLINK.into(),
        mode: "native".into(),
    };
    assert_eq!(status.attachments, [native]);
    Ok(())
}
