//! The dashboard in `deploy/grafana`, as far as tests look at it.

use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::Value;

/// Its queries, with its variables put in: all instances and services.
///
/// # Errors
/// When it cannot be read, or has few.
pub fn queries() -> Result<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/grafana/tether.json");
    let text = std::fs::read_to_string(path)?;
    let mut all = vec![];
    collect(&serde_json::from_str(&text)?, &mut all);
    ensure!(
        all.len() > 20,
        "the dashboard has only {} queries",
        all.len()
    );
    let filled = |text: &String| {
        text.replace("$instance", ".*")
            .replace("$service", ".*")
            .replace("$__rate_interval", "5m")
    };
    Ok(all.iter().map(filled).collect())
}

fn collect(value: &Value, all: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                match value {
                    Value::String(text) if name == "expr" => all.push(text.clone()),
                    other => collect(other, all),
                }
            }
        }
        Value::Array(elements) => elements.iter().for_each(|one| collect(one, all)),
        _ => {}
    }
}
