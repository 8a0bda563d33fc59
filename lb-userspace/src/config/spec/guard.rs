//! Whom a service takes new flows from, and how many of one source.

use std::{collections::HashSet, ops::Range, path::Path};

use lb_common::net::IpVersion;
use toml::{Spanned, de::DeValue};

use super::super::{
    MAX_FLOWS, MAX_RATE,
    problem::Findings,
    read::{Reader, kind},
    read_file,
};
use crate::guard::{Guard, Lists, Prefix, SourceLimit};

/// Bits of an IPv4 address that make a source if the service does not say.
const PREFIX4: u8 = 32;
/// The same of IPv6: what one site has at least (RFC 6177), and often one host.
const PREFIX6: u8 = 64;
/// Problems of one file that are told.
const MOST_TOLD: usize = 20;

const LIST_EXAMPLE: &str = "[\"192.0.2.0/24\"]";
const FILE_EXAMPLE: &str = "\"/etc/tether/deny.txt\"";
const FILE_REMEDY: &str =
    "name a readable file with a prefix or an address on each line, and comments from # on";

/// A guard, and the files that it was read from.
pub(super) struct Read {
    pub(super) guard: Option<Guard>,
    pub(super) files: Vec<std::path::PathBuf>,
}

/// Reads a service's keys; `version` is that of its VIP, if it has a valid one.
pub(super) fn read(
    reader: &mut Reader<'_>,
    version: Option<IpVersion>,
    findings: &mut Findings<'_>,
) -> Read {
    let mut files = Vec::new();
    let allow = list(
        reader,
        ["allow", "allow_file"],
        version,
        &mut files,
        findings,
    );
    if let Some((span, prefixes)) = &allow
        && prefixes.as_ref().is_some_and(Vec::is_empty)
    {
        findings.error(
            span,
            &reader.object,
            "allow names nobody, and without it everybody is let in",
            "name a prefix, or remove allow and allow_file",
        );
    }
    let deny = list(reader, ["deny", "deny_file"], version, &mut files, findings);
    let limit = source_limit(reader, version, findings);
    let is_there = allow.is_some() || deny.is_some() || limit.is_some();
    let prefixes = |list: Option<(_, Option<Vec<Prefix>>)>| {
        list.and_then(|(_, prefixes)| prefixes).unwrap_or_default()
    };
    let lists = Lists::new(prefixes(allow), prefixes(deny));
    Read {
        guard: is_there.then(|| Guard::new(version.unwrap_or(IpVersion::V4), lists, limit)),
        files,
    }
}

/// A list that is given in the configuration, in a file, or in both: where, and its prefixes unless one of them is wrong. None if there is none.
fn list(
    reader: &mut Reader<'_>,
    [key, file_key]: [&'static str; 2],
    version: Option<IpVersion>,
    files: &mut Vec<std::path::PathBuf>,
    findings: &mut Findings<'_>,
) -> Option<(Range<usize>, Option<Vec<Prefix>>)> {
    let inline = reader.array(key, LIST_EXAMPLE, findings);
    let file = reader.string(file_key, FILE_EXAMPLE, findings);
    let span = match (&inline, &file) {
        (Some((span, _)), _) => span.clone(),
        (None, Some(file)) => file.span(),
        (None, None) => return None,
    };
    let mut all = Collected {
        key,
        object: &reader.object,
        prefixes: Vec::new(),
        known: HashSet::new(),
        is_whole: true,
    };
    for element in inline.into_iter().flat_map(|(_, elements)| elements) {
        all.take(element, version, findings);
    }
    if let Some(file) = file {
        let path = Path::new(file.get_ref());
        files.push(path.to_owned());
        all.read(file_key, path, &file.span(), version, findings);
    }
    Some((span, all.is_whole.then_some(all.prefixes)))
}

/// A list as it is read.
struct Collected<'a> {
    key: &'static str,
    object: &'a str,
    prefixes: Vec<Prefix>,
    known: HashSet<Prefix>,
    /// Whether nothing was wrong so far.
    is_whole: bool,
}

impl Collected<'_> {
    /// Takes in an element of the array.
    fn take(
        &mut self,
        element: &Spanned<DeValue<'_>>,
        version: Option<IpVersion>,
        findings: &mut Findings<'_>,
    ) {
        let (key, span) = (self.key, element.span());
        let DeValue::String(text) = element.get_ref() else {
            self.is_whole = false;
            findings.error(
                &span,
                self.object,
                format!(
                    "{key} contains {}, not only strings",
                    kind(element.get_ref())
                ),
                format!("write it like {key} = {LIST_EXAMPLE}"),
            );
            return;
        };
        let prefix = match text.parse::<Prefix>() {
            Ok(prefix) => prefix,
            Err(error) => {
                self.is_whole = false;
                let wrong = format!("{key} has {text:?}, which {error}");
                findings.error(&span, self.object, wrong, error.remedy());
                return;
            }
        };
        if let Some(version) = version
            && prefix.version() != version
        {
            self.is_whole = false;
            findings.error(
                &span,
                self.object,
                format!(
                    "{key} has {prefix}, and every client of an IPv{} VIP has an IPv{} address",
                    version as u32, version as u32
                ),
                "take it out here, and name it where the VIP has that version (files may have both)",
            );
            return;
        }
        if !self.known.insert(prefix) {
            findings.warning(
                &span,
                self.object,
                format!("{key} has {prefix} twice"),
                "take one out",
            );
        }
        self.prefixes.push(prefix);
    }

    /// Takes in a file: a prefix or an address a line, comments from `#` on. It may have addresses of both versions.
    fn read(
        &mut self,
        file_key: &str,
        path: &Path,
        span: &Range<usize>,
        version: Option<IpVersion>,
        findings: &mut Findings<'_>,
    ) {
        let shown = path.display();
        let text = if path.is_absolute() {
            read_file(path).map_err(|error| format!("{file_key} {shown} cannot be read: {error}"))
        } else {
            Err(format!("{file_key} is {shown}, which is no absolute path"))
        };
        let text = match text {
            Ok(text) => text,
            Err(wrong) => {
                self.is_whole = false;
                findings.error(span, self.object, wrong, FILE_REMEDY);
                return;
            }
        };
        let (mut wrong, mut twice, mut found, mut own) = (0, 0, 0, 0);
        for (line, text) in (1..).zip(text.lines()) {
            let (text, _) = text.split_once('#').unwrap_or((text, ""));
            let text = text.trim();
            if text.is_empty() {
                continue;
            }
            match text.parse::<Prefix>() {
                Ok(prefix) => {
                    found += 1;
                    own += usize::from(version.is_none_or(|version| prefix.version() == version));
                    if !self.known.insert(prefix) {
                        twice += 1;
                        if twice == 1 {
                            findings.warning_in(
                                path,
                                line,
                                self.object,
                                format!("{} has {prefix} twice", self.key),
                                "take one out",
                            );
                        }
                    }
                    self.prefixes.push(prefix);
                }
                Err(error) => {
                    self.is_whole = false;
                    wrong += 1;
                    if wrong <= MOST_TOLD {
                        let wrong = format!("{} has {text:?}, which {error}", self.key);
                        findings.error_in(path, line, self.object, wrong, error.remedy());
                    }
                }
            }
        }
        if wrong > MOST_TOLD {
            findings.error(
                span,
                self.object,
                format!(
                    "{} more lines of {shown} are no prefixes",
                    wrong - MOST_TOLD
                ),
                FILE_REMEDY,
            );
        }
        if let Some(version) = version
            && found > 0
            && own == 0
            && wrong == 0
        {
            findings.warning(
                span,
                self.object,
                format!(
                    "{file_key} {shown} has prefixes of the other version of IP only, and every client of an IPv{} VIP has an IPv{} address",
                    version as u32, version as u32
                ),
                "name another file, or add prefixes",
            );
        }
    }
}

fn source_limit(
    reader: &mut Reader<'_>,
    version: Option<IpVersion>,
    findings: &mut Findings<'_>,
) -> Option<SourceLimit> {
    let object = format!("source_limit of {}", reader.object);
    let mut table = reader.table("source_limit", object, findings)?;
    let (usual, most) = match version {
        Some(IpVersion::V4) => (PREFIX4, 32),
        Some(IpVersion::V6) | None => (PREFIX6, 64),
    };
    let prefix = table.integer("prefix", 1..=most, findings);
    let new_per_second = table.integer("new_per_second", 1..=MAX_RATE, findings);
    let burst = table.integer("burst", 1..=MAX_RATE, findings);
    let flows = table.integer("flows", 1..=MAX_FLOWS, findings);
    if let (Some(burst), None) = (&burst, &new_per_second) {
        findings.warning(
            &burst.span(),
            &table.object,
            "burst says how many new flows come at once, and new_per_second does not say how many come in the long run",
            "set new_per_second too, or remove burst",
        );
    }
    let limits_nothing = ["new_per_second", "flows"]
        .into_iter()
        .all(|key| table.value(key).is_none());
    if limits_nothing {
        findings.error(
            &table.span,
            &table.object,
            "it limits nothing",
            "set new_per_second, flows or both, or remove the table",
        );
    }
    table.finish(findings);
    let new_per_second = new_per_second.map(Spanned::into_inner);
    Some(SourceLimit {
        prefix: prefix.map_or(usual, |prefix| prefix.into_inner() as u8),
        new_per_second,
        burst: burst
            .map(Spanned::into_inner)
            .or(new_per_second)
            .unwrap_or(1),
        flows: flows.map(Spanned::into_inner),
    })
}
