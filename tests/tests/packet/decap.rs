//! The decapsulator: what a backend's host gets of an `ipip` packet, and what it must leave alone.

use lab::packet::{
    BackendSpec, CLIENT, Packet, World,
    frame::checksum,
    kernel::{Decap, Outcome, action},
    version,
};
use lb_common::net::IpVersion::{self, V4, V6};

lab::in_both_versions![
    the_outer_header_comes_off_and_nothing_else_changes,
    what_the_load_balancer_sends_arrives_as_the_client_sent_it_but_for_the_ttl,
    congestion_marks_are_carried_inwards,
    other_protocols_are_untouched,
    an_outer_header_with_options_or_another_version_is_untouched,
    an_inner_packet_of_another_version_than_announced_is_untouched,
    an_inner_packet_longer_than_the_outer_one_is_untouched,
    truncations_are_untouched_until_both_headers_are_there_and_lose_the_outer_one_then,
];

fn inner() -> Packet {
    CLIENT.ack().payload(b"some data")
}

/// The versions of outer headers that a packet of the version in force may have.
fn outers() -> &'static [IpVersion] {
    match version() {
        V4 => &[V4, V6],
        V6 => &[V6],
    }
}

/// Length of an outer header.
fn len(outer: IpVersion) -> usize {
    match outer {
        V4 => 20,
        V6 => 40,
    }
}

/// `inner` in an outer header, with this type of service or traffic class in that one.
fn encapsulated(inner: &Packet, outer: IpVersion, tos: u8) -> Vec<u8> {
    edited(inner, outer, |header| match outer {
        V4 => header[1] = tos,
        V6 => header[..2].copy_from_slice(&(0x6000 | u16::from(tos) << 4).to_be_bytes()),
    })
}

/// `inner` in an outer header that is changed, and has a right checksum again if it has one.
fn edited(inner: &Packet, outer: IpVersion, edit: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut head = inner.bytes();
    let packet = head.split_off(inner.network());
    let length = inner.counted() as u16 - inner.network() as u16;
    let (ethertype, mut header) = match outer {
        V4 => (0x0800_u16, outer_ipv4(length)),
        V6 => (0x86dd, outer_ipv6(length, inner.version)),
    };
    edit(&mut header);
    if outer == V4 {
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    let at = head.len() - 2;
    head[at..].copy_from_slice(&ethertype.to_be_bytes());
    [head, header, packet].concat()
}

fn outer_ipv4(inner: u16) -> Vec<u8> {
    let mut header = vec![
        0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 4, 0, 0, 10, 255, 0, 1, 10, 0, 0, 1,
    ];
    header[2..4].copy_from_slice(&(inner + 20).to_be_bytes());
    header
}

fn outer_ipv6(inner: u16, version: IpVersion) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0xab, 0xcd];
    header.extend(inner.to_be_bytes());
    header.extend([if version == V4 { 4 } else { 41 }, 64]);
    header.extend([0xfd; 32]);
    header
}

#[track_caller]
fn assert_untouched(decap: &Decap, frame: &[u8]) {
    let expected = Outcome {
        action: action::PASS,
        output: frame.to_vec(),
    };
    assert_eq!(decap.run(frame), expected);
}

#[track_caller]
fn assert_becomes(decap: &Decap, frame: &[u8], output: &Packet) {
    let expected = Outcome {
        action: action::PASS,
        output: output.bytes(),
    };
    assert_eq!(decap.run(frame), expected);
}

fn the_outer_header_comes_off_and_nothing_else_changes() {
    let decap = Decap::load();
    for packet in [
        inner(),
        inner().options(&[1; 40]),
        inner().padded(6),
        inner().fragment(0x2000),
        inner().fragment(0x00b9),
        inner().carrying(17, &[7; 30]),
        inner().tagged(0x8100, 0x6064),
        inner().tagged(0x8100, 0x6064).tagged(0x88a8, 0x0001),
        inner().payload(&vec![3; 8_000]),
    ] {
        for &outer in outers() {
            let frame = encapsulated(&packet, outer, packet.tos);
            assert_becomes(&decap, &frame, &packet);
        }
    }
}

fn what_the_load_balancer_sends_arrives_as_the_client_sent_it_but_for_the_ttl() {
    for backend in [BackendSpec::ipip(1), BackendSpec::ipip_in_ipv6(1)] {
        let sent = {
            let world = World::with(&backend);
            world.send(&CLIENT.syn().tos(0xb9)).outcome.output
        };
        let mut arrived = CLIENT.syn().tos(0xb9).ttl(63);
        arrived.destination_mac.copy_from_slice(&sent[..6]);
        arrived.source_mac.copy_from_slice(&sent[6..12]);
        assert_becomes(&Decap::load(), &sent, &arrived);
    }
}

/// RFC 6040, section 4.2, figure 4: the inner mark, the outer one, and what is left of them; none is a drop.
fn congestion_marks_are_carried_inwards() {
    const NOT: u8 = 0b00;
    const ECT1: u8 = 0b01;
    const ECT0: u8 = 0b10;
    const CE: u8 = 0b11;
    let decap = Decap::load();
    for (mark, carried, expected) in [
        (NOT, NOT, Some(NOT)),
        (NOT, ECT0, Some(NOT)),
        (NOT, ECT1, Some(NOT)),
        (NOT, CE, None),
        (ECT0, NOT, Some(ECT0)),
        (ECT0, ECT0, Some(ECT0)),
        (ECT0, ECT1, Some(ECT1)),
        (ECT0, CE, Some(CE)),
        (ECT1, NOT, Some(ECT1)),
        (ECT1, ECT0, Some(ECT1)),
        (ECT1, ECT1, Some(ECT1)),
        (ECT1, CE, Some(CE)),
        (CE, NOT, Some(CE)),
        (CE, ECT0, Some(CE)),
        (CE, ECT1, Some(CE)),
        (CE, CE, Some(CE)),
    ] {
        // The inner DSCP stays, whatever the outer one is.
        let packet = inner().tos(0xb8 | mark);
        for &outer in outers() {
            let frame = encapsulated(&packet, outer, 0x40 | carried);
            match expected {
                Some(mark) => assert_becomes(&decap, &frame, &packet.clone().tos(0xb8 | mark)),
                None => assert_eq!(decap.run(&frame).action, action::DROP),
            }
        }
    }
}

#[test]
fn fragments_of_the_outer_packet_are_untouched() {
    let decap = Decap::load();
    for fragment in [0x2000_u16, 0x0001, 0x20b9, 0x1fff] {
        let frame = edited(&inner(), V4, |outer| {
            outer[6..8].copy_from_slice(&fragment.to_be_bytes());
        });
        assert_untouched(&decap, &frame);
    }
}

fn other_protocols_are_untouched() {
    let decap = Decap::load();
    for &outer in outers() {
        let at = if outer == V4 { 9 } else { 6 };
        let mut own = 0;
        edited(&inner(), outer, |header| own = header[at]);
        for protocol in (0..=255).filter(|protocol| *protocol != own) {
            let frame = edited(&inner(), outer, |header| header[at] = protocol);
            assert_untouched(&decap, &frame);
        }
    }
    assert_untouched(&decap, &inner().bytes());
}

fn an_outer_header_with_options_or_another_version_is_untouched() {
    let decap = Decap::load();
    for &outer in outers() {
        let others = match outer {
            V4 => [0x44, 0x46, 0x4f, 0x65, 0x05],
            V6 => [0x45, 0x50, 0x70, 0xf0, 0x05],
        };
        for first in others {
            let frame = edited(&inner(), outer, |header| header[0] = first);
            assert_untouched(&decap, &frame);
        }
    }
}

fn an_inner_packet_of_another_version_than_announced_is_untouched() {
    let decap = Decap::load();
    for &outer in outers() {
        let mut frame = encapsulated(&inner(), outer, 0);
        let own = version() as u8;
        for version in (0..16).filter(|version| *version != own) {
            frame[14 + len(outer)] = version << 4 | 5;
            assert_untouched(&decap, &frame);
        }
    }
}

fn an_inner_packet_longer_than_the_outer_one_is_untouched() {
    let decap = Decap::load();
    // Where the inner header says how long the packet is, and how much of it that leaves out.
    let (at, header) = match version() {
        V4 => (2, 0),
        V6 => (4, 40),
    };
    let longest = inner().length() - header;
    for &outer in outers() {
        for length in [longest + 1, 1_500, u16::MAX - 19, u16::MAX] {
            let mut frame = encapsulated(&inner(), outer, 0);
            frame[14 + len(outer) + at..][..2].copy_from_slice(&length.to_be_bytes());
            assert_untouched(&decap, &frame);
        }
    }
}

fn truncations_are_untouched_until_both_headers_are_there_and_lose_the_outer_one_then() {
    let decap = Decap::load();
    for packet in [
        inner(),
        inner().tagged(0x8100, 1),
        inner().tagged(0x8100, 1).tagged(0x88a8, 2),
    ] {
        for &outer in outers() {
            let whole = encapsulated(&packet, outer, 0);
            // Of the inner header as much is looked at as is in every version's.
            let needed = packet.network() + len(outer) + 20;
            for length in 14..needed {
                assert_untouched(&decap, &whole[..length]);
            }
            let inner = packet.bytes();
            for length in needed..whole.len() {
                let expected = Outcome {
                    action: action::PASS,
                    output: inner[..length - len(outer)].to_vec(),
                };
                assert_eq!(decap.run(&whole[..length]), expected, "{length} bytes");
            }
        }
    }
}
