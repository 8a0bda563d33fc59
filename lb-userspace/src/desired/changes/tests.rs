//! Edits beside a file, one after another, and what becomes of them when the file changes.

use std::path::Path;

use super::*;
use crate::{config, model::Admin};

fn file(backends: &str) -> Config {
    let text = format!(
        "interfaces = [\"eth0\"]\n[[service]]\nname = \"chat\"\nvip = \"10.0.0.1\"\nport = 80\nmode = \"ipip\"\ntable_size = 257\n{backends}"
    );
    config::parse(Path::new("tether.toml"), &text)
        .unwrap()
        .config
}

fn toml(name: &str, address: &str, rest: &str) -> String {
    format!("[[service.backend]]\nname = {name:?}\naddress = \"10.0.1.{address}\"\n{rest}\n")
}

fn two() -> Config {
    file(&(toml("b1", "11", "") + &toml("b2", "12", "weight = 50")))
}

fn name(backend: &str) -> BackendName {
    BackendName {
        service: "chat".into(),
        backend: backend.into(),
    }
}

fn spec(last: u8) -> BackendSpec {
    BackendSpec {
        address: [10, 0, 1, last].into(),
        port: None,
        weight: 100,
        admin: Admin::Active,
    }
}

fn put(last: u8) -> Edit {
    Edit::Put(spec(last))
}

/// Backends as they are wanted: name, last octet of the address, weight.
fn wanted(changes: &Changes, base: &Config) -> Vec<(String, u8, u16)> {
    let overlaid = changes.over(base);
    assert_eq!(overlaid.dropped, []);
    assert_eq!(overlaid.changes, *changes);
    let backends = overlaid.config.services[0].backends.iter();
    backends
        .map(|backend| {
            let std::net::IpAddr::V4(address) = backend.address else {
                panic!("{backend:?}")
            };
            (backend.name.clone(), address.octets()[3], backend.weight)
        })
        .collect()
}

fn some(backends: &[(&str, u8, u16)]) -> Vec<(String, u8, u16)> {
    let owned = |&(name, last, weight): &(&str, u8, u16)| (name.to_owned(), last, weight);
    backends.iter().map(owned).collect()
}

#[test]
fn edits_add_change_remove_and_revert() {
    let base = two();
    let edit = |changes: &Changes, backend: &str, edit: Edit| {
        changes.edited(&base, &name(backend), &edit).unwrap()
    };
    let changes = edit(&Changes::default(), "b3", put(13));
    let changes = edit(&changes, "b3", Edit::Weight(7));
    let changes = edit(&changes, "b2", Edit::Weight(0));
    let changes = edit(&changes, "b1", Edit::Remove);
    let expected = some(&[("b2", 12, 0), ("b3", 13, 7)]);
    assert_eq!(wanted(&changes, &base), expected);
    let saved = serde_json::to_string(&changes).unwrap();
    let loaded: Changes = serde_json::from_str(&saved).unwrap();
    assert_eq!(loaded, changes, "{saved}");

    // A backend that was put takes the place and endpoint of one that went, and gives them back.
    let changes = edit(&changes, "b4", put(11));
    let back = changes.edited(&base, &name("b1"), &Edit::Revert);
    let error = back.unwrap_err().to_string();
    assert!(error.contains("\"chat/b1\"'s already"), "{error}");
    let changes = edit(&changes, "b4", Edit::Remove);
    let changes = edit(&changes, "b1", Edit::Revert);
    let changes = edit(&changes, "b2", Edit::Revert);
    assert_eq!(
        wanted(&changes, &base),
        some(&[("b1", 11, 100), ("b2", 12, 50), ("b3", 13, 7)])
    );
    // What comes to what the file says is no change.
    let changes = edit(&changes, "b2", Edit::Weight(50));
    let changes = edit(&changes, "b1", put(11));
    let changes = edit(&changes, "b3", Edit::Remove);
    assert_eq!(changes, Changes::default());
}

#[test]
fn endpoints_pass_from_one_to_another_whatever_their_names_order() {
    let base = two();
    let changes = Changes::default()
        .edited(&base, &name("b2"), &put(13))
        .unwrap();
    let changes = changes.edited(&base, &name("b1"), &put(12)).unwrap();
    let expected = some(&[("b1", 12, 100), ("b2", 13, 100)]);
    assert_eq!(wanted(&changes, &base), expected);
}

#[test]
fn what_cannot_be_is_refused_and_nothing_changes() {
    let base = two();
    let refuse = |backend: &str, edit: Edit| {
        Changes::default()
            .edited(&base, &name(backend), &edit)
            .unwrap_err()
    };
    let with = |change: fn(&mut BackendSpec)| {
        let mut changed = spec(13);
        change(&mut changed);
        Edit::Put(changed)
    };
    for (backend, edit, part) in [
        ("b3", put(12), "is backend \"chat/b2\"'s already"),
        ("b 3", put(13), "is no name"),
        (
            "b3",
            with(|spec| spec.address = [10, 0, 0, 1].into()),
            "VIP itself",
        ),
        (
            "b3",
            with(|spec| spec.address = [127, 0, 0, 1].into()),
            "loopback",
        ),
        (
            "b3",
            with(|spec| spec.port = Some(81)),
            "cannot translate ports",
        ),
        ("b3", with(|spec| spec.weight = 1_001), "from 0 to 1000"),
        ("b1", Edit::Weight(1_001), "from 0 to 1000"),
    ] {
        let refusal = refuse(backend, edit);
        assert!(
            matches!(&refusal, Refusal::Invalid(text) if text.contains(part)),
            "{refusal:?}"
        );
    }
    for edit in [Edit::Weight(1), Edit::Remove, Edit::Revert] {
        let refusal = refuse("b9", edit);
        assert!(matches!(&refusal, Refusal::Absent(text) if text.contains("chat/b9")));
    }
    let nowhere = BackendName {
        service: "talk".into(),
        backend: "b1".into(),
    };
    let refusal = Changes::default().edited(&base, &nowhere, &put(13));
    assert!(matches!(refusal, Err(Refusal::Absent(text)) if text.contains("\"talk\"")));
    // 257 slots are for four backends.
    let changes = Changes::default()
        .edited(&base, &name("b3"), &put(13))
        .and_then(|changes| changes.edited(&base, &name("b4"), &put(14)))
        .unwrap();
    let error = changes.edited(&base, &name("b5"), &put(15)).unwrap_err();
    assert!(
        error.to_string().contains("set table_size = 640"),
        "{error}"
    );
}

#[test]
fn the_file_wins_where_both_cannot_be() {
    let base = two();
    let mut changes = Changes::default();
    for (backend, edit) in [
        ("b1", Edit::Weight(10)),
        ("b2", Edit::Remove),
        ("b3", put(13)),
        ("b4", put(14)),
    ] {
        changes = changes.edited(&base, &name(backend), &edit).unwrap();
    }
    // b1 and b2 are gone, b3's address is another's, and b4 is just so.
    let next = file(&(toml("c3", "13", "") + &toml("b4", "14", "")));
    let overlaid = changes.over(&next);
    assert_eq!(overlaid.config, next);
    assert_eq!(overlaid.changes, Changes::default());
    let dropped: Vec<_> = overlaid
        .dropped
        .iter()
        .map(|(name, _)| name.backend.as_str())
        .collect();
    assert_eq!(dropped, ["b1", "b2", "b3"]);
    // The service itself is gone.
    let mut nothing = two();
    nothing.services.clear();
    assert_eq!(changes.over(&nothing).dropped.len(), 4);
}
