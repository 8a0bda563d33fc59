//! Whom a service takes new flows from, and how many of one source.

use std::fs;

use lb_common::guard::Listed;

use super::*;
use crate::guard::SourceLimit;

/// [`SMALL`] with lines for its service.
fn with(lines: &str) -> String {
    SMALL.replace(
        "[[service.backend]]",
        &format!("{lines}\n[[service.backend]]"),
    )
}

/// The same at an IPv6 VIP.
fn with6(lines: &str) -> String {
    with(lines)
        .replace("10.0.0.1\"", "2001:db8::1\"")
        .replace("10.0.1.11", "2001:db8::11")
}

fn guard(text: &str) -> Guard {
    let config = parse(Path::new("t.toml"), text).unwrap().config;
    let guard = config.services[0].guard.clone();
    guard.expect("there is one")
}

/// A file that goes with its owner.
struct File(PathBuf);

impl File {
    fn new(test: &str, text: &str) -> Self {
        let name = format!("tether-list-{}-{test}.txt", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::write(&path, text).unwrap();
        Self(path)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

#[test]
fn lists_say_who_is_let_in() {
    let guard = guard(&with(
        "allow = [\"192.0.2.0/24\", \"198.51.100.7\"]\ndeny = [\"192.0.2.128/25\"]",
    ));
    let listed = |text: &str| guard.lists.match_of(text.parse().unwrap()).listed;
    assert_eq!(listed("192.0.2.1"), Listed::Allowed);
    assert_eq!(listed("198.51.100.7"), Listed::Allowed);
    assert_eq!(listed("192.0.2.200"), Listed::Denied);
    assert_eq!(listed("198.51.100.8"), Listed::NotAllowed);
    assert_eq!(guard.limit, None);
    assert_eq!(
        parse(Path::new("t.toml"), SMALL).unwrap().config.services[0].guard,
        None
    );
}

#[test]
fn a_source_limit_has_defaults_of_its_version() {
    let limit = |text: &str| guard(text).limit.unwrap();
    assert_eq!(
        limit(&with("source_limit = { new_per_second = 10 }")),
        SourceLimit {
            prefix: 32,
            new_per_second: Some(10),
            burst: 10,
            flows: None
        }
    );
    assert_eq!(
        limit(&with6(
            "source_limit = { flows = 100, burst = 5, prefix = 48, new_per_second = 2 }"
        )),
        SourceLimit {
            prefix: 48,
            new_per_second: Some(2),
            burst: 5,
            flows: Some(100)
        }
    );
    assert_eq!(limit(&with6("source_limit = { flows = 1 }")).prefix, 64);
}

#[test]
fn what_is_no_prefix_is_told_at_its_place() {
    for (line, error) in [
        (
            "deny = [\"192.0.2.0/24\", \"somewhere\"]",
            "t.toml:7:25: service \"chat\": deny has \"somewhere\", which is no address and no prefix; write it like 192.0.2.0/24, 2001:db8::/32 or \
             192.0.2.1",
        ),
        (
            "deny = [\"192.0.2.0/33\"]",
            "t.toml:7:9: service \"chat\": deny has \"192.0.2.0/33\", which has more than the 32 bits of its address; give a length from 0 to 32",
        ),
        (
            "allow = [\"192.0.2.77/24\"]",
            "t.toml:7:10: service \"chat\": allow has \"192.0.2.77/24\", which has bits set beyond its length; write 192.0.2.0/24 if all of it is \
             meant, or the one address without a length",
        ),
        (
            "allow = [\"::ffff:192.0.2.1\"]",
            "t.toml:7:10: service \"chat\": allow has \"::ffff:192.0.2.1\", which is an IPv4 address in IPv6's notation; write it as IPv4",
        ),
        (
            "deny = [\"2001:db8::/32\"]",
            "t.toml:7:9: service \"chat\": deny has 2001:db8::/32, and every client of an IPv4 VIP has an IPv4 address; take it out here, and name it \
             where the VIP has that version (files may have both)",
        ),
        (
            "deny = [7]",
            "t.toml:7:9: service \"chat\": deny contains a whole number, not only strings; write it like deny = [\"192.0.2.0/24\"]",
        ),
        (
            "allow = []",
            "t.toml:7:9: service \"chat\": allow names nobody, and without it everybody is let in; name a prefix, or remove allow and allow_file",
        ),
    ] {
        assert_eq!(errors(&with(line)), [error], "{line}");
    }
    let wrong = errors(&with6("deny = [\"192.0.2.1\"]"));
    assert!(
        wrong[0].contains("deny has 192.0.2.1/32, and every client of an IPv6 VIP"),
        "{wrong:?}"
    );
}

#[test]
fn what_is_named_twice_deserves_a_second_look() {
    assert_eq!(
        warnings(&with("deny = [\"192.0.2.1\", \"192.0.2.1/32\"]")),
        ["t.toml:7:22: service \"chat\": deny has 192.0.2.1/32 twice; take one out"]
    );
    let both = with("deny = [\"192.0.2.1\"]\nallow = [\"192.0.2.1\"]");
    assert_eq!(warnings(&both), [] as [&str; 0], "deny wins");
}

#[test]
fn a_limit_that_limits_nothing_is_told() {
    for (line, error) in [
        (
            "source_limit = { prefix = 24 }",
            "t.toml:7:16: source_limit of service \"chat\": it limits nothing; set new_per_second, flows or both, or remove the table",
        ),
        (
            "source_limit = { flows = 0 }",
            "t.toml:7:26: source_limit of service \"chat\": flows is 0; give a number from 1 to 20000000",
        ),
        (
            "source_limit = { flows = 1, prefix = 33 }",
            "t.toml:7:38: source_limit of service \"chat\": prefix is 33; give a number from 1 to 32",
        ),
    ] {
        assert_eq!(errors(&with(line)), [error], "{line}");
    }
    let wrong = errors(&with6("source_limit = { flows = 1, prefix = 65 }"));
    assert!(
        wrong[0].ends_with("prefix is 65; give a number from 1 to 64"),
        "{wrong:?}"
    );
    assert_eq!(
        warnings(&with("source_limit = { flows = 1, burst = 3 }")).len(),
        1,
        "a burst without a rate"
    );
}

#[test]
fn files_have_a_prefix_a_line() {
    let file = File::new(
        "both",
        "# Whom we do not want.\n192.0.2.0/24\n\n  198.51.100.7   # this one too\n2001:db8:7::/48\n",
    );
    let line = format!("deny_file = {:?}\ndeny = [\"203.0.113.0/24\"]", file.0);
    let text = with(&line);
    let loaded = parse(Path::new("t.toml"), &text).unwrap();
    assert_eq!(loaded.warnings, []);
    let service = &loaded.config.services[0];
    assert_eq!(service.list_files, std::slice::from_ref(&file.0));
    let guard = service.guard.as_ref().unwrap();
    let denied = |text: &str| guard.lists.match_of(text.parse().unwrap()).listed == Listed::Denied;
    assert!(
        ["192.0.2.9", "198.51.100.7", "203.0.113.1"]
            .into_iter()
            .all(denied)
    );
    assert!(!denied("198.51.100.8"));
    let six = with6(&format!("deny_file = {:?}", file.0));
    let six = self::guard(&six);
    let listed = six.lists.match_of("2001:db8:7::1".parse().unwrap()).listed;
    assert_eq!(listed, Listed::Denied);
}

#[test]
fn what_is_wrong_in_a_file_is_told_with_its_line() {
    let file = File::new("wrong", "192.0.2.0/24\n192.0.2.9/24 # no\nelsewhere\n");
    let path = file.0.display();
    let text = with(&format!("allow_file = {:?}", file.0));
    assert_eq!(
        errors(&text),
        [
            format!(
                "{path}:2:1: service \"chat\": allow has \"192.0.2.9/24\", which has bits set beyond its length; write 192.0.2.0/24 if all of it is \
                 meant, or the one address without a length"
            ),
            format!(
                "{path}:3:1: service \"chat\": allow has \"elsewhere\", which is no address and no prefix; write it like 192.0.2.0/24, 2001:db8::/32 \
                 or 192.0.2.1"
            ),
        ]
    );
    // Not a page of the same.
    let many = File::new("many", &"elsewhere\n".repeat(1_000));
    let told = errors(&with(&format!("deny_file = {:?}", many.0)));
    assert_eq!(told.len(), 21);
    assert!(told[0].contains("980 more lines of"), "{}", told[0]);
}

#[test]
fn a_file_that_cannot_be_read_or_lets_everybody_in_is_an_error() {
    let missing = std::env::temp_dir().join(format!("tether-none-{}", std::process::id()));
    let wrong = errors(&with(&format!("deny_file = {missing:?}")));
    assert_eq!(wrong.len(), 1, "{wrong:#?}");
    assert!(
        wrong[0].starts_with("t.toml:7:13: service \"chat\": deny_file /")
            && wrong[0].contains("cannot be read: "),
        "{}",
        wrong[0]
    );
    let wrong = errors(&with("deny_file = \"deny.txt\""));
    assert!(
        wrong[0].contains("deny_file is deny.txt, which is no absolute path; name a readable file")
    );
    let empty = File::new("empty", "# nobody yet\n");
    let wrong = errors(&with(&format!("allow_file = {:?}", empty.0)));
    assert!(wrong[0].contains("allow names nobody, and without it everybody is let in"));
    // An empty list of those that are kept out keeps out nobody, and is no mistake.
    let guard = self::guard(&with(&format!("deny_file = {:?}", empty.0)));
    assert!(guard.lists.is_empty() && guard.ranges.is_empty());
}

#[test]
fn a_file_for_the_other_version_deserves_a_second_look() {
    let file = File::new("other", "2001:db8::/32\n");
    let text = with(&format!("allow_file = {:?}", file.0));
    let told = warnings(&text);
    assert!(
        told.len() == 1 && told[0].contains("prefixes of the other version of IP only"),
        "{told:?}"
    );
    // And it lets nobody in, rather than everybody.
    let listed = guard(&text)
        .lists
        .match_of("192.0.2.1".parse().unwrap())
        .listed;
    assert_eq!(listed, Listed::NotAllowed);
    let duplicates = File::new("twice", "192.0.2.0/24\n192.0.2.0/24\n192.0.2.0/24\n");
    assert_eq!(
        warnings(&with(&format!("deny_file = {:?}", duplicates.0))),
        [format!(
            "{}:2:1: service \"chat\": deny has 192.0.2.0/24 twice; take one out",
            duplicates.0.display()
        )]
    );
}

#[test]
fn lists_that_are_too_long_for_the_limit_say_by_how_much() {
    // Three ranges, and room for as many again.
    let text = with("deny = [\"192.0.2.0/24\"]").replacen('\n', "\nlimits.prefixes = 5\n", 1);
    assert_eq!(
        errors(&text),
        [
            "t.toml:2:19: limits: prefixes is 5, 1 too few for the ranges of all services' allow and deny lists and room to write the largest anew \
             beside them; set prefixes = 6 or more in [limits], then run `tether cleanup` so that the maps are made anew"
        ]
    );
    let text = text.replace("prefixes = 5", "prefixes = 6");
    let config = parse(Path::new("t.toml"), &text).unwrap().config;
    assert_eq!(config.needs().prefixes, 6);
    assert!(config.guards());
}
