//! The bench's rows of the daemon, of a tiny one and for a moment: that they can be measured, and not what comes of it.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
struct Figures {
    rows: Vec<Row>,
    missed: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Row {
    name: String,
    unit: String,
    median: f64,
}

#[test]
fn the_daemon_is_measured() -> Result<()> {
    let file = std::env::temp_dir().join(format!("tether-bench-{}.json", std::process::id()));
    let output = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(["--only", "control", "--smoke", "--json"])
        .arg(&file)
        .output()?;
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(output.status.success(), "{}: {said}", output.status);
    let text = std::fs::read_to_string(&file).with_context(|| said.clone())?;
    std::fs::remove_file(&file)?;
    let figures: Figures = serde_json::from_str(&text)?;
    assert_eq!(figures.missed, [""; 0], "{said}");
    let rows: BTreeMap<&str, &Row> = figures
        .rows
        .iter()
        .map(|row| (row.name.as_str(), row))
        .collect();
    let units = rows.iter().map(|(name, row)| (*name, row.unit.as_str()));
    assert_eq!(
        units.collect::<Vec<_>>(),
        [
            ("control/idle-cpu", "%"),
            ("control/idle-memory", "MiB"),
            ("control/probe-to-table", "ms"),
            ("control/reload/1000x20", "ms"),
            ("control/scrape/1000x20", "ms"),
        ],
        "{said}"
    );
    for (name, row) in rows {
        // In a moment an idle daemon may take less than the kernel counts.
        assert!(row.median > 0.0 || name == "control/idle-cpu", "{row:?}");
    }
    Ok(())
}
