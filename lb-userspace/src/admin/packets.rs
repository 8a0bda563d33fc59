//! Events of flows and captures of packets: for as long as the answer is read.

use std::{
    collections::VecDeque,
    convert::Infallible,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    body::Body,
    extract::{Query, State, rejection::QueryRejection},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use futures::stream;
use hyper::body::Bytes;
use lb_common::watch::{Filter, MOST_KEPT};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, atomic::Ordering};
use tokio::time::Instant;
use utoipa::IntoParams;

use super::{Admin, document::Failure, events::BEAT};
use crate::{
    dataplane::{kernel::device, maps},
    http::{self, Endless},
    inventory::Names,
    watch::{
        Error, Listening, Seen,
        flow::{self, FlowEvent},
        pcapng::{self, Writer},
        wish::Wish,
    },
};

/// Packets that are put into words together: whose is an id is looked up once for all of them.
const TOGETHER: usize = 256;
/// Packets of a capture if nothing is said.
const PACKETS: u64 = 10_000;
/// Bytes of a capture if nothing is said.
const BYTES: u64 = 100_000_000;
/// Seconds of a capture if nothing is said.
const SECONDS: u64 = 60;
/// The most seconds of a capture: a day.
const MOST_SECONDS: u64 = 86_400;

/// Which packets, and how many.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub struct AskedCapture {
    /// Only those for the service of this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Only those of flows on this backend, as SERVICE/BACKEND.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Only those of clients in this prefix, as `10.0.0.0/8`, or of this one address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// Only those that come to one of these reasons, with commas between them; without it, all that are not left to the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// One of so many packets, by chance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample: Option<u32>,
    /// Bytes of each packet that are kept; 2,047 at most, and if it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snap: Option<u32>,
    /// It ends with so many packets; 10,000 if it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets: Option<u64>,
    /// It ends before it is longer than this; 100,000,000 if it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// It ends after so many seconds; 60 if it is not given, a day at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
}

impl AskedCapture {
    fn wish(&self) -> Wish {
        Wish {
            service: self.service.clone(),
            backend: self.backend.clone(),
            client: self.client.clone(),
            reason: self.reason.clone(),
            sample: self.sample,
        }
    }
}

/// From the monotonic clock to that of people.
#[derive(Clone, Copy, Debug)]
struct Clock {
    /// Nanoseconds since 1970 when the monotonic clock began.
    begun_ns: u64,
}

impl Clock {
    fn new() -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos() as u64);
        Self {
            begun_ns: now.saturating_sub(maps::now_ns()),
        }
    }

    fn ns(self, monotonic_ns: u64) -> u64 {
        self.begun_ns + monotonic_ns
    }
}

fn refused(error: &Error) -> Response {
    let status = match error {
        Error::Full | Error::Stopping => StatusCode::SERVICE_UNAVAILABLE,
        Error::Refused(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    http::error(status, error)
}

fn not_yet() -> Response {
    let text = "the program is not loaded yet; try again in a moment";
    http::error(StatusCode::SERVICE_UNAVAILABLE, text)
}

fn meaningless(text: String) -> Response {
    http::error(StatusCode::BAD_REQUEST, text)
}

/// Begins to listen to what passes a filter, if the question for it means something, and gives that too; or gives the response that says why not.
async fn listen(
    admin: &Admin,
    filter: Result<Filter, String>,
) -> Result<(Listening, Filter), Response> {
    let filter = filter.map_err(meaningless)?;
    let watch = admin.watch.as_ref().ok_or_else(not_yet)?;
    let listening = watch
        .listen(filter)
        .await
        .map_err(|error| refused(&error))?;
    Ok((listening, filter))
}

fn endless(kind: &'static str, body: Body) -> Response {
    let mut response = ([(header::CONTENT_TYPE, kind)], body).into_response();
    response.extensions_mut().insert(Endless);
    response
}

/// Events of flows, one a line, as they come
///
/// Each line is a JSON object; an empty line comes after 5 s without an event. They are told of while this answer is read: for that time the program is
/// replaced by one that watches, and it takes a second or more until that is in place. Goes on until the connection is closed.
#[utoipa::path(post, path = "/v1/flow-events", tag = "watching", params(Wish),
    responses((status = 200, description = "A line for each event", body = FlowEvent, content_type = "application/x-ndjson"),
        (status = 400, description = "The question means nothing", body = Failure),
        (status = 403, description = "Not for this user", body = Failure),
        (status = 500, description = "The kernel refuses the program that watches", body = Failure),
        (status = 503, description = "Four listen already, or the daemon is stopping", body = Failure)))]
pub(super) async fn flow_events(
    State(admin): State<Admin>,
    wish: Result<Query<Wish>, QueryRejection>,
) -> Result<Response, Response> {
    let Query(wish) = wish.map_err(|rejection| meaningless(rejection.body_text()))?;
    let status = admin.status.borrow().clone();
    let (listening, filter) = listen(&admin, wish.flows(&admin.maps, &status)).await?;
    let clock = Clock::new();
    let first = stream::once(async { Ok::<_, Infallible>(Bytes::from_static(b"\n")) });
    let rest = stream::unfold(
        (admin, listening),
        move |(admin, mut listening)| async move {
            let text = next_events(&admin, &mut listening, clock, &filter).await?;
            Some((Ok(Bytes::from(text)), (admin, listening)))
        },
    );
    let body = Body::from_stream(stream::StreamExt::chain(first, rest));
    Ok(endless("application/x-ndjson", body))
}

/// Lines of the next events, or an empty one where none comes in time, though packets may; none if the watch has ended, since the daemon ends.
async fn next_events(
    admin: &Admin,
    listening: &mut Listening,
    clock: Clock,
    filter: &Filter,
) -> Option<String> {
    let beat = Instant::now() + BEAT;
    while Instant::now() < beat {
        let mut seen = Vec::new();
        let packets = listening.packets.recv_many(&mut seen, TOGETHER);
        let text = match tokio::time::timeout_at(beat, packets).await {
            Ok(0) => return None,
            Ok(_) => events(admin, clock, filter, &seen),
            Err(_) => break,
        };
        if !text.is_empty() {
            return Some(text);
        }
    }
    Some("\n".to_owned())
}

fn events(admin: &Admin, clock: Clock, filter: &Filter, seen: &[Arc<Seen>]) -> String {
    let status = admin.status.borrow().clone();
    let names = Names::of(&admin.maps, &status);
    let mut text = String::new();
    let is_wanted = |seen: &&Arc<Seen>| flow::is_of_client(filter, &admin.maps, &seen.head);
    for seen in seen.iter().filter(is_wanted) {
        let at_ms = clock.ns(seen.head.at_ns) / 1_000_000;
        if let Some(event) = flow::event(seen, at_ms, &admin.maps, &names) {
            // It is made of words and numbers, which never fail to be written to memory.
            text += &serde_json::to_string(&event).unwrap_or_default();
            text.push('\n');
        }
    }
    text
}

/// Capture packets
///
/// A file as Wireshark reads it (pcapng), each packet as it came in, with what became of it as its comment. The program is replaced by one that watches for as long
/// as this answer is read, and it takes a second or more until that is in place.
#[utoipa::path(post, path = "/v1/capture", tag = "watching", params(AskedCapture),
    responses((status = 200, description = "The file, as it grows", body = Vec<u8>, content_type = "application/x-pcapng"),
        (status = 400, description = "The question means nothing", body = Failure),
        (status = 403, description = "Not for this user", body = Failure),
        (status = 500, description = "The kernel refuses the program that watches", body = Failure),
        (status = 503, description = "Four listen already, or the daemon is stopping", body = Failure)))]
pub(super) async fn capture(
    State(admin): State<Admin>,
    asked: Result<Query<AskedCapture>, QueryRejection>,
) -> Result<Response, Response> {
    let Query(asked) = asked.map_err(|rejection| meaningless(rejection.body_text()))?;
    let seconds = asked.seconds.unwrap_or(SECONDS);
    if seconds > MOST_SECONDS {
        let text = format!("{seconds} seconds are too many: {MOST_SECONDS} at most");
        return Err(meaningless(text));
    }
    let kept = asked.snap.unwrap_or(MOST_KEPT).min(MOST_KEPT);
    let status = admin.status.borrow().clone();
    let filter = asked.wish().packets(&admin.maps, &status, kept);
    let (listening, filter) = listen(&admin, filter).await?;
    let (writer, begin) = Writer::begin(kept);
    let file = File {
        admin,
        listening,
        filter,
        writer,
        clock: Clock::new(),
        packets: asked.packets.unwrap_or(PACKETS),
        bytes: room(asked.bytes, &begin),
        until: Instant::now() + Duration::from_secs(seconds),
        blocks: VecDeque::from([begin]),
        has_ended: false,
    };
    let body = stream::unfold(file, |mut file| async move {
        let block = file.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(block)), file))
    });
    Ok(endless("application/x-pcapng", Body::from_stream(body)))
}

/// Bytes of packets that there may be in a file that begins so, and is to be no longer than asked for: what it ends with is a part of it too.
fn room(asked: Option<u64>, begin: &[u8]) -> u64 {
    let others = begin.len() as u64 + pcapng::LONGEST_END;
    asked.unwrap_or(BYTES).saturating_sub(others)
}

/// A file that grows.
struct File {
    admin: Admin,
    listening: Listening,
    filter: Filter,
    writer: Writer,
    clock: Clock,
    /// Packets that may still come.
    packets: u64,
    /// Bytes that may still come.
    bytes: u64,
    until: Instant,
    /// What is to be sent.
    blocks: VecDeque<Vec<u8>>,
    has_ended: bool,
}

impl File {
    /// What comes next; none after the end.
    async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(block) = self.blocks.pop_front() {
                return Some(block);
            }
            if self.has_ended {
                return None;
            }
            // Who reads more slowly than packets come always finds some, and never waits for the end of the time.
            if self.packets == 0 || Instant::now() >= self.until {
                self.end();
                continue;
            }
            let mut seen = Vec::new();
            let most = usize::try_from(self.packets).map_or(TOGETHER, |left| left.min(TOGETHER));
            let packets = self.listening.packets.recv_many(&mut seen, most);
            match tokio::time::timeout_at(self.until, packets).await {
                Ok(0) | Err(_) => self.end(),
                Ok(_) => self.write(&seen),
            }
        }
    }

    fn write(&mut self, seen: &[Arc<Seen>]) {
        let status = self.admin.status.borrow().clone();
        let maps = &self.admin.maps;
        let names = Names::of(maps, &status);
        let mut text = Vec::new();
        let filter = self.filter;
        let is_wanted = |seen: &&Arc<Seen>| flow::is_of_client(&filter, maps, &seen.head);
        for seen in seen.iter().filter(is_wanted) {
            let (service, backend) = flow::names(maps, &names, &seen.head);
            let comment = pcapng::comment(seen, service.as_deref(), backend.as_deref());
            let at_ns = self.clock.ns(seen.head.at_ns);
            let block = self.writer.packet(seen, at_ns, &comment, device::name);
            let Some(left) = self.bytes.checked_sub(block.len() as u64) else {
                self.packets = 0;
                break;
            };
            (self.bytes, self.packets) = (left, self.packets - 1);
            text.extend(block);
        }
        if !text.is_empty() {
            self.blocks.push_back(text);
        }
    }

    fn end(&mut self) {
        self.has_ended = true;
        let lost = self.listening.lost.load(Ordering::Relaxed);
        let end = self.writer.end(self.clock.ns(maps::now_ns()), lost);
        self.blocks.push_back(end);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use lb_common::watch::Head;
    use tokio::sync::{mpsc, watch};

    use super::*;
    use crate::{
        admin::{Reloader, tests::CONFIG},
        config,
        inventory::tests as shown,
    };

    fn admin() -> Admin {
        let status = shown::a_status();
        let maps = Arc::new(shown::maps_of(&status));
        let (_, watched) = watch::channel(Arc::new(status));
        let (commands, _) = mpsc::channel(1);
        let first = config::parse(Path::new("tether.toml"), CONFIG).unwrap();
        let reloader = Arc::new(Reloader::new(&first.config, commands.clone()));
        Admin::new(watched, maps, commands, reloader)
    }

    /// Who listens, and what tells him of packets.
    fn listening() -> (mpsc::Sender<Arc<Seen>>, Listening) {
        let (told, packets) = mpsc::channel(TOGETHER);
        let lost = Arc::default();
        (told, Listening { packets, lost })
    }

    /// A packet that is no event of any flow.
    fn nothing() -> Arc<Seen> {
        Arc::new(Seen {
            head: Head::default(),
            data: vec![0; 14],
        })
    }

    #[tokio::test(start_paused = true)]
    async fn packets_without_an_event_hold_up_no_empty_line() {
        let (told, mut listening) = listening();
        tokio::spawn(async move {
            let mut each = tokio::time::interval(BEAT / 10);
            while told.send(nothing()).await.is_ok() {
                each.tick().await;
            }
        });
        let (begun, filter) = (Instant::now(), Filter::default());
        let line = next_events(&admin(), &mut listening, Clock::new(), &filter).await;
        assert_eq!(line.as_deref(), Some("\n"));
        assert!(begun.elapsed() >= BEAT && begun.elapsed() < 2 * BEAT);
    }

    /// A capture of three seconds, of so many packets and bytes at most.
    fn capture(listening: Listening, packets: u64, bytes: Option<u64>) -> File {
        let (writer, begin) = Writer::begin(64);
        File {
            admin: admin(),
            listening,
            filter: Filter::default(),
            writer,
            clock: Clock::new(),
            packets,
            bytes: room(bytes, &begin),
            until: Instant::now() + Duration::from_secs(3),
            blocks: VecDeque::from([begin]),
            has_ended: false,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_capture_ends_before_it_is_longer_than_asked_for() {
        // A packet has less, with the comment that goes with it and what it came in by.
        const PACKET: u64 = 400;
        for most in (600..740).step_by(7).chain([10_000]) {
            let (told, listening) = listening();
            let mut file = capture(listening, u64::MAX, Some(most));
            let (mut length, begun) = (0_u64, Instant::now());
            while let Some(block) = file.next().await {
                length += block.len() as u64;
                while told.try_send(nothing()).is_ok() {}
            }
            assert!(length <= most, "{length} of {most}");
            assert!(length + PACKET > most, "{length} of {most}");
            assert!(begun.elapsed() < Duration::from_secs(3), "it was full");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_capture_ends_with_as_many_packets_as_asked_for() {
        for most in [0, 1, 7, 300] {
            let (told, listening) = listening();
            let mut file = capture(listening, most, None);
            while file.next().await.is_some() {
                while told.try_send(nothing()).is_ok() {}
            }
            assert_eq!(file.writer.packets(), most);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_capture_ends_in_its_time_though_there_is_always_more() {
        let (told, listening) = listening();
        let mut file = capture(listening, u64::MAX, None);
        let mut blocks = 0;
        while file.next().await.is_some() {
            blocks += 1;
            assert!(blocks < 100, "it goes on for ever");
            told.try_send(nothing()).unwrap();
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        // The beginning, a packet after the first second and one after the second, and the end.
        assert_eq!(blocks, 4);
    }
}
