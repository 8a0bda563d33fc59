//! The schema, the parser and the documentation say the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde_json::{Value, json};

use super::{super::parse, *};

const EXAMPLE: &str = include_str!("../../../../examples/tether.toml");
const DOCUMENTATION: &str = include_str!("../../../../docs/configuration.md");

/// Every table of a configuration: how the documentation calls it, where it is in the schema, and a file that has it with an unknown key
/// `oops`.
const TABLES: [(&str, &str, &str); 10] = [
    ("Top level", "", "oops = 1\n"),
    ("[dns]", "/properties/dns", "[dns]\noops = 1\n"),
    (
        "[[service.dns]]",
        "/properties/service/items/properties/dns/items",
        "[[service]]\n[[service.dns]]\noops = 1\n",
    ),
    ("[metrics]", "/properties/metrics", "[metrics]\noops = 1\n"),
    ("[limits]", "/properties/limits", "[limits]\noops = 1\n"),
    (
        "[[service]]",
        "/properties/service/items",
        "[[service]]\noops = 1\n",
    ),
    (
        "[service.health]",
        "/properties/service/items/properties/health",
        "[[service]]\n[service.health]\noops = 1\n",
    ),
    (
        "[service.health.tls]",
        "/properties/service/items/properties/health/properties/tls",
        "[[service]]\n[service.health]\ntype = \"https\"\ntls.oops = 1\n",
    ),
    (
        "json",
        "/properties/service/items/properties/health/properties/json",
        "[[service]]\n[service.health]\ntype = \"http\"\njson.oops = 1\n",
    ),
    (
        "[[service.backend]]",
        "/properties/service/items/properties/backend/items",
        "[[service]]\n[[service.backend]]\noops = 1\n",
    ),
];

fn whole() -> Value {
    schema().to_value()
}

fn properties<'s>(schema: &'s Value, place: &str) -> &'s serde_json::Map<String, Value> {
    schema
        .pointer(&format!("{place}/properties"))
        .and_then(Value::as_object)
        .unwrap_or_else(|| panic!("no table at {place:?} in {schema:#}"))
}

fn keys(schema: &Value, place: &str) -> BTreeSet<String> {
    properties(schema, place).keys().cloned().collect()
}

/// The keys that the parser knows in a table: it lists them when it meets another.
fn parsed(file: &str) -> BTreeSet<String> {
    let problems = parse(Path::new("t.toml"), file).unwrap_err();
    let problem = problems
        .iter()
        .find(|problem| problem.wrong == "unknown key \"oops\"")
        .unwrap_or_else(|| panic!("{problems}"));
    let (_, known) = problem.remedy.split_once("known here are ").unwrap();
    known.split(", ").map(str::to_owned).collect()
}

/// The keys that the documentation lists, by table: the first column of tables whose head is `key`.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let (mut table, mut in_keys) = (String::new(), false);
    for line in DOCUMENTATION.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            table = heading.replace('`', "");
        } else if line.starts_with("`[") && line.ends_with("]`:") {
            table = line.replace(['`', ':'], "");
        } else if line.starts_with("When is asked") {
            table = "[service.health]".to_owned();
        }
        if let Some(row) = line.strip_prefix("| ") {
            let first = row.split(" | ").next().unwrap_or_default();
            if first == "key" {
                in_keys = true;
            } else if in_keys {
                all.entry(table.clone()).or_default().extend(
                    first
                        .split(", ")
                        .filter(|key| key.starts_with('`'))
                        .map(|key| key.replace('`', "")),
                );
            }
        } else if !line.starts_with('|') {
            in_keys = false;
        }
    }
    all
}

#[test]
fn schema_parser_and_documentation_have_the_same_keys() {
    let schema = whole();
    let documented = documented();
    for (name, place, file) in TABLES.into_iter() {
        let keys = keys(&schema, place);
        assert_eq!(keys, parsed(file), "parser, {name}");
        let Some(documented) = documented.get(name) else {
            // It is explained in the row of its key.
            assert_eq!(name, "json");
            continue;
        };
        // Tables have sections of their own.
        let is_table = |key: &String| {
            TABLES.into_iter().any(|(_, other, _)| {
                other == format!("{place}/properties/{key}")
                    || other == format!("{place}/properties/{key}/items")
            })
        };
        let mut rest = keys.clone();
        rest.retain(|key| !is_table(key) || documented.contains(key));
        assert_eq!(&rest, documented, "documentation, {name}");
    }
}

#[test]
fn the_example_fits_the_schema_and_mistakes_do_not() {
    let schema = whole();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let example: Value = toml::from_str(EXAMPLE).unwrap();
    if let Err(error) = validator.validate(&example) {
        panic!("{}: {error}", error.instance_path());
    }
    for (place, wrong) in [
        ("/interfaces", json!([])),
        ("/limits/flows", json!(0)),
        ("/service/0/mode", json!("nat64")),
        ("/service/0/port", json!(0)),
        ("/service/0/name", json!("a b")),
        ("/service/0/health/interval", json!("2 seconds")),
        ("/service/0/health/status", json!([99])),
        ("/service/0/backend/1/weight", json!(1_001)),
        ("/service/0/backend/2/admin", json!("gone")),
        ("/service/0/backend/2/admin", Value::Null),
    ] {
        let mut changed = example.clone();
        *changed.pointer_mut(place).unwrap() = wrong;
        assert!(!validator.is_valid(&changed), "{place}");
    }
    for place in [
        "",
        "/limits",
        "/service/0",
        "/service/0/health",
        "/service/0/backend/0",
    ] {
        let mut changed = example.clone();
        changed.pointer_mut(place).unwrap()["oops"] = json!(1);
        assert!(!validator.is_valid(&changed), "{place}");
    }
}

#[test]
fn numbers_have_the_parsers_bounds() {
    let schema = whole();
    let mut checked = 0;
    for (_, place, file) in TABLES.into_iter() {
        for (key, property) in properties(&schema, place) {
            if property["type"] != "integer" {
                continue;
            }
            let bound = |name: &str| property.get(name).and_then(Value::as_i64);
            let least = bound("minimum").unwrap_or_else(|| panic!("{key} has no least"));
            // A port's is that of its type.
            let most = bound("maximum").unwrap_or(65_535);
            let refuses = |value: i64| {
                let text = file.replace("oops = 1", &format!("{key} = {value}"));
                let problems = parse(Path::new("t.toml"), &text).unwrap_err();
                let range = format!("give a number from {least} to {most}");
                problems.iter().any(|problem| {
                    problem.wrong == format!("{key} is {value}") && problem.remedy == range
                })
            };
            assert!(!refuses(least) && !refuses(most), "{key}");
            assert!(refuses(least - 1) && refuses(most + 1), "{key}");
            checked += 1;
        }
    }
    assert!(checked > 10, "{checked}");
}
