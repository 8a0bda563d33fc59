mod balance;
mod dns;
mod file;
mod guard;
mod health;
mod keys;
mod mistakes;
mod nat;

use std::path::Path;

use super::*;

/// A service and all before it, to which tests add.
const SMALL: &str = r#"interfaces = ["eth0"]
[[service]]
name = "chat"
vip = "10.0.0.1"
port = 80
mode = "ipip"
[[service.backend]]
name = "b1"
address = "10.0.1.11"
"#;

fn errors(text: &str) -> Vec<String> {
    match parse(Path::new("t.toml"), text) {
        Ok(loaded) => panic!("accepted: {:?}", loaded.config),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}

fn warnings(text: &str) -> Vec<String> {
    let loaded = parse(Path::new("t.toml"), text).unwrap();
    loaded.warnings.iter().map(ToString::to_string).collect()
}

/// The one error of [`SMALL`] with `from` replaced by `to`.
fn error_of(from: &str, to: &str) -> String {
    assert_eq!(SMALL.matches(from).count(), 1, "{from:?}");
    let errors = errors(&SMALL.replace(from, to));
    assert_eq!(errors.len(), 1, "{errors:#?}");
    errors[0].clone()
}
