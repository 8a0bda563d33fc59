//! What stays compatible across versions, held to lists of what there has been: see docs/compatibility.md.
//!
//! A name of a list that is gone fails, and so does one that is on no list, so that it is written down when it comes. With `TETHER_RECORD=1` the tests
//! add what is new; they take nothing away.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::Value;

use crate::{admin, cli, config, dataplane::kernel::UpgradeCheck, doctor::Report};

fn list(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("compatibility/{name}.txt"))
}

/// Holds what there is to a list.
fn hold(name: &str, now: &BTreeSet<String>) {
    assert!(now.len() > 10, "only {now:?}");
    let path = list(name);
    let text = fs::read_to_string(&path).unwrap_or_default();
    let known: BTreeSet<String> = text.lines().map(str::to_owned).collect();
    let gone: Vec<_> = known.difference(now).collect();
    assert!(
        gone.is_empty(),
        "{}: these were promised to stay within a major version, and are gone or of another type: {gone:#?}",
        path.display()
    );
    let new: Vec<_> = now.difference(&known).cloned().collect();
    if new.is_empty() {
        return;
    }
    if std::env::var_os("TETHER_RECORD").is_some() {
        let all: Vec<_> = known.union(now).map(String::as_str).collect();
        fs::write(&path, all.join("\n") + "\n").unwrap();
        return;
    }
    panic!(
        "{}: these are new, and a promise from now on; add them by TETHER_RECORD=1 cargo test -p lb-userspace compatibility: {new:#?}",
        path.display()
    );
}

/// The keys of a JSON schema with their types, as paths.
fn keys(schema: &Value, path: &str, found: &mut BTreeSet<String>) {
    if let Some(items) = schema.get("items") {
        keys(items, &format!("{path}[]"), found);
    }
    for choices in ["anyOf", "oneOf", "allOf"] {
        for choice in schema[choices].as_array().into_iter().flatten() {
            keys(choice, path, found);
        }
    }
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        found.insert(format!("{path}: {}", kind(inner)));
        keys(inner, &path, found);
    }
}

/// The type of a schema.
fn kind(schema: &Value) -> String {
    if let Some(to) = schema["$ref"].as_str() {
        return to.rsplit('/').next().unwrap_or(to).to_owned();
    }
    match &schema["type"] {
        Value::String(one) => one.clone(),
        Value::Array(several) => {
            let several: Vec<_> = several.iter().filter_map(Value::as_str).collect();
            several.join("|")
        }
        _ => {
            let choices = ["anyOf", "oneOf"]
                .iter()
                .flat_map(|name| schema[*name].as_array().into_iter().flatten());
            let kinds: BTreeSet<String> = choices.map(kind).collect();
            kinds.into_iter().collect::<Vec<_>>().join("|")
        }
    }
}

#[test]
fn keys_of_the_configuration() {
    let mut found = BTreeSet::new();
    keys(config::schema().as_value(), "", &mut found);
    hold("configuration", &found);
}

#[test]
fn requests_and_answers_of_the_admin_api_and_of_json() {
    let document = serde_json::to_value(admin::document::document()).unwrap();
    let mut found = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            found.insert(format!("{} {path}", method.to_uppercase()));
        }
    }
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        keys(schema, name, &mut found);
    }
    hold("api", &found);
}

/// `--json` of commands that ask no daemon, and so are in no description of the admin API.
#[test]
fn reports_of_doctor_and_upgrade_check() {
    fn schema<T: JsonSchema>() -> Value {
        let settings = SchemaSettings::draft2020_12()
            .with(|settings| settings.inline_subschemas = true)
            .for_serialize();
        let generator = settings.into_generator();
        generator.into_root_schema_for::<T>().to_value()
    }
    let mut found = BTreeSet::new();
    keys(&schema::<Report>(), "doctor", &mut found);
    keys(&schema::<UpgradeCheck>(), "upgrade-check", &mut found);
    hold("reports", &found);
}

#[test]
fn metrics_and_their_labels() {
    // Another test holds the page to what is exported.
    let page = include_str!("../../docs/metrics.md");
    let mut found = BTreeSet::new();
    for row in page.lines().filter(|line| line.starts_with("| `tether_")) {
        let mut cells = row.split('|').skip(1).map(str::trim);
        let (Some(names), Some(labels)) = (cells.next(), cells.next()) else {
            panic!("{row}");
        };
        let quoted = |text: &str| -> Vec<String> {
            text.split('`')
                .skip(1)
                .step_by(2)
                .map(str::to_owned)
                .collect()
        };
        let labels = quoted(labels).join(",");
        found.extend(
            quoted(names)
                .into_iter()
                .map(|name| format!("{name}{{{labels}}}")),
        );
    }
    hold("metrics", &found);
}

#[test]
fn commands_and_their_options() {
    fn walk(command: &clap::Command, path: &str, found: &mut BTreeSet<String>) {
        let path = format!("{path} {}", command.get_name()).trim().to_owned();
        found.insert(path.clone());
        for argument in command.get_arguments().filter(|one| !one.is_hide_set()) {
            match argument.get_long() {
                Some(long) => found.insert(format!("{path} --{long}")),
                None => found.insert(format!(
                    "{path} {}",
                    argument.get_id().as_str().to_uppercase()
                )),
            };
        }
        for below in command.get_subcommands() {
            walk(below, &path, found);
        }
    }
    let mut found = BTreeSet::new();
    walk(&cli::description(), "", &mut found);
    hold("commands", &found);
}

#[test]
fn what_is_gone_or_of_another_type_is_found() {
    let of = |text: &str| {
        let mut found = BTreeSet::new();
        keys(&serde_json::from_str(text).unwrap(), "", &mut found);
        found
    };
    let before = of(
        r#"{"properties": {"a": {"type": "array", "items": {"properties": {"b": {"type": "string"}}}}}}"#,
    );
    assert_eq!(
        before,
        BTreeSet::from(["a: array".to_owned(), "a[].b: string".to_owned()])
    );
    let after = of(
        r#"{"properties": {"a": {"type": "array", "items": {"properties": {"b": {"type": ["string", "null"]}}}}}}"#,
    );
    assert_eq!(
        after.difference(&before).collect::<Vec<_>>(),
        ["a[].b: string|null"]
    );
}
