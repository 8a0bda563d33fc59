//! What the outer headers of mode `ipip` are from: pure.
//!
//! This host's address on the way to the backend; or, where a prefix that is routed to this host is configured, an address of it that differs between
//! flows. A receiver that shares packets out to its queues by the outer addresses alone would have all that this host sends in one queue.

use std::net::IpAddr;

use lb_common::{backend::NextHop, net::IpVersion};

use crate::guard::Prefix;

/// The most bits that can differ between flows.
pub const MOST_BITS: u8 = u16::BITS as u8;

/// The prefixes of outer sources, one for each version of IP at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OuterSources {
    v4: Option<Prefix>,
    v6: Option<Prefix>,
}

impl OuterSources {
    /// The same with a prefix in the place of the one of its version of IP; and that one, if there was one.
    #[must_use]
    pub const fn with(mut self, prefix: Prefix) -> (Self, Option<Prefix>) {
        let before = match prefix.version() {
            IpVersion::V4 => self.v4.replace(prefix),
            IpVersion::V6 => self.v6.replace(prefix),
        };
        (self, before)
    }

    /// A next hop whose outer header would be from an address of its own, with what is configured in that one's place.
    #[must_use]
    pub fn on(&self, hop: NextHop, version: IpVersion) -> NextHop {
        self.of(version).map_or(hop, |prefix| {
            hop.from_source(prefix.network())
                .varying(version, variety(prefix))
        })
    }

    /// The prefix that an address is in, if it is in one.
    #[must_use]
    pub fn holding(&self, address: IpAddr) -> Option<Prefix> {
        self.of(IpVersion::of(address))
            .filter(|prefix| prefix.contains(address))
    }

    const fn of(&self, version: IpVersion) -> Option<Prefix> {
        match version {
            IpVersion::V4 => self.v4,
            IpVersion::V6 => self.v6,
        }
    }
}

/// Which of the last bits of a prefix's addresses differ.
fn variety(prefix: Prefix) -> u16 {
    let fixed = prefix.version().address_bits() - MOST_BITS;
    let same = prefix.bits().saturating_sub(fixed);
    u16::MAX.checked_shr(same.into()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn a_prefix_leaves_as_many_bits_as_its_length_says() {
        let all = [
            ("10.9.0.0/16", 0xffff),
            ("10.9.0.0/24", 0x00ff),
            ("10.9.0.0/31", 0x0001),
            ("10.9.0.1", 0),
            ("2001:db8::/112", 0xffff),
            ("2001:db8::a00/119", 0x01ff),
            ("2001:db8::1", 0),
        ];
        for (text, bits) in all {
            assert_eq!(variety(prefix(text)), bits, "{text}");
        }
    }

    #[test]
    fn what_is_configured_for_a_version_of_ip_is_for_that_one_alone() {
        let (sources, before) = OuterSources::default().with(prefix("10.9.0.0/24"));
        assert_eq!(before, None);
        let own = IpAddr::from([10, 0, 1, 2]);
        let hop = NextHop::default().from_source(own);
        let varied = sources.on(hop, IpVersion::V4);
        assert_eq!(
            varied.source_address(IpVersion::V4),
            IpAddr::from([10, 9, 0, 0])
        );
        assert_eq!(
            varied,
            hop.from_source([10, 9, 0, 0].into())
                .varying(IpVersion::V4, 0xff)
        );
        assert_eq!(sources.on(hop, IpVersion::V6), hop);
        assert_eq!(OuterSources::default().on(hop, IpVersion::V4), hop);
    }
}
