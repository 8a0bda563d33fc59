//! How new flows are spread.

use super::*;

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
