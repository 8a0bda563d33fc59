//! The latest answers of the DNS. A name that stops resolving keeps its last one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::state::State;
use crate::{
    config::{Config, DnsSource, Service},
    dns::{Bounds, Found, Question, Report, Wanted},
    status::DnsStatus,
};

/// What is known of one question.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Known {
    found: Vec<Found>,
    /// Why the latest answer is not the one in force, if it is not.
    error: Option<String>,
    failures: u64,
    /// Whether it was asked by this daemon.
    asked: bool,
    /// The generation since which files ask it without a break; 0 is the first one's.
    since: u64,
}

/// The latest answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answers(BTreeMap<Question, Known>);

/// An answer as it is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Remembered {
    question: Question,
    found: Vec<Found>,
}

impl Answers {
    /// Those that the last run remembered.
    pub(super) fn restore(remembered: &[Remembered]) -> Self {
        let known = remembered.iter().map(|one| {
            let known = Known {
                found: one.found.clone(),
                ..Known::default()
            };
            (one.question.clone(), known)
        });
        Self(known.collect())
    }

    /// What is to be remembered.
    pub(super) fn remember(&self) -> Vec<Remembered> {
        let with_answer = self.0.iter().filter(|(_, known)| !known.found.is_empty());
        with_answer
            .map(|(question, known)| Remembered {
                question: question.clone(),
                found: known.found.clone(),
            })
            .collect()
    }

    /// The answer in force; empty if there is none.
    pub(super) fn of(&self, source: &DnsSource) -> &[Found] {
        self.0
            .get(&source.question)
            .map_or(&[], |known| &known.found)
    }

    /// The answers with which a new file begins: a source that asks something else now has its last addresses until that is answered.
    pub(super) fn carried(&self, old: &Config, new: &Config) -> Self {
        let mut next = self.clone();
        for (service, source) in sources(new) {
            let was = sources(old)
                .find(|(of, was)| (&of.name, &was.name) == (&service.name, &source.name))
                .and_then(|(_, was)| self.0.get(&was.question));
            if let Some(known) = was {
                next.0
                    .entry(source.question.clone())
                    .or_insert_with(|| Known {
                        found: known.found.clone(),
                        ..Known::default()
                    });
            }
        }
        next
    }

    /// Goes over to the next file, of this generation: forgets what it no longer asks, and notes that it begins to ask what is new.
    pub(super) fn go_over(&mut self, old: &Config, new: &Config, generation: u64) {
        let (before, asked) = (questions(old), questions(new));
        self.0.retain(|question, _| asked.contains_key(question));
        for question in asked.into_keys() {
            if !before.contains_key(&question) {
                self.0.entry(question).or_default().since = generation;
            }
        }
    }

    /// Whether everything that a file asks was asked by this daemon, answered or not. What the last run remembers is no word of the server's: it may be old,
    /// and of addresses that are others' by now.
    pub(super) fn are_known(&self, file: &Config) -> bool {
        let known = |question: &Question| self.0.get(question).is_some_and(|known| known.asked);
        sources(file).all(|(_, source)| known(&source.question))
    }
}

/// Every source of a file, with its service.
fn sources(file: &Config) -> impl Iterator<Item = (&Service, &DnsSource)> {
    let services = file.services.iter();
    services.flat_map(|service| service.dns.iter().map(move |source| (service, source)))
}

/// What a file asks.
fn questions(file: &Config) -> BTreeMap<Question, Bounds> {
    let mut all: BTreeMap<Question, Bounds> = BTreeMap::new();
    for (_, source) in sources(file) {
        all.entry(source.question.clone())
            .and_modify(|bounds| *bounds = bounds.and(source.bounds))
            .or_insert(source.bounds);
    }
    all
}

impl State {
    /// What is to be asked of the DNS.
    pub fn questions(&self) -> BTreeMap<Question, Wanted> {
        let asked = questions(&self.file).into_iter();
        asked
            .map(|(question, bounds)| {
                let known = self.answers.0.get(&question);
                let since = known.map_or(0, |known| known.since);
                (question, Wanted { bounds, since })
            })
            .collect()
    }

    /// Takes in an answer, or that there is none. False if it is no news.
    pub fn answered(&mut self, report: Report) -> bool {
        let Report { question, result } = report;
        if !sources(&self.file).any(|(_, source)| source.question == question) {
            return false;
        }
        let name = &question.name;
        let found = match result {
            Err(error) => {
                let known = self.answers.0.entry(question.clone()).or_default();
                known.asked = true;
                if known.error.is_none() {
                    tracing::warn!(
                        name, %error, addresses = known.found.len(),
                        "a name does not resolve; its last addresses stay"
                    );
                }
                known.failures += 1;
                known.error = Some(error);
                return true;
            }
            Ok(found) => found,
        };
        // Most answers are the same as before, and there may be hundreds a second.
        let were_known = self.answers.are_known(&self.file);
        if let Some(known) = self.answers.0.get_mut(&question)
            && known.found == found
        {
            known.asked = true;
            let had_error = known.error.take().is_some();
            return had_error || !were_known;
        }
        tracing::info!(name, addresses = found.len(), "a name has other addresses");
        let mut answers = self.answers.clone();
        let known = answers.0.entry(question.clone()).or_default();
        known.asked = true;
        known.error = None;
        known.found = found;
        if let Err(error) = self.take_answers(answers) {
            tracing::error!(name, %error, "its new addresses are not taken; the last ones stay");
            let known = self.answers.0.entry(question).or_default();
            known.asked = true;
            known.failures += 1;
            known.error = Some(error);
        }
        true
    }

    /// Every source of every service, for the status.
    pub(super) fn sources(&self) -> Vec<DnsStatus> {
        let nothing = Known::default();
        sources(&self.file)
            .map(|(service, source)| {
                let known = self.answers.0.get(&source.question).unwrap_or(&nothing);
                let is_its = |(of, from, _): &&(String, String, String)| {
                    (of, from) == (&service.name, &source.name)
                };
                let ignored = self.ignored.iter().filter(is_its);
                DnsStatus {
                    service: service.name.clone(),
                    source: source.name.clone(),
                    query: source.question.name.clone(),
                    kind: source.question.kind,
                    addresses: known.found.iter().map(|one| one.address).collect(),
                    failures: known.failures,
                    error: known.error.clone(),
                    ignored: ignored.map(|(_, _, why)| why.clone()).collect(),
                }
            })
            .collect()
    }
}
