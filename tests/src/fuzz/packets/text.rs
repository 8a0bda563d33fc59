//! Cases as text: one step a line, so that what was found can be kept, read, and played again.

use lb_common::{backend::Serving, net::IpVersion};

use super::{
    Case, Step,
    asked::Asked,
    returns::{Noise, Reply, Told},
    scene::{Node, Setting},
};

/// Behind the version of IP: the setting, if it is not the plain one.
const TRANSLATING: &str = "translating";
/// Behind these: that it is played again with what clients send again being counted.
const MEASURED: &str = "measured";

impl Case {
    /// The case as text that [`Case::parse`] reads.
    #[must_use]
    pub fn text(&self) -> String {
        let version = match self.version {
            IpVersion::V4 => "ipv4",
            IpVersion::V6 => "ipv6",
        };
        let setting = (self.setting == Setting::Translating).then_some(TRANSLATING);
        let measured = self.is_measured.then_some(MEASURED);
        let head: Vec<&str> = [Some(version), setting, measured]
            .into_iter()
            .flatten()
            .collect();
        let mut lines = vec![head.join(" ")];
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
            Step::Reply(reply) => format!(
                "reply {} {} {} {} {} {} {} {} {} {} {} {} {}",
                reply.client,
                reply.place,
                reply.flags,
                reply.seq,
                reply.ack,
                reply.length,
                reply.ttl,
                reply.mss,
                reply.tags,
                reply.astray,
                if reply.from_outside { "outside" } else { "own" },
                reply.noise.at,
                reply.noise.bits,
            ),
            Step::Error(told) => format!(
                "error {} {} {} {} {} {} {} {} {}",
                told.client,
                told.place,
                told.what,
                told.quoted,
                if told.is_about_request {
                    "request"
                } else {
                    "reply"
                },
                told.ttl,
                told.astray,
                told.noise.at,
                told.noise.bits,
            ),
            Step::Keep(client, backend) => format!("keep {client} {backend}"),
            Step::Guard(place, Some(asked)) => format!("guard {place} {}", asked.text()),
            Step::Guard(place, None) => format!("guard {place}"),
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
        let first = lines.next().unwrap_or_default();
        let words: Vec<&str> = first.split_whitespace().collect();
        let version = match words.first() {
            Some(&"ipv4") => IpVersion::V4,
            Some(&"ipv6") => IpVersion::V6,
            _ => return Err(format!("the first line is ipv4 or ipv6, not {first:?}")),
        };
        let (setting, is_measured) = match words[1..] {
            [] => (Setting::Plain, false),
            [MEASURED] => (Setting::Plain, true),
            [TRANSLATING] => (Setting::Translating, false),
            [TRANSLATING, MEASURED] => (Setting::Translating, true),
            _ => {
                return Err(format!(
                    "behind the version there may be {TRANSLATING} and {MEASURED}, and nothing else: {first:?}"
                ));
            }
        };
        let steps = lines
            .map(|line| step(setting, line).ok_or_else(|| format!("no step: {line}")))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            version,
            setting,
            is_measured,
            steps,
        })
    }
}

fn step(setting: Setting, line: &str) -> Option<Step> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let is_client = |number: &u16| *number < setting.clients();
    let is_place = |place: &usize| *place < setting.services().len();
    let is_backend = |id: &u32| (1..=setting.backends()).contains(id);
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
            is_backend(&id).then_some(Step::Change(id, node))
        }
        ["rebuild", place, first, ago] => {
            let place = place.parse::<usize>().ok().filter(is_place)?;
            let (first, ago) = (first.parse().ok()?, ago.parse().ok()?);
            Some(Step::Rebuild(place, first, ago))
        }
        [
            "reply",
            client,
            place,
            flags,
            seq,
            ack,
            length,
            ttl,
            mss,
            tags,
            astray,
            from,
            at,
            bits,
        ] => Some(Step::Reply(Reply {
            client: client.parse::<u16>().ok().filter(is_client)?,
            place: place.parse::<usize>().ok().filter(is_place)?,
            flags: flags.parse().ok()?,
            seq: seq.parse().ok()?,
            ack: ack.parse().ok()?,
            length: length.parse().ok()?,
            ttl: ttl.parse().ok()?,
            mss: mss.parse().ok()?,
            tags: tags.parse().ok()?,
            astray: astray.parse().ok()?,
            from_outside: from == "outside",
            noise: noise(at, bits)?,
        })),
        [
            "error",
            client,
            place,
            what,
            quoted,
            about,
            ttl,
            astray,
            at,
            bits,
        ] => Some(Step::Error(Told {
            client: client.parse::<u16>().ok().filter(is_client)?,
            place: place.parse::<usize>().ok().filter(is_place)?,
            what: what.parse().ok()?,
            quoted: quoted.parse().ok()?,
            is_about_request: about == "request",
            ttl: ttl.parse().ok()?,
            astray: astray.parse().ok()?,
            noise: noise(at, bits)?,
        })),
        ["keep", client, backend] => {
            let client = client.parse::<u16>().ok().filter(is_client)?;
            let backend = backend.parse::<u32>().ok().filter(is_backend)?;
            Some(Step::Keep(client, backend))
        }
        ["guard", place] => {
            let place = place.parse::<usize>().ok().filter(is_place)?;
            Some(Step::Guard(place, None))
        }
        ["guard", place, ref asked @ ..] => {
            let place = place.parse::<usize>().ok().filter(is_place)?;
            Some(Step::Guard(place, Some(Asked::parse(asked)?)))
        }
        _ => None,
    }
}

fn noise(at: &str, bits: &str) -> Option<Noise> {
    Some(Noise {
        at: at.parse().ok()?,
        bits: bits.parse().ok()?,
    })
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
