//! What may happen in a life.

use std::{collections::BTreeSet, time::Duration};

use lb_common::{
    backend::{Mode, Serving},
    net::IpVersion,
    vip::{self, WAYS},
};
use lb_userspace::{
    balance::outlier::Signal,
    config::MAX_WEIGHT,
    model::{Admin, Health},
};
use proptest::{prelude::*, sample::Index};

use super::{BACKENDS, LIMITS, SERVICES, SNAT_ADDRESSES};

/// What may happen.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Reload(Vec<Option<ServicePlan>>),
    Verdict(usize, usize, Health),
    /// All checks of a service find its backends well.
    AllWell(usize),
    /// What the clients of all backends send, until all are judged by it: for each service so many as [`SENDERS`], which its backends are dealt to.
    Sends(Vec<Sent>),
    NextHop(usize, usize, Option<u8>),
    Drain(usize, usize),
    Undrain(usize, usize),
    /// All backends are drained together, or no longer.
    Evacuate(bool),
    /// Somebody changes a backend at runtime.
    Edit(usize, usize, EditPlan),
    /// The DNS answers for a service with these of its addresses, or fails.
    Answer(usize, Option<BTreeSet<u8>>),
    Open(usize, u16),
    End(usize),
    Scan,
    Pass(u32),
    /// The host has the IPv4 VIP itself, the IPv6 one.
    HostOwns(bool, bool),
    Drift(Drift),
    Restart,
    /// This is the last that a daemon hears of: it dies somewhere in the plan that follows, before anything of that is saved, and another starts.
    Die(Box<Event>, Index),
}

/// What a backend's clients send, and send again.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sent {
    Nothing,
    /// Next to nothing of it comes again.
    Well,
    /// Much of this comes again, of many clients.
    Ill(Signal),
    /// Much comes again, of few clients.
    OfFew,
}

/// Kinds of clients that a service has at a time.
pub(super) const SENDERS: usize = 8;

#[derive(Clone, Debug)]
pub(crate) enum Drift {
    State(u32, Serving),
    Vip(IpVersion, u32, usize),
    EndpointWord(IpVersion, u32, usize),
    Endpoint(u32),
    Slot(u32),
    Guard(u32),
}

/// A service as a test wants it; its VIP and port are those of its number.
#[derive(Clone, Debug)]
pub(crate) struct ServicePlan {
    pub(super) renamed: bool,
    pub(super) mode: Mode,
    /// Which SNAT addresses it has in mode `nat`.
    pub(super) snat: [bool; SNAT_ADDRESSES],
    pub(super) size: u32,
    pub(super) min_healthy: u32,
    pub(super) backends: Vec<Option<BackendPlan>>,
    /// Whether more of its backends come from the DNS.
    pub(super) named: bool,
    pub(super) guard: Option<GuardPlan>,
    pub(super) outlier: Option<OutlierPlan>,
}

/// Who is ejected for what its clients send again.
#[derive(Clone, Debug)]
pub(crate) struct OutlierPlan {
    /// Of all, at most, percent.
    pub(super) at_most: u32,
    /// For how long.
    pub(super) eject_for: Duration,
}

/// Whom a service takes new flows from: prefixes by number.
#[derive(Clone, Debug)]
pub(crate) struct GuardPlan {
    pub(super) allow: BTreeSet<u8>,
    pub(super) deny: BTreeSet<u8>,
    /// Flows that one source may have.
    pub(super) flows: Option<u32>,
}

#[derive(Clone, Debug)]
pub(crate) struct BackendPlan {
    pub(super) moved: bool,
    pub(super) weight: u16,
    pub(super) admin: Admin,
}

/// What is asked of one backend. Weights and places may be ones that are refused.
#[derive(Clone, Debug)]
pub(crate) enum EditPlan {
    Put(BackendPlan),
    Weight(u16),
    Remove,
    Revert,
}

/// A life.
pub(crate) fn life() -> impl Strategy<Value = Vec<Event>> {
    let last = (event(), any::<Index>());
    let event = prop_oneof![
        18 => event(),
        1 => last.prop_map(|(last, at)| Event::Die(Box::new(last), at)),
    ];
    prop::collection::vec(event, 1..80)
}

fn event() -> impl Strategy<Value = Event> {
    let (s, b) = (0..SERVICES, 0..BACKENDS);
    let health = prop::sample::select(vec![Health::Up, Health::Up, Health::Refusing, Health::Down]);
    let serving = prop::sample::select(Serving::ALL.to_vec());
    let drift = prop_oneof![
        (1..LIMITS.backends, serving).prop_map(|(id, serving)| Drift::State(id, serving)),
        (
            prop::sample::select(IpVersion::ALL.to_vec()),
            0..vip::buckets_for(LIMITS.services),
            0..WAYS
        )
            .prop_map(|(version, bucket, way)| Drift::Vip(version, bucket, way)),
        (
            prop::sample::select(IpVersion::ALL.to_vec()),
            0..vip::buckets_for(LIMITS.backends),
            0..WAYS
        )
            .prop_map(|(version, bucket, way)| Drift::EndpointWord(version, bucket, way)),
        (1..LIMITS.backends).prop_map(Drift::Endpoint),
        (0..LIMITS.table_slots).prop_map(Drift::Slot),
        (1..LIMITS.services).prop_map(Drift::Guard),
    ];
    prop_oneof![
        3 => prop::collection::vec(prop::option::weighted(0.7, service()), SERVICES).prop_map(Event::Reload),
        8 => (s.clone(), b.clone(), health).prop_map(|(s, b, health)| Event::Verdict(s, b, health)),
        6 => s.clone().prop_map(Event::AllWell),
        8 => prop::collection::vec(sent(), SERVICES * SENDERS).prop_map(Event::Sends),
        3 => (s.clone(), b.clone(), prop::option::weighted(0.8, any::<u8>())).prop_map(|(s, b, mac)| Event::NextHop(s, b, mac)),
        1 => (s.clone(), b.clone()).prop_map(|(s, b)| Event::Drain(s, b)),
        1 => (s.clone(), b).prop_map(|(s, b)| Event::Undrain(s, b)),
        1 => prop::bool::weighted(0.3).prop_map(Event::Evacuate),
        3 => (s.clone(), 0..BACKENDS + 2, edit()).prop_map(|(s, b, edit)| Event::Edit(s, b, edit)),
        3 => (s.clone(), prop::option::weighted(0.8, prop::collection::btree_set(0u8..3, 1..3)))
            .prop_map(|(s, found)| Event::Answer(s, found)),
        8 => (s, any::<u16>()).prop_map(|(s, port)| Event::Open(s, port)),
        4 => any::<prop::sample::Index>().prop_map(|index| Event::End(index.index(1 << 20))),
        10 => Just(Event::Scan),
        2 => prop_oneof![1u32..20, 100u32..400].prop_map(Event::Pass),
        1 => any::<(bool, bool)>().prop_map(|(v4, v6)| Event::HostOwns(v4, v6)),
        1 => drift.prop_map(Event::Drift),
        1 => Just(Event::Restart),
    ]
}

fn edit() -> impl Strategy<Value = EditPlan> {
    prop_oneof![
        3 => backend().prop_map(EditPlan::Put),
        3 => prop::sample::select(vec![0, 1, 100, MAX_WEIGHT + 1]).prop_map(EditPlan::Weight),
        2 => Just(EditPlan::Remove),
        1 => Just(EditPlan::Revert),
    ]
}

fn backend() -> impl Strategy<Value = BackendPlan> {
    let admin = prop::sample::select(vec![
        Admin::Active,
        Admin::Active,
        Admin::Active,
        Admin::Draining,
        Admin::Disabled,
    ]);
    (
        prop::bool::weighted(0.2),
        prop::sample::select(vec![0, 1, 100, 100]),
        admin,
    )
        .prop_map(|(moved, weight, admin)| BackendPlan {
            moved,
            weight,
            admin,
        })
}

fn guard() -> impl Strategy<Value = GuardPlan> {
    let prefixes = || prop::collection::btree_set(0u8..20, 0..4);
    let flows = prop::option::of(prop::sample::select(vec![1u32, 100]));
    (prefixes(), prefixes(), flows).prop_map(|(allow, deny, flows)| GuardPlan {
        allow,
        deny,
        flows,
    })
}

fn sent() -> impl Strategy<Value = Sent> {
    prop_oneof![
        6 => Just(Sent::Well),
        1 => Just(Sent::Nothing),
        2 => Just(Sent::Ill(Signal::Data)),
        1 => Just(Sent::Ill(Signal::Syns)),
        1 => Just(Sent::OfFew),
    ]
}

fn outlier() -> impl Strategy<Value = OutlierPlan> {
    let at_most = prop::sample::select(vec![0, 10, 10, 50, 100]);
    // Over with the next step, after some, and with nothing that happens in a life but a reload or a restart.
    let seconds = prop::sample::select(vec![1, 20, 3_600]);
    (at_most, seconds).prop_map(|(at_most, seconds)| OutlierPlan {
        at_most,
        eject_for: Duration::from_secs(seconds),
    })
}

fn service() -> impl Strategy<Value = ServicePlan> {
    let backends = prop::collection::vec(prop::option::weighted(0.8, backend()), BACKENDS);
    let size = prop::sample::select(vec![257, 257, 293]);
    (
        prop::bool::weighted(0.1),
        prop::sample::select(Mode::ALL.to_vec()),
        any::<[bool; SNAT_ADDRESSES]>(),
        size,
        0u32..3,
        backends,
        prop::bool::weighted(0.4),
        prop::option::weighted(0.5, guard()),
        prop::option::weighted(0.7, outlier()),
    )
        .prop_map(
            |(renamed, mode, snat, size, min_healthy, backends, named, guard, outlier)| {
                ServicePlan {
                    renamed,
                    mode,
                    snat,
                    size,
                    min_healthy,
                    backends,
                    named,
                    guard,
                    outlier,
                }
            },
        )
}
