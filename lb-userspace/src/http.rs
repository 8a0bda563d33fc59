//! Serving HTTP/1.1 to few peers, with bounds on everything that a peer could make grow.
//!
//! | what a peer may do | what bounds it |
//! |---|---|
//! | connect and say nothing, or speak slowly | [`HEAD_TIMEOUT`]; when all places are taken, the silent one that came first goes: [`gate`] |
//! | send a huge head or body | [`BUFFER`]; a body that no handler reads is not read |
//! | read its answer slowly, or not at all | [`CONNECTION_TIMEOUT`]; for an answer without an end, [`stall`] |
//! | connect many times | [`gate::CONNECTIONS`], of which who has the most gives way, and its own handlers' bounds |

pub(crate) mod gate;
mod stall;
pub(crate) mod turns;

use std::{io, time::Duration};

use axum::{
    Json, Router,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use hyper::{
    Request,
    body::Incoming,
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::io::{AsyncRead, AsyncWrite};

use self::{gate::Place, stall::Unstalled};

/// Time in which a request's head must come.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Time in which a connection must be done, unless its answer is [`Endless`]. One connection carries one request.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// The most that is buffered of a request, in bytes.
const BUFFER: usize = 16 << 10;
/// Pause after a connection could not be accepted: the reason, mostly a lack of file descriptors, passes by itself.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An extension of a response whose body may take any time, as long as its reader goes on reading.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Endless;

/// Serves one connection, in a place of its listener's.
pub(crate) async fn serve<S>(stream: S, router: Router, place: Place)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let router = TowerToHyperService::new(router);
    let answer = service_fn(|request: Request<Incoming>| {
        place.asked();
        let answered = router.call(request);
        async {
            let response = answered.await?;
            if response.extensions().get::<Endless>().is_some() {
                place.is_endless();
            }
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .keep_alive(false)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(Unstalled::new(stream)), answer);
    tokio::select! {
        served = connection => if let Err(error) = served {
            tracing::debug!(%error, "a connection ended with an error");
        },
        () = place.given_up(CONNECTION_TIMEOUT) => {
            tracing::debug!("a connection took too long, or its place was needed");
        }
    }
}

/// Logs that a connection could not be accepted, and waits a moment.
pub(crate) async fn accept_failed(error: io::Error) {
    tracing::warn!(%error, "a connection could not be accepted");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

/// An error as the APIs put it.
pub(crate) fn error(status: StatusCode, text: impl std::fmt::Display) -> Response {
    let body = serde_json::json!({ "error": text.to_string() });
    (status, Json(body)).into_response()
}

/// The answer to a path that does not exist.
pub(crate) async fn not_found() -> Response {
    error(StatusCode::NOT_FOUND, "there is no such path")
}

/// The answer to a path that exists, for another method.
pub(crate) async fn wrong_method() -> Response {
    error(
        StatusCode::METHOD_NOT_ALLOWED,
        "this path takes another method",
    )
}

#[cfg(test)]
mod tests;
