//! The configuration's parser: text that is nearly a configuration, or not at all.
//!
//! Promised is that it always comes to an end, either with a configuration or with all that is wrong, each with its place in the text, its
//! object and a remedy; and that it comes to the same end again.

use std::path::Path;

use lb_userspace::config::{self, Problems};

use crate::random::Random;

/// What cases are made of.
const EXAMPLE: &str = include_str!("../../../examples/tether.toml");

/// Values that somebody may write for another.
const VALUES: [&str; 32] = [
    "0",
    "-1",
    "1",
    "65535",
    "65536",
    "4294967296",
    "9223372036854775807",
    "1e400",
    "nan",
    "true",
    "[]",
    "{}",
    "\"\"",
    "\"10.0.0.1\"",
    "\"::1\"",
    "\"0.0.0.0\"",
    "\"255.255.255.255\"",
    "\"::ffff:10.0.0.1\"",
    "\"ff02::1\"",
    "\"10.0.0.1/24\"",
    "\"chat\"",
    "\"b1\"",
    "\"eth0\"",
    "\"0s\"",
    "\"99999999999h\"",
    "\"-5s\"",
    "\"1ms\"",
    "\"nat\"",
    "\"l2\"",
    "\"\\u0000\"",
    "[\"eth0\", \"eth0\"]",
    "1979-05-27",
];

/// The text of a seed.
#[must_use]
pub fn text(seed: u64) -> String {
    let mut random = Random::new(seed);
    // What is commented out is as good.
    let mut lines: Vec<String> = EXAMPLE
        .lines()
        .map(|line| {
            let bare = line.strip_prefix("# ").unwrap_or(line);
            let is_key = bare.contains(" = ") || bare.starts_with("[");
            if is_key && random.below(2) == 0 {
                bare.to_owned()
            } else {
                line.to_owned()
            }
        })
        .collect();
    for _ in 0..=random.below(6) {
        let at = random.below(lines.len() as u64) as usize;
        let other = random.below(lines.len() as u64) as usize;
        match random.below(9) {
            0 if lines.len() > 1 => drop(lines.remove(at)),
            1 => lines.insert(at, lines[other].clone()),
            2 => lines.swap(at, other),
            3..=5 => {
                if let Some((key, _)) = lines[at].split_once(" = ") {
                    let value = VALUES[random.below(VALUES.len() as u64) as usize];
                    lines[at] = format!("{key} = {value}");
                }
            }
            6 => {
                if let Some((key, value)) = lines[at].split_once(" = ") {
                    lines[at] = format!("{key}x = {value}");
                }
            }
            7 => lines[at] = noise(&mut random, &lines[at]),
            _ => lines.truncate(at.max(1)),
        }
    }
    lines.join(if random.below(16) == 0 { "\r\n" } else { "\n" })
}

/// A line with something in it that does not belong there.
fn noise(random: &mut Random, line: &str) -> String {
    const PIECES: [&str; 10] = [
        "\"",
        "[",
        "]]",
        "=",
        "#",
        "\u{0}",
        "ä",
        "\u{1f980}",
        "'''",
        "\\",
    ];
    let mut characters: Vec<char> = line.chars().collect();
    let at = random.below(characters.len() as u64 + 1) as usize;
    let piece = PIECES[random.below(PIECES.len() as u64) as usize];
    characters.splice(at..at, piece.chars());
    characters.into_iter().collect()
}

/// Whether a text is a configuration.
#[must_use]
pub fn is_valid(text: &str) -> bool {
    config::parse(Path::new("fuzz.toml"), text).is_ok()
}

/// Parses a text.
///
/// # Errors
/// What of the promise does not hold. (A parser that panics is the caller's to see.)
pub fn judge(text: &str) -> Result<(), String> {
    let path = Path::new("fuzz.toml");
    let (first, second) = (config::parse(path, text), config::parse(path, text));
    match (&first, &second) {
        (Ok(one), Ok(other)) if one.config == other.config => Ok(()),
        (Err(one), Err(other)) if one == other => complete(one, text),
        _ => Err("it comes to two different ends".into()),
    }
}

fn complete(problems: &Problems, text: &str) -> Result<(), String> {
    let lines: Vec<&str> = text.split('\n').collect();
    let mut count = 0;
    for problem in problems.iter() {
        count += 1;
        let Some(place) = problem.place else {
            return Err(format!("without its place: {problem}"));
        };
        let line = lines.get(place.line.wrapping_sub(1)).copied();
        // The end of a line is a place too: something lacks there.
        let is_within =
            line.is_some_and(|line| (1..=line.chars().count() + 1).contains(&place.column));
        if !is_within {
            return Err(format!("at a place that is none: {problem}"));
        }
        if problem.object.is_empty() || problem.wrong.is_empty() || problem.remedy.is_empty() {
            return Err(format!("incomplete: {problem}"));
        }
    }
    if count == 0 {
        return Err("refused for nothing".into());
    }
    Ok(())
}
