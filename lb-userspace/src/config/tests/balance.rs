//! How new flows are spread.

use super::*;
use crate::balance::zone::Zone;

const B1: &str = "name = \"b1\"\n";

/// [`SMALL`] with a line for its backend.
fn with(line: &str) -> String {
    SMALL.replace(B1, &format!("{B1}{line}\n"))
}

fn part(line: &str) -> Part {
    let config = parse(Path::new("t.toml"), &with(line)).unwrap().config;
    config.services[0].backends[0].part
}

#[test]
fn a_backend_has_a_limit_if_it_says_so() {
    assert_eq!(part(""), Part::default());
    assert_eq!(part("max_connections = 500").max_connections, Some(500));
    for bad in ["0", "20000001"] {
        assert_eq!(
            errors(&with(&format!("max_connections = {bad}"))),
            [format!(
                "t.toml:9:19: backend \"chat/b1\": max_connections is {bad}; give a number from 1 to 20000000"
            )]
        );
    }
}

#[test]
fn what_would_make_the_tables_of_a_fleet_differ_is_refused() {
    let in_fleet = |text: &str| format!("fleet_seed = \"0123456789abcdef\"\n{text}");
    assert_eq!(
        errors(&in_fleet(&with("max_connections = 500"))),
        [
            "t.toml:10:19: backend \"chat/b1\": max_connections counts the flows that this load balancer has, so the load balancers of a fleet (fleet_seed) would choose differently for the same flow; remove max_connections; or remove fleet_seed, if this load balancer is alone"
        ]
    );
}

/// [`SMALL`] with a second backend, a backup, and lines for the service.
fn with_backup(lines: &str) -> String {
    let text = SMALL.replace("mode", &format!("{lines}mode"));
    format!("{text}[[service.backend]]\nname = \"b2\"\naddress = \"10.0.1.12\"\nbackup = true\n")
}

#[test]
fn backups_stand_in_below_min_healthy_unless_told_otherwise() {
    let of = |lines| {
        let loaded = parse(Path::new("t.toml"), &with_backup(lines)).unwrap();
        let service = &loaded.config.services[0];
        let backups = service.backends.iter().map(|b| b.part.backup);
        assert_eq!(backups.collect::<Vec<_>>(), [false, true]);
        service.policy.backup_below
    };
    assert_eq!(of(""), 1);
    assert_eq!(of("min_healthy = 0\n"), 1);
    assert_eq!(of("min_healthy = 2\n"), 2);
    assert_eq!(of("min_healthy = 2\nbackup_below = 1\n"), 1);
}

#[test]
fn odd_backups_are_warned_of() {
    assert_eq!(warnings(&with_backup("backup_below = 1\n")), [""; 0]);
    assert_eq!(
        warnings(&with_backup("backup_below = 2\n")),
        [
            "t.toml:6:16: service \"chat\": backup_below is 2, but there are only 1 primary backends, so backups always take new flows; lower it"
        ]
    );
    assert_eq!(
        warnings(&with_backup("backup_below = 1\nmin_healthy = 2\n")),
        [
            "t.toml:6:16: service \"chat\": backup_below is 1 and min_healthy 2: with as many as 1 primary backends usable, idle backups count for min_healthy, and nobody stands in; set backup_below = 2"
        ]
    );
    assert_eq!(
        warnings(&SMALL.replace("mode", "backup_below = 1\nmode")),
        [
            "t.toml:6:16: service \"chat\": backup_below has no effect, for none of its backends is a backup; remove it, or set backup = true for a backend"
        ]
    );
}

#[test]
fn a_backend_is_in_the_balancers_zone_or_not() {
    let text = format!(
        "zone = \"a\"\n{}zone = \"a\"\n",
        with_backup("zone_enough = 90\n")
    );
    let config = parse(Path::new("t.toml"), &text).unwrap().config;
    let service = &config.services[0];
    let zones: Vec<_> = service.backends.iter().map(|b| b.part.zone).collect();
    // Who says nothing is elsewhere.
    assert_eq!(zones, [Zone::Other, Zone::Local]);
    assert_eq!(service.backends[1].zone.as_deref(), Some("a"));
    assert_eq!(service.policy.zone_enough, 90);
    assert_eq!(warnings(&text), [""; 0]);
    let config = parse(Path::new("t.toml"), SMALL).unwrap().config;
    assert_eq!(config.services[0].policy, Policy::default());
}

#[test]
fn odd_zones_are_warned_of() {
    assert_eq!(
        warnings(&with("zone = \"a\"")),
        [
            "t.toml:9:8: backend \"chat/b1\": its zone has no effect, for the load balancer has none; say which zone this load balancer is in: zone, at the top level"
        ]
    );
    assert_eq!(
        warnings(&SMALL.replace("mode", "zone_enough = 50\nmode")),
        [
            "t.toml:6:15: service \"chat\": zone_enough has no effect: it takes a zone at the top level, backends in that zone, and others that are not; remove it, or say where everything is"
        ]
    );
    assert_eq!(
        warnings(&format!(
            "fleet_seed = \"0123456789abcdef\"\nzone = \"a\"\n{SMALL}"
        )),
        [
            "t.toml:2:8: configuration: load balancers of a fleet (fleet_seed) that are in different zones choose differently for the same flow; give all of them the same zone, or none"
        ]
    );
    assert_eq!(
        errors(&format!("zone = \"a b\"\n{SMALL}")),
        [
            "t.toml:1:8: configuration: \"a b\" is no name; use 1 to 63 letters, digits, dots, colons, hyphens or underscores"
        ]
    );
}

#[test]
fn slow_start_is_a_duration_and_no_fleets() {
    let with = |value: &str| SMALL.replace("mode", &format!("slow_start = \"{value}\"\nmode"));
    let of = |value: &str| {
        let config = parse(Path::new("t.toml"), &with(value)).unwrap().config;
        config.services[0].policy.slow_start
    };
    assert_eq!(of("90s"), Duration::from_secs(90));
    assert_eq!(of("0s"), Policy::default().slow_start);
    assert_eq!(
        errors(&with("25h")),
        ["t.toml:6:14: service \"chat\": slow_start is 25h; give a duration from 0s to 24h"]
    );
    let in_fleet = |value| format!("fleet_seed = \"0123456789abcdef\"\n{}", with(value));
    assert_eq!(warnings(&in_fleet("0s")), [""; 0]);
    assert_eq!(
        errors(&in_fleet("1m")),
        [
            "t.toml:7:14: service \"chat\": slow_start goes by when this load balancer saw a backend come up, so the load balancers of a fleet (fleet_seed) would choose differently for the same flow; remove slow_start; or remove fleet_seed, if this load balancer is alone"
        ]
    );
}

#[test]
fn balance_is_by_weights_or_by_connections_too_but_not_in_fleets() {
    use crate::balance::Balance;
    let with = |value: &str| SMALL.replace("mode", &format!("balance = \"{value}\"\nmode"));
    for (value, balance) in [
        ("weights", Balance::Weights),
        ("least-connections", Balance::LeastConnections),
    ] {
        let config = parse(Path::new("t.toml"), &with(value)).unwrap().config;
        assert_eq!(config.services[0].policy.balance, balance);
    }
    assert_eq!(Policy::default().balance, Balance::Weights);
    for (value, remedy) in [
        ("least-connection", "did you mean \"least-connections\"?"),
        ("random", "use \"weights\" or \"least-connections\""),
    ] {
        assert_eq!(
            errors(&with(value)),
            [format!(
                "t.toml:6:11: service \"chat\": unknown balance {value:?}; {remedy}"
            )]
        );
    }
    let in_fleet = |value| format!("fleet_seed = \"0123456789abcdef\"\n{}", with(value));
    assert_eq!(warnings(&in_fleet("weights")), [""; 0]);
    assert_eq!(
        errors(&in_fleet("least-connections")),
        [
            "t.toml:7:11: service \"chat\": balance = \"least-connections\" goes by the flows that this load balancer has, so the load balancers of a fleet (fleet_seed) would choose differently for the same flow; remove balance = \"least-connections\"; or remove fleet_seed, if this load balancer is alone"
        ]
    );
}

/// [`SMALL`] with a table of what makes an outlier, and these lines in it.
fn with_outlier(lines: &str) -> String {
    const BACKEND: &str = "[[service.backend]]";
    SMALL.replace(BACKEND, &format!("[service.outlier]\n{lines}{BACKEND}"))
}

#[test]
fn outliers_are_looked_for_where_that_is_asked_for() {
    use crate::balance::outlier::Outlier;
    let of = |text: &str| {
        let config = parse(Path::new("t.toml"), text).unwrap().config;
        assert_eq!(
            config.measures(),
            config.services[0].policy.outlier.is_some()
        );
        config.services[0].policy.outlier
    };
    assert_eq!(of(SMALL), None);
    assert_eq!(of(&with_outlier("")), Some(Outlier::DEFAULT));
    let all =
        "ratio = 4\nfloor = 2\nleast = 50\nat_most = 25\neject_for = \"1m\"\nwindow = \"10s\"\n";
    let expected = Outlier {
        ratio: 4,
        floor: 2,
        least: 50,
        at_most: 25,
        eject_for: Duration::from_secs(60),
        window: Duration::from_secs(10),
    };
    assert_eq!(of(&with_outlier(all)), Some(expected));
    assert_eq!(warnings(&with_outlier(all)), [""; 0]);
    // Written in a line it is the same.
    let inline = SMALL.replace("mode", "outlier = { at_most = 0 }\nmode");
    let counted = Outlier {
        at_most: 0,
        ..Outlier::DEFAULT
    };
    assert_eq!(of(&inline), Some(counted));
    // The load balancers of a fleet count, each for itself, and choose alike.
    let in_fleet = format!("fleet_seed = \"0123456789abcdef\"\n{}", with_outlier(""));
    assert_eq!(of(&in_fleet), Some(counted));
}

#[test]
fn what_is_odd_about_outliers_is_told() {
    for (line, wrong) in [
        (
            "ratio = 1",
            "8:9: outlier of service \"chat\": ratio is 1; give a number from 2 to 100",
        ),
        (
            "window = \"2s\"",
            "8:10: outlier of service \"chat\": window is 2s; give a duration from 3s to 1h",
        ),
        (
            "at_mots = 5",
            "8:1: outlier of service \"chat\": unknown key \"at_mots\"; did you mean at_most?",
        ),
    ] {
        let text = with_outlier(&format!("{line}\n"));
        assert_eq!(errors(&text), [format!("t.toml:{wrong}")]);
    }
    assert_eq!(
        error_of("mode", "outlier = true\nmode"),
        "t.toml:6:11: service \"chat\": outlier is true or false, not a table; write it like outlier = { … }"
    );
    assert_eq!(
        warnings(&with_outlier("at_most = 0\neject_for = \"1m\"\n")),
        [
            "t.toml:9:13: outlier of service \"chat\": eject_for has no effect, for at_most is 0: no backend is ejected; remove it, or raise at_most"
        ]
    );
    let in_fleet = |lines| {
        let text = with_outlier(lines);
        format!("fleet_seed = \"0123456789abcdef\"\n{text}")
    };
    assert_eq!(warnings(&in_fleet("at_most = 0\n")), [""; 0]);
    assert_eq!(
        errors(&in_fleet("at_most = 5\n")),
        [
            "t.toml:9:11: outlier of service \"chat\": at_most goes by what this load balancer's clients send again, so the load balancers of a fleet (fleet_seed) would choose differently for the same flow; remove at_most; or remove fleet_seed, if this load balancer is alone"
        ]
    );
}
