//! What the documents link to in this repository is there: files, folders, and headings of other documents.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use crate::exec;

/// The documents for people: those in docs, and those that have their own places.
fn documents(root: &Path) -> Vec<PathBuf> {
    let docs = fs::read_dir(root.join("docs")).unwrap();
    let docs = docs.map(|entry| entry.unwrap().path());
    let markdown = |path: &PathBuf| path.extension().is_some_and(|kind| kind == "md");
    let own = [
        "README.md",
        "SECURITY.md",
        "CHANGELOG.md",
        "deploy/README.md",
    ];
    let own = own.map(|name| root.join(name));
    docs.filter(markdown).chain(own).collect()
}

/// The lines of a text that are in no block of code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut is_code = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    })
}

/// What a line links to, but for what stands in it as code.
fn targets(line: &str) -> Vec<String> {
    let plain: String = line.split('`').step_by(2).collect();
    let ends = plain.split("](").skip(1);
    ends.filter_map(|rest| Some(rest.split_once(')')?.0.to_owned()))
        .collect()
}

/// The names that headings can be linked to by, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in prose(text) {
        let heading = line.trim_start_matches('#');
        if heading.len() == line.len() || !heading.starts_with(' ') {
            continue;
        }
        let kept = |c: &char| c.is_alphanumeric() || [' ', '-', '_'].contains(c);
        let name: String = heading.trim().chars().filter(kept).collect();
        let name = name.to_lowercase().replace(' ', "-");
        // Those of one name are numbered from the second on.
        let numbered = (1..).map(|number| format!("{name}-{number}"));
        let mut names = std::iter::once(name.clone()).chain(numbered);
        let free = names.find(|name| !found.contains(name));
        found.extend(free);
    }
    found
}

/// What is wrong with a link, if anything is.
fn wrong(document: &Path, target: &str) -> Option<&'static str> {
    let (path, anchor) = match target.split_once('#') {
        Some((path, anchor)) => (path, Some(anchor)),
        None => (target, None),
    };
    let file = if path.is_empty() {
        document.to_owned()
    } else {
        document.parent()?.join(path)
    };
    if !file.exists() {
        return Some("there is no such file");
    }
    let anchor = anchor?;
    match fs::read_to_string(file) {
        Ok(text) if anchors(&text).contains(anchor) => None,
        _ => Some("there is no such heading"),
    }
}

#[test]
fn links_lead_to_files_and_headings_that_there_are() {
    let root = exec::workspace();
    let mut seen = 0;
    let mut dead = vec![];
    for document in documents(root) {
        let text = fs::read_to_string(&document).unwrap();
        for target in prose(&text).flat_map(targets) {
            // Elsewhere, where nothing is asked.
            if target.contains(':') {
                continue;
            }
            seen += 1;
            if let Some(why) = wrong(&document, &target) {
                dead.push(format!("{}: {target}: {why}", document.display()));
            }
        }
    }
    assert!(seen > 200, "only {seen} links");
    assert_eq!(dead, [""; 0]);
}

#[test]
fn links_and_headings_are_read_as_github_reads_them() {
    assert_eq!(
        targets("see [a](b.md#c) and [`d[](x)`](e), not `[f](g)`"),
        ["b.md#c", "e"]
    );
    let text = "# A title\n```\n# no heading\n```\n## `[[service.dns]]`\n### Before: `a_b` now\n## A title\n#no\n";
    let expected = ["a-title", "a-title-1", "before-a_b-now", "servicedns"];
    assert_eq!(anchors(text), BTreeSet::from(expected.map(str::to_owned)));
}
