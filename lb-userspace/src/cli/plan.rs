//! `tether plan`.

use std::{net::SocketAddr, path::Path};

use clap::Args;
use serde::Serialize;

use super::{ConfigFile, Daemon, Failure, ask, print_json, table::indented_table};
use crate::{
    config,
    preview::{
        BackendChange, BackendPreview, GuardPreview, Preview, ServiceChange, ServicePreview, Sides,
    },
    words::{counted, counted_as, word},
};

#[derive(Args, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    daemon: Daemon,
    /// As one line of JSON.
    #[arg(long)]
    json: bool,
}

impl Plan {
    pub(super) fn run(self) -> Result<(), Failure> {
        let path = std::path::absolute(&self.config.path).map_err(anyhow::Error::from)?;
        let text = config::read(&path).map_err(Failure::Config)?;
        // Here too, so that what is wrong with the file is told without a daemon, and as `tether check` tells it.
        let loaded = config::parse(&path, &text).map_err(Failure::Config)?;
        for warning in &loaded.warnings {
            eprintln!("warning: {warning}");
        }
        let preview = ask(&self.daemon, async |client| client.plan(&path, text).await)?;
        if self.json {
            print_json(&preview)?;
        } else {
            put!("{}", shown(&preview, &path));
        }
        Ok(())
    }
}

/// A preview, for a terminal.
fn shown(preview: &Preview, path: &Path) -> String {
    let generation = preview.generation;
    if preview.is_empty() {
        return format!(
            "{}: nothing would change; generation {generation} is the same\n",
            path.display()
        );
    }
    let mut text = format!(
        "{} beside generation {generation}, which is in force; nothing is changed\n",
        path.display()
    );
    for service in &preview.services {
        text.push('\n');
        text += &service_lines(service);
    }
    text.push('\n');
    if preview.unchanged > 0 {
        let unchanged = counted(preview.unchanged as usize, "service");
        text += &format!("unchanged: {unchanged}\n");
    }
    if !preview.ended.is_empty() {
        let names: Vec<_> = preview.ended.iter().map(ToString::to_string).collect();
        text += &format!(
            "what was changed or drained at runtime would end for: {}\n",
            names.join(", ")
        );
    }
    let flows = counted(preview.drained_flows as usize, "flow");
    text += &format!(
        "no flow is moved or cut; {flows} would be on backends that take no new ones any more, and stay there until they end\n"
    );
    text
}

fn service_lines(service: &ServicePreview) -> String {
    let mut text = format!(
        "{}  {}  {}  {}",
        service.name,
        SocketAddr::new(service.vip, service.port),
        word(&service.mode),
        word(&service.change)
    );
    if service.change == ServiceChange::Changed {
        text += &format!(", {} of its table moves", percent(service.moved));
    }
    for (key, sides) in [
        ("table_size", &service.table_size),
        ("min_healthy", &service.min_healthy),
    ] {
        if service.change == ServiceChange::Changed && sides.differ() {
            text += &format!(", {key} {}", arrow(sides, u32::to_string));
        }
    }
    if service.fail_open {
        text += "  FAIL-OPEN: too few backends are usable, all active ones take flows";
    }
    text.push('\n');
    if let Some(error) = &service.error {
        text += &format!("  error: {error}\n");
    }
    if let Some(guard) = &service.guard {
        text += &guard_line(guard);
    }
    let mut rows = vec![
        [
            "BACKEND", "ADDRESS", "CHANGE", "WEIGHT", "ADMIN", "SERVING", "SHARE", "ACTIVE", "IDLE",
        ]
        .map(str::to_owned),
    ];
    rows.extend(service.backends.iter().map(row));
    if rows.len() > 1 {
        text += &indented_table(&rows);
    }
    text
}

/// What changes of a guard.
fn guard_line(guard: &GuardPreview) -> String {
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".to_owned());
    let mut text = format!(
        "  guard: {} -> {}",
        or_none(&guard.before),
        or_none(&guard.after)
    );
    if (guard.added, guard.removed) != (0, 0) {
        text += &format!(
            "; {} added, {} removed",
            counted_as(guard.added as usize, "prefix", "prefixes"),
            guard.removed
        );
    }
    text + "\n"
}

fn row(backend: &BackendPreview) -> [String; 9] {
    let assumed = backend.change == BackendChange::Added;
    [
        backend.name.clone(),
        SocketAddr::new(backend.address, backend.port).to_string(),
        word(&backend.change),
        arrow(&backend.weight, u16::to_string),
        arrow(&backend.admin, spelt),
        arrow(&backend.serving, spelt) + if assumed { " once up" } else { "" },
        arrow(&backend.share, |share| percent(*share)),
        backend.flows.active.to_string(),
        backend.flows.idle.to_string(),
    ]
}

fn spelt<T: Serialize>(value: &T) -> String {
    word(value)
}

/// What it is, or what it becomes.
fn arrow<T: PartialEq>(sides: &Sides<T>, show: impl Fn(&T) -> String) -> String {
    match (&sides.before, &sides.after) {
        (None, None) => "-".to_owned(),
        (Some(before), Some(after)) if before != after => {
            format!("{} -> {}", show(before), show(after))
        }
        (_, Some(only)) | (Some(only), None) => show(only),
    }
}

fn percent(part: f64) -> String {
    format!("{:.1}%", part * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_reads_like_this() {
        let json = r#"{"path":"/etc/new.toml","generation":4,"unchanged":2,"drained_flows":27,
            "ended":[{"service":"chat","backend":"b9"}],
            "services":[{"name":"chat","vip":"10.0.0.1","port":80,"mode":"ipip","change":"changed",
              "table_size":{"before":65537,"after":65537},"min_healthy":{"before":1,"after":2},
              "moved":0.5004,"fail_open":false,"error":null,
              "guard":{"before":"deny 2","after":"deny 3, each /32: 100 flows","added":2,"removed":1},"backends":[
              {"name":"b1","address":"10.0.3.11","port":80,"change":"removed","weight":{"before":100,"after":null},
               "admin":{"before":"active","after":null},"serving":{"before":"new","after":"existing-only"},
               "share":{"before":0.5,"after":0.0},
               "flows":{"embryo":0,"young":1,"pin":26,"closing":0,"active":24,"idle":3}},
              {"name":"b2","address":"10.0.3.12","port":80,"change":"kept","weight":{"before":100,"after":100},
               "admin":{"before":"active","after":"active"},"serving":{"before":"new","after":"new"},
               "share":{"before":0.5,"after":0.5},
               "flows":{"embryo":0,"young":0,"pin":9,"closing":0,"active":9,"idle":0}},
              {"name":"b4","address":"10.0.3.14","port":80,"change":"added","weight":{"before":null,"after":100},
               "admin":{"before":null,"after":"active"},"serving":{"before":null,"after":"new"},
               "share":{"before":0.0,"after":0.5},
               "flows":{"embryo":0,"young":0,"pin":0,"closing":0,"active":0,"idle":0}}]}]}"#;
        let mut preview: Preview = serde_json::from_str(json).unwrap();
        let path = Path::new("/etc/new.toml");
        let expected = "\
/etc/new.toml beside generation 4, which is in force; nothing is changed

chat  10.0.0.1:80  ipip  changed, 50.0% of its table moves, min_healthy 1 -> 2
  guard: deny 2 -> deny 3, each /32: 100 flows; 2 prefixes added, 1 removed
  BACKEND  ADDRESS       CHANGE   WEIGHT  ADMIN   SERVING               SHARE          ACTIVE  IDLE
  b1       10.0.3.11:80  removed  100     active  new -> existing-only  50.0% -> 0.0%  24      3
  b2       10.0.3.12:80  kept     100     active  new                   50.0%          9       0
  b4       10.0.3.14:80  added    100     active  new once up           0.0% -> 50.0%  0       0

unchanged: 2 services
what was changed or drained at runtime would end for: chat/b9
no flow is moved or cut; 27 flows would be on backends that take no new ones any more, and stay there until they end
";
        assert_eq!(shown(&preview, path), expected);
        preview.services.clear();
        preview.ended.clear();
        let nothing = shown(&preview, path);
        assert_eq!(
            nothing,
            "/etc/new.toml: nothing would change; generation 4 is the same\n"
        );
    }
}
