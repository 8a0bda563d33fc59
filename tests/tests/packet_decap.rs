//! The decapsulator: what a backend's host gets of an `ipip` packet, and what it must leave alone.

use lab::packet::{
    BackendSpec, CLIENT, Packet, World,
    frame::checksum,
    kernel::{Decap, Outcome, action},
};

fn inner() -> Packet {
    CLIENT.ack().payload(b"some data")
}

/// `inner` in an outer header, with this type of service in that one.
fn encapsulated(inner: &Packet, tos: u8) -> Vec<u8> {
    edited(inner, |outer| outer[1] = tos)
}

/// `inner` in an outer header that is changed, and has a right checksum again.
fn edited(inner: &Packet, edit: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let bytes = inner.bytes();
    let (ethernet, packet) = bytes.split_at(inner.network());
    let mut outer = vec![
        0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 4, 0, 0, 10, 255, 0, 1, 10, 0, 0, 1,
    ];
    let length = (inner.counted() as usize - inner.network() + 20) as u16;
    outer[2..4].copy_from_slice(&length.to_be_bytes());
    edit(&mut outer);
    let sum = checksum(&outer);
    outer[10..12].copy_from_slice(&sum.to_be_bytes());
    [ethernet, &outer, packet].concat()
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

#[test]
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
        assert_becomes(&decap, &encapsulated(&packet, packet.tos), &packet);
    }
}

#[test]
fn what_the_load_balancer_sends_arrives_as_the_client_sent_it_but_for_the_ttl() {
    let backend = BackendSpec::ipip(1);
    let sent = {
        let world = World::with(&backend);
        world.send(&CLIENT.syn().tos(0xb9)).outcome.output
    };
    let mut arrived = CLIENT.syn().tos(0xb9).ttl(63);
    arrived.destination_mac.copy_from_slice(&sent[..6]);
    arrived.source_mac.copy_from_slice(&sent[6..12]);
    assert_becomes(&Decap::load(), &sent, &arrived);
}

/// RFC 6040, section 4.2, figure 4: the inner mark, the outer one, and what is left of them; none is a drop.
#[test]
fn congestion_marks_are_carried_inwards() {
    const NOT: u8 = 0b00;
    const ECT1: u8 = 0b01;
    const ECT0: u8 = 0b10;
    const CE: u8 = 0b11;
    let decap = Decap::load();
    for (mark, outer, expected) in [
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
        let frame = encapsulated(&packet, 0x40 | outer);
        match expected {
            Some(mark) => assert_becomes(&decap, &frame, &packet.clone().tos(0xb8 | mark)),
            None => assert_eq!(decap.run(&frame).action, action::DROP),
        }
    }
}

#[test]
fn fragments_of_the_outer_packet_are_untouched() {
    let decap = Decap::load();
    for fragment in [0x2000_u16, 0x0001, 0x20b9, 0x1fff] {
        let frame = edited(&inner(), |outer| {
            outer[6..8].copy_from_slice(&fragment.to_be_bytes());
        });
        assert_untouched(&decap, &frame);
    }
}

#[test]
fn other_protocols_are_untouched() {
    let decap = Decap::load();
    for protocol in (0..=255).filter(|protocol| *protocol != 4) {
        assert_untouched(&decap, &edited(&inner(), |outer| outer[9] = protocol));
    }
    assert_untouched(&decap, &inner().bytes());
}

#[test]
fn an_outer_header_with_options_or_another_version_is_untouched() {
    let decap = Decap::load();
    for first in [0x44, 0x46, 0x4f, 0x65, 0x05] {
        assert_untouched(&decap, &edited(&inner(), |outer| outer[0] = first));
    }
}

#[test]
fn an_inner_packet_that_is_no_ipv4_is_untouched() {
    let decap = Decap::load();
    let mut frame = encapsulated(&inner(), 0);
    for version in (0..16).filter(|version| *version != 4) {
        frame[34] = version << 4 | 5;
        assert_untouched(&decap, &frame);
    }
}

#[test]
fn an_inner_packet_longer_than_the_outer_one_is_untouched() {
    let decap = Decap::load();
    let longest = inner().counted() as u16 - 14;
    for length in [longest + 1, 1_500, u16::MAX - 19, u16::MAX] {
        assert_untouched(&decap, &{
            let mut frame = encapsulated(&inner(), 0);
            frame[36..38].copy_from_slice(&length.to_be_bytes());
            frame
        });
    }
}

#[test]
fn truncations_are_untouched_until_both_headers_are_there() {
    let decap = Decap::load();
    for packet in [
        inner(),
        inner().tagged(0x8100, 1),
        inner().tagged(0x8100, 1).tagged(0x88a8, 2),
    ] {
        let whole = encapsulated(&packet, 0);
        for length in 14..packet.network() + 40 {
            assert_untouched(&decap, &whole[..length]);
        }
    }
}
