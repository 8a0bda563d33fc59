//! A backend that loses some of what clients send, and whose health checks find nothing.

use anyhow::Result;

use crate::stage::Stage;

/// What a service has that finds such a backend within seconds, of few clients, and ejects it for so long that whoever looks at that sees it, on the slowest of
/// machines too: see [`forgive`].
pub const LINES: &str =
    "outlier = { window = \"6s\", least = 60, floor = 4, eject_for = \"1h\" }\n";

/// How many addresses clients have: enough that no few of them speak for a backend.
pub const CLIENTS: u8 = 60;

/// So many percent of what comes to the VIP are lost. Health checks go to the backend's own address.
const LOST: u32 = 12;

/// Has a backend lose packets at random, as by a bad cable.
///
/// # Errors
/// When there is no such backend, or without nftables.
pub fn sicken(stage: &Stage, name: &str) -> Result<()> {
    let (index, _) = stage.backend(name)?;
    let host = &stage.lab.backends()[usize::from(index)];
    let (vip, port) = (stage.config.vip, stage.config.port);
    host.write(
        "/run/gray.nft",
        &format!(
            "table inet gray {{
    chain input {{
        type filter hook input priority filter;
        ip daddr {vip} tcp dport {port} numgen random mod 100 < {LOST} drop
    }}
}}
"
        ),
    )?;
    host.sh("nft -f /run/gray.nft").map(drop)
}

/// Has it lose nothing any more.
///
/// # Errors
/// When there is no such backend, or it loses nothing.
pub fn cure(stage: &Stage, name: &str) -> Result<()> {
    let (index, _) = stage.backend(name)?;
    let host = &stage.lab.backends()[usize::from(index)];
    host.sh("nft delete table inet gray").map(drop)
}

/// Has ejections by [`LINES`] end within seconds, of whoever is well by then.
///
/// # Errors
/// When the configuration does not come into force.
pub fn forgive(stage: &Stage) -> Result<()> {
    let mut config = stage.config.clone();
    config.lines = LINES.replace("\"1h\"", "\"1s\"");
    stage.tether.reload(&config.text()).map(drop)
}
