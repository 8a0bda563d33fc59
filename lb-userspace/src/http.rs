//! Serving HTTP/1.1 to few and local peers, with bounds on everything that a peer could make grow.

use std::{io, time::Duration};

use axum::{
    Json, Router,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::io::{AsyncRead, AsyncWrite};

/// Connections that are served at once by one listener, at most.
pub(crate) const CONNECTIONS: usize = 64;
/// Time in which a request's head must come.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Time in which a connection must be done. One connection carries one request.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// The most that is buffered of a request, in bytes.
const BUFFER: usize = 16 << 10;
/// Pause after a connection could not be accepted: the reason, mostly a lack of file descriptors, passes by itself.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves one connection.
pub(crate) async fn serve<S>(stream: S, router: Router)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .keep_alive(false)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => (),
        Ok(Err(error)) => tracing::debug!(%error, "a connection ended with an error"),
        Err(_) => tracing::debug!("a connection took too long"),
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
