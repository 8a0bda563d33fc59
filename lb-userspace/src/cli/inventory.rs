//! `tether services`, `tether backends` and `tether flows`.

use std::{
    io::{self, BufWriter, Write},
    net::SocketAddr,
};

use clap::{Args, ValueEnum};
use lb_common::backend::Serving;

use super::{
    Daemon, Failure,
    listing::{ejection, last_error},
    print_json,
    service_state::ServiceState,
    table::{Cell, Colours, Columns, Style, table},
};
use crate::{
    admin::client::{self, Client},
    inventory::{
        BackendRow, FlowEnd, FlowQuery, FlowRow, FlowState, MOST_SORTED, ServiceRow, Sort,
    },
    model::{Admin, Health},
    status::{Neighbour, ShareStatus},
    wall_clock::since_1970,
    words::{duration, word},
};

/// Rows that a table for people has if nothing is said.
const ROWS: usize = 100;
/// Rows by which the columns of a list of flows are made.
const SAMPLE: usize = 100;

/// How a listing is printed.
#[derive(Args, Debug, PartialEq, Eq)]
pub(super) struct Output {
    /// For programs: one line of JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug, PartialEq, Eq)]
pub(super) struct Services {
    #[command(flatten)]
    daemon: Daemon,
    #[command(flatten)]
    output: Output,
}

#[derive(Args, Debug, PartialEq, Eq)]
pub(super) struct Backends {
    /// Only those of this service.
    service: Option<String>,
    /// Only those that the checks say this of: unknown, up, refusing or down.
    #[arg(long, value_name = "HEALTH", value_parser = health)]
    health: Option<Health>,
    /// Only those that are given this: new, existing-only or none.
    #[arg(long, value_name = "SERVING", value_parser = serving)]
    serving: Option<Serving>,
    #[command(flatten)]
    daemon: Daemon,
    #[command(flatten)]
    output: Output,
}

#[derive(Args, Debug, PartialEq, Eq)]
pub(super) struct Flows {
    /// Only flows of this service.
    #[arg(long)]
    service: Option<String>,
    /// Only flows on this backend, as BACKEND or SERVICE/BACKEND.
    #[arg(long)]
    backend: Option<String>,
    /// Only flows of clients in this prefix, like 10.0.0.0/8, or of this one address.
    #[arg(long, value_name = "PREFIX")]
    client: Option<String>,
    /// Only flows in these states, separated by commas.
    #[arg(long, value_name = "STATE", value_delimiter = ',')]
    state: Vec<State>,
    /// Only flows first seen so long ago or longer, like 10m; units are s, m, h and d.
    #[arg(long, value_name = "AGE", value_parser = seconds)]
    older_than: Option<u64>,
    /// Only flows first seen so long ago at most, like 30s.
    #[arg(long, value_name = "AGE", value_parser = seconds)]
    younger_than: Option<u64>,
    /// Only flows without a packet for so long or longer.
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    idle_for: Option<u64>,
    /// Only flows with a packet within this time.
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    seen_within: Option<u64>,
    /// The order: the client's address, the oldest first, or the longest idle first. Without it, as they stand in the tables: fastest.
    #[arg(long)]
    sort: Option<Sort>,
    /// The other way round.
    #[arg(long, requires = "sort")]
    reverse: bool,
    /// How many at most; 0 is all. [default: 100, with --json all]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Go on behind the flows listed before: what that list ended with, with the same filters and order.
    #[arg(long, value_name = "CURSOR")]
    after: Option<String>,
    #[command(flatten)]
    daemon: Daemon,
    /// For programs: one JSON object a line, for each flow.
    #[arg(long)]
    json: bool,
}

/// A state, as an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State(FlowState);

impl ValueEnum for State {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Self(FlowState::Embryo),
            Self(FlowState::Challenger),
            Self(FlowState::Young),
            Self(FlowState::Pin),
            Self(FlowState::Closing),
        ]
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(self.0.word()))
    }
}

fn health(text: &str) -> Result<Health, String> {
    of_word(text, "unknown, up, refusing or down")
}

fn serving(text: &str) -> Result<Serving, String> {
    of_word(text, "new, existing-only or none")
}

fn of_word<T: serde::de::DeserializeOwned>(text: &str, words: &str) -> Result<T, String> {
    serde_json::from_value(text.into()).map_err(|_| format!("it is {words}"))
}

/// A duration like `90s`, `10m`, `2h` or `7d`, in seconds.
fn seconds(text: &str) -> Result<u64, String> {
    let wrong = || "write it like 90s, 10m, 2h or 7d".to_owned();
    let (number, unit) =
        text.split_at(text.len() - text.chars().next_back().map_or(0, char::len_utf8));
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(unit).ok_or_else(wrong)
}

pub(super) fn services(Services { daemon, output }: &Services) -> Result<(), Failure> {
    let rows = super::ask(daemon, async |client| client.services().await)?;
    if output.json {
        return print_json(&rows);
    }
    put!("{}", services_table(&rows, Colours::of_stdout()));
    Ok(())
}

pub(super) fn backends(asked: &Backends) -> Result<(), Failure> {
    let service = asked.service.as_deref();
    let mut rows = super::ask(&asked.daemon, async |client| client.backends(service).await)?;
    rows.retain(|row| {
        asked
            .health
            .is_none_or(|health| row.backend.health == health)
            && asked
                .serving
                .is_none_or(|serving| row.backend.serving == serving)
    });
    if asked.output.json {
        return print_json(&rows);
    }
    put!(
        "{}",
        backends_table(&rows, since_1970(), Colours::of_stdout())
    );
    Ok(())
}

fn services_table(rows: &[ServiceRow], colours: Colours) -> String {
    if rows.is_empty() {
        return "no services\n".to_owned();
    }
    let heading = [
        "SERVICE",
        "ENDPOINT",
        "MODE",
        "STATE",
        "TAKING NEW",
        "ACTIVE",
        "IDLE",
        "PACKETS",
        "BYTES",
        "GUARD",
    ];
    let mut lines = vec![heading.map(Cell::heading)];
    lines.extend(rows.iter().map(|row| {
        let all = row.backends.new + row.backends.existing_only + row.backends.none;
        let state = ServiceState::of(row);
        [
            Cell::new(&row.name),
            Cell::new(SocketAddr::new(row.vip, row.port).to_string()),
            Cell::new(word(&row.mode)),
            Cell::styled(state.word(), service_style(state)),
            Cell::new(format!("{} of {all}", row.backends.new)),
            Cell::new(row.flows.active.to_string()),
            Cell::new(row.flows.idle.to_string()),
            Cell::new(row.traffic.packets.to_string()),
            Cell::new(row.traffic.bytes.to_string()),
            Cell::new(
                row.guard
                    .as_ref()
                    .map_or("", |guard| guard.summary.as_str()),
            ),
        ]
    }));
    table(&lines, colours)
}

fn service_style(state: ServiceState) -> Style {
    match state {
        ServiceState::Error
        | ServiceState::FailOpen
        | ServiceState::Full
        | ServiceState::NoBackend => Style::Bad,
        ServiceState::Removed => Style::Faint,
        ServiceState::ResetsOff => Style::Doubtful,
        ServiceState::Ok => Style::Good,
    }
}

fn backends_table(rows: &[BackendRow], now: u64, colours: Colours) -> String {
    if rows.is_empty() {
        return "no backends\n".to_owned();
    }
    let heading = [
        "BACKEND",
        "ADDRESS",
        "WEIGHT",
        "ADMIN",
        "HEALTH",
        "SERVING",
        "NEIGHBOUR",
        "ACTIVE",
        "IDLE",
        "PACKETS",
        "LAST ERROR",
    ];
    let mut lines = vec![heading.map(Cell::heading)];
    lines.extend(rows.iter().map(|row| {
        let backend = &row.backend;
        let admin = if backend.removed {
            Cell::styled("removed", Style::Faint)
        } else {
            let style = match backend.admin {
                Admin::Active => Style::Plain,
                Admin::Draining | Admin::Disabled => Style::Doubtful,
            };
            Cell::styled(word(&backend.admin), style)
        };
        let health = match backend.health {
            Health::Up => Style::Good,
            Health::Unknown => Style::Faint,
            Health::Refusing => Style::Doubtful,
            Health::Down => Style::Bad,
        };
        let serving = match backend.serving {
            Serving::New => Style::Good,
            Serving::ExistingOnly => Style::Doubtful,
            Serving::None => Style::Bad,
        };
        let neighbour = match backend.neighbour {
            Neighbour::Resolved | Neighbour::Local => Style::Plain,
            Neighbour::Unresolved => Style::Bad,
        };
        [
            Cell::new(format!("{}/{}", row.service, backend.name)),
            Cell::new(SocketAddr::new(backend.address, backend.port).to_string()),
            Cell::new(backend.weight.to_string()),
            admin,
            Cell::styled(word(&backend.health), health),
            Cell::styled(word(&backend.serving), serving),
            Cell::styled(word(&backend.neighbour), neighbour),
            Cell::new(backend.flows.active.to_string()),
            Cell::new(backend.flows.idle.to_string()),
            Cell::new(row.traffic.packets.to_string()),
            Cell::styled(
                last_error(backend, now),
                if backend.last_error_ended.is_some() {
                    Style::Faint
                } else {
                    Style::Plain
                },
            ),
        ]
    }));
    table(&lines, colours) + &repeats_table(rows, colours)
}

/// What clients send again, of those backends whose services want to know; nothing if there is none.
fn repeats_table(rows: &[BackendRow], colours: Colours) -> String {
    let heading = ["BACKEND", "SYNS AGAIN", "OF", "DATA AGAIN", "OF", "EJECTED"];
    let mut lines = vec![heading.map(Cell::heading)];
    let percent = |share: ShareStatus| format!("{:.1}%", f64::from(share.per_mille) / 10.0);
    for row in rows {
        let balance = &row.backend.balance;
        let Some(repeats) = balance.repeats else {
            continue;
        };
        lines.push([
            Cell::new(format!("{}/{}", row.service, row.backend.name)),
            Cell::new(percent(repeats.syns)),
            Cell::new(repeats.syns.samples.to_string()),
            Cell::new(percent(repeats.data)),
            Cell::new(repeats.data.samples.to_string()),
            Cell::styled(
                balance.ejected.as_ref().map_or_else(String::new, ejection),
                Style::Doubtful,
            ),
        ]);
    }
    if lines.len() == 1 {
        return String::new();
    }
    format!("\n{}", table(&lines, colours))
}

impl Flows {
    /// As the daemon is asked; without a limit, which is kept apart.
    fn query(&self) -> FlowQuery {
        let (service, backend) = match self
            .backend
            .as_deref()
            .and_then(|name| name.split_once('/'))
        {
            Some((service, backend)) => (Some(service.to_owned()), Some(backend.to_owned())),
            None => (self.service.clone(), self.backend.clone()),
        };
        let states: Vec<_> = self.state.iter().map(|state| state.0.word()).collect();
        FlowQuery {
            service,
            backend,
            client: self.client.clone(),
            state: (!states.is_empty()).then(|| states.join(",")),
            min_age_s: self.older_than,
            max_age_s: self.younger_than,
            min_idle_s: self.idle_for,
            max_idle_s: self.seen_within,
            sort: self.sort,
            reverse: self.reverse,
            limit: None,
            after: self.after.clone(),
        }
    }

    fn limit(&self) -> usize {
        match self.limit {
            Some(0) => usize::MAX,
            Some(limit) => limit,
            None if self.json => usize::MAX,
            None => ROWS,
        }
    }
}

pub(super) fn flows(asked: &Flows) -> Result<(), Failure> {
    let mut query = asked.query();
    let mut left = asked.limit();
    let mut printer = Printer::new(io::stdout().lock(), asked.json, Colours::of_stdout());
    let end = super::ask(&asked.daemon, async |client| {
        loop {
            let end = page(&client, &mut query, left, &mut printer).await?;
            let Some(end) = end else {
                return Ok(None);
            };
            left = left.saturating_sub(usize::try_from(end.listed).unwrap_or(usize::MAX));
            if end.next.is_none() || left == 0 {
                return Ok(Some(end));
            }
            query.after = end.next;
        }
    })?;
    printer.finish()?;
    if let Some(next) = end.and_then(|end| end.next) {
        eprintln!("there are more: --after {next} goes on here, --limit 0 lists all");
    }
    Ok(())
}

/// Prints one answer: all that is left of an unsorted list, or a page of a sorted one.
async fn page(
    client: &Client,
    query: &mut FlowQuery,
    left: usize,
    printer: &mut Printer<impl Write>,
) -> Result<Option<FlowEnd>, client::Error> {
    query.limit = match query.sort {
        Some(_) => Some(left.min(MOST_SORTED)),
        None => (left != usize::MAX).then_some(left),
    };
    client.flows(query, |row| printer.print(row)).await
}

/// Prints flows as they come: the first are held back until the width of the columns is known.
struct Printer<W: Write> {
    out: BufWriter<W>,
    json: bool,
    colours: Colours,
    held: Vec<[Cell; 7]>,
    columns: Option<Columns<7>>,
    failed: Option<io::Error>,
}

impl<W: Write> Printer<W> {
    fn new(out: W, json: bool, colours: Colours) -> Self {
        let heading = ["CLIENT", "SERVICE", "BACKEND", "STATE", "AGE", "IDLE", ""];
        Self {
            out: BufWriter::new(out),
            json,
            colours,
            held: vec![heading.map(Cell::heading)],
            columns: None,
            failed: None,
        }
    }

    /// False if nothing can be printed any more.
    fn print(&mut self, row: FlowRow) -> bool {
        let printed = if self.json {
            serde_json::to_writer(&mut self.out, &row)
                .map_err(io::Error::from)
                .and_then(|()| self.out.write_all(b"\n"))
        } else {
            self.print_cells(cells(&row))
        };
        self.failed = printed.err();
        self.failed.is_none()
    }

    fn print_cells(&mut self, row: [Cell; 7]) -> io::Result<()> {
        if let Some(columns) = &self.columns {
            return writeln!(self.out, "{}", columns.line(&row));
        }
        self.held.push(row);
        if self.held.len() > SAMPLE {
            self.release()?;
        }
        Ok(())
    }

    fn release(&mut self) -> io::Result<()> {
        let columns = Columns::of(&self.held, self.colours);
        for row in std::mem::take(&mut self.held) {
            writeln!(self.out, "{}", columns.line(&row))?;
        }
        self.columns = Some(columns);
        Ok(())
    }

    fn finish(mut self) -> Result<(), Failure> {
        let printed = match self.failed.take() {
            Some(error) => Err(error),
            None if self.json || self.columns.is_some() => Ok(()),
            None if self.held.len() == 1 => writeln!(self.out, "no flows"),
            None => self.release(),
        };
        let flushed = printed.and_then(|()| self.out.flush());
        Ok(flushed.map_err(anyhow::Error::from)?)
    }
}

fn cells(row: &FlowRow) -> [Cell; 7] {
    let unknown = || Cell::styled("?", Style::Faint);
    let named = |name: &Option<String>| name.as_ref().map_or_else(unknown, Cell::new);
    let style = match row.state {
        FlowState::Pin => Style::Good,
        FlowState::Young => Style::Plain,
        FlowState::Embryo | FlowState::Challenger | FlowState::Closing => Style::Faint,
    };
    [
        Cell::new(row.client.to_string()),
        named(&row.service),
        named(&row.backend),
        Cell::styled(row.state.word(), style),
        row.age_s
            .map_or_else(unknown, |age| Cell::new(duration(age))),
        Cell::new(duration(row.idle_s)),
        Cell::styled(if row.adopted { "adopted" } else { "" }, Style::Faint),
    ]
}

#[cfg(test)]
mod tests;
