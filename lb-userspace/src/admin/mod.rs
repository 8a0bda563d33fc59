//! The admin API: HTTP and JSON on a Unix socket that only root, or the daemon's own user, may use.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/status` | 200, a [`Status`] |
//! | `POST /v1/services/SERVICE/backends/BACKEND/drain`, `…/undrain` | 200 `{"ok":true}`, or 404 `{"error":"…"}` |
//! | `POST …/drain?deadline=30m&close_over=60s` | the same with a deadline of this drain's own; 400 if these are no durations |
//! | `PUT /v1/services/SERVICE/backends/BACKEND` `{"address":"…","port":N,"weight":N,"admin":"…"}`, `DELETE` of the same | 200 `{"ok":true}`; 404; or 422 `{"error":"…"}` |
//! | `PUT …/backends/BACKEND/weight` `{"weight":N}`, `POST …/backends/BACKEND/revert` | the same |
//! | `POST /v1/drain`, with the same terms if any, `POST /v1/undrain` | 200 `{"ok":true}`, or 500 `{"error":"…"}` if that cannot be remembered: all backends together |
//! | `GET /v1/left?idle_after=10m&service=SERVICE&backend=BACKEND` | 200 `{"backends":[…]}`, a list of [`BackendLeft`]: of that name, or without one all |
//! | `POST /v1/plan?file=NAME`, a configuration as text | 200, a [`Preview`](crate::preview::Preview); or 422 `{"errors":["…"]}` |
//! | `POST /v1/reload` | 200 `{"generation":N}`, or 422 `{"errors":["…"]}` |

pub mod client;
mod edit;
mod left;
mod plan;
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

pub use self::{
    edit::PutBackend,
    left::{AllLeft, BackendLeft},
    reload::Reloader,
};
use crate::{
    config::{CLOSE_OVERS, DRAIN_DEADLINES, duration_within},
    dataplane::maps::Maps,
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
    /// Where flows are looked for.
    pub maps: Arc<Maps>,
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
        .route("/v1/drain", post(drain_all))
        .route("/v1/undrain", post(undrain_all))
        .route("/v1/left", get(left::left))
        .route("/v1/reload", post(reload))
        .merge(edit::routes())
        .merge(plan::routes())
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

/// Why a request is none that could be served.
struct Malformed {
    status: StatusCode,
    text: String,
}

impl From<Malformed> for Response {
    fn from(Malformed { status, text }: Malformed) -> Self {
        http::error(status, text)
    }
}

/// Those of a query.
fn asked(terms: Result<Query<Terms>, QueryRejection>) -> Result<Option<Asked>, Malformed> {
    let asked = match terms {
        Ok(Query(terms)) => terms.asked(),
        Err(rejection) => Err(rejection.body_text()),
    };
    asked.map_err(|text| Malformed {
        status: StatusCode::BAD_REQUEST,
        text,
    })
}

/// A backend's name in a path.
fn named(name: Result<Named, PathRejection>) -> Result<BackendName, Malformed> {
    match name {
        Ok(UrlPath((service, backend))) => Ok(BackendName { service, backend }),
        Err(rejection) => Err(Malformed {
            status: rejection.status(),
            text: rejection.body_text(),
        }),
    }
}

async fn drain(
    State(admin): State<Admin>,
    name: Result<Named, PathRejection>,
    terms: Result<Query<Terms>, QueryRejection>,
) -> Result<Response, Response> {
    let (name, asked) = (named(name)?, asked(terms)?);
    let command = |reply| Command::Drain { name, asked, reply };
    Ok(ask(&admin, command, StatusCode::NOT_FOUND).await)
}

async fn undrain(
    State(admin): State<Admin>,
    name: Result<Named, PathRejection>,
) -> Result<Response, Response> {
    let name = named(name)?;
    let command = |reply| Command::Undrain { name, reply };
    Ok(ask(&admin, command, StatusCode::NOT_FOUND).await)
}

async fn drain_all(
    State(admin): State<Admin>,
    terms: Result<Query<Terms>, QueryRejection>,
) -> Result<Response, Response> {
    let asked = asked(terms)?;
    let command = |reply| Command::DrainAll { asked, reply };
    Ok(ask(&admin, command, StatusCode::INTERNAL_SERVER_ERROR).await)
}

async fn undrain_all(State(admin): State<Admin>) -> Response {
    let command = |reply| Command::UndrainAll { reply };
    ask(&admin, command, StatusCode::INTERNAL_SERVER_ERROR).await
}

/// Has the reconciler do something; `refused` is what it means if it does not.
async fn ask(
    admin: &Admin,
    command: impl FnOnce(oneshot::Sender<Result<(), String>>) -> Command,
    refused: StatusCode,
) -> Response {
    let (reply, answer) = oneshot::channel();
    let asked = async {
        admin.commands.send(command(reply)).await.ok()?;
        answer.await.ok()
    };
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Some(Ok(()))) => Json(serde_json::json!({ "ok": true })).into_response(),
        Ok(Some(Err(text))) => http::error(refused, text),
        Ok(None) => stopping(),
        Err(_) => busy(),
    }
}

fn stopping() -> Response {
    http::error(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping")
}

fn busy() -> Response {
    http::error(
        StatusCode::SERVICE_UNAVAILABLE,
        "the daemon is busy; it may still do what was asked, see `tether status`",
    )
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
