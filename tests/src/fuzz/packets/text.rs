//! Cases as text: one step a line, so that what was found can be kept, read, and played again.

use lb_common::{backend::Serving, net::IpVersion};

use super::{
    Case, Step,
    scene::{BACKENDS, Node, SERVICES},
};

impl Case {
    /// The case as text that [`Case::parse`] reads.
    #[must_use]
    pub fn text(&self) -> String {
        let mut lines = vec![match self.version {
            IpVersion::V4 => "ipv4".to_owned(),
            IpVersion::V6 => "ipv6".to_owned(),
        }];
        lines.extend(self.steps.iter().map(|step| match step {
            Step::Send(frame) => {
                let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
                format!("send {hex}")
            }
            Step::Wait(ticks) => format!("wait {ticks}"),
            Step::Change(id, node) => {
                let closing = node.closing.map_or("-".into(), |parts| parts.to_string());
                format!(
                    "change {id} {} {} {} {closing} {}",
                    node.serving,
                    if node.resolved {
                        "resolved"
                    } else {
                        "unresolved"
                    },
                    node.generation,
                    if node.elsewhere { "elsewhere" } else { "here" },
                )
            }
            Step::Rebuild(place, first, ago) => format!("rebuild {place} {first} {ago}"),
        }));
        lines.join("\n")
    }

    /// Reads what [`Case::text`] has written; lines that begin with `#` are comments.
    ///
    /// # Errors
    /// The first line that is none of a case.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut lines = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        let version = match lines.next() {
            Some("ipv4") => IpVersion::V4,
            Some("ipv6") => IpVersion::V6,
            other => return Err(format!("the first line is ipv4 or ipv6, not {other:?}")),
        };
        let steps = lines
            .map(|line| step(line).ok_or_else(|| format!("no step: {line}")))
            .collect::<Result<_, _>>()?;
        Ok(Self { version, steps })
    }
}

fn step(line: &str) -> Option<Step> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["send", hex] => {
            let bytes = (0..hex.len()).step_by(2);
            let frame = bytes.map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok());
            Some(Step::Send(frame.collect::<Option<_>>()?))
        }
        ["wait", ticks] => Some(Step::Wait(ticks.parse().ok()?)),
        ["change", id, serving, resolved, generation, closing, place] => {
            let id: u32 = id.parse().ok()?;
            let node = Node {
                serving: match serving {
                    "new" => Serving::New,
                    "existing-only" => Serving::ExistingOnly,
                    "none" => Serving::None,
                    _ => return None,
                },
                resolved: resolved == "resolved",
                generation: generation.parse().ok()?,
                closing: match closing {
                    "-" => None,
                    parts => Some(parts.parse().ok()?),
                },
                elsewhere: place == "elsewhere",
            };
            (1..=BACKENDS)
                .contains(&id)
                .then_some(Step::Change(id, node))
        }
        ["rebuild", place, first, ago] => {
            let place: usize = place.parse().ok()?;
            (place < SERVICES.len()).then_some(Step::Rebuild(
                place,
                first.parse().ok()?,
                ago.parse().ok()?,
            ))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_read() {
        for seed in 0..20 {
            let case = Case::of_seed(seed);
            assert_eq!(Case::parse(&case.text()), Ok(case));
        }
    }

    #[test]
    fn what_is_no_case_is_refused_with_its_line() {
        assert!(Case::parse("").is_err() && Case::parse("ipv5").is_err());
        let refusal = Case::parse("ipv4\nwait 3\nchange 9 new resolved 0 - here");
        assert!(refusal.is_err_and(|line| line.contains("change 9")));
    }
}
