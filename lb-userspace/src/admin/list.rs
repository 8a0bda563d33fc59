//! Listings: services, backends, flows.

use std::convert::Infallible;

use axum::{
    Extension,
    body::Body,
    extract::{Query, State, rejection::QueryRejection},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use futures::StreamExt as _;
use hyper::body::Bytes;
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use utoipa::IntoParams;

use super::{Admin, document::Failure, peer::Right};
use crate::{
    dataplane::maps,
    http::{self, Endless},
    inventory::{self, BackendRow, FlowLine, FlowQuery, Selection, ServiceRow},
};

/// Lists of flows that are read at once, at most: each takes a thread.
pub(super) const LISTS: usize = 4;
/// Text that is handed on together, in bytes.
const CHUNK: usize = 32 << 10;
/// Chunks that may wait for a slow reader.
const CHUNKS: usize = 4;

/// All services
#[utoipa::path(get, path = "/v1/services", tag = "listings",
    responses((status = 200, description = "Services, by name", body = Vec<ServiceRow>),
        (status = 403, description = "Not for this user", body = Failure)))]
pub(super) async fn services(State(admin): State<Admin>) -> Response {
    let status = admin.status.borrow().clone();
    let Admin { texts, maps, .. } = admin;
    texts
        .answer(move || serde_json::to_vec(&inventory::services(&maps, &status)))
        .await
}

/// Which backends.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Of {
    /// Only those of the service of this name.
    service: Option<String>,
}

/// All backends, or those of one service
#[utoipa::path(get, path = "/v1/backends", tag = "listings", params(Of),
    responses((status = 200, description = "Backends, by service; removed ones last", body = Vec<BackendRow>),
        (status = 400, description = "The question means nothing", body = Failure),
        (status = 403, description = "Not for this user", body = Failure),
        (status = 404, description = "No such service", body = Failure)))]
pub(super) async fn backends(
    State(admin): State<Admin>,
    of: Result<Query<Of>, QueryRejection>,
) -> Response {
    let service = match of {
        Ok(Query(Of { service })) => service,
        Err(rejection) => return http::error(rejection.status(), rejection.body_text()),
    };
    let status = admin.status.borrow().clone();
    if let Some(name) = &service
        && !status.services.iter().any(|known| known.name == *name)
    {
        let text = format!("there is no service {name:?}; `tether services` lists them");
        return http::error(StatusCode::NOT_FOUND, text);
    }
    let Admin { texts, maps, .. } = admin;
    let rows = move || {
        serde_json::to_vec(&inventory::backends(&maps, &status, |known| {
            service.as_ref().is_none_or(|name| known.name == *name)
        }))
    };
    texts.answer(rows).await
}

/// Flows, one a line
///
/// Each line is a JSON object with one member: `flow`, or, in the last line, `end`. Without that the answer is not whole. Lines are sent as
/// they are found; the daemon keeps no more than a sorted page.
#[utoipa::path(get, path = "/v1/flows", tag = "listings", params(FlowQuery),
    responses((status = 200, description = "A line for each flow, and one for the end", body = FlowLine, content_type = "application/x-ndjson"),
        (status = 400, description = "The question means nothing", body = Failure),
        (status = 403, description = "Not for this user", body = Failure),
        (status = 503, description = "Too many lists are being read", body = Failure)))]
pub(super) async fn flows(
    State(admin): State<Admin>,
    Extension(right): Extension<Right>,
    query: Result<Query<FlowQuery>, QueryRejection>,
) -> Response {
    let query = match query {
        Ok(Query(query)) => query,
        Err(rejection) => return http::error(rejection.status(), rejection.body_text()),
    };
    let selection = match query.select() {
        Ok(selection) => selection,
        Err(error) => return http::error(StatusCode::BAD_REQUEST, error),
    };
    let Some(place) = admin.lists.take(right) else {
        let text =
            format!("{LISTS} lists of flows are being read already; try again when one has ended");
        return http::error(StatusCode::SERVICE_UNAVAILABLE, text);
    };
    let (sender, mut chunks) = mpsc::channel(CHUNKS);
    tokio::task::spawn_blocking(move || read(&admin, &selection, &sender, place));
    let body = futures::stream::poll_fn(move |context| chunks.poll_recv(context));
    let mut response = (
        [(header::CONTENT_TYPE, "application/x-ndjson")],
        Body::from_stream(body.map(Ok::<_, Infallible>)),
    )
        .into_response();
    response.extensions_mut().insert(Endless);
    response
}

/// Reads the tables and hands on what is asked for, as long as somebody takes it.
fn read(
    admin: &Admin,
    selection: &Selection,
    sender: &mpsc::Sender<Bytes>,
    _place: OwnedSemaphorePermit,
) {
    let status = admin.status.borrow().clone();
    let mut text = Vec::with_capacity(CHUNK + 1024);
    inventory::list(&admin.maps, &status, selection, maps::now(), |line| {
        let is_last = matches!(line, FlowLine::End(_));
        // Names are text and numbers are finite: neither fails to be written to memory.
        if serde_json::to_writer(&mut text, &line).is_err() {
            return false;
        }
        text.push(b'\n');
        if is_last || text.len() >= CHUNK {
            let chunk = Bytes::from(std::mem::replace(
                &mut text,
                Vec::with_capacity(CHUNK + 1024),
            ));
            return sender.blocking_send(chunk).is_ok();
        }
        true
    });
}
