//! The tables of docs/configuration.md, made from the schema.

use std::{fs, path::Path};

use serde_json::{Value, json};

use super::{super::DURATION, TABLES, whole};

const HEAD: &str = "| key | type | default | bounds | meaning |\n|---|---|---|---|---|\n";
/// What stands behind each table in the document.
const END: &str = "<!-- end -->";

/// The table of keys of an object: those that are required first.
fn table(object: &Value) -> String {
    let is_required = |key: &str| {
        let required = object["required"].as_array();
        required.is_some_and(|all| all.iter().any(|one| one == key))
    };
    let (required, others): (Vec<_>, Vec<_>) = object["properties"]
        .as_object()
        .unwrap()
        .iter()
        .partition(|(key, _)| is_required(key));
    let rows = required.into_iter().chain(others).map(|(key, property)| {
        let default = match property.get("default") {
            _ if is_required(key) => "required".to_owned(),
            Some(value) => format!("`{value}`"),
            None => "none".to_owned(),
        };
        row(key, default, property)
    });
    rows.fold(HEAD.to_owned(), |text, row| text + &row)
}

fn row(key: &str, default: String, property: &Value) -> String {
    let meaning = property["description"]
        .as_str()
        .unwrap_or_else(|| panic!("{key} has no doc comment"));
    let cells = [
        format!("`{key}`"),
        kind(property),
        default,
        bounds(property),
        meaning.replace('\n', " "),
    ];
    let cells = cells.map(|cell| cell.replace('|', "\\|"));
    format!("| {} |\n", cells.join(" | "))
}

/// What is written there, in a word.
fn kind(property: &Value) -> String {
    if property["pattern"] == DURATION {
        return "duration".to_owned();
    }
    match property["type"].as_str() {
        Some("array") => {
            let one = kind(&property["items"]);
            let many: Vec<_> = one.split(" or ").map(|one| format!("{one}s")).collect();
            format!("array of {}", many.join(" or "))
        }
        Some("object") => "table".to_owned(),
        Some(one) => one.to_owned(),
        None => {
            let mut kinds: Vec<_> = ["oneOf", "anyOf"]
                .iter()
                .flat_map(|name| property[*name].as_array().into_iter().flatten())
                .map(kind)
                .collect();
            kinds.dedup();
            kinds.join(" or ")
        }
    }
}

/// What it may be.
fn bounds(property: &Value) -> String {
    let both = |least: &str, most: &str| Some((property.get(least)?, property.get(most)?));
    if let Some((least, most)) = both("minimum", "maximum").or(both("minItems", "maxItems")) {
        return format!("{least} to {most}");
    }
    if let Some((least, most)) = both("x-least", "x-most") {
        return format!("`{least}` to `{most}`");
    }
    let words = words(property);
    if !words.is_empty() {
        return words.join(", ");
    }
    if let Some(least) = property.get("minItems") {
        return format!("at least {least}");
    }
    if property.get("minLength").is_some() {
        return "not empty".to_owned();
    }
    match property["pattern"].as_str() {
        Some(pattern) => format!("matches `{pattern}`"),
        None => "–".to_owned(),
    }
}

/// The words that it may be, if it is one of some.
fn words(property: &Value) -> Vec<String> {
    let several = property["enum"].as_array().into_iter().flatten();
    let here = property.get("const").into_iter().chain(several);
    let choices = property["oneOf"].as_array().into_iter().flatten();
    here.map(|word| format!("`{word}`"))
        .chain(choices.flat_map(words))
        .collect()
}

/// The document with its tables as they are to be.
fn rendered(document: &str) -> String {
    let schema = whole();
    let mut text = document.to_owned();
    for (name, place, _) in TABLES {
        let begin = format!("<!-- begin: {name} -->\n");
        let (before, rest) = text
            .split_once(&begin)
            .unwrap_or_else(|| panic!("docs/configuration.md has no {begin:?}"));
        let (_, after) = rest
            .split_once(END)
            .unwrap_or_else(|| panic!("docs/configuration.md has no {END:?} behind {begin:?}"));
        let table = table(schema.pointer(place).unwrap());
        text = format!("{before}{begin}{table}{END}{after}");
    }
    text
}

#[test]
fn the_documentation_has_the_tables_of_the_schema() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let document = fs::read_to_string(&path).unwrap();
    let rendered = rendered(&document);
    if rendered == document {
        return;
    }
    if std::env::var_os("TETHER_RECORD").is_some() {
        fs::write(&path, rendered).unwrap();
        return;
    }
    let other = document
        .lines()
        .zip(rendered.lines())
        .find(|(is, is_to_be)| is != is_to_be);
    panic!(
        "docs/configuration.md is not as the types are; write its tables by TETHER_RECORD=1 cargo test -p lb-userspace reference: {other:#?}"
    );
}

#[test]
fn a_table_says_what_the_schema_does() {
    let object = json!({
        "required": ["vip"],
        "properties": {
            "close": { "type": "string", "pattern": DURATION, "default": "60s", "x-least": "0s", "x-most": "24h", "description": "How\nfast." },
            "mode": { "oneOf": [{ "type": "string", "const": "l2" }, { "type": "string", "enum": ["nat"] }], "description": "How." },
            "codes": { "type": "array", "minItems": 1, "items": { "anyOf": [{ "type": "integer" }, { "type": "string" }] }, "description": "Which." },
            "part": { "type": "string", "pattern": "^(a|b)$", "description": "What." },
            "tls": { "type": "object", "description": "Whether." },
            "vip": { "type": "integer", "minimum": 1, "maximum": 9, "description": "Where." },
        }
    });
    assert_eq!(
        table(&object),
        HEAD.to_owned()
            + "| `vip` | integer | required | 1 to 9 | Where. |\n"
            + "| `close` | duration | `\"60s\"` | `\"0s\"` to `\"24h\"` | How fast. |\n"
            + "| `codes` | array of integers or strings | none | at least 1 | Which. |\n"
            + "| `mode` | string | none | `\"l2\"`, `\"nat\"` | How. |\n"
            + "| `part` | string | none | matches `^(a\\|b)$` | What. |\n"
            + "| `tls` | table | none | – | Whether. |\n"
    );
}
