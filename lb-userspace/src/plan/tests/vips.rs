//! What is listed in the directories, and where.

use lb_common::vip::WAYS;

use super::*;

/// As full as it gets: every word that is moved must be found before and after every operation.
#[test]
fn a_full_directory_makes_place_by_moving_words() {
    for vip in ["10.0.0.1", "2001:db8::1"] {
        let vip = vip.parse().unwrap();
        let moves = (0..20)
            .map(|start| fill_directory(vip, 1_000 + 977 * start))
            .sum::<u32>();
        assert!(moves > 0, "no word of {vip} was ever moved");
    }
}

/// Lists services at ports from `start` on until the directory is full. Returns how many words were moved for them.
fn fill_directory(vip: IpAddr, start: u16) -> u32 {
    let buckets = 4;
    let mut held = vec![VipBucket::default(); buckets];
    let mut listed: Vec<(Endpoint, u16)> = Vec::new();
    let mut moved = 0;
    for id in 1.. {
        // One VIP, so that its own entry takes one word of the sixteen.
        let port = start + id;
        let endpoint = Endpoint { vip, port };
        let mut wanted = listed.clone();
        wanted.push((endpoint, id));
        let changes = directory::arrange(IpVersion::of(vip), &held, &wanted, &BTreeSet::new());
        if !changes.unplaced.is_empty() {
            assert_eq!(changes.unplaced, [id]);
            break;
        }
        assert_eq!(changes.removals, []);
        let mut writes_since_grace: BTreeSet<u64> = BTreeSet::new();
        for operation in &changes.additions {
            match *operation {
                Operation::Grace => {
                    moved += 1;
                    writes_since_grace.clear();
                }
                Operation::SetWord {
                    directory,
                    bucket,
                    way,
                    entry,
                } => {
                    assert_eq!(directory, Directory::Vips(IpVersion::of(vip)));
                    let old = held[bucket as usize].entries[way];
                    assert!(
                        old == 0 || !writes_since_grace.contains(&old),
                        "cleared before readers could find the copy"
                    );
                    held[bucket as usize].entries[way] = entry.0;
                    writes_since_grace.insert(entry.0);
                }
                ref other => panic!("{other}"),
            }
            for &(endpoint, id) in &listed {
                let found = find(&held, endpoint.vip, endpoint.port);
                assert_eq!(found, Some(id), "{endpoint} is lost");
            }
        }
        listed = wanted;
        assert!(listed.len() < buckets * WAYS, "more services than words");
    }
    assert!(listed.len() >= 10, "full at {} of 15", listed.len());
    moved
}

#[test]
fn an_ipv6_vip_is_listed_by_one_of_its_services_and_by_the_next_when_that_goes() {
    let mut bench = Bench::new(1_000);
    let (one, two) = (service6(1), service6(2));
    bench.converge(&[one.clone(), two.clone()]);
    let found = |bench: &Bench, port| find(&bench.observed.vips6, VIP6, port);
    let all = |bench: &Bench| [0, 81, 82].map(|port| found(bench, port));
    assert_eq!(all(&bench), [Some(1), Some(1), Some(2)]);
    assert_eq!(bench.observed.vips4, bench.empty_directory());

    // Its own entry names the other one before the first is cleared, and a grace period passes in between.
    let operations = bench.converge(std::slice::from_ref(&two));
    assert_eq!(all(&bench), [Some(2), None, Some(2)]);
    let at = |what: &str| {
        operations
            .iter()
            .position(|operation| operation.contains(what))
            .unwrap_or_else(|| panic!("no {what:?} in {operations:#?}"))
    };
    let renamed = at("directory of IPv6: write");
    assert!(renamed < at("wait for a grace period"), "{operations:#?}");
    assert!(
        at("wait for a grace period") < at("service 1: clear"),
        "{operations:#?}"
    );
    assert_eq!(bench.converge(std::slice::from_ref(&two)), [] as [&str; 0]);

    bench.converge(&[]);
    assert_eq!(bench.observed.vips6, bench.empty_directory());
}

#[test]
fn a_vip_that_the_host_owns_is_marked_in_ipv4_and_not_listed_by_itself_in_ipv6() {
    let mut bench = Bench::new(1_000);
    let wanted = [service(3, 13, &[3], &[]), service6(1)];
    let vip4 = wanted[0].endpoint.vip;
    let own = |bench: &Bench| {
        [
            find(&bench.observed.vips4, vip4, 0),
            find(&bench.observed.vips6, VIP6, 0),
        ]
    };
    bench.converge(&wanted);
    assert_eq!(own(&bench), [Some(0), Some(1)]);
    for (host_owned, expected) in [
        (vec![vip4, VIP6], [Some(VipEntry::HOST_OWNED), None]),
        (vec![VIP6], [Some(0), None]),
        (vec![], [Some(0), Some(1)]),
    ] {
        bench.host_owned = host_owned.into_iter().collect();
        assert_ne!(bench.converge(&wanted), [] as [&str; 0]);
        assert_eq!(own(&bench), expected);
        assert_eq!(find(&bench.observed.vips6, VIP6, 81), Some(1));
        assert_eq!(bench.converge(&wanted), [] as [&str; 0]);
    }
}

/// Fingerprints of IPv6 that are the same: no place would help, another port does.
#[test]
fn services_that_the_directory_cannot_tell_apart_are_named() {
    let mut bench = Bench::new(1_000);
    let at = |id, vip: &str, port| {
        let vip = vip.parse().unwrap();
        resolve::Service {
            endpoint: Endpoint { vip, port },
            ..service6(id)
        }
    };
    let one = at(1, "2001:db8:1:2:100::1", 80);
    let mut other = at(2, "2001:db8:1:2::1", 81);
    let key = |service: &resolve::Service<'_>| key_of(service.endpoint.vip, service.endpoint.port);
    assert_eq!(key(&one), key(&other));

    let wanted = [one.clone(), other.clone()];
    let deferred = bench.plan(&wanted).deferred;
    let served = "[2001:db8:1:2:100::1]:80";
    let alike = Deferred::VipAlike(served.parse().unwrap());
    assert_eq!(deferred, BTreeMap::from([(2, alike)]));
    let said = deferred[&2].to_string();
    for words in [served, "another port or address"] {
        assert!(said.contains(words), "{said}");
    }
    bench.converge(&wanted);
    let found = |bench: &Bench, service: &resolve::Service<'_>| {
        let Endpoint { vip, port } = service.endpoint;
        find(&bench.observed.vips6, vip, port)
    };
    assert_eq!(found(&bench, &one), Some(1));

    other.endpoint.port = 82;
    let wanted = [one.clone(), other.clone()];
    assert_eq!(bench.plan(&wanted).deferred, BTreeMap::new());
    bench.converge(&wanted);
    assert_eq!(found(&bench, &one), Some(1));
    assert_eq!(found(&bench, &other), Some(2));
}
