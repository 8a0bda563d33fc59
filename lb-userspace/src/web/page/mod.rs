//! The status page: read-only, one file that fetches nothing from anywhere else, and kept true by server-sent events.
//!
//! | path | answer |
//! |---|---|
//! | `/` | the page |
//! | `/events` | its news: `past` first, then `now` at once and with each sample, and `backends` of those services that `open` names |

mod news;

use std::{convert::Infallible, sync::LazyLock, time::Duration};

use axum::{
    extract::{Query, State, rejection::QueryRejection},
    http::{HeaderName, StatusCode, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::{Stream, StreamExt as _, future, stream};
use serde::Deserialize;
use tokio::sync::OwnedSemaphorePermit;

use super::Web;
use crate::http::{self, Endless};

/// Readers of `/events` at once, at most: a part of a listener's connections, so that scrapes have the rest.
pub(super) const READERS: usize = 16;
/// Services whose backends one reader is told, at most.
const OPEN: usize = 32;
/// Time after which something is sent even without news, so that a reader that is gone is noticed.
const HEARTBEAT: Duration = Duration::from_secs(15);

static PAGE: LazyLock<String> = LazyLock::new(|| {
    include_str!("page.html")
        .replace("/*STYLE*/", include_str!("style.css"))
        .replace("/*SCRIPT*/", include_str!("script.js"))
});

/// What the page may do: nothing but run itself and listen to its own host.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";
const HEADERS: [(HeaderName, &str); 5] = [
    (header::CONTENT_TYPE, "text/html; charset=utf-8"),
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-cache"),
];

pub(super) async fn page() -> impl IntoResponse {
    (HEADERS, PAGE.as_str())
}

/// What a reader wants beside the whole.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Wanted {
    /// Names of services whose backends it shows, as a JSON array.
    #[serde(default)]
    open: Option<String>,
}

pub(super) async fn events(
    State(web): State<Web>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Response {
    let open: Vec<String> = match wanted.map(|Query(wanted)| wanted.open) {
        Ok(None) => Vec::new(),
        Ok(Some(text)) => match serde_json::from_str(&text) {
            Ok(names) => names,
            Err(error) => {
                let text = format!("open is no JSON array of names: {error}");
                return http::error(StatusCode::BAD_REQUEST, text);
            }
        },
        Err(rejection) => return http::error(rejection.status(), rejection.body_text()),
    };
    if open.len() > OPEN {
        let text = format!("open names more than {OPEN} services");
        return http::error(StatusCode::BAD_REQUEST, text);
    }
    let Ok(place) = web.readers.clone().try_acquire_owned() else {
        let text = format!("{READERS} pages are open already; close one");
        return http::error(StatusCode::SERVICE_UNAVAILABLE, text);
    };
    let keep_alive = KeepAlive::new().interval(HEARTBEAT);
    let mut response = Sse::new(news(web, open, place))
        .keep_alive(keep_alive)
        .into_response();
    response.extensions_mut().insert(Endless);
    response
}

/// What one reader is told, for as long as it listens.
fn news(
    web: Web,
    open: Vec<String>,
    place: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<Event, Infallible>> {
    let samples = web.history.samples();
    let begun = web.clone();
    let first = stream::once(async move {
        let past = |web: &Web| event("past", &news::past(web));
        made(&begun, past).await
    });
    let later = stream::unfold(
        (web, open, samples, place, false),
        async |(web, open, mut samples, place, fresh)| {
            if fresh && samples.changed().await.is_err() {
                return None;
            }
            samples.mark_unchanged();
            let wanted = open.clone();
            let now = move |web: &Web| {
                let mut events = vec![event("now", &news::now(web, fresh))];
                if !wanted.is_empty() {
                    events.push(event("backends", &news::backends(web, &wanted)));
                }
                events
            };
            let events = made(&web, now).await?;
            Some((stream::iter(events), (web, open, samples, place, true)))
        },
    );
    let first = first.filter_map(future::ready);
    first.chain(later.flatten()).map(Ok)
}

/// Has news made beside the threads that checks of health wait for, and those of one reader at a time: readers that come and go, and come again, keep one CPU
/// busy at most. None if they cannot be made.
async fn made<T: Send + 'static>(
    web: &Web,
    make: impl FnOnce(&Web) -> T + Send + 'static,
) -> Option<T> {
    let shown = web.clone();
    web.writing.take(move || make(&shown)).await.ok()
}

fn event(name: &str, data: &impl serde::Serialize) -> Event {
    // What is told is made of texts and finite numbers, and has no map with other keys: it can be written.
    let event = Event::default().event(name);
    match event.json_data(data) {
        Ok(event) => event,
        Err(error) => Event::default().comment(error.to_string()),
    }
}
