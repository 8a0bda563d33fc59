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

/// What a list has.
fn listed(name: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(list(name)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Holds what there is to a list.
pub(crate) fn hold(name: &str, now: &BTreeSet<String>) {
    assert!(now.len() > 10, "only {now:?}");
    let path = list(name);
    let known = listed(name);
    let gone: Vec<_> = known.difference(now).collect();
    assert!(
        gone.is_empty(),
        "{}: these were promised to stay within a major version, and are gone or otherwise: {gone:#?}",
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

/// Who writes what a schema describes: that decides which of its changes break something.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Author {
    /// Tether: whoever reads it counts on what is always there.
    Tether,
    /// Others, and what they have written has to stay valid and to mean the same: what may be left out, what is then meant, and the bounds.
    Others,
}

/// What a schema says of a value that others write.
const OF_VALUES: [&str; 10] = [
    "default",
    "minimum",
    "maximum",
    "x-least",
    "x-most",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "pattern",
];

/// The keys of a JSON schema with their types, as paths, the words that they may have, and what their author may count on.
fn keys(schema: &Value, path: &str, author: Author, found: &mut BTreeSet<String>) {
    let words = schema["enum"].as_array().into_iter().flatten();
    for word in words.chain(schema.get("const")) {
        let word = match word.as_str() {
            Some(word) => word.to_owned(),
            None => word.to_string(),
        };
        found.insert(format!("{path} = {word}"));
    }
    if author == Author::Others {
        for name in OF_VALUES {
            if let Some(value) = schema.get(name) {
                found.insert(format!("{path} {name} {value}"));
            }
        }
    }
    if let Some(items) = schema.get("items") {
        keys(items, &format!("{path}[]"), author, found);
    }
    for choices in ["anyOf", "oneOf", "allOf"] {
        for choice in schema[choices].as_array().into_iter().flatten() {
            keys(choice, path, author, found);
        }
    }
    let required: BTreeSet<&str> = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        found.insert(format!("{path}: {}", kind(inner)));
        match (author, required.contains(name.as_str())) {
            (Author::Tether, true) => found.insert(format!("{path} is always there")),
            (Author::Others, false) => found.insert(format!("{path} may be left out")),
            _ => false,
        };
        keys(inner, &path, author, found);
    }
}

/// The keys that no list has, in tables that were there, and that may not be left out: what was valid without them no longer is.
fn demanded<'n>(now: &'n BTreeSet<String>, known: &BTreeSet<String>) -> Vec<&'n str> {
    let new = now.iter().filter(|line| !known.contains(*line));
    let keys = new.filter_map(|line| line.split_once(": "));
    keys.map(|(key, _)| key)
        .filter(|key| !key.contains(' ') && !now.contains(&format!("{key} may be left out")))
        .filter(|key| {
            key.rsplit_once('.').is_none_or(|(table, _)| {
                let table = format!("{}: ", table.trim_end_matches("[]"));
                known.iter().any(|line| line.starts_with(&table))
            })
        })
        .collect()
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
    let schema = config::schema();
    keys(schema.as_value(), "", Author::Others, &mut found);
    let demanded = demanded(&found, &listed("configuration"));
    assert!(
        demanded.is_empty(),
        "files that were valid have none of these, and need them now: {demanded:?}"
    );
    hold("configuration", &found);
}

#[test]
fn requests_and_answers_of_the_admin_api_and_of_json() {
    let document = serde_json::to_value(admin::document::document()).unwrap();
    let mut found = BTreeSet::new();
    let mut bodies = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let request = format!("{} {path}", method.to_uppercase());
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                let path = format!("{request} {}", parameter["name"].as_str().unwrap());
                found.insert(format!("{path}: {}", kind(&parameter["schema"])));
                if parameter["required"] != true {
                    found.insert(format!("{path} may be left out"));
                }
                keys(&parameter["schema"], &path, Author::Others, &mut found);
            }
            let contents = operation["requestBody"]["content"].as_object();
            for (_, content) in contents.into_iter().flatten() {
                bodies.insert(kind(&content["schema"]));
            }
            found.insert(request);
        }
    }
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        let author = if bodies.contains(name) {
            Author::Others
        } else {
            Author::Tether
        };
        keys(schema, name, author, &mut found);
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
    keys(&schema::<Report>(), "doctor", Author::Tether, &mut found);
    let check = schema::<UpgradeCheck>();
    keys(&check, "upgrade-check", Author::Tether, &mut found);
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

/// What `keys` finds in a schema.
fn of(text: &str, author: Author) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let schema: Value = serde_json::from_str(text).unwrap();
    keys(&schema, "", author, &mut found);
    found
}

/// The lines, as a list has them.
fn lines<const N: usize>(those: [&str; N]) -> BTreeSet<String> {
    those.into_iter().map(str::to_owned).collect()
}

#[test]
fn what_is_gone_or_of_another_type_is_found() {
    let before = of(
        r#"{"properties": {"a": {"type": "array", "items": {"properties": {"b": {"type": "string"}}}}}}"#,
        Author::Tether,
    );
    assert_eq!(before, lines(["a: array", "a[].b: string"]));
    let after = of(
        r#"{"properties": {"a": {"type": "array", "items": {"properties": {"b": {"type": ["string", "null"]}}}}}}"#,
        Author::Tether,
    );
    assert_eq!(
        after.difference(&before).collect::<Vec<_>>(),
        ["a[].b: string|null"]
    );
}

#[test]
fn words_defaults_and_bounds_are_found_and_what_may_be_left_out() {
    let schema = r#"{
        "required": ["mode"],
        "properties": {
            "mode": {"oneOf": [{"type": "string", "const": "l2"}, {"type": "string", "const": "nat"}]},
            "wait": {"type": "string", "enum": ["", "long"], "default": ""},
            "size": {"type": "integer", "minimum": 1, "maximum": 9},
            "names": {"type": "array", "items": {"type": "string", "maxLength": 3}}
        }
    }"#;
    let same = [
        "mode: string",
        "mode = l2",
        "mode = nat",
        "wait: string",
        "wait = ",
        "wait = long",
        "size: integer",
        "names: array",
    ];
    let mut read = lines(same);
    read.extend(lines(["mode is always there"]));
    assert_eq!(of(schema, Author::Tether), read);
    let mut written = lines(same);
    written.extend(lines([
        "wait may be left out",
        "wait default \"\"",
        "size may be left out",
        "size minimum 1",
        "size maximum 9",
        "names may be left out",
        "names[] maxLength 3",
    ]));
    assert_eq!(of(schema, Author::Others), written);
}

#[test]
fn a_key_that_is_needed_is_found_where_files_had_the_table() {
    let known = lines(["a: array", "a may be left out", "a[].b: string"]);
    let and = |more: [&str; 3]| {
        let mut now = known.clone();
        now.extend(lines(more));
        now
    };
    let harmless = and([
        "a[].c: string",
        "a[].c may be left out",
        "a[].b minLength 1",
    ]);
    assert_eq!(demanded(&harmless, &known), [""; 0]);
    let with_its_table = and(["d: object", "d may be left out", "d.e: string"]);
    assert_eq!(demanded(&with_its_table, &known), [""; 0]);
    let needed = and(["a[].c: string", "f: string", "a[].c minLength 1"]);
    assert_eq!(demanded(&needed, &known), ["a[].c", "f"]);
}
