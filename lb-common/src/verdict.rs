//! Verdicts: what happened to one packet, and why. One enum for both worlds.

/// What is done with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Left to the host, untouched.
    Pass,
    /// Sent to a backend.
    Forward,
    /// Answered with a RST.
    Reset,
    /// Answered from the VIP with ICMP.
    Answer,
    /// Dropped.
    Drop,
}

impl Verdict {
    /// The name in metrics and explanations.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Forward => "forward",
            Self::Reset => "reset",
            Self::Answer => "answer",
            Self::Drop => "drop",
        }
    }
}

/// What a reason says about the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Part of normal life.
    Expected,
    /// Somebody should look at the configuration or the network.
    Configuration,
    /// A defect of Tether's, or corrupt maps.
    ShouldNeverHappen,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $code:literal, $name:literal, $verdict:ident, $class:ident;)+) => {
        /// Why a packet was treated as it was. Every packet ends in exactly one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant = $code,)+
        }

        impl Reason {
            /// Every reason, by code.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The name in metrics and listings.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What is done with the packet.
            #[inline(always)]
            pub const fn verdict(self) -> Verdict {
                match self { $(Self::$variant => Verdict::$verdict,)+ }
            }

            /// What it says about the world.
            pub const fn class(self) -> Class {
                match self { $(Self::$variant => Class::$class,)+ }
            }

            /// What it means, in a sentence for people.
            #[cfg(feature = "user")]
            pub fn meaning(self) -> &'static str {
                // As it is documented above, whose lines begin with a space.
                match self { $(Self::$variant => concat!($($doc),+),)+ }.trim_ascii()
            }
        }
    };
}

reasons! {
    /// Neither IPv4 nor IPv6: ARP, anything else.
    NotIp = 0, "not_ip", Pass, Expected;
    /// Not for a service.
    NotService = 1, "not_service", Pass, Expected;
    /// Shorter than its own headers, or these contradict each other, and so not known to be for a service.
    Malformed = 2, "malformed", Pass, Expected;
    /// Its flow's entry named the backend.
    Established = 3, "established", Forward, Expected;
    /// A SYN: a new flow was recorded.
    Opened = 4, "opened", Forward, Expected;
    /// A SYN of a flow that has not been answered yet: the same again, or another.
    Reopened = 5, "reopened", Forward, Expected;
    /// A SYN on a live flow: a challenger was recorded.
    Challenged = 6, "challenged", Forward, Expected;
    /// A SYN that got no entry of its own (no place, two live entries of its key, or another CPU was faster): forwarded all the
    /// same.
    Unpinned = 7, "unpinned", Forward, Configuration;
    /// Mid-stream without an entry: the flow was adopted.
    Adopted = 8, "adopted", Forward, Expected;
    /// Mid-stream without an entry, and none was made (no place, or too many at once): forwarded by the table.
    Unadopted = 9, "unadopted", Forward, Expected;
    /// A FIN, a RST or a segment without ACK, of no known flow, or one in mid-stream whose source has as many flows at the service as it may: forwarded by the
    /// table.
    Stray = 10, "stray", Forward, Expected;
    /// The flow's backend is dead: a RST went to the client.
    BackendDead = 11, "backend_dead", Reset, Expected;
    /// Mid-stream, and no backend can take it: a RST went to the client.
    NoBackendForFlow = 12, "no_backend_for_flow", Reset, Configuration;
    /// A RST was due, but too many were sent lately.
    ResetLimited = 13, "reset_limited", Drop, Expected;
    /// A RST of a client whose backend is dead.
    ResetToDead = 14, "reset_to_dead", Drop, Expected;
    /// No backend takes new flows.
    NoBackend = 15, "no_backend", Drop, Configuration;
    /// The backend's next hop is not resolved.
    Unresolved = 16, "unresolved", Drop, Configuration;
    /// A SYN on a flow that has two live entries, or whose entry changed at that very moment, or beside which there is no place
    /// for a challenger on another backend: the client tries again.
    Contested = 17, "contested", Drop, Expected;
    /// A SYN with ACK, FIN or RST.
    BadFlags = 18, "bad_flags", Drop, Expected;
    /// A fragment but the first, of TCP, for a VIP that the host does not own.
    Fragment = 19, "fragment", Drop, Configuration;
    /// Its TTL, or hop limit, ended here: the client was told.
    TtlExpired = 20, "ttl_expired", Answer, Expected;
    /// With the outer header, with VLAN tags that it came without, or by another interface, it would exceed the path MTU: the client was told what fits.
    TooBig = 21, "too_big", Answer, Configuration;
    /// The directory of VIPs names a service that does not exist.
    ServiceMissing = 22, "service_missing", Drop, ShouldNeverHappen;
    /// An entry names a backend that is no more: its id has another generation.
    StaleGeneration = 23, "stale_generation", Drop, ShouldNeverHappen;
    /// The backend's mode is none that this program knows.
    UnknownMode = 24, "unknown_mode", Drop, ShouldNeverHappen;
    /// The driver left no room for the outer header or for VLAN tags.
    NoHeadroom = 25, "no_headroom", Drop, ShouldNeverHappen;
    /// The frame could not be made into its answer.
    NoAnswer = 26, "no_answer", Drop, ShouldNeverHappen;
    /// The way to the backend leaves by another interface than the packet came in by, and that one takes no frames from XDP.
    NoEgress = 27, "no_egress", Drop, Configuration;
    /// The flow table was held for a moment, to be copied, and the segment would have changed its flow's entry: it comes again.
    Held = 28, "held", Drop, Expected;
    /// A packet that is handed on to another program, while that is not in its place.
    NoProgram = 29, "no_program", Pass, ShouldNeverHappen;
    /// An echo request to a VIP that the host does not own: answered.
    EchoAnswered = 30, "echo_answered", Answer, Expected;
    /// An ICMP error about a service's packet: it went to the backend of the flow, or, from the way to the backend, to the client. In modes `nat`
    /// and `dnat` it was translated, and what it quotes.
    ErrorRelayed = 31, "error_relayed", Forward, Expected;
    /// An ICMP error about a service's packet that nobody can be given: there is no backend, or no way to it or to the client, or nothing says how
    /// to translate it.
    ErrorUnrelayed = 32, "error_unrelayed", Drop, Expected;
    /// An answer by ICMP was due, but too many were sent lately.
    AnswerLimited = 33, "answer_limited", Drop, Expected;
    /// The flow's backend is drained, its deadline has passed, and the flow's turn has come: a RST went to the client, and the daemon sends
    /// the backend the matching one.
    DrainDeadline = 34, "drain_deadline", Reset, Expected;
    /// From a backend of mode `nat` or `dnat`, or on this host, translated back and sent to the client.
    Reply = 35, "reply", Forward, Expected;
    /// The way to the client is none that a translated reply can take: no route, or an interface that takes no frames from XDP.
    NoRouteBack = 36, "no_route_back", Drop, Configuration;
    /// A SYN of mode `nat`: all ports that were looked at, of each SNAT address toward the backend, are in use.
    NoPort = 37, "no_port", Drop, Configuration;
    /// A SYN of mode `dnat`, or for a backend on this host: the client has a flow with the same port at the same backend, by another service. A RST went to the client.
    Collision = 38, "collision", Reset, Configuration;
    /// A SYN of mode `nat` or `dnat`, or for a backend on this host, or, of the latter two, a segment in mid-stream, that got no entry of its own (no place, too many adoptions, or another CPU was faster), so that no reply could be translated.
    Unrecorded = 39, "unrecorded", Drop, Configuration;
    /// Mid-stream, of mode `nat` or `dnat` or for a backend on this host, without an entry that says how to translate it: a RST went to the client.
    UnknownFlow = 40, "unknown_flow", Reset, Expected;
    /// Of mode `nat` or `dnat`, while the translation of its flow was being written or moved, or after it was lost: it comes again.
    Untranslated = 41, "untranslated", Drop, Expected;
    /// It would make a flow, and its client's address is in a prefix that the service denies.
    Denied = 42, "denied", Drop, Expected;
    /// It would make a flow, and its client's address is in none of the prefixes that the service allows.
    NotAllowed = 43, "not_allowed", Drop, Expected;
    /// A SYN that would make a flow, and too many have come from its source lately.
    SourceRate = 44, "source_rate", Drop, Expected;
    /// A SYN that would make a flow, and its source has as many at the service as it may.
    SourceFull = 45, "source_full", Drop, Expected;
    /// In mid-stream without an entry, and the service's lists keep its client's address out: a RST went to the client.
    CutOff = 46, "cut_off", Reset, Expected;
}

impl Reason {
    /// The reason of a code, if there is one.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_dense_and_names_are_unique() {
        for (code, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, code);
            assert_eq!(Reason::from_code(code as u8), Some(*reason));
        }
        let mut names: Vec<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Reason::ALL.len());
    }
}
