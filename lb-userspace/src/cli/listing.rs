//! Listings for people.

use std::net::SocketAddr;

use lb_common::verdict::{Class, Reason};

use super::table::indented_table;
use crate::{
    config::{Config, Limits},
    flows::Fill,
    status::{
        BackendStatus, Difference, DnsStatus, DrainStatus, EjectedStatus, ServiceStatus, Status,
    },
    words::{counted, counted_as, duration, word},
};

/// What a valid configuration holds, in a line.
pub(super) fn checked(config: &Config) -> String {
    let backends: usize = config
        .services
        .iter()
        .map(|service| service.backends.len())
        .sum();
    format!(
        "{}: valid: {}, {}",
        config.path.display(),
        counted(config.services.len(), "service"),
        counted(backends, "backend")
    )
}

/// The status, for a terminal. `now` is in seconds since 1970.
pub(super) fn status(status: &Status, now: u64) -> String {
    let mut text = String::new();
    let generation = status.generation;
    let attached: Vec<_> = status
        .attachments
        .iter()
        .map(|attachment| format!("{} ({})", attachment.interface, word(&attachment.mode)))
        .collect();
    let flows = &status.flows;
    let lines = [
        format!(
            "tether {}, pid {}, up {}",
            status.version,
            status.pid,
            duration(status.uptime_s)
        ),
        format!(
            "configuration {}, generation {} applied{}",
            status.config.path.display(),
            generation.applied,
            if generation.applied == generation.accepted {
                String::new()
            } else {
                format!(
                    " ({} accepted, {} resolved)",
                    generation.accepted, generation.resolved
                )
            }
        ),
        if attached.is_empty() {
            "attached to nothing".to_owned()
        } else {
            format!("attached to {}", attached.join(", "))
        },
        format!(
            "flows: {} pinned, {} young, {} embryos, {} closing; in use: {}",
            flows.pin,
            flows.young,
            flows.embryo,
            flows.closing,
            flows
                .tables
                .each()
                .map(|(version, table)| format!(
                    "{:.1}% of {} entries for IPv{}",
                    table.used * 100.0,
                    table.capacity,
                    version as u32
                ))
                .join(", ")
        ),
    ];
    let [head @ .., last] = lines;
    let detached = status
        .detached
        .iter()
        .map(|one| format!("NOT ATTACHED to {}: {}", one.interface, one.reason));
    let closed = status.closed_egress.iter().map(|egress| {
        format!(
            "no packet that came in by another interface leaves by {}: {}",
            egress.interface, egress.reason
        )
    });
    for line in head.into_iter().chain(detached).chain(closed).chain([last]) {
        text += &line;
        text.push('\n');
    }
    if status.evacuated {
        text += "evacuated: all backends are drained until `tether undrain --all`\n";
    }
    for (version, table) in flows.tables.each() {
        if table.fill != Fill::Low {
            text += &format!(
                "the IPv{} flow table fills up: raise {} in [limits] and restart the daemon, which loses no flow\n",
                version as u32,
                Limits::flows_key(version)
            );
        }
    }
    if let Some(error) = &status.config.error {
        text += "the latest reload was refused, an older configuration is in force:\n";
        for line in error.lines() {
            text += &format!("  {line}\n");
        }
    }
    text += &differences(&status.config.differences);
    for source in &status.dns {
        text += &source_lines(source);
    }
    for service in &status.services {
        text.push('\n');
        text += &service_lines(service, now);
    }
    text.push('\n');
    text += &reasons(status);
    text
}

/// What is wrong with a name that backends come from; nothing if nothing is.
fn source_lines(source: &DnsStatus) -> String {
    let (service, name, query) = (&source.service, &source.source, &source.query);
    let mut text = String::new();
    if let Some(error) = &source.error {
        let stay = match source.addresses.len() {
            0 => "there are no addresses of it yet".to_owned(),
            number => format!(
                "what stays in force: {}",
                counted_as(number, "address", "addresses")
            ),
        };
        text += &format!("{service}: {name}: {query} does not resolve ({error}); {stay}\n");
    }
    for why in &source.ignored {
        text += &format!("{service}: {name}: an address of {query} is not used: {why}\n");
    }
    text
}

/// What is otherwise than the file says.
fn differences(differences: &[Difference]) -> String {
    if differences.is_empty() {
        return String::new();
    }
    let row = |difference: &Difference| {
        let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".to_owned());
        [
            format!("{}/{}", difference.service, difference.backend),
            word(&difference.change),
            or_none(&difference.now),
            format!("(file: {})", or_none(&difference.file)),
        ]
    };
    let rows: Vec<_> = differences.iter().map(row).collect();
    "changed at runtime, and otherwise in the file (`tether revert` and `tether undrain` end that):\n"
        .to_owned()
        + &indented_table(&rows)
}

fn service_lines(service: &ServiceStatus, now: u64) -> String {
    let mut text = format!(
        "{}  {}  {}",
        service.name,
        SocketAddr::new(service.vip, service.port),
        word(&service.mode)
    );
    for (is_so, what) in [
        (service.removed, "removed, its flows go on"),
        (
            service.fail_open,
            "FAIL-OPEN: too few backends are usable, all active ones take flows",
        ),
        (
            service.full,
            "FULL: every usable backend is at its max_connections, new connections are dropped",
        ),
    ] {
        if is_so {
            text += "  ";
            text += what;
        }
    }
    if let Some(why) = service.resets_suspended {
        text += &format!("  clients of dead backends are not told: {why}");
    }
    text.push('\n');
    if let Some(error) = &service.error {
        text += &format!("  error: {error}\n");
    }
    if let Some(guard) = &service.guard {
        text += &format!("  guard: {}\n", guard.summary);
    }
    let mut rows = vec![
        [
            "BACKEND",
            "ADDRESS",
            "WEIGHT",
            "ADMIN",
            "HEALTH",
            "SERVING",
            "NEIGHBOUR",
            "ACTIVE",
            "IDLE",
            "DEADLINE",
            "LAST ERROR",
        ]
        .map(str::to_owned),
    ];
    rows.extend(service.backends.iter().map(|one| backend_row(one, now)));
    text += &indented_table(&rows);
    for backend in &service.backends {
        if let Some(ejected) = &backend.balance.ejected {
            text += &format!("  {}: {}\n", backend.name, ejection(ejected));
        }
    }
    text
}

/// Why a backend is ejected, and for how long.
pub(super) fn ejection(ejected: &EjectedStatus) -> String {
    let times = match ejected.times {
        0 | 1 => String::new(),
        times => format!(", {times} times of late"),
    };
    format!(
        "ejected for another {}{times}: {}",
        duration(ejected.left_s),
        ejected.reason
    )
}

fn backend_row(backend: &BackendStatus, now: u64) -> [String; 11] {
    [
        backend.name.clone(),
        SocketAddr::new(backend.address, backend.port).to_string(),
        backend.weight.to_string(),
        if backend.removed {
            "removed".to_owned()
        } else {
            word(&backend.admin)
        },
        word(&backend.health),
        word(&backend.serving),
        word(&backend.neighbour),
        backend.flows.active.to_string(),
        backend.flows.idle.to_string(),
        backend
            .drain
            .as_ref()
            .map_or_else(|| "-".to_owned(), deadline),
        last_error(backend, now),
    ]
}

/// When a drain's flows are closed, or how many are.
fn deadline(drain: &DrainStatus) -> String {
    match (drain.deadline_s, drain.closed) {
        (0, closed) if closed < 1.0 => format!("closing {:.0}%", (closed * 100.0).floor()),
        (0, _) => "closed".to_owned(),
        (seconds, _) => format!("in {}", duration(seconds)),
    }
}

pub(super) fn last_error(backend: &BackendStatus, now: u64) -> String {
    match (&backend.last_error, backend.last_error_ended) {
        (None, _) => String::new(),
        (Some(error), None) => error.clone(),
        (Some(error), Some(ended)) => {
            format!(
                "{error} (until {} ago)",
                duration(now.saturating_sub(ended))
            )
        }
    }
}

fn reasons(status: &Status) -> String {
    let mut rows = vec![["PACKETS", "COUNT", "BYTES"].map(str::to_owned)];
    for (reason, count) in &status.reasons {
        if count.packets > 0 {
            rows.push([
                reason.clone(),
                count.packets.to_string(),
                count.bytes.to_string(),
            ]);
        }
    }
    if rows.len() == 1 {
        return "no packets yet\n".to_owned();
    }
    let defects: Vec<_> = Reason::ALL
        .iter()
        .filter(|reason| reason.class() == Class::ShouldNeverHappen)
        .map(|reason| reason.name())
        .filter(|name| {
            status
                .reasons
                .get(*name)
                .is_some_and(|count| count.packets > 0)
        })
        .collect();
    let mut text = indented_table(&rows);
    if !defects.is_empty() {
        text += &format!(
            "{} should never happen: a defect of Tether's, or maps that somebody has changed; docs/reasons.md says what to do\n",
            defects.join(", ")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = r#"{"version":"0.1.0","pid":1,"uptime_s":3700,
        "generation":{"accepted":4,"resolved":4,"applied":3},
        "config":{"path":"/etc/tether/tether.toml","error":"a.toml:1:1: x: bad; mend it","differences":[
          {"service":"chat","backend":"b1","change":"weight","now":"weight 100","file":"weight 50"},
          {"service":"chat","backend":"b2","change":"removed","now":null,"file":"10.0.1.12:80, weight 100"},
          {"service":"chat","backend":"b3","change":"added","now":"10.0.1.13:80, weight 100","file":null}]},
        "attachments":[{"interface":"eth0","mode":"native"}],
        "detached":[{"interface":"eth1","reason":"it is gone"}],
        "closed_egress":[{"interface":"br0","reason":"its driver cannot"}],
        "dns":[{"service":"chat","source":"pods","query":"pods.example.","type":"srv","addresses":["10.0.1.20"],"failures":3,
          "error":"request timed out","ignored":["127.0.0.1 is a loopback address"]},
          {"service":"chat","source":"well","query":"well.example.","type":"a","addresses":["10.0.1.21"],"failures":3,"error":null,"ignored":[]}],
        "flows":{"capacity":1000,"embryo":0,"young":1,"pin":12,"closing":0,"use":0.0065,"fill":"half",
          "tables":{"v4":{"capacity":1000,"use":0.013,"fill":"low"},"v6":{"capacity":500,"use":0.5,"fill":"half"}}},
        "services":[{"name":"chat","vip":"2001:db8::1","port":80,"mode":"ipip","removed":false,
          "fail_open":true,"resets_suspended":"fail-open","error":null,
          "guard":{"summary":"deny 3","allow":0,"deny":3,"source_limit":null},
          "backends":[{"name":"b1","address":"10.0.1.11","port":80,"weight":100,"admin":"draining",
            "removed":false,"health":"refusing","serving":"existing-only","neighbour":"resolved",
            "last_error":"status 503","drain":{"deadline_s":0,"closed":0.256},
            "flows":{"embryo":0,"young":0,"pin":12,"closing":0,"active":11,"idle":1}}]}],
        "reasons":{"established":{"packets":5,"bytes":300},"opened":{"packets":0,"bytes":0}}}"#;

    #[test]
    fn a_status_reads_like_this() {
        let text = status(&serde_json::from_str(JSON).unwrap(), 1_800_000_100);
        let expected = "\
tether 0.1.0, pid 1, up 1 h 1 min
configuration /etc/tether/tether.toml, generation 3 applied (4 accepted, 4 resolved)
attached to eth0 (native)
NOT ATTACHED to eth1: it is gone
no packet that came in by another interface leaves by br0: its driver cannot
flows: 12 pinned, 1 young, 0 embryos, 0 closing; in use: 1.3% of 1000 entries for IPv4, 50.0% of 500 entries for IPv6
the IPv6 flow table fills up: raise flows6 in [limits] and restart the daemon, which loses no flow
the latest reload was refused, an older configuration is in force:
  a.toml:1:1: x: bad; mend it
changed at runtime, and otherwise in the file (`tether revert` and `tether undrain` end that):
  chat/b1  weight   weight 100                (file: weight 50)
  chat/b2  removed  none                      (file: 10.0.1.12:80, weight 100)
  chat/b3  added    10.0.1.13:80, weight 100  (file: none)
chat: pods: pods.example. does not resolve (request timed out); what stays in force: 1 address
chat: pods: an address of pods.example. is not used: 127.0.0.1 is a loopback address

chat  [2001:db8::1]:80  ipip  FAIL-OPEN: too few backends are usable, all active ones take flows  clients of dead backends are not told: it is in fail-open
  guard: deny 3
  BACKEND  ADDRESS       WEIGHT  ADMIN     HEALTH    SERVING        NEIGHBOUR  ACTIVE  IDLE  DEADLINE     LAST ERROR
  b1       10.0.1.11:80  100     draining  refusing  existing-only  resolved   11      1     closing 25%  status 503

  PACKETS      COUNT  BYTES
  established  5      300
";
        assert_eq!(text, expected);
    }

    #[test]
    fn an_evacuated_host_says_so() {
        let json = JSON.replace("\"attachments\"", "\"evacuated\":true,\"attachments\"");
        let text = status(&serde_json::from_str(&json).unwrap(), 1_800_000_100);
        let line = "evacuated: all backends are drained until `tether undrain --all`";
        assert!(text.lines().any(|found| found == line), "{text}");
    }

    #[test]
    fn an_ejected_backend_says_why() {
        let json = JSON.replace(
            "\"drain\":{",
            "\"balance\":{\"ejected\":{\"signal\":\"data\",\"reason\":\"clients repeat\",\"times\":2,\"left_s\":61}},\"drain\":{",
        );
        let text = status(&serde_json::from_str(&json).unwrap(), 1_800_000_100);
        let line = "  b1: ejected for another 1 min 1 s, 2 times of late: clients repeat";
        assert!(text.lines().any(|found| found == line), "{text}");
    }

    #[test]
    fn what_should_never_happen_is_told_as_that() {
        let json = JSON.replace(
            "\"opened\":{\"packets\":0,\"bytes\":0}",
            "\"no_answer\":{\"packets\":1,\"bytes\":60},\"no_headroom\":{\"packets\":0,\"bytes\":0}",
        );
        let text = status(&serde_json::from_str(&json).unwrap(), 1_800_000_100);
        let last = text.lines().next_back().unwrap();
        assert!(
            last.starts_with("no_answer should never happen: "),
            "{text}"
        );
    }

    #[test]
    fn an_error_that_is_over_says_since_when() {
        let json = JSON.replace(
            "\"last_error\":\"status 503\"",
            "\"last_error\":\"status 503\",\"last_error_ended\":1800000000",
        );
        let text = status(&serde_json::from_str(&json).unwrap(), 1_800_000_100);
        assert!(
            text.contains("status 503 (until 1 min 40 s ago)\n"),
            "{text}"
        );
    }

    #[test]
    fn a_deadline_is_ahead_or_at_work_or_over() {
        for (deadline_s, closed, text) in [
            (61, 0.0, "in 1 min 1 s"),
            (0, 0.0, "closing 0%"),
            (0, 0.999, "closing 99%"),
            (0, 1.0, "closed"),
        ] {
            assert_eq!(deadline(&DrainStatus { deadline_s, closed }), text);
        }
    }
}
