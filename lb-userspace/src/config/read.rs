//! Reading one TOML table: typed values with their places, every mistake noted, unknown keys found at the end.

use std::{borrow::Cow, ops::Range, time::Duration};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::problem::Findings;

/// A table that is being read.
pub(super) struct Reader<'t> {
    table: &'t DeTable<'t>,
    /// Where problems with the table as a whole are reported: its header.
    pub(super) span: Range<usize>,
    /// What it is, for messages.
    pub(super) object: String,
    known: Vec<&'static str>,
}

impl<'t> Reader<'t> {
    pub(super) fn new(table: &'t DeTable<'t>, span: Range<usize>, object: String) -> Self {
        Self {
            table,
            span,
            object,
            known: Vec::new(),
        }
    }

    /// The value of a key, which is known from now on.
    pub(super) fn value(&mut self, key: &'static str) -> Option<&'t Spanned<DeValue<'t>>> {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        self.table.get(key)
    }

    /// Notes that a required key is missing.
    pub(super) fn missing(&self, key: &str, example: &str, findings: &mut Findings<'_>) {
        findings.error(
            &self.span,
            &self.object,
            format!("{key} is missing"),
            format!("add {key} = {example}"),
        );
    }

    fn mistyped(
        &self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        wanted: &str,
        example: &str,
        findings: &mut Findings<'_>,
    ) {
        findings.error(
            &value.span(),
            &self.object,
            format!("{key} is {}, not {wanted}", kind(value.get_ref())),
            format!("write it like {key} = {example}"),
        );
    }

    /// A string, if the key is there.
    pub(super) fn string(
        &mut self,
        key: &'static str,
        example: &str,
        findings: &mut Findings<'_>,
    ) -> Option<Spanned<&'t str>> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::String(text) => Some(Spanned::new(value.span(), text.as_ref())),
            _ => {
                self.mistyped(key, value, "a string", example, findings);
                None
            }
        }
    }

    /// A string that must be there.
    pub(super) fn required_string(
        &mut self,
        key: &'static str,
        example: &str,
        findings: &mut Findings<'_>,
    ) -> Option<Spanned<&'t str>> {
        if !self.table.contains_key(key) {
            self.missing(key, example, findings);
        }
        self.string(key, example, findings)
    }

    /// True or false, if the key is there.
    pub(super) fn boolean(
        &mut self,
        key: &'static str,
        example: &str,
        findings: &mut Findings<'_>,
    ) -> Option<Spanned<bool>> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::Boolean(flag) => Some(Spanned::new(value.span(), *flag)),
            _ => {
                self.mistyped(key, value, "true or false", example, findings);
                None
            }
        }
    }

    /// A whole number within bounds, if the key is there.
    pub(super) fn integer(
        &mut self,
        key: &'static str,
        bounds: std::ops::RangeInclusive<u32>,
        findings: &mut Findings<'_>,
    ) -> Option<Spanned<u32>> {
        let value = self.value(key)?;
        let Some(number) = as_integer(value.get_ref()) else {
            findings.error(
                &value.span(),
                &self.object,
                format!("{key} is {}, not a whole number", kind(value.get_ref())),
                format!("give a number from {} to {}", bounds.start(), bounds.end()),
            );
            return None;
        };
        match u32::try_from(number) {
            Ok(number) if bounds.contains(&number) => Some(Spanned::new(value.span(), number)),
            _ => {
                findings.error(
                    &value.span(),
                    &self.object,
                    format!("{key} is {number}"),
                    format!("give a number from {} to {}", bounds.start(), bounds.end()),
                );
                None
            }
        }
    }

    /// A duration within bounds, if the key is there.
    pub(super) fn duration(
        &mut self,
        key: &'static str,
        bounds: std::ops::RangeInclusive<Duration>,
        findings: &mut Findings<'_>,
    ) -> Option<Spanned<Duration>> {
        let text = self.string(key, "\"2s\"", findings)?;
        let Some(duration) = parse_duration(text.get_ref()) else {
            findings.error(
                &text.span(),
                &self.object,
                format!("{key} is {:?}, which is no duration", text.get_ref()),
                "write a whole number and a unit: \"500ms\", \"2s\", \"1m\", \"1h\"",
            );
            return None;
        };
        if bounds.contains(&duration) {
            return Some(Spanned::new(text.span(), duration));
        }
        findings.error(
            &text.span(),
            &self.object,
            format!("{key} is {}", text.get_ref()),
            format!(
                "give a duration from {} to {}",
                show_duration(*bounds.start()),
                show_duration(*bounds.end())
            ),
        );
        None
    }

    /// An array's elements, if the key is there.
    pub(super) fn array(
        &mut self,
        key: &'static str,
        example: &str,
        findings: &mut Findings<'_>,
    ) -> Option<(Range<usize>, Vec<&'t Spanned<DeValue<'t>>>)> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::Array(elements) => Some((value.span(), elements.iter().collect())),
            _ => {
                self.mistyped(key, value, "an array", example, findings);
                None
            }
        }
    }

    /// A table within this one, if the key is there.
    pub(super) fn table(
        &mut self,
        key: &'static str,
        object: String,
        findings: &mut Findings<'_>,
    ) -> Option<Reader<'t>> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::Table(table) => Some(Reader::new(table, value.span(), object)),
            _ => {
                self.mistyped(key, value, "a table", "{ … }", findings);
                None
            }
        }
    }

    /// All keys and values, where the keys are the operator's own.
    pub(super) fn entries(
        &self,
    ) -> impl Iterator<Item = (&'t Spanned<Cow<'t, str>>, &'t Spanned<DeValue<'t>>)> {
        self.table.iter()
    }

    /// The tables of an array of tables, in order; none if the key is absent.
    pub(super) fn tables(
        &mut self,
        key: &'static str,
        findings: &mut Findings<'_>,
    ) -> Vec<(Range<usize>, &'t DeTable<'t>)> {
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let DeValue::Array(elements) = value.get_ref() else {
            findings.error(
                &value.span(),
                &self.object,
                format!("{key} is {}, not a list of tables", kind(value.get_ref())),
                format!("begin each with a line like [[{key}]], double brackets"),
            );
            return Vec::new();
        };
        let mut tables = Vec::new();
        for element in elements.iter() {
            match element.get_ref() {
                DeValue::Table(table) => tables.push((element.span(), table)),
                other => findings.error(
                    &element.span(),
                    &self.object,
                    format!("{key} contains {}, not only tables", kind(other)),
                    format!("begin each with a line like [[{key}]]"),
                ),
            }
        }
        tables
    }

    /// Notes every key that nobody asked for.
    pub(super) fn finish(self, findings: &mut Findings<'_>) {
        for (key, _) in self.table.iter() {
            let name: &Cow<'_, str> = key.get_ref();
            if self.known.contains(&name.as_ref()) {
                continue;
            }
            let remedy = match nearest(name, &self.known) {
                Some(meant) => format!("did you mean {meant}?"),
                None => format!("remove it; known here are {}", self.known.join(", ")),
            };
            findings.error(
                &key.span(),
                &self.object,
                format!("unknown key {name:?}"),
                remedy,
            );
        }
    }
}

/// What a value is, with its article.
pub(super) fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// A whole number; one beyond 64 bits is given as the largest there is, which no bounds allow.
pub(super) fn as_integer(value: &DeValue<'_>) -> Option<i64> {
    match value {
        DeValue::Integer(number) => {
            Some(i64::from_str_radix(number.as_str(), number.radix()).unwrap_or(i64::MAX))
        }
        _ => None,
    }
}

/// A duration from words that are no configuration file's.
///
/// # Errors
/// When it is none, or out of bounds: how to write it.
pub fn duration_within(
    text: &str,
    bounds: std::ops::RangeInclusive<Duration>,
) -> Result<Duration, String> {
    match parse_duration(text) {
        Some(duration) if bounds.contains(&duration) => Ok(duration),
        Some(_) => Err(format!(
            "{text} is not from {} to {}",
            show_duration(*bounds.start()),
            show_duration(*bounds.end())
        )),
        None => Err(format!(
            "{text:?} is no duration; write a whole number and a unit: 500ms, 2s, 1m, 1h"
        )),
    }
}

/// A whole number and a unit: ms, s, m, h.
fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(unit_ms).map(Duration::from_millis)
}

fn show_duration(duration: Duration) -> String {
    match duration.as_millis() {
        0 => "0s".to_owned(),
        ms if ms % 3_600_000 == 0 => format!("{}h", ms / 3_600_000),
        ms if ms % 60_000 == 0 => format!("{}m", ms / 60_000),
        ms if ms % 1_000 == 0 => format!("{}s", ms / 1_000),
        ms => format!("{ms}ms"),
    }
}

/// The known word that a mistyped one was probably meant to be: at most two letters away, and fewer than it has.
pub(super) fn nearest<'w>(typed: &str, words: &[&'w str]) -> Option<&'w str> {
    words
        .iter()
        .map(|word| (distance(typed, word), *word))
        .filter(|&(distance, word)| distance <= 2 && distance < word.len())
        .min()
        .map(|(_, word)| word)
}

/// Letters to insert, remove or replace to turn one word into another.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_number_and_a_unit() {
        for (text, ms) in [
            ("500ms", Some(500)),
            ("2s", Some(2_000)),
            ("1m", Some(60_000)),
            ("1h", Some(3_600_000)),
            ("2", None),
            ("s", None),
            ("", None),
            ("-1s", None),
            ("1.5s", None),
            ("2 s", None),
            ("99999999999999999999s", None),
            ("18446744073709551615h", None),
        ] {
            let expected = ms.map(Duration::from_millis);
            assert_eq!(parse_duration(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_slip_of_the_finger_finds_its_word() {
        let words = ["vip", "port", "table_size"];
        for (typed, meant) in [
            ("prot", Some("port")),
            ("tabel_size", Some("table_size")),
            ("VIP", None),
            ("colour", None),
        ] {
            assert_eq!(nearest(typed, &words), meant, "{typed}");
        }
    }
}
