//! Whom a guarded service takes flows from, and how many of one source.
//!
//! What a source owes and has is known as far as it is seen: of a packet that came to an end somewhere else nobody knows from outside whether the guard had
//! seen it before. So each number is two, the least and the most that it may be.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::{
    clock::TICK_NS,
    tcp::{ACK, FIN, RST, SYN},
    verdict::{Reason, Verdict},
};

use super::{Breach, Promise, ensure};
use crate::{
    fuzz::packets::{
        asked::{Asked, Said},
        flows::{Flow, FlowId},
        reader::Tcp,
        scene::Scene,
    },
    packet::guard::COST,
};

/// What a new flow costs, in nanoseconds.
const COST_NS: u64 = COST.as_nanos() as u64;
/// No case takes as long to be played, by far.
const PLAYED_NS: u64 = COST_NS / 10;
/// How many sources have a place for certain, wherever they are: so many places are in a source's two homes.
const CERTAIN: usize = 8;

/// What is known of one source.
#[derive(Clone, Copy, Debug)]
struct Account {
    /// Nanoseconds since its last flow was paid for, at least and at most, without the time that the case takes to be played; the greatest number if none was.
    since: (u64, u64),
    /// How many flows it has been given, at least and at most.
    flows: (u32, u32),
}

impl Default for Account {
    fn default() -> Self {
        Self {
            since: (u64::MAX, u64::MAX),
            flows: (0, 0),
        }
    }
}

impl Account {
    /// What it has saved up, at least and at most.
    fn saved(&self, asked: &Asked) -> (u64, u64) {
        let burst = COST_NS * u64::from(asked.burst);
        (self.since.0.min(burst), self.since.1.min(burst))
    }

    /// Whether it may be unable to pay for a flow.
    fn may_owe(&self, asked: &Asked) -> bool {
        asked.burst != 0 && self.saved(asked).0 < COST_NS
    }

    /// Whether it cannot pay for a flow.
    fn owes(&self, asked: &Asked) -> bool {
        asked.burst != 0 && self.saved(asked).1 + PLAYED_NS < COST_NS
    }

    /// It has paid for a flow, `surely` or perhaps.
    fn pay(&mut self, asked: &Asked, surely: bool) {
        if asked.burst == 0 {
            return;
        }
        let (least, most) = self.saved(asked);
        self.since.0 = least.saturating_sub(COST_NS);
        if surely {
            self.since.1 = most.saturating_sub(COST_NS);
        }
    }

    /// It has one flow more, `surely` or perhaps.
    fn open(&mut self, surely: bool) {
        self.flows.0 += u32::from(surely);
        self.flows.1 += 1;
    }

    /// Whether it may have as many flows as it may.
    const fn may_be_full(&self, asked: &Asked) -> bool {
        asked.flows != 0 && self.flows.1 >= asked.flows
    }

    /// Whether it has as many flows as it may.
    const fn is_full(&self, asked: &Asked) -> bool {
        asked.flows != 0 && self.flows.0 >= asked.flows
    }
}

/// A segment for a service, and what is known of its flow from before it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asking<'a> {
    /// The flow.
    pub(super) id: FlowId,
    /// What is known of it.
    pub(super) flow: &'a Flow,
    /// The segment.
    pub(super) tcp: &'a Tcp,
}

impl Asking<'_> {
    fn is_syn(&self) -> bool {
        self.tcp.flags & SYN != 0
    }

    /// Whether it may make a flow by itself.
    fn opens(&self) -> bool {
        self.tcp.flags & (SYN | ACK | FIN | RST) == SYN
    }

    /// Whether it may be of the middle of a connection.
    fn continues(&self) -> bool {
        self.tcp.flags & (SYN | ACK | FIN | RST) == ACK
    }
}

/// What is known of guards.
#[derive(Clone, Debug, Default)]
pub(super) struct Guards {
    /// Sources of the guarded service.
    sources: BTreeMap<u64, Account>,
    /// Flows that may have an entry, or have had one.
    touched: BTreeSet<FlowId>,
    /// SYNs that may have made one.
    syns: BTreeSet<(FlowId, u32)>,
    /// The flow that has an entry for certain, and the SYN that has made it: nothing else has happened since.
    fresh: Option<(FlowId, u32)>,
}

impl Guards {
    /// So many ticks pass.
    pub(super) fn age(&mut self, ticks: u32) {
        self.fresh = None;
        let time = TICK_NS * u64::from(ticks);
        for account in self.sources.values_mut() {
            account.since.0 = account.since.0.saturating_add(time);
            account.since.1 = account.since.1.saturating_add(time);
        }
    }

    /// What is known of sources is forgotten.
    pub(super) fn forget(&mut self) {
        self.sources.clear();
    }

    /// Something else has happened: entries may have made place for others.
    pub(super) fn disturb(&mut self) {
        self.fresh = None;
    }

    /// Whether the lists of a service refuse a client.
    pub(super) fn refuse(scene: &Scene, service: u16, client: IpAddr) -> bool {
        let asked = scene.asked(service);
        asked.is_some_and(|asked| asked.said_of(client) != Said::Allowed)
    }

    /// Whether a segment may be refused by a guard, if it was.
    pub(super) fn has_cause(
        &self,
        scene: &Scene,
        asking: Asking<'_>,
        reason: Reason,
    ) -> Result<(), Breach> {
        if !is_refusal(reason) {
            return Ok(());
        }
        let (client, _, service) = asking.id;
        ensure(!self.is_known(asking, reason), Promise::Spared, || {
            format!("{}, and has an entry: {:?}", reason.name(), asking.flow)
        })?;
        let holds = scene.asked(service).is_some_and(|asked| {
            let said = asked.said_of(client);
            let account = self.account(asked, client);
            let is_held_to_limits = asking.opens() && said == Said::Allowed;
            match reason {
                // Who may be in the middle of a connection is told.
                Reason::Denied => said == Said::Denied && !asking.continues(),
                Reason::NotAllowed => said == Said::NotAllowed && !asking.continues(),
                Reason::CutOff => said != Said::Allowed && asking.continues(),
                Reason::SourceRate => is_held_to_limits && account.may_owe(asked),
                // In mid-stream it goes on without an entry.
                _ => is_held_to_limits && account.may_be_full(asked),
            }
        });
        ensure(holds, Promise::Cause, || {
            format!("{} without its cause", reason.name())
        })
    }

    /// Whether a segment is none of the guard's business for certain: its flow has an entry, or, of a SYN that finds no room, would take the place of one.
    fn is_known(&self, asking: Asking<'_>, reason: Reason) -> bool {
        let is_fresh = |(id, isn): (FlowId, u32)| {
            id == asking.id
                && (!asking.is_syn() || isn == asking.tcp.seq || reason == Reason::SourceFull)
        };
        let is_replaced = !asking.is_syn() || reason == Reason::SourceFull;
        self.fresh.is_some_and(is_fresh) || (is_replaced && asking.flow.is_alive())
    }

    fn account(&self, asked: &Asked, client: IpAddr) -> Account {
        let source = asked.source_of(client);
        self.sources.get(&source).copied().unwrap_or_default()
    }

    /// A segment came to its end: whether its client's service could take it, and what its source has and owes then.
    pub(super) fn came(
        &mut self,
        scene: &Scene,
        asking: Asking<'_>,
        reason: Reason,
    ) -> Result<(), Breach> {
        let Asking { id, tcp, .. } = asking;
        let was_touched = self.touched.contains(&id);
        let was_syn = self.syns.contains(&(id, tcp.seq));
        let was_fresh = self.fresh.take();
        if !is_refusal(reason) && reason != Reason::BadFlags {
            self.touched.insert(id);
            if asking.opens() {
                self.syns.insert((id, tcp.seq));
            }
            self.fresh = match reason {
                Reason::Opened | Reason::Challenged => Some((id, tcp.seq)),
                Reason::Reopened => was_fresh.filter(|fresh| *fresh == (id, tcp.seq)),
                _ => None,
            };
        }
        let Some(asked) = scene.asked(id.2) else {
            return Ok(());
        };
        let said = asked.said_of(id.0);
        let source = asked.source_of(id.0);
        // Who is idle may give way to another, and finds a place again as long as there are no more than these.
        let others = self.sources.len() - usize::from(self.sources.contains_key(&source));
        let has_place = others < CERTAIN;
        let account = self.account(asked, id.0);
        let is_forwarded = reason.verdict() == Verdict::Forward;
        if asking.opens() {
            let is_new = !was_syn;
            if is_forwarded && is_new {
                is_let_in(said, reason)?;
                ensure(!has_place || !account.owes(asked), Promise::Guarded, || {
                    format!("{} beyond its source's rate: {account:?}", reason.name())
                })?;
                ensure(
                    !has_place || was_touched || !account.is_full(asked),
                    Promise::Guarded,
                    || format!("{} though its source is full: {account:?}", reason.name()),
                )?;
            }
            let has_paid = (is_forwarded && is_new) || reason == Reason::SourceFull;
            let has_asked = !is_refusal(reason) && reason != Reason::BadFlags;
            if said == Said::Allowed && (has_paid || has_asked) {
                let account = self.sources.entry(source).or_default();
                account.pay(asked, has_paid);
                if has_asked {
                    account.open(has_paid && !was_touched);
                }
            }
        } else if is_forwarded && !asking.is_syn() && reason != Reason::Established {
            if !was_touched {
                is_let_in(said, reason)?;
            }
            if reason == Reason::Adopted {
                ensure(
                    !has_place || was_touched || !account.is_full(asked),
                    Promise::Guarded,
                    || format!("adopted though its source is full: {account:?}"),
                )?;
                self.sources.entry(source).or_default().open(!was_touched);
            }
        } else if asking.continues() && is_cut_short(reason) && !asking.flow.is_alive() {
            // What was adopted before it came to this end has an entry all the same.
            if said == Said::Allowed {
                self.sources.entry(source).or_default().open(false);
            }
        }
        Ok(())
    }
}

/// Whether it is a guard that refuses.
const fn is_refusal(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::Denied
            | Reason::NotAllowed
            | Reason::SourceRate
            | Reason::SourceFull
            | Reason::CutOff
    )
}

/// Whether a segment was for a backend that it may have been adopted for, and could not go there.
const fn is_cut_short(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::TtlExpired
            | Reason::TooBig
            | Reason::AnswerLimited
            | Reason::NoEgress
            | Reason::Untranslated
    )
}

fn is_let_in(said: Said, reason: Reason) -> Result<(), Breach> {
    ensure(said == Said::Allowed, Promise::Guarded, || {
        format!("{}, though the lists say {said:?}", reason.name())
    })
}
