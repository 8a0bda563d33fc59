//! Packets as a file that Wireshark and tcpdump read: pcapng (draft-ietf-opsawg-pcapng), each packet with what became of it as its comment. Pure.

use lb_common::verdict::Reason;

use super::Seen;

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const INTERFACE_STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;
const LINKTYPE_ETHERNET: u16 = 1;

const COMMENT: u16 = 1;
const SECTION_APPLICATION: u16 = 4;
const INTERFACE_NAME: u16 = 2;
const INTERFACE_RESOLUTION: u16 = 9;
const STATISTICS_RECEIVED: u16 = 4;
const STATISTICS_DROPPED: u16 = 5;

/// Bytes that a file ends with, at most: see [`Writer::end`].
pub const LONGEST_END: u64 = 52;

/// Writes a file, block by block.
#[derive(Debug)]
pub struct Writer {
    /// Interfaces by index, in the order of their blocks.
    interfaces: Vec<u32>,
    kept: u32,
    packets: u64,
}

impl Writer {
    /// Begins a file of packets of which at most `kept` bytes each are kept. Gives the writer, and what the file begins with.
    pub fn begin(kept: u32) -> (Self, Vec<u8>) {
        let mut out = Vec::new();
        block(&mut out, SECTION_HEADER, |body| {
            body.extend(0x1a2b_3c4d_u32.to_le_bytes());
            body.extend([1, 0, 0, 0]);
            // The section's length is not known.
            body.extend(u64::MAX.to_le_bytes());
            let name = concat!("tether ", env!("CARGO_PKG_VERSION"));
            option(body, SECTION_APPLICATION, name.as_bytes());
            end_of_options(body);
        });
        let writer = Self {
            interfaces: Vec::new(),
            kept,
            packets: 0,
        };
        (writer, out)
    }

    /// Packets so far.
    pub fn packets(&self) -> u64 {
        self.packets
    }

    /// A packet that came at a moment, in nanoseconds since 1970; `name` tells the name of an interface by its index.
    pub fn packet(
        &mut self,
        seen: &Seen,
        at_ns: u64,
        comment: &str,
        name: impl FnOnce(u32) -> String,
    ) -> Vec<u8> {
        let mut out = Vec::new();
        let ifindex = seen.head.ifindex;
        let known = self.interfaces.iter().position(|known| *known == ifindex);
        let interface = known.unwrap_or_else(|| {
            self.interfaces.push(ifindex);
            block(&mut out, INTERFACE_DESCRIPTION, |body| {
                body.extend(LINKTYPE_ETHERNET.to_le_bytes());
                body.extend([0; 2]);
                body.extend(self.kept.to_le_bytes());
                option(body, INTERFACE_NAME, name(ifindex).as_bytes());
                // Nanoseconds.
                option(body, INTERFACE_RESOLUTION, &[9]);
                end_of_options(body);
            });
            self.interfaces.len() - 1
        });
        block(&mut out, ENHANCED_PACKET, |body| {
            body.extend((interface as u32).to_le_bytes());
            time(body, at_ns);
            body.extend((seen.data.len() as u32).to_le_bytes());
            body.extend(seen.head.length.to_le_bytes());
            body.extend(&seen.data);
            pad(body);
            option(body, COMMENT, comment.as_bytes());
            end_of_options(body);
        });
        self.packets += 1;
        out
    }

    /// The end of a file: how many packets there are, and how many are missing, since there was no room to tell of them.
    pub fn end(&self, at_ns: u64, lost: u64) -> Vec<u8> {
        let mut out = Vec::new();
        // Of the first interface: nobody knows which one the missing came in by.
        if !self.interfaces.is_empty() {
            block(&mut out, INTERFACE_STATISTICS, |body| {
                body.extend([0; 4]);
                time(body, at_ns);
                option(
                    body,
                    STATISTICS_RECEIVED,
                    &(self.packets + lost).to_le_bytes(),
                );
                option(body, STATISTICS_DROPPED, &lost.to_le_bytes());
                end_of_options(body);
            });
        }
        out
    }
}

/// What became of a packet, in words.
pub fn comment(seen: &Seen, service: Option<&str>, backend: Option<&str>) -> String {
    let reason = u8::try_from(seen.head.reason)
        .ok()
        .and_then(Reason::from_code);
    let Some(reason) = reason else {
        return "no reason that this tether knows".to_owned();
    };
    let verdict = match reason.verdict() {
        lb_common::verdict::Verdict::Pass => "passed to the host",
        lb_common::verdict::Verdict::Forward => "forwarded",
        lb_common::verdict::Verdict::Reset => "answered with a RST",
        lb_common::verdict::Verdict::Answer => "answered by ICMP",
        lb_common::verdict::Verdict::Drop => "dropped",
    };
    let whom = match (service, backend) {
        (Some(service), Some(backend)) => format!(", {service}/{backend}"),
        (Some(service), None) => format!(", {service}"),
        (None, _) => String::new(),
    };
    format!("{}: {verdict}{whom}. {}", reason.name(), reason.meaning())
}

/// A block: type and length before and after what it holds.
fn block(out: &mut Vec<u8>, kind: u32, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut body = Vec::new();
    fill(&mut body);
    let length = (body.len() as u32 + 12).to_le_bytes();
    out.extend(kind.to_le_bytes());
    out.extend(length);
    out.extend(body);
    out.extend(length);
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = &value[..value.len().min(usize::from(u16::MAX))];
    body.extend(code.to_le_bytes());
    body.extend((value.len() as u16).to_le_bytes());
    body.extend(value);
    pad(body);
}

fn end_of_options(body: &mut Vec<u8>) {
    body.extend([0; 4]);
}

fn time(body: &mut Vec<u8>, at_ns: u64) {
    body.extend(((at_ns >> 32) as u32).to_le_bytes());
    body.extend((at_ns as u32).to_le_bytes());
}

/// All but the section's own fields begin at multiples of four bytes.
fn pad(body: &mut Vec<u8>) {
    body.resize(body.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use lb_common::watch::Head;

    use super::*;

    fn seen(ifindex: u32, reason: Reason, data: &[u8]) -> Seen {
        Seen {
            head: Head {
                ifindex,
                reason: reason as u32,
                length: 1_500,
                ..Head::default()
            },
            data: data.to_vec(),
        }
    }

    #[test]
    fn a_file_byte_by_byte() {
        let (mut writer, begin) = Writer::begin(64);
        assert_eq!(begin[..8], [0x0a, 0x0d, 0x0d, 0x0a, 48, 0, 0, 0]);
        assert_eq!(begin[8..16], [0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0]);
        assert_eq!(begin.len(), 48);
        let packet = writer.packet(
            &seen(7, Reason::Opened, &[1, 2, 3, 4, 5]),
            0x0102_0304_0506_0708,
            "why",
            |index| format!("eth{index}"),
        );
        #[rustfmt::skip]
        let expected = [
            1, 0, 0, 0, 40, 0, 0, 0, 1, 0, 0, 0, 64, 0, 0, 0, 2, 0, 4, 0, b'e', b't', b'h', b'7',
            9, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0, 40, 0, 0, 0,
            6, 0, 0, 0, 52, 0, 0, 0, 0, 0, 0, 0, 4, 3, 2, 1, 8, 7, 6, 5, 5, 0, 0, 0, 0xdc, 5, 0, 0,
            1, 2, 3, 4, 5, 0, 0, 0, 1, 0, 3, 0, b'w', b'h', b'y', 0, 0, 0, 0, 0, 52, 0, 0, 0,
        ];
        assert_eq!(packet, expected);
        // An interface is described once.
        let again = writer.packet(&seen(7, Reason::Opened, &[1]), 0, "", |_| {
            panic!("asked again")
        });
        assert_eq!(again[..4], [6, 0, 0, 0]);
        let other = writer.packet(&seen(8, Reason::Opened, &[1]), 0, "", |_| "lo".into());
        assert_eq!(other[..4], [1, 0, 0, 0]);
        assert_eq!(writer.packets(), 3);
        let end = writer.end(0, 2);
        assert_eq!(end[..4], [5, 0, 0, 0]);
        assert_eq!((end[24], end[36]), (5, 2));
        assert_eq!(end.len() as u64, LONGEST_END);
        // A file without packets has no interface either.
        assert!(Writer::begin(64).0.end(0, 2).is_empty());
    }

    #[test]
    fn comments_say_what_became_of_a_packet() {
        let opened = seen(1, Reason::Opened, &[]);
        assert_eq!(
            comment(&opened, Some("chat"), Some("b1")),
            "opened: forwarded, chat/b1. A SYN: a new flow was recorded."
        );
        let refused = comment(&seen(1, Reason::NoBackend, &[]), Some("chat"), None);
        assert!(
            refused.starts_with("no_backend: dropped, chat. "),
            "{refused}"
        );
    }
}
