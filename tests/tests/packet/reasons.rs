//! Every reason that there is happens to some packet, and with the verdict that it promises.

use std::time::Duration;

use lab::packet::{
    BackendSpec, CLIENT, Client, Packet, Run, SERVICE, VIP, VIP_PORT, World,
    entries::backend,
    guard::Limits,
    icmp::{About, message, quote},
    in_version,
    kernel::action,
    nat,
};
use lb_common::{
    backend::Serving,
    bench::CROWD_LEN,
    flow::word::{BackendRef, State, Word},
    guard::Listed,
    net::IpVersion,
    share::Share,
    tcp::{ACK, RST, SYN},
    verdict::{Reason, Verdict},
    vip::VipEntry,
};

lab::in_both_versions![every_reason_is_reached_by_some_packet,];

/// Sends a packet that ends in `reason`.
fn reach(reason: Reason) -> Run {
    let world = World::new();
    let now = world.now();
    let dead = BackendSpec::l2(1).serving(Serving::None);
    let live = |generation| {
        let holder = BackendRef::new(1, generation);
        Word::live(State::Pin, holder, CLIENT.ack().as_tcp().seq >> 20, now, 0)
    };
    let syn = CLIENT.syn();
    match reason {
        Reason::NotIp => {
            let mut frame = syn.bytes();
            frame[12..14].copy_from_slice(&[0x88, 0xcc]);
            world.send_bytes(&frame, 0)
        }
        Reason::NotService => world.send(&Packet::tcp((CLIENT.0, 1), (VIP, VIP_PORT + 1), SYN)),
        Reason::Malformed => world.send_bytes(&syn.bytes()[..40], 0),
        Reason::Established => {
            world.insert(CLIENT.key(), live(0));
            world.send(&CLIENT.ack())
        }
        Reason::Opened => world.send(&syn),
        Reason::Reopened => {
            world.send(&syn);
            world.send(&syn)
        }
        Reason::Challenged => {
            world.insert(CLIENT.key(), live(0));
            world.send(&syn)
        }
        Reason::Unpinned | Reason::Unadopted => {
            let others: Vec<Client> = world.neighbours(CLIENT).take(8).collect();
            for (place, other) in world.places_of(CLIENT.key()).zip(others) {
                world.put(place, other.key(), live(0));
            }
            let ack = CLIENT.ack();
            world.send(if reason == Reason::Unpinned {
                &syn
            } else {
                &ack
            })
        }
        Reason::Adopted => world.send(&CLIENT.ack()),
        Reason::Stray => world.send(&CLIENT.sends(RST)),
        Reason::DrainDeadline => {
            world.insert(CLIENT.key(), live(0));
            world.backend(&BackendSpec::l2(1).closing(Share::ALL.parts()));
            world.send(&CLIENT.ack())
        }
        Reason::BackendDead => {
            world.insert(CLIENT.key(), live(0));
            world.backend(&dead);
            world.send(&CLIENT.ack())
        }
        Reason::NoBackendForFlow => {
            world.backend(&dead);
            world.send(&CLIENT.ack())
        }
        Reason::ResetLimited => {
            world.backend(&dead);
            world.send_without_resets(&CLIENT.ack())
        }
        Reason::ResetToDead => {
            world.insert(CLIENT.key(), live(0));
            world.backend(&dead);
            world.send(&CLIENT.ack().with_tcp(|tcp| tcp.flags = RST))
        }
        Reason::NoBackend => {
            world.backend(&dead);
            world.send(&syn)
        }
        Reason::Unresolved => {
            world.backend(&BackendSpec::l2(1).unresolved());
            world.send(&syn)
        }
        Reason::Contested => {
            let one = live(0).with(Word::CONTESTED);
            world.insert(CLIENT.key(), one);
            world.insert(
                CLIENT.key(),
                one.with(Word::SECOND).with_backend(backend(2)),
            );
            world.backend(&BackendSpec::l2(1).serving(Serving::ExistingOnly));
            world.backend(&BackendSpec::l2(2).serving(Serving::ExistingOnly));
            world.send(&syn)
        }
        Reason::BadFlags => world.send(&CLIENT.sends(SYN | ACK)),
        Reason::Fragment => {
            world.vip(VIP, false);
            world.send(&syn.fragment(1))
        }
        Reason::TtlExpired => world.send(&syn.ttl(1)),
        Reason::TooBig => {
            world.backend(&BackendSpec::ipip(1).mtu(1_500));
            world.send(&syn.of_length(1_500))
        }
        Reason::ServiceMissing => {
            world.direct(VipEntry::of(World::vip_key(VIP, 80), u16::MAX));
            world.send(&Packet::tcp((CLIENT.0, 1), (VIP, 80), SYN))
        }
        Reason::StaleGeneration => {
            world.insert(CLIENT.key(), live(9));
            world.send(&CLIENT.ack())
        }
        Reason::UnknownMode => {
            world.backend(&BackendSpec::l2(1).forwarding_code(0));
            world.send(&syn)
        }
        Reason::NoHeadroom => {
            world.backend(&BackendSpec::ipip(1));
            world.send_without_headroom(&syn.of_length(CROWD_LEN - 14))
        }
        Reason::NoEgress => {
            world.backend(&BackendSpec::l2(1).nowhere());
            world.send(&syn)
        }
        Reason::Held => {
            world.insert(CLIENT.key(), live(0));
            world.hold(Duration::from_secs(60));
            world.send(&CLIENT.ack().with_tcp(|tcp| tcp.flags = RST | ACK))
        }
        Reason::NoAnswer => world.send_without_headroom(&syn.of_length(CROWD_LEN - 14).ttl(1)),
        Reason::EchoAnswered => {
            world.vip(VIP, false);
            world.send(&message(About::Request, 1, b"data", CLIENT.0, VIP))
        }
        Reason::ErrorRelayed => world.send(&error()),
        Reason::ErrorUnrelayed => {
            world.backend(&BackendSpec::l2(1).unresolved());
            world.send(&error())
        }
        Reason::Reply
        | Reason::NoRouteBack
        | Reason::NoPort
        | Reason::Collision
        | Reason::Unrecorded
        | Reason::UnknownFlow
        | Reason::Untranslated => {
            drop(world);
            reach_translating(reason)
        }
        Reason::Denied
        | Reason::NotAllowed
        | Reason::SourceRate
        | Reason::SourceFull
        | Reason::CutOff => {
            drop(world);
            reach_guarded(reason)
        }
        Reason::AnswerLimited => world.send_without_answers(&syn.ttl(1)),
        Reason::NoProgram => {
            let mut run = None;
            world.without_ipv6_program(|world| {
                in_version(IpVersion::V6, || run = Some(world.send(&CLIENT.syn())));
            });
            run.expect("it was sent")
        }
    }
}

/// The same for reasons of guards.
fn reach_guarded(reason: Reason) -> Run {
    let world = World::guarding();
    match reason {
        Reason::Denied => world.list_all(Listed::Denied),
        Reason::NotAllowed => world.list_all(Listed::NotAllowed),
        Reason::SourceRate => world.limit(&Limits::burst(1)),
        Reason::SourceFull => world.limit(&Limits::flows(1)),
        Reason::CutOff => {
            world.list_all(Listed::Denied);
            return world.send(&CLIENT.ack());
        }
        _ => panic!("{reason:?} is none of a guard's"),
    }
    world.send(&Client(CLIENT.0, 1_000).syn());
    world.send(&CLIENT.syn())
}

/// The same for reasons of modes `nat` and `dnat`.
fn reach_translating(reason: Reason) -> Run {
    let mut world = World::with_translating(&BackendSpec::nat(1));
    let syn = CLIENT.syn();
    match reason {
        Reason::Reply => {
            world.send(&syn);
            world.send(&world.flow(CLIENT).syn_ack())
        }
        Reason::NoRouteBack => {
            world.send(&nat::NOWHERE.syn());
            world.send(&world.flow(nat::NOWHERE).syn_ack())
        }
        Reason::NoPort => {
            drop(world);
            let world = World::translating_many();
            world.translate(&BackendSpec::nat(1), SERVICE);
            world.exhaust(|now| Word::live(State::Pin, backend(1), 0, now, 0));
            world.send(&syn)
        }
        Reason::Collision => {
            let dnat = BackendSpec::dnat(1);
            world.translate(&dnat, SERVICE);
            world.service(2, VIP, 444, &[1]);
            world.translate(&dnat, 2);
            world.send(&syn);
            world.send(&syn.with_tcp(|tcp| tcp.destination_port = 444))
        }
        Reason::Unrecorded => {
            let pin = Word::live(State::Pin, backend(1), 0, world.now(), 0);
            let others: Vec<Client> = world.neighbours(CLIENT).take(8).collect();
            for (place, other) in world.places_of(CLIENT.key()).zip(others) {
                world.put(place, other.key(), pin);
            }
            world.send(&syn)
        }
        Reason::UnknownFlow => world.send(&CLIENT.ack()),
        Reason::Untranslated => world.send(&CLIENT.sends(0)),
        _ => panic!("{reason:?} is not of these modes"),
    }
}

/// An error about a packet that the VIP has sent.
fn error() -> Packet {
    let sent = Packet::tcp((VIP, VIP_PORT), (CLIENT.0, CLIENT.1), ACK);
    message(About::Unreachable, 0, &quote(&sent), CLIENT.0, VIP)
}

fn every_reason_is_reached_by_some_packet() {
    for reason in Reason::ALL {
        let run = reach(*reason);
        assert_eq!(run.reason(), *reason);
        let is_as_promised = match reason.verdict() {
            Verdict::Pass => run.outcome.action == action::PASS,
            // By another interface than it came in by.
            Verdict::Forward if *reason == Reason::Reply => run.outcome.action == action::REDIRECT,
            Verdict::Forward | Verdict::Reset | Verdict::Answer => run.outcome.action == action::TX,
            Verdict::Drop => run.outcome.action == action::DROP,
        };
        assert!(is_as_promised, "{reason:?}: action {}", run.outcome.action);
    }
}
