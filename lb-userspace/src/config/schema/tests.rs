//! The schema, the parser and the documentation say the same.

mod reference;

use std::{collections::BTreeSet, path::Path, time::Duration};

use serde_json::{Value, json};

use super::{
    super::{Config, Place, Problem, duration_within, parse},
    DURATION, schema,
};

const EXAMPLE: &str = include_str!("../../../../examples/tether.toml");

/// Every table of a configuration: what the documentation calls it, where it is in the schema, and a file that has it with an unknown key
/// `oops`.
const TABLES: [(&str, &str, &str); 12] = [
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
        "[service.source_limit]",
        "/properties/service/items/properties/source_limit",
        "[[service]]\n[service.source_limit]\noops = 1\n",
    ),
    (
        "[service.outlier]",
        "/properties/service/items/properties/outlier",
        "[[service]]\n[service.outlier]\noops = 1\n",
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
        "[service.health.json]",
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

/// Whoever takes the comment off a line of the example has it in the table that it belongs to.
#[test]
fn what_the_example_has_in_comments_is_where_it_belongs() {
    let is_code = |text: &&str| {
        let key = text.split_once(" = ").map(|(key, _)| key);
        text.starts_with('[')
            || key.is_some_and(|key| key.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
    };
    let mut taken_off = 0;
    let mut text = String::new();
    for line in EXAMPLE.lines() {
        let code = line.strip_prefix("# ").filter(is_code);
        taken_off += usize::from(code.is_some());
        text += code.unwrap_or(line);
        text += "\n";
    }
    assert!(taken_off > 30, "only {taken_off} lines");
    toml::from_str::<toml::Table>(&text).expect("TOML");
    let unknown: Vec<String> = match parse(Path::new("x.toml"), &text) {
        Ok(_) => vec![],
        Err(problems) => problems
            .iter()
            .map(ToString::to_string)
            .filter(|problem| problem.contains("unknown key"))
            .collect(),
    };
    assert_eq!(unknown, [""; 0]);
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

#[test]
fn schema_and_parser_have_the_same_keys() {
    let schema = whole();
    for (name, place, file) in TABLES {
        assert_eq!(keys(&schema, place), parsed(file), "{name}");
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
            let most = bound("maximum").unwrap_or_else(|| panic!("{key} has no most"));
            let refuses = |value: i64| {
                let text = file.replace("oops = 1", &format!("{key} = {value}"));
                let range = format!("give a number from {least} to {most}");
                refuses(&text, &format!("{key} is {value}"), &range)
            };
            assert!(!refuses(least) && !refuses(most), "{key}");
            assert!(refuses(least - 1) && refuses(most + 1), "{key}");
            checked += 1;
        }
    }
    assert!(checked > 10, "{checked}");
}

/// Whether the parser has this to say about a file.
fn refuses(file: &str, wrong: &str, remedy: &str) -> bool {
    let problems = parse(Path::new("t.toml"), file).unwrap_err();
    problems
        .iter()
        .any(|problem| problem.wrong == wrong && problem.remedy == remedy)
}

#[test]
fn durations_have_the_parsers_bounds() {
    let schema = whole();
    let mut checked = 0;
    for (_, place, file) in TABLES {
        for (key, property) in properties(&schema, place) {
            if property["pattern"] != DURATION {
                continue;
            }
            let bound = |name: &str| {
                let text = property[name].as_str();
                text.unwrap_or_else(|| panic!("{key} has no {name}"))
            };
            let (least, most) = (bound("x-least"), bound("x-most"));
            let ms = |text: &str| {
                let duration = duration_within(text, Duration::ZERO..=Duration::MAX).unwrap();
                duration.as_millis()
            };
            let refuses = |ms: u128| {
                let text = file.replace("oops = 1", &format!("{key} = \"{ms}ms\""));
                let range = format!("give a duration from {least} to {most}");
                refuses(&text, &format!("{key} is {ms}ms"), &range)
            };
            assert!(!refuses(ms(least)) && !refuses(ms(most)), "{key}");
            assert!(refuses(ms(most) + 1), "{key}");
            if let Some(less) = ms(least).checked_sub(1) {
                assert!(refuses(less), "{key}");
            }
            checked += 1;
        }
    }
    assert!(checked > 8, "{checked}");
}

/// The least file that has a table, with a line more in it.
fn minimal(table: &str, line: &str) -> String {
    const TOP: &str = "interfaces = [\"eth0\"]\n";
    const SERVICE: &str = "interfaces = [\"eth0\"]\n[[service]]\nname = \"chat\"\nvip = \"10.0.0.1\"\nport = 80\nmode = \"ipip\"\n";
    let key = line.split(' ').next().unwrap_or_default();
    let before = match (table, key) {
        ("Top level", _) => TOP.to_owned(),
        ("[[service]]", _) => SERVICE.to_owned(),
        ("[service.outlier]", _) => format!("{SERVICE}{table}\n"),
        ("[service.health]", "path" | "method" | "status") => {
            format!("{SERVICE}{table}\ntype = \"http\"\n")
        }
        ("[service.health]", "ping") => format!("{SERVICE}{table}\ntype = \"websocket\"\n"),
        ("[service.health]", "service") => format!("{SERVICE}{table}\ntype = \"grpc\"\n"),
        ("[service.health]", _) => format!("{SERVICE}{table}\n"),
        ("[service.health.tls]", _) => {
            format!("{SERVICE}[service.health]\ntype = \"https\"\n{table}\n")
        }
        ("[[service.backend]]", _) => {
            format!("{SERVICE}{table}\nname = \"b1\"\naddress = \"10.0.1.11\"\n")
        }
        ("[[service.dns]]", _) => {
            format!("{SERVICE}{table}\nname = \"pods\"\nquery = \"pods.example.\"\n")
        }
        _ => format!("{TOP}{table}\n"),
    };
    format!("{before}{line}\n")
}

/// The file of a table with a line in the place of its unknown key.
fn with_line(table: &str, file: &str, line: &str) -> String {
    match table {
        // What some keys belong to has to be there, or they are not looked at.
        "[service.health]" => minimal(table, line),
        _ => file.replace("oops = 1", line),
    }
}

/// What the parser finds wrong with the text that a key has, if anything.
fn fault(table: &str, file: &str, key: &str, text: &str) -> Option<Problem> {
    let value = format!("{text:?}");
    let file = with_line(table, file, &format!("{key} = {value}"));
    let (before, _) = file.rsplit_once(&value).unwrap();
    let last = before.lines().last().unwrap();
    let place = Place {
        line: before.lines().count(),
        column: last.chars().count() + 1,
    };
    let problems = parse(Path::new("t.toml"), &file).err()?;
    problems
        .iter()
        .find(|one| one.place == Some(place))
        .cloned()
}

/// The words that a key may have, if it is one of some.
fn words(property: &Value) -> BTreeSet<String> {
    let several = property["enum"].as_array().into_iter().flatten();
    let here = property.get("const").into_iter().chain(several);
    let choices = property["oneOf"].as_array().into_iter().flatten();
    here.filter_map(Value::as_str)
        .map(str::to_owned)
        .chain(choices.flat_map(words))
        .collect()
}

/// The parser takes each word that the schema has, and names those and no others when it meets another.
#[test]
fn schema_and_parser_have_the_same_words() {
    let schema = whole();
    let mut checked = 0;
    for (table, place, file) in TABLES {
        for (key, property) in properties(&schema, place) {
            let words = words(property);
            if words.is_empty() {
                continue;
            }
            for word in &words {
                assert_eq!(fault(table, file, key, word), None, "{key} in {table}");
            }
            let problem = fault(table, file, key, "another word");
            let problem = problem.unwrap_or_else(|| panic!("{key} in {table}"));
            let quoted = problem.remedy.split('"').skip(1).step_by(2);
            let named: BTreeSet<_> = quoted.map(str::to_owned).collect();
            assert_eq!(named, words, "{key} in {table}");
            checked += 1;
        }
    }
    assert!(checked > 8, "{checked}");
}

/// But that `.` and `..` are no names the schema does not say, nor what a path of a request may not have after its `/`.
#[test]
fn texts_have_the_parsers_patterns() {
    let schema = whole();
    let given = ["", "/", "/a", "a", "a b", "a/b", "ä", "A.b_c:d-9"].map(str::to_owned);
    let long = [16, 17, 63, 64].map(|characters| "a".repeat(characters));
    let mut checked = 0;
    for (table, place, file) in TABLES {
        for (key, property) in properties(&schema, place) {
            if property.get("pattern").is_none() || property["pattern"] == DURATION {
                continue;
            }
            let validator = jsonschema::validator_for(property).unwrap();
            for text in given.iter().chain(&long) {
                let fault = fault(table, file, key, text);
                // A file of that name is not there.
                let is_wrong = fault.is_some_and(|one| !one.wrong.contains("cannot be read"));
                let fits = validator.is_valid(&json!(text));
                assert_ne!(fits, is_wrong, "{key} = {text:?} in {table}");
            }
            checked += 1;
        }
    }
    assert!(checked > 10, "{checked}");
}

#[test]
fn durations_and_statuses_are_written_as_the_parser_reads_them() {
    let schema = whole();
    let health = properties(&schema, "/properties/service/items/properties/health");
    let fits = |key: &str, value: Value| {
        let validator = jsonschema::validator_for(&health[key]).unwrap();
        validator.is_valid(&value)
    };
    for text in [
        "0s", "5ms", "5s", "5m", "5h", "", "5", "s", "-1s", "1.5s", "5 s", "5d", "5S",
    ] {
        let read = duration_within(text, Duration::ZERO..=Duration::MAX);
        assert_eq!(fits("interval", json!(text)), read.is_ok(), "{text:?}");
    }
    for status in [
        "99",
        "100",
        "599",
        "600",
        "\"200-299\"",
        "\"100-599\"",
        "\"200\"",
        "\"200-\"",
        "\"-299\"",
        "\"2xx\"",
        "\"99-200\"",
        "\"500-600\"",
        "\"200 - 299\"",
    ] {
        let one: Value = serde_json::from_str(status).unwrap();
        let line = format!("status = [{status}]");
        let read = parse(Path::new("t.toml"), &minimal("[service.health]", &line));
        assert_eq!(fits("status", json!([one])), read.is_ok(), "{line}");
    }
}

/// What the parser makes of a file, but for which text it came from and what of that is where.
fn made_of(file: &str) -> Config {
    let loaded = parse(Path::new("t.toml"), file);
    let mut config = loaded
        .unwrap_or_else(|wrong| panic!("{wrong} in {file}"))
        .config;
    config.digest = 0;
    config.limit_places.clear();
    config
}

#[test]
fn what_is_left_out_is_the_schemas_default() {
    let schema = whole();
    let mut checked = 0;
    for (table, place, _) in TABLES {
        for (key, property) in properties(&schema, place) {
            let Some(default) = property.get("default") else {
                continue;
            };
            // JSON's numbers, strings and arrays of strings are TOML's.
            let written = made_of(&minimal(table, &format!("{key} = {default}")));
            let omitted = minimal(table, &format!("{key} = {default}"))
                .replace(&format!("{key} = {default}\n"), "");
            assert_eq!(written, made_of(&omitted), "{key} in {table}");
            checked += 1;
        }
    }
    assert!(checked > 30, "{checked}");
}
