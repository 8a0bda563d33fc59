//! Changes of state, those that were and those that come.

use std::{convert::Infallible, time::Duration};

use axum::{
    Extension,
    body::Body,
    extract::{Query, State, rejection::QueryRejection},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use futures::stream;
use hyper::body::Bytes;
use serde::{Deserialize, Serialize};
use utoipa::IntoParams;

use super::{Admin, document::Failure, peer::Right};
use crate::{
    history::{Event, History, changes::Level},
    http::{self, Endless},
};

/// After so long without a change, followers are sent an empty line: so one that is gone is noticed, and one that listens knows that the daemon lives.
pub(super) const BEAT: Duration = Duration::from_secs(5);
/// Followers at once, at most: a part of the socket's connections, of which each keeps one for as long as it likes.
pub(super) const FOLLOWERS: usize = 16;

/// Which changes.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// Go on with what comes. Otherwise the answer ends with the last change so far.
    #[serde(default)]
    pub follow: bool,
    /// Only what is at least so grave: `good`, `info`, `warning` or `bad`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(inline)]
    pub level: Option<Level>,
    /// At most so many of those that were; the daemon remembers 200.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// Changes of state, one a line
///
/// Each line is a JSON object. With `follow`, an empty line comes after 5 s without a change; numbers that are left out are of changes that this reader was too
/// slow for, or that are less grave than asked for.
#[utoipa::path(get, path = "/v1/events", tag = "listings", params(Asked),
    responses((status = 200, description = "A line for each change, the latest last", body = Event, content_type = "application/x-ndjson"),
        (status = 400, description = "The question means nothing", body = Failure),
        (status = 403, description = "Not for this user", body = Failure),
        (status = 503, description = "Too many follow already", body = Failure)))]
pub(super) async fn events(
    State(admin): State<Admin>,
    Extension(right): Extension<Right>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Response {
    let Query(asked) = match asked {
        Ok(asked) => asked,
        Err(rejection) => return http::error(StatusCode::BAD_REQUEST, rejection.body_text()),
    };
    let history = admin.history;
    let (mut text, next) = past(&history, asked);
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    if !asked.follow {
        return (kind, text).into_response();
    }
    let Some(place) = admin.followers.take(right) else {
        let text = format!("{FOLLOWERS} follow the changes already; try again when one has ended");
        return http::error(StatusCode::SERVICE_UNAVAILABLE, text);
    };
    // The head of the answer is sent with its first bytes: a reader is to know at once that it listens.
    if text.is_empty() {
        text.push('\n');
    }
    let changed = history.changed();
    let first = stream::once(async { Ok::<_, Infallible>(Bytes::from(text)) });
    let rest = stream::unfold(
        (history, changed, next, place),
        move |(history, mut changed, next, place)| async move {
            // Ends only with the history, which this state holds.
            let beat = tokio::time::timeout(BEAT, changed.wait_for(|number| *number > next))
                .await
                .map(|heard| heard.map(drop));
            let (text, next) = match beat {
                Ok(Ok(_)) => lines(&history, next, asked.level),
                Ok(Err(_)) => return None,
                Err(_) => ("\n".to_owned(), next),
            };
            Some((Ok(Bytes::from(text)), (history, changed, next, place)))
        },
    );
    let body = stream::StreamExt::chain(first, rest);
    let mut response = (kind, Body::from_stream(body)).into_response();
    response.extensions_mut().insert(Endless);
    response
}

/// What was, and the number of the next change.
fn past(history: &History, asked: Asked) -> (String, u64) {
    let events = history.events(usize::MAX);
    let next = events.last().map_or(0, |event| event.number + 1);
    let wanted: Vec<&Event> = events
        .iter()
        .filter(|event| is_grave(event, asked.level))
        .collect();
    let skip = wanted.len() - asked.limit.unwrap_or(wanted.len()).min(wanted.len());
    (text(wanted.into_iter().skip(skip)), next)
}

/// Changes from a number on, and the number of the next one.
fn lines(history: &History, from: u64, level: Option<Level>) -> (String, u64) {
    let events = history.events(usize::MAX);
    let next = events.last().map_or(from, |event| event.number + 1);
    let wanted = events
        .iter()
        .filter(|event| event.number >= from && is_grave(event, level));
    (text(wanted), next)
}

fn is_grave(event: &Event, level: Option<Level>) -> bool {
    level.is_none_or(|level| event.change.level >= level)
}

fn text<'e>(events: impl Iterator<Item = &'e Event>) -> String {
    events.fold(String::new(), |mut text, event| {
        // It is made of words and numbers, which never fail to be written to memory.
        text += &serde_json::to_string(event).unwrap_or_default();
        text.push('\n');
        text
    })
}
