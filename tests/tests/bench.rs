//! Rows of the bench: that they can be measured, and beside what, and not what comes of it. Those of the daemon are of a tiny one and for a moment.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
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
    floor: Option<String>,
    mark: Option<f64>,
}

/// The bench's status if a mark was missed, as on a machine that has something else to do.
const MISSED: i32 = 3;

/// Measures the rows whose name begins so. Gives what was said, too.
fn measure(only: &str, more: &[&str]) -> Result<(Figures, String)> {
    let name = format!("tether-bench-{}-{only}.json", std::process::id());
    let file = std::env::temp_dir().join(name.replace('/', "-"));
    let output = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(["--only", only, "--json"])
        .arg(&file)
        .args(more)
        .output()?;
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let is_measured = matches!(output.status.code(), Some(0 | MISSED));
    ensure!(is_measured, "{}: {said}", output.status);
    let text = std::fs::read_to_string(&file).with_context(|| said.clone())?;
    std::fs::remove_file(&file)?;
    Ok((serde_json::from_str(&text)?, said))
}

#[test]
fn the_daemon_is_measured() -> Result<()> {
    let (figures, said) = measure("control", &["--smoke"])?;
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

#[test]
fn the_choice_of_a_port_is_measured() -> Result<()> {
    let (figures, said) = measure("ports/95/v4", &["--rounds", "9"])?;
    let [row] = &figures.rows[..] else {
        bail!("{said}");
    };
    assert!(row.median > 0.0 && row.unit == "ns", "{row:?}");
    assert_eq!(row.name, "ports/95/v4");
    assert_eq!((row.floor.as_deref(), row.mark), (Some("all free"), None));
    Ok(())
}

/// Of 10,000 to a million flows, as of guarded ones.
#[test]
fn replies_are_measured_and_drawn() -> Result<()> {
    let plot = std::env::temp_dir().join(format!("tether-bench-{}.svg", std::process::id()));
    let drawn = ["--rounds", "9", "--svg", &plot.to_string_lossy()];
    let (figures, said) = measure("replies/nat/v4/10000", &drawn)?;
    let drawing = std::fs::read_to_string(&plot)?;
    std::fs::remove_file(&plot)?;
    assert!(drawing.starts_with("<svg") && drawing.contains("replies/nat/v4"));
    assert_eq!(figures.rows.len(), 3, "{said}");
    for row in &figures.rows {
        assert!(row.median > 0.0 && row.unit == "ns", "{row:?}");
        assert_eq!((row.floor.as_deref(), row.mark), (Some("swap"), None));
    }
    Ok(())
}

/// Of established flows of a guarded service with those of 10,000 to a million flows: what a row's name begins with is all that can be asked for.
#[test]
fn floods_and_guards_are_measured() -> Result<()> {
    for (only, rows) in [
        ("syn/flood/", &["syn/flood/v4", "syn/flood/v6"][..]),
        ("unknown/", &["unknown/v4", "unknown/v6"][..]),
        (
            "guarded/ipip/v4/10000",
            &[
                "guarded/ipip/v4/10000",
                "guarded/ipip/v4/100000",
                "guarded/ipip/v4/1000000",
            ][..],
        ),
    ] {
        let (figures, said) = measure(only, &["--rounds", "9"])?;
        let names: Vec<&str> = figures.rows.iter().map(|row| row.name.as_str()).collect();
        assert_eq!(names, rows, "{said}");
        let (floor, mark) = if only.starts_with("guarded") {
            ("no guard", Some(1.25))
        } else {
            ("encap", None)
        };
        for row in &figures.rows {
            assert!(row.median > 0.0 && row.unit == "ns", "{row:?}");
            assert_eq!((row.floor.as_deref(), row.mark), (Some(floor), mark));
        }
    }
    Ok(())
}
