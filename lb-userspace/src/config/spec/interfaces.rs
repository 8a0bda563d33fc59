//! Names of interfaces.

use toml::de::DeValue;

use super::super::{
    problem::Findings,
    read::{Reader, kind},
};

/// The longest name of an interface, in bytes (IFNAMSIZ without the final zero).
const INTERFACE_BYTES: usize = 15;

/// Where the program is attached.
pub(super) fn attached(root: &mut Reader<'_>, findings: &mut Findings<'_>) -> Vec<String> {
    const KEY: &str = "interfaces";
    const EXAMPLE: &str = "[\"eth0\"]";
    match root.value(KEY) {
        None => root.missing(KEY, EXAMPLE, findings),
        Some(value) if matches!(value.get_ref(), DeValue::Array(names) if names.is_empty()) => {
            findings.error(
                &value.span(),
                &root.object,
                "interfaces is empty, so there is nothing to attach to",
                "name at least one interface",
            );
        }
        Some(_) => {}
    }
    names(root, KEY, EXAMPLE, is_name, findings).unwrap_or_default()
}

/// Those behind which backends are on this host; none where nothing is said.
pub(super) fn local(root: &mut Reader<'_>, findings: &mut Findings<'_>) -> Option<Vec<String>> {
    let is_pattern = |name: &str| is_name(name.strip_suffix('*').unwrap_or(name)) || name == "*";
    names(root, "local_interfaces", "[\"cni0\"]", is_pattern, findings)
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= INTERFACE_BYTES
        && !name.contains(|c: char| c == '/' || c == '*' || c.is_whitespace() || c.is_control())
}

/// The names of an array, no two alike; none if there is no array.
fn names(
    root: &mut Reader<'_>,
    key: &'static str,
    example: &str,
    is_valid: impl Fn(&str) -> bool,
    findings: &mut Findings<'_>,
) -> Option<Vec<String>> {
    let (_, elements) = root.array(key, example, findings)?;
    let mut names: Vec<String> = Vec::new();
    for element in elements {
        let wrong = |findings: &mut Findings<'_>, wrong: String, remedy: String| {
            findings.error(&element.span(), &root.object, wrong, remedy);
        };
        let DeValue::String(name) = element.get_ref() else {
            wrong(
                findings,
                format!("{key} contains {}", kind(element.get_ref())),
                format!("write names only, like {key} = {example}"),
            );
            continue;
        };
        if !is_valid(name) {
            wrong(
                findings,
                format!("{name:?} is no name of an interface"),
                "give a name as `ip link` shows it, at most 15 characters".to_owned(),
            );
        } else if names.iter().any(|other| other == name) {
            wrong(
                findings,
                format!("interface {name:?} is named twice"),
                "remove one of them".to_owned(),
            );
        } else {
            names.push(name.to_string());
        }
    }
    Some(names)
}
