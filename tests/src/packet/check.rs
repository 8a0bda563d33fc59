//! What must come of a packet: its action, every byte of its output, and every counter, those that stay as they are included.

use std::collections::BTreeMap;

use lb_common::{
    counters::{Counter, Layout, REASONS},
    verdict::Reason,
};

use super::{
    kernel::{Outcome, action, tc_action},
    world::SERVICE,
};

/// One counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Which {
    /// A reason's.
    Reason(Reason),
    /// A service's.
    Service(u32),
    /// A backend's.
    Backend(u32),
    /// One that belongs to nothing: its offset.
    Unused(u32),
}

/// The counters that a packet changed, by packets and bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change(pub BTreeMap<Which, (u64, u64)>);

impl Change {
    /// Compares all counters.
    pub(super) fn between(before: &[Counter], after: &[Counter], layout: Layout) -> Self {
        let mut change = BTreeMap::new();
        for (offset, (before, after)) in before.iter().zip(after).enumerate() {
            if before != after {
                let packets = after.packets.wrapping_sub(before.packets);
                let bytes = after.bytes.wrapping_sub(before.bytes);
                change.insert(which(offset as u32, layout), (packets, bytes));
            }
        }
        Self(change)
    }
}

fn which(offset: u32, layout: Layout) -> Which {
    let backends = REASONS + layout.services;
    if offset < REASONS {
        match Reason::from_code(offset as u8) {
            Some(reason) => Which::Reason(reason),
            None => Which::Unused(offset),
        }
    } else if offset < backends {
        Which::Service(offset - REASONS)
    } else if offset < layout.per_cpu {
        Which::Backend(offset - backends)
    } else {
        Which::Unused(offset)
    }
}

/// What came of a packet.
#[derive(Clone, Debug)]
pub struct Run {
    /// The frame that went in.
    pub input: Vec<u8>,
    /// Its length as counters are to count it.
    pub counted: u32,
    /// Action and output.
    pub outcome: Outcome,
    /// The counters that changed.
    pub change: Change,
}

impl Run {
    /// Asserts that all came as expected.
    ///
    /// # Panics
    /// If anything differs.
    #[track_caller]
    pub fn expect(&self, expected: &Expect) {
        let change = expected.change(self.counted);
        assert_eq!(
            (action_name(self.outcome.action), &self.change),
            (action_name(expected.action), &change),
            "action and counters of a packet (left: what came)"
        );
        let output = match &expected.output {
            Output::Unchanged => &self.input,
            Output::Exactly(bytes) => bytes,
            Output::Gone => return,
        };
        assert!(
            self.outcome.output == *output,
            "the output differs\n{}",
            difference(&self.outcome.output, output)
        );
    }

    /// Asserts that it went on out, by TC, as it was, and that nothing was counted.
    ///
    /// # Panics
    /// If not.
    #[track_caller]
    pub fn expect_untouched(&self) {
        assert_eq!(self.outcome.action, tc_action::UNSPEC);
        assert_eq!(self.change, Change(BTreeMap::new()));
        assert_eq!(self.outcome.output, self.input);
    }

    /// The reason that the packet was counted for.
    ///
    /// # Panics
    /// If it was counted for none, or for several.
    #[track_caller]
    pub fn reason(&self) -> Reason {
        let reasons: Vec<Reason> = self
            .change
            .0
            .keys()
            .filter_map(|which| match which {
                Which::Reason(reason) => Some(*reason),
                _ => None,
            })
            .collect();
        match reasons[..] {
            [reason] => reason,
            _ => panic!("counted for {reasons:?}"),
        }
    }

    /// The backend that the packet was counted for.
    pub fn backend(&self) -> Option<u32> {
        self.change.0.keys().find_map(|which| match which {
            Which::Backend(id) => Some(*id),
            _ => None,
        })
    }
}

fn action_name(action: u32) -> String {
    let name = match action {
        action::ABORTED => "aborted",
        action::DROP => "drop",
        action::PASS => "pass",
        action::TX => "transmit",
        action::REDIRECT => "redirect",
        _ => "unknown",
    };
    format!("{name} ({action})")
}

/// Both frames, sixteen bytes a line, each line that differs marked.
fn difference(came: &[u8], expected: &[u8]) -> String {
    let hex =
        |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x} ")).collect() };
    let mut text = format!("{} bytes came, {} expected\n", came.len(), expected.len());
    for at in (0..came.len().max(expected.len())).step_by(16) {
        let line = |bytes: &[u8]| {
            let end = bytes.len().min(at + 16);
            hex(bytes.get(at..end).unwrap_or(&[]))
        };
        let (came, expected) = (line(came), line(expected));
        if came == expected {
            text.push_str(&format!("  {at:4}  {came}\n"));
        } else {
            text.push_str(&format!("- {at:4}  {came}\n+ {at:4}  {expected}\n"));
        }
    }
    text
}

/// What must come of a packet.
#[derive(Clone, Debug)]
pub struct Expect {
    action: u32,
    output: Output,
    reason: Reason,
    service: Option<u16>,
    backend: Option<u32>,
    bytes: Option<u32>,
}

#[derive(Clone, Debug)]
enum Output {
    Unchanged,
    Exactly(Vec<u8>),
    /// Of a dropped packet nothing is seen.
    Gone,
}

/// Left to the host, untouched, and counted for no service.
pub fn passed(reason: Reason) -> Expect {
    Expect {
        action: action::PASS,
        output: Output::Unchanged,
        reason,
        service: None,
        backend: None,
        bytes: None,
    }
}

/// Sent out of the interface that it came in by, to a backend of [`SERVICE`], as exactly these bytes.
pub fn forwarded(reason: Reason, backend: u32, output: Vec<u8>) -> Expect {
    Expect {
        action: action::TX,
        output: Output::Exactly(output),
        reason,
        service: Some(SERVICE),
        backend: Some(backend),
        bytes: None,
    }
}

/// Answered with exactly these bytes, and counted for [`SERVICE`].
pub fn answered(reason: Reason, output: Vec<u8>) -> Expect {
    Expect {
        backend: None,
        ..forwarded(reason, 0, output)
    }
}

/// Dropped, and counted for [`SERVICE`].
pub fn dropped(reason: Reason) -> Expect {
    Expect {
        action: action::DROP,
        output: Output::Gone,
        reason,
        service: Some(SERVICE),
        backend: None,
        bytes: None,
    }
}

impl Expect {
    /// Counted for this backend too.
    pub fn of_backend(mut self, id: u32) -> Self {
        self.backend = Some(id);
        self
    }

    /// Counted for this service.
    pub fn of_service(mut self, id: u16) -> Self {
        self.service = Some(id);
        self
    }

    /// Counted for no service.
    pub fn of_no_service(mut self) -> Self {
        self.service = None;
        self
    }

    /// Sent out of another interface than it came in by.
    pub fn redirected(mut self) -> Self {
        self.action = action::REDIRECT;
        self
    }

    /// Not sent, but left to the host as these bytes.
    pub fn left_to_the_host(mut self) -> Self {
        self.action = action::PASS;
        self
    }

    /// Not of an XDP program but of TC, where it goes on.
    pub fn goes_on(mut self) -> Self {
        self.action = tc_action::UNSPEC;
        self
    }

    /// Not of an XDP program but of TC, where it is dropped.
    pub fn shot(mut self) -> Self {
        self.action = tc_action::SHOT;
        self
    }

    /// Without the last bytes of what leaves: the frame came without them.
    ///
    /// # Panics
    /// If nothing is known of what leaves, or that is shorter.
    pub fn cut_by(mut self, missing: usize) -> Self {
        let Output::Exactly(bytes) = &mut self.output else {
            panic!("nothing is said of what leaves");
        };
        let left = bytes.len().checked_sub(missing);
        bytes.truncate(left.expect("no more is missing than leaves"));
        self
    }

    /// Counted with this many bytes, not with those of the frame without padding.
    pub fn counting(mut self, bytes: u32) -> Self {
        self.bytes = Some(bytes);
        self
    }

    fn change(&self, counted: u32) -> Change {
        let once = (1, u64::from(self.bytes.unwrap_or(counted)));
        let mut change = BTreeMap::from([(Which::Reason(self.reason), once)]);
        if let Some(id) = self.service {
            change.insert(Which::Service(u32::from(id)), once);
        }
        if let Some(id) = self.backend {
            change.insert(Which::Backend(id), once);
        }
        Change(change)
    }
}
