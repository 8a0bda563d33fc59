//! Endpoints and pairs.

use std::net::SocketAddr;

use lb_common::{
    maglev::TENURE_TICKS,
    nat::{self, FIRST_PORT, Pair, WORDS_OF_PAIR, slot_index},
};

use super::*;

const BACKEND: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 1, 1));
const SNAT: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 2, 100)),
    IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 2, 101)),
];

/// A service with one backend, number 1, in mode `nat`, whose endpoint is number 3.
fn nat(pairs: [u16; nat::SNAT_ADDRESSES]) -> resolve::Service<'static> {
    let mut service = service(1, 13, &[1], &[]);
    service.backends[0].mode = Mode::Nat;
    service.backends[0].translated = Translated { endpoint: 3, pairs };
    service
}

/// What goes with it.
fn translations(address: IpAddr, pairs: &[(u16, IpAddr)]) -> Translations {
    let mut endpoint = nat::Endpoint {
        address: address.into(),
        port: 80,
        ..nat::Endpoint::default()
    };
    for (place, (id, _)) in endpoint.pairs.iter_mut().zip(pairs) {
        *place = *id;
    }
    Translations {
        endpoints: [(3, endpoint)].into(),
        pairs: pairs
            .iter()
            .map(|&(id, snat)| {
                let entry = Pair {
                    address: snat.into(),
                    endpoint: 3,
                    ..Pair::default()
                };
                (id, entry)
            })
            .collect(),
    }
}

fn endpoint_at(bench: &Bench, address: SocketAddr) -> Option<u16> {
    let version = IpVersion::of(address.ip());
    let directory = bench.observed.directory(Directory::Endpoints(version));
    find(directory, address.ip(), address.port())
}

#[test]
fn pairs_and_endpoints_are_there_before_the_backend_that_names_them() {
    let mut bench = Bench::new(100);
    bench.translations = translations(BACKEND, &[(5, SNAT[0]), (2, SNAT[1])]);
    let services = [nat([5, 2, 0, 0, 0, 0, 0, 0])];
    let operations = bench.converge(&services);
    let bucket = homes(key_of(BACKEND, 80), bench.maps.capacity.endpoint_buckets())[0];
    assert_eq!(
        operations[..5],
        [
            "pair 2: write 10.0.2.101 toward endpoint 3".to_owned(),
            "pair 5: write 10.0.2.100 toward endpoint 3".to_owned(),
            "endpoint 3: write 10.0.1.1:80, pairs [5, 2], services []".to_owned(),
            format!("directory of IPv4 endpoints: write {bucket}.0: 0a0001010050 is 3"),
            "backend 1, generation 3: write 10.0.1.1:80 of service 1".to_owned(),
        ]
    );
    assert_eq!(bench.converge(&services), [] as [&str; 0]);
    let entry = bench.maps.backends.get(1);
    assert_eq!((entry.endpoint, entry.pairs), (3, [5, 2, 0, 0, 0, 0, 0, 0]));
    assert_eq!(
        BackendState(entry.state).forwarding(),
        Some(Forwarding::Nat)
    );
    assert_eq!(
        bench.maps.services.get(1).traits,
        lb_common::service::Service::TRANSLATES
    );
    assert_eq!(endpoint_at(&bench, (BACKEND, 80).into()), Some(3));
}

#[test]
fn they_go_after_the_backend_and_after_a_grace_period_with_all_ports() {
    let mut bench = Bench::new(100);
    bench.translations = translations(BACKEND, &[(5, SNAT[0])]);
    bench.converge(&[nat([5, 0, 0, 0, 0, 0, 0, 0])]);
    // What flows that are gone have left.
    let port = FIRST_PORT + 70;
    let slot = slot_index(5, port);
    bench.maps.slots.set(slot / 2, &u64::MAX);
    bench.maps.ports.set(5 * WORDS_OF_PAIR + 1, &(1 << 6));
    bench.maps.ports.set(6 * WORDS_OF_PAIR, &9);
    assert_eq!(bench.maps.ports_in_use(5), 1);

    bench.translations = Translations::default();
    let operations = bench.converge(&[]);
    let bucket = homes(key_of(BACKEND, 80), bench.maps.capacity.endpoint_buckets())[0];
    let at = |operation: &str| {
        let place = operations.iter().position(|other| other == operation);
        place.unwrap_or_else(|| panic!("{operation} is not in {operations:#?}"))
    };
    assert_eq!(
        operations[operations.len() - 4..],
        [
            format!("directory of IPv4 endpoints: clear {bucket}.0"),
            "wait for a grace period".to_owned(),
            "pair 5: clear".to_owned(),
            "endpoint 3: clear".to_owned(),
        ]
    );
    assert!(at("backend 1: clear") < at("pair 5: clear"));
    assert_eq!(bench.converge(&[]), [] as [&str; 0]);
    assert_eq!(bench.observed.translations, Translations::default());
    assert_eq!(bench.maps.ports_in_use(5), 0);
    assert_eq!(bench.maps.slots.get(slot / 2), 0);
    assert_eq!(bench.maps.ports_in_use(6), 2, "another pair's ports stay");
}

/// Its flows keep the port that they have; new ones take another.
#[test]
fn a_snat_address_is_taken_from_a_backend_before_its_pair_goes() {
    let mut bench = Bench::new(100);
    let both = [(5, SNAT[0]), (2, SNAT[1])];
    bench.translations = translations(BACKEND, &both);
    bench.converge(&[nat([5, 2, 0, 0, 0, 0, 0, 0])]);
    let services = [nat([2, 0, 0, 0, 0, 0, 0, 0])];
    assert_eq!(
        bench.converge(&services),
        ["backend 1: endpoint 3, pairs [2]"]
    );
    // In its place, so that a reader who looks for the other never misses it.
    let mut fewer = translations(BACKEND, &[(0, SNAT[0]), (2, SNAT[1])]);
    fewer.pairs.remove(&0);
    bench.translations = fewer;
    assert_eq!(
        bench.converge(&services),
        [
            "endpoint 3: write 10.0.1.1:80, pairs [2], services []",
            "wait for a grace period",
            "pair 5: clear",
        ]
    );
    assert_eq!(bench.maps.endpoints.get(3).pairs[..3], [0, 2, 0]);
}

#[test]
fn an_endpoint_stays_as_long_as_a_backend_that_a_slot_names_has_it() {
    let mut bench = Bench::new(100);
    bench.translations = translations(BACKEND, &[(5, SNAT[0])]);
    bench.converge(&[nat([5, 0, 0, 0, 0, 0, 0, 0])]);
    bench.translations = Translations::default();
    // Without its backend, whose slots still name it as the previous one.
    bench.now = bench.now.later(TENURE_TICKS + 1);
    let mut without = nat([0; 8]);
    without.backends.clear();
    without.table = Some(resolve::Table {
        size: 13,
        members: vec![],
    });
    let operations = bench.converge(&[without]);
    assert!(
        !operations
            .iter()
            .any(|operation| operation == "backend 1: clear"),
        "{operations:#?}"
    );
    assert_eq!(bench.maps.pairs.get(5).endpoint, 3);
    assert_eq!(bench.maps.endpoints.get(3).port, 80);
}

#[test]
fn ipv6_endpoints_are_listed_by_their_fingerprints() {
    let mut bench = Bench::new(100);
    let address = "2001:db8::11".parse().unwrap();
    bench.translations = translations(address, &[]);
    bench.converge(&[]);
    assert_eq!(endpoint_at(&bench, (address, 80).into()), Some(3));
    assert_eq!(endpoint_at(&bench, (address, 81).into()), None);
    bench.translations = Translations::default();
    bench.converge(&[]);
    assert_eq!(endpoint_at(&bench, (address, 80).into()), None);
}

#[test]
fn what_somebody_else_broke_of_them_is_mended() {
    let mut bench = Bench::new(100);
    bench.translations = translations(BACKEND, &[(5, SNAT[0])]);
    let services = [nat([5, 0, 0, 0, 0, 0, 0, 0])];
    bench.converge(&services);
    let whole = bench.observed.clone();
    bench.maps.pairs.set(5, &Pair::default());
    bench.maps.endpoints.set(3, &nat::Endpoint::default());
    bench.maps.set_translated(1, 0, [0; 8]);
    let bucket = homes(key_of(BACKEND, 80), bench.maps.capacity.endpoint_buckets())[0];
    let nothing = VipEntry::default();
    bench
        .maps
        .set_endpoint_word(IpVersion::V4, bucket, 0, nothing);
    bench.observed = Observed::read(&bench.maps, Unsettled::default(), bench.now);
    assert_eq!(bench.converge(&services).len(), 4);
    assert_eq!(bench.observed.translations, whole.translations);
    assert_eq!(bench.observed.backends, whole.backends);
    assert_eq!(bench.observed.endpoints4, whole.endpoints4);
}

/// In its place even, where the arena has no room.
#[test]
fn a_service_is_known_to_translate_before_a_slot_names_such_a_backend() {
    let mut bench = Bench::new(13);
    bench.converge(&[service(1, 13, &[2], &[])]);
    bench.translations = translations(BACKEND, &[(5, SNAT[0])]);
    let mut both = service(1, 13, &[1], &[2]);
    both.backends[0] = nat([5, 0, 0, 0, 0, 0, 0, 0]).backends[0];
    let operations = bench.converge(&[both.clone()]);
    let at = |begin: &str| {
        let place = operations.iter().position(|other| other.starts_with(begin));
        place.unwrap_or_else(|| panic!("{begin} is not in {operations:#?}"))
    };
    assert!(at("service 1: write 10.0.0.1:80") < at("service 1: write table"));
    assert_eq!(bench.converge(&[both]), [] as [&str; 0]);
    assert_eq!(
        bench.maps.services.get(1).traits,
        lb_common::service::Service::TRANSLATES
    );
    bench.now = bench.now.later(TENURE_TICKS + HANDOVER_TICKS + 1);
    bench.converge(&[service(1, 13, &[2], &[])]);
    assert_eq!(bench.maps.services.get(1).traits, 0);
}

#[test]
fn backends_that_the_directory_cannot_tell_apart_are_named() {
    let mut bench = Bench::new(100);
    let addresses: [SocketAddr; 2] =
        ["[2001:db8:1:2:100::1]:80", "[2001:db8:1:2::1]:81"].map(|text| text.parse().unwrap());
    for (id, at) in (3u16..).zip(addresses) {
        let endpoint = nat::Endpoint {
            address: at.ip().into(),
            port: at.port(),
            ..nat::Endpoint::default()
        };
        bench.translations.endpoints.insert(id, endpoint);
    }
    let services = [(1, 3), (2, 4)].map(|(id, endpoint): (u16, u16)| {
        let mut service = service(id, 13, &[u32::from(id)], &[]);
        service.backends[0].mode = Mode::Dnat;
        service.backends[0].translated = Translated {
            endpoint,
            pairs: [0; nat::SNAT_ADDRESSES],
        };
        service
    });
    let [served, other] = addresses;
    let alike = Deferred::EndpointAlike(other, served);
    let deferred = bench.plan(&services).deferred;
    assert_eq!(deferred, BTreeMap::from([(2, alike)]));
}
