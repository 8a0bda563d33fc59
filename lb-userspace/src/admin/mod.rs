//! The admin API: HTTP and JSON on a Unix socket that only root, or the daemon's own user, may use.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/status` | 200, a [`Status`] |
//! | `POST /v1/services/SERVICE/backends/BACKEND/drain`, `…/undrain` | 200 `{"ok":true}`, or 404 `{"error":"…"}` |
//! | `POST …/drain?deadline=30m&close_over=60s` | the same with a deadline of this drain's own; 400 if these are no durations |
//! | `POST /v1/reload` | 200 `{"generation":N}`, or 422 `{"errors":["…"]}` |

pub mod client;
mod reload;

use std::{
    io,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::Path,
    sync::Arc,
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{
        Path as UrlPath, Query, State,
        rejection::{PathRejection, QueryRejection},
    },
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc, oneshot, watch},
};

pub use self::reload::Reloader;
use crate::{
    config::{CLOSE_OVERS, DRAIN_DEADLINES, duration_within},
    http,
    model::{Asked, BackendName},
    reconcile::Command,
    status::Status,
};

/// Time in which the reconciler answers. It is busy for milliseconds at a time.
const PATIENCE: Duration = Duration::from_secs(10);

/// What requests act on.
#[derive(Clone, Debug)]
pub struct Admin {
    /// The state of things.
    pub status: watch::Receiver<Arc<Status>>,
    /// To the reconciler.
    pub commands: mpsc::Sender<Command>,
    /// Reads the configuration again.
    pub reloader: Arc<Reloader>,
}

/// Opens the socket, for its owner alone. One that is left from a daemon that is gone is replaced: call this only while holding the
/// state directory's lock.
///
/// # Errors
/// When the path holds something else, or the directory cannot be written.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path)?,
        Ok(_) => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "something that is no socket is in its place",
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => (),
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    // Until this line the mode is the umask's; who connects meanwhile is turned away by user id.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves the API until `shutdown` turns true: at `listener`, and at each of `later` in place of the one before, which somebody has
/// removed.
pub async fn serve(
    mut listener: UnixListener,
    mut later: mpsc::Receiver<UnixListener>,
    admin: Admin,
    mut shutdown: watch::Receiver<bool>,
) {
    let router = router(admin);
    let places = Arc::new(Semaphore::new(http::CONNECTIONS));
    loop {
        let place = places.clone().acquire_owned().await;
        let stream = tokio::select! {
            () = crate::shutdown::requested(&mut shutdown) => return,
            Some(next) = later.recv() => {
                listener = next;
                continue;
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    http::accept_failed(error).await;
                    continue;
                }
            }
        };
        let router = if is_trusted(&stream) {
            router.clone()
        } else {
            Router::new().fallback(async || {
                http::error(
                    StatusCode::FORBIDDEN,
                    "only root and the daemon's own user may use this socket",
                )
            })
        };
        tokio::spawn(async move {
            http::serve(stream, router).await;
            drop(place);
        });
    }
}

fn is_trusted(stream: &UnixStream) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    stream
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
}

fn router(admin: Admin) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route(
            "/v1/services/{service}/backends/{backend}/drain",
            post(drain),
        )
        .route(
            "/v1/services/{service}/backends/{backend}/undrain",
            post(undrain),
        )
        .route("/v1/reload", post(reload))
        .fallback(http::not_found)
        .method_not_allowed_fallback(async || {
            http::error(
                StatusCode::METHOD_NOT_ALLOWED,
                "this path takes another method",
            )
        })
        .with_state(admin)
}

async fn status(State(admin): State<Admin>) -> Response {
    let status = admin.status.borrow().clone();
    Json(&*status).into_response()
}

/// A service's name and a backend's, in a path.
type Named = UrlPath<(String, String)>;

/// What a drain may be asked for with.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Terms {
    deadline: Option<String>,
    close_over: Option<String>,
}

impl Terms {
    /// The deadline that is asked for.
    fn asked(&self) -> Result<Option<Asked>, String> {
        let close_over = self
            .close_over
            .as_ref()
            .map(|text| duration_within(text, CLOSE_OVERS))
            .transpose()?;
        match &self.deadline {
            Some(deadline) => Ok(Some(Asked {
                deadline: duration_within(deadline, DRAIN_DEADLINES)?,
                close_over,
                since: None,
            })),
            None if close_over.is_some() => Err("close_over is given without a deadline".into()),
            None => Ok(None),
        }
    }
}

async fn drain(
    State(admin): State<Admin>,
    name: Result<Named, PathRejection>,
    terms: Result<Query<Terms>, QueryRejection>,
) -> Response {
    let asked = match terms {
        Ok(Query(terms)) => terms.asked(),
        Err(rejection) => Err(rejection.body_text()),
    };
    match asked {
        Ok(asked) => {
            ask(&admin, name, |name, reply| Command::Drain {
                name,
                asked,
                reply,
            })
            .await
        }
        Err(wrong) => http::error(StatusCode::BAD_REQUEST, wrong),
    }
}

async fn undrain(State(admin): State<Admin>, name: Result<Named, PathRejection>) -> Response {
    ask(&admin, name, |name, reply| Command::Undrain { name, reply }).await
}

async fn ask(
    admin: &Admin,
    name: Result<Named, PathRejection>,
    command: impl FnOnce(BackendName, oneshot::Sender<Result<(), String>>) -> Command,
) -> Response {
    let name = match name {
        Ok(UrlPath((service, backend))) => BackendName { service, backend },
        Err(rejection) => return http::error(rejection.status(), rejection.body_text()),
    };
    let (reply, answer) = oneshot::channel();
    let asked = async {
        admin.commands.send(command(name, reply)).await.ok()?;
        answer.await.ok()
    };
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Some(Ok(()))) => Json(serde_json::json!({ "ok": true })).into_response(),
        Ok(Some(Err(text))) => http::error(StatusCode::NOT_FOUND, text),
        Ok(None) => http::error(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping"),
        Err(_) => http::error(
            StatusCode::SERVICE_UNAVAILABLE,
            "the daemon is busy; it may still do what was asked, see `tether status`",
        ),
    }
}

async fn reload(State(admin): State<Admin>) -> Response {
    match admin.reloader.reload().await {
        Ok(generation) => {
            Json(serde_json::json!({ "ok": true, "generation": generation })).into_response()
        }
        Err(errors) => {
            let body = serde_json::json!({ "errors": errors });
            (StatusCode::UNPROCESSABLE_ENTITY, Json(body)).into_response()
        }
    }
}

#[cfg(test)]
mod tests;
