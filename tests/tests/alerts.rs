//! The alert rules and the dashboard in `deploy/`: tested by promtool, and every query held against what a running daemon exports.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use lab::dashboard;
use lab::stage::Stage;
use lab::topology::{Place, Topology};
use lb_common::verdict::{Class, Reason};

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy")
        .join(path)
}

fn promtool(arguments: &[&str]) -> Result<()> {
    let output = Command::new("promtool")
        .args(arguments)
        .current_dir(deploy("prometheus"))
        .output()
        .context("start promtool; `cargo xtask setup` installs what is missing")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(
        output.status.success(),
        "promtool {}: {}{}",
        arguments.join(" "),
        text(&output.stdout),
        text(&output.stderr)
    );
    Ok(())
}

#[test]
fn every_alert_fires_for_its_fault_and_for_nothing_else() -> Result<()> {
    promtool(&["check", "rules", "tether.rules.yml"])?;
    promtool(&["test", "rules", "tether.test.yml"])?;
    // An alert without a fault in the tests would go untested.
    let rules = std::fs::read_to_string(deploy("prometheus/tether.rules.yml"))?;
    let tests = std::fs::read_to_string(deploy("prometheus/tether.test.yml"))?;
    for name in rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
    {
        assert!(
            tests.contains(&format!("alertname=\"{name}\"")),
            "nothing fires {name}"
        );
    }
    Ok(())
}

#[test]
fn whatever_should_never_happen_fires_an_alert() -> Result<()> {
    let rules = std::fs::read_to_string(deploy("prometheus/tether.rules.yml"))?;
    let names: Vec<&str> = Reason::ALL
        .iter()
        .filter(|reason| reason.class() == Class::ShouldNeverHappen)
        .map(|reason| reason.name())
        .collect();
    let selector = format!(
        "tether_reason_packets_total{{reason=~\"{}\"}}",
        names.join("|")
    );
    assert!(rules.contains(&selector), "no rule has {selector}");
    Ok(())
}

/// Whoever is woken finds in the operations guide what to do.
#[test]
fn every_alert_is_told_of_with_what_to_do() -> Result<()> {
    let rules = std::fs::read_to_string(deploy("prometheus/tether.rules.yml"))?;
    let guide = std::fs::read_to_string(deploy("../docs/operations.md"))?;
    let (_, table) = guide
        .split_once("\n### Alerts\n")
        .context("docs/operations.md has no section on alerts")?;
    let told: BTreeSet<&str> = table
        .split("\n## ")
        .next()
        .unwrap_or(table)
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|row| row.split(" | ").next())
        .flat_map(|names| names.split('`'))
        .filter(|name| name.starts_with("Tether"))
        .collect();
    let shipped: BTreeSet<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert_eq!(told, shipped);
    let listed = std::fs::read_to_string(deploy("README.md"))?;
    for name in shipped {
        assert!(
            listed.contains(&format!("`{name}`")),
            "deploy/README.md does not list {name}"
        );
    }
    Ok(())
}

#[test]
fn the_dashboards_queries_are_promql() -> Result<()> {
    let mut rules = "groups:\n- name: dashboard\n  rules:\n".to_owned();
    for (n, query) in dashboard::queries()?.iter().enumerate() {
        let query = serde_json::to_string(query)?;
        rules += &format!("  - record: query:number_{n}:any\n    expr: {query}\n");
    }
    let file = std::env::temp_dir().join(format!("tether-dashboard-{}.yml", std::process::id()));
    std::fs::write(&file, rules)?;
    let checked = promtool(&["check", "rules", &file.to_string_lossy()]);
    std::fs::remove_file(file)?;
    checked
}

/// Names of metrics as Prometheus stores them, each with the labels that its samples have, and those that no sample shows at the moment without
/// any.
fn exported(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines() {
        if let Some(described) = line.strip_prefix("# TYPE ") {
            let (name, kind) = described.split_once(' ').unwrap_or((described, ""));
            match kind {
                "counter" => drop(all.entry(format!("{name}_total")).or_default()),
                "histogram" => {
                    for part in ["bucket", "sum", "count"] {
                        all.entry(format!("{name}_{part}")).or_default();
                    }
                }
                _ => drop(all.entry(name.to_owned()).or_default()),
            }
        } else if !line.starts_with('#') {
            let (name, rest) = line.split_at(line.find(['{', ' ']).unwrap_or(line.len()));
            let labels = all.entry(name.to_owned()).or_default();
            let names = rest.split("=\"").map(|before| {
                let from = before.rfind(['{', ',']).map_or(0, |at| at + 1);
                before[from..].to_owned()
            });
            let count = rest.matches("=\"").count();
            labels.extend(names.take(count));
        }
    }
    all
}

/// Metrics of a query with the labels that it selects by.
fn selectors(query: &str) -> Vec<(String, Vec<String>)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut found = Vec::new();
    let mut rest = query;
    while let Some(at) = rest.find("tether_") {
        let is_start = !rest[..at].ends_with(is_name);
        let end = rest[at..]
            .find(|c| !is_name(c))
            .map_or(rest.len(), |n| at + n);
        let (name, after) = (&rest[at..end], &rest[end..]);
        if is_start {
            let labels = after
                .strip_prefix('{')
                .and_then(|inside| inside.split_once('}'))
                .map_or(vec![], |(inside, _)| {
                    let pairs = inside.split(", ");
                    let name =
                        |pair: &str| pair.split(['=', '!']).next().unwrap_or(pair).to_owned();
                    pairs.map(name).collect()
                });
            found.push((name.to_owned(), labels));
        }
        rest = after;
    }
    found
}

#[test]
fn every_query_asks_for_what_a_running_daemon_exports() -> Result<()> {
    // What clients send again is shown of services that ask for it.
    let stage = Stage::set(Topology::new(Place::Farm), 95, |config| {
        config.lines = "outlier = {}\n".into();
    })?;
    let text = stage.tether.metrics()?;
    stage.close();
    let exported = exported(&text);
    // Prometheus adds these.
    let added = ["instance", "job"];
    // No interface of the lab is closed, no address is translated and no name is asked for, so no sample shows their labels.
    let unseen = [
        ("tether_egress_closed", "interface"),
        ("tether_snat_ports", "service"),
        ("tether_dns_failing", "service"),
    ];
    let rules = std::fs::read_to_string(deploy("prometheus/tether.rules.yml"))?;
    let mut queries = dashboard::queries()?;
    // Summaries of alerts name no metric but in a query that an operator could ask.
    queries.extend(
        rules
            .lines()
            .filter(|line| !line.trim().starts_with("- record:"))
            .map(str::to_owned),
    );
    let mut asked = BTreeSet::new();
    for query in &queries {
        for (name, labels) in selectors(query) {
            let there = exported
                .get(&name)
                .with_context(|| format!("no daemon exports {name}: {query}"))?;
            for label in labels {
                let known = there.contains(&label)
                    || added.contains(&label.as_str())
                    || unseen.contains(&(name.as_str(), label.as_str()));
                assert!(known, "{name} has no label {label}: {query}");
            }
            asked.insert(name);
        }
    }
    assert!(asked.len() > 20, "only {asked:?} are asked for");
    Ok(())
}

#[test]
fn selectors_are_found_in_queries() {
    let query =
        r#"sum by (a) (tether_x_total{a="1", b=~"2|3"}) / instance:tether_y:sum > tether_z"#;
    let found = selectors(query);
    let expected = [
        (
            "tether_x_total".to_owned(),
            vec!["a".to_owned(), "b".to_owned()],
        ),
        ("tether_z".to_owned(), vec![]),
    ];
    assert_eq!(found, expected);
    let text = "# TYPE tether_x counter\ntether_x_total{a=\"1\",b=\"c,d=\"} 2\n# TYPE tether_h histogram\n";
    let exported = exported(text);
    assert!(exported["tether_x_total"].contains("a") && exported["tether_x_total"].contains("b"));
    assert!(exported.contains_key("tether_h_bucket"));
}
