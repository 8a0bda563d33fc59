//! Hashes that must stay the same across versions and machines: SipHash-1-3 over fields with their lengths.

use std::{hash::Hasher, net::IpAddr};

use lb_common::{backend::Mode, hash::Seed};
use siphasher::sip128::{Hasher128, SipHasher13};

/// A stable, keyed hash of a list of fields.
///
/// Each text is preceded by its length, and numbers have a fixed width, so that no two lists of fields give the same bytes.
pub struct KeyedHash(SipHasher13);

impl KeyedHash {
    /// For names of things, which nobody gains by colliding: the key is no secret.
    pub fn public(purpose: &str) -> Self {
        // Digits of pi, in hexadecimal.
        Self(SipHasher13::new_with_keys(
            0x243f_6a88_85a3_08d3,
            0x1319_8a2e_0370_7344,
        ))
        .text(purpose)
    }

    /// For what must not be foreseen by who does not know the seed.
    pub fn of_fleet(seed: &[u64; 4], purpose: &str) -> Self {
        Self(SipHasher13::new_with_keys(seed[0], seed[1]))
            .number(seed[2])
            .number(seed[3])
            .text(purpose)
    }

    /// Adds a text.
    pub fn text(self, text: &str) -> Self {
        let mut hash = self.number(text.len() as u64);
        hash.0.write(text.as_bytes());
        hash
    }

    /// Adds a number.
    pub fn number(mut self, number: u64) -> Self {
        self.0.write(&number.to_le_bytes());
        self
    }

    /// Adds an address: one number of an IPv4 one, three of an IPv6 one, the first of which no IPv4 address is.
    pub fn address(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => self.number(u64::from(address.to_bits())),
            IpAddr::V6(address) => {
                let bits = address.to_bits();
                self.number(u64::MAX)
                    .number((bits >> 64) as u64)
                    .number(bits as u64)
            }
        }
    }

    /// The hash, two words.
    pub fn finish128(self) -> [u64; 2] {
        let hash = self.0.finish128();
        [hash.h1, hash.h2]
    }

    /// The hash, one word.
    pub fn finish(self) -> u64 {
        self.finish128()[0]
    }

    /// The hash, one word and never 0, which marks entries that are not in use.
    fn identity(self) -> u64 {
        self.finish().max(1)
    }
}

/// What a service is, for packets: its VIP and port.
///
/// Neither name nor mode belong to it. Packets carry only VIP and port, so two objects could not share these; a service that is
/// renamed or given another mode stays the same object, whose backends change, and so its flows go on.
pub fn service_identity(vip: IpAddr, port: u16) -> u64 {
    KeyedHash::public("service")
        .address(vip)
        .number(u64::from(port))
        .identity()
}

/// What a backend is: service, name, address, port and mode. A change of any of these makes a new object.
///
/// `vip` and `service_port` tell apart the old and the new object of a service that moved to another VIP under its name.
pub fn backend_identity(
    service: (&str, IpAddr, u16),
    name: &str,
    address: IpAddr,
    port: u16,
    mode: Mode,
) -> u64 {
    let (service, vip, service_port) = service;
    KeyedHash::public("backend")
        .text(service)
        .address(vip)
        .number(u64::from(service_port))
        .text(name)
        .address(address)
        .number(u64::from(port))
        .number(mode as u64)
        .identity()
}

/// What keys a service's choice of slots. Of VIP and port rather than of the name, since flows that are not pinned would
/// otherwise move when a service is renamed.
pub fn service_seed(fleet: &[u64; 4], vip: IpAddr, port: u16) -> Seed {
    let words = |purpose| {
        KeyedHash::of_fleet(fleet, purpose)
            .address(vip)
            .number(u64::from(port))
            .finish128()
    };
    let [whiten, first] = words("slots");
    let [second, _] = words("slots, continued");
    Seed::new([whiten, first, second])
}

/// What keys the choice of slots of services that place clients together: the same for all of them.
pub fn group_seed(fleet: &[u64; 4], group: &str) -> Seed {
    let words = |purpose| KeyedHash::of_fleet(fleet, purpose).text(group).finish128();
    let [whiten, first] = words("slots of clients");
    let [second, _] = words("slots of clients, continued");
    Seed::new([whiten, first, second])
}

/// The fleet's seed of a secret text.
pub fn fleet_seed_of(text: &str) -> [u64; 4] {
    let [a, b] = KeyedHash::public("fleet seed").text(text).finish128();
    let [c, d] = KeyedHash::public("fleet seed, continued")
        .text(text)
        .finish128();
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_lists_of_fields_are_the_same_bytes() {
        let hash = |fields: &[&str]| {
            fields
                .iter()
                .fold(KeyedHash::public("test"), |hash, field| hash.text(field))
                .finish()
        };
        assert_ne!(hash(&["ab", "c"]), hash(&["a", "bc"]));
        assert_ne!(hash(&["ab"]), hash(&["ab", ""]));
    }

    /// Maps outlive the daemon that wrote them: its successor must know whose entries these are.
    #[test]
    fn identities_stay_what_they_are_across_versions() {
        let vip = IpAddr::from([10, 0, 0, 1]);
        let address = IpAddr::from([10, 0, 1, 11]);
        let [a, b, c, d] = fleet_seed_of("any secret text");
        let vip6 = "2001:db8::1".parse().unwrap();
        let address6 = "2001:db8:0:1::11".parse().unwrap();
        let now = [
            service_identity(vip, 80),
            backend_identity(("chat", vip, 80), "b1", address, 80, Mode::Ipip),
            a,
            b,
            c,
            d,
            service_identity(vip6, 80),
            backend_identity(("chat", vip6, 80), "b1", address6, 80, Mode::Ipip),
            service_seed(&[1, 2, 3, 4], vip, 80).whiten,
            service_seed(&[1, 2, 3, 4], vip6, 80).whiten,
        ];
        let always = [
            15195492267242242352,
            14390547607022820790,
            15286538065605861276,
            5772491972437017312,
            5805753537306365080,
            8716638407951121229,
            3273573215576265510,
            17351759687559817759,
            10848208979477674339,
            8226088732629608308,
        ];
        assert_eq!(now, always);
    }

    #[test]
    fn every_part_of_a_backend_makes_it_another() {
        let vip = IpAddr::from([10, 0, 0, 1]);
        let address = IpAddr::from([10, 0, 1, 11]);
        let elsewhere = IpAddr::from([10, 0, 1, 12]);
        let mapped = IpAddr::from(std::net::Ipv4Addr::new(10, 0, 1, 11).to_ipv6_mapped());
        let identities = [
            backend_identity(("chat", vip, 80), "b1", address, 80, Mode::Ipip),
            backend_identity(("game", vip, 80), "b1", address, 80, Mode::Ipip),
            backend_identity(("chat", elsewhere, 80), "b1", address, 80, Mode::Ipip),
            backend_identity(("chat", vip, 81), "b1", address, 80, Mode::Ipip),
            backend_identity(("chat", vip, 80), "b2", address, 80, Mode::Ipip),
            backend_identity(("chat", vip, 80), "b1", elsewhere, 80, Mode::Ipip),
            backend_identity(("chat", vip, 80), "b1", mapped, 80, Mode::Ipip),
            backend_identity(("chat", vip, 80), "b1", address, 81, Mode::Ipip),
            backend_identity(("chat", vip, 80), "b1", address, 80, Mode::L2),
        ];
        for (n, identity) in identities.iter().enumerate() {
            assert!(!identities[..n].contains(identity), "number {n}");
        }
    }
}
