//! The admin API: HTTP and JSON on a Unix socket that only root, or the daemon's own user, may use; members of one group may read, if the
//! configuration names it. It describes itself at `/v1/openapi.json`: [`document`].

pub mod client;
pub mod document;
mod edit;
mod events;
mod explain;
mod left;
mod list;
mod packets;
mod peer;
mod places;
mod plan;
mod reload;
mod texts;

use std::{io, os::unix::fs::FileTypeExt as _, path::Path, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{
        Path as UrlPath, Query, Request, State,
        rejection::{PathRejection, QueryRejection},
    },
    http::{Method, StatusCode},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
};
use tokio::{
    net::UnixListener,
    sync::{mpsc, oneshot, watch},
};
use utoipa::OpenApi as _;
use utoipa_axum::{router::OpenApiRouter, routes};

use self::{
    document::{Document, Done, Failure, Failures, Reloaded, Undrained},
    events::FOLLOWERS,
    explain::Explainer,
    list::LISTS,
    peer::Right,
    places::Places,
    texts::Texts,
};
pub use self::{
    edit::PutBackend,
    events::Asked as AskedEvents,
    explain::Asked as AskedPacket,
    left::{AllLeft, BackendLeft},
    packets::AskedCapture,
    peer::Readers,
    reload::Reloader,
};
use crate::{
    config::{CLOSE_OVERS, DRAIN_DEADLINES, duration_within},
    dataplane::maps::Maps,
    desired::Refusal,
    explain::Rehearse,
    history::History,
    http::{self, gate::Gate},
    model::{Asked, BackendName},
    reconcile::Command,
    status::Status,
    watch::Watch,
};

/// Time in which the reconciler answers. It is busy for milliseconds at a time.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections that are served at once, at most, of those who may only look. Each may hold an answer of megabytes that it does not read.
const LOOKERS: usize = 32;

/// What requests act on.
#[derive(Clone, Debug)]
pub struct Admin {
    status: watch::Receiver<Arc<Status>>,
    maps: Arc<Maps>,
    commands: mpsc::Sender<Command>,
    reloader: Arc<Reloader>,
    lists: Places,
    followers: Places,
    texts: Texts,
    history: History,
    explainer: Explainer,
    watch: Option<Watch>,
}

impl Admin {
    /// Shows `status` and what is in `maps`; hands `commands` to the reconciler, and reads the configuration again by `reloader`.
    pub fn new(
        status: watch::Receiver<Arc<Status>>,
        maps: Arc<Maps>,
        commands: mpsc::Sender<Command>,
        reloader: Arc<Reloader>,
    ) -> Self {
        Self {
            status,
            maps,
            commands,
            reloader,
            lists: Places::of(LISTS),
            followers: Places::of(FOLLOWERS),
            texts: Texts::default(),
            history: History::default(),
            explainer: Explainer::new(None),
            watch: None,
        }
    }

    /// Tells of what is remembered there.
    #[must_use]
    pub fn remembering(self, history: History) -> Self {
        Self { history, ..self }
    }

    /// Listens there to single packets.
    #[must_use]
    pub fn watching(self, watch: Watch) -> Self {
        Self {
            watch: Some(watch),
            ..self
        }
    }

    /// Explains packets by running this program.
    #[must_use]
    pub fn explaining(self, program: Arc<dyn Rehearse>) -> Self {
        Self {
            explainer: Explainer::new(Some(program)),
            ..self
        }
    }
}

/// Opens the socket, for its owner and the group of `readers`. One that is left from a daemon that is gone is replaced: call this only while holding the
/// state directory's lock.
///
/// # Errors
/// When the path holds something else, or the directory cannot be written.
pub fn listen(path: &Path, readers: Readers) -> io::Result<UnixListener> {
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
    // Until this line the mode is the umask's; who connects meanwhile is turned away by user and group.
    readers.admit(path)?;
    Ok(listener)
}

/// Serves the API until `shutdown` turns true: at `listener`, and at each of `later` in place of the one before, which somebody has
/// removed.
pub async fn serve(
    mut listener: UnixListener,
    mut later: mpsc::Receiver<UnixListener>,
    admin: Admin,
    readers: Readers,
    mut shutdown: watch::Receiver<bool>,
) {
    let router = router(admin);
    // Who may only look has places of its own: it must not keep out those who may do more.
    let (gate, others) = (Gate::default(), Gate::of(LOOKERS));
    loop {
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
        let right = readers.right(&stream);
        let place = match right {
            Right::Everything => tokio::select! {
                () = crate::shutdown::requested(&mut shutdown) => return,
                place = gate.enter() => place,
            },
            // Nobody waits for such a place: whoever comes next would wait too.
            Right::Read | Right::Nothing => match others.try_enter() {
                Some(place) => place,
                None => {
                    tracing::debug!(
                        "a connection was closed: those who may only look have too many"
                    );
                    continue;
                }
            },
        };
        let router = router
            .clone()
            .layer(middleware::from_fn(move |request, next| {
                guard(right, request, next)
            }));
        tokio::spawn(http::serve(stream, router, place));
    }
}

/// Lets through what a peer may do, and has its right known to who answers.
async fn guard(right: Right, mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(right);
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    match right {
        Right::Everything => next.run(request).await,
        Right::Read if reads => next.run(request).await,
        Right::Read => http::error(
            StatusCode::FORBIDDEN,
            "members of admin_group may look and change nothing; run this as root",
        ),
        Right::Nothing => http::error(
            StatusCode::FORBIDDEN,
            "only root, the daemon's own user and members of admin_group may use this socket; run this as root",
        ),
    }
}

/// All that can be asked for. A route comes with its description.
fn api() -> OpenApiRouter<Admin> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(status))
        .routes(routes!(list::services))
        .routes(routes!(list::backends))
        .routes(routes!(list::flows))
        .routes(routes!(events::events))
        .routes(routes!(explain::explain))
        .routes(routes!(packets::flow_events))
        .routes(routes!(packets::capture))
        .routes(routes!(drain))
        .routes(routes!(undrain))
        .routes(routes!(drain_all))
        .routes(routes!(undrain_all))
        .routes(routes!(left::left))
        .routes(routes!(reload))
        .merge(edit::routes())
        .merge(plan::routes())
        .routes(routes!(document::openapi))
}

fn router(admin: Admin) -> Router {
    Router::from(api())
        .fallback(http::not_found)
        .method_not_allowed_fallback(http::wrong_method)
        .with_state(admin)
}

/// The state of everything
#[utoipa::path(get, path = "/v1/status", tag = "listings",
    responses((status = 200, description = "The state of things", body = Status),
        (status = 403, description = "Not for this user", body = Failure)))]
async fn status(State(admin): State<Admin>) -> Response {
    let status = admin.status.borrow().clone();
    admin
        .texts
        .answer(move || serde_json::to_vec(&*status))
        .await
}

/// A service's name and a backend's, in a path.
type Named = UrlPath<(String, String)>;

/// What a drain may be asked for with.
#[derive(serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Terms {
    /// How long flows may stay, as `30m`.
    deadline: Option<String>,
    /// Over which time they are closed then, as `60s`.
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

/// Give a backend no new flows
///
/// It keeps those it has. Holds over restarts, until it is undrained. With a deadline of this drain's own, if one is given.
#[utoipa::path(post, path = "/v1/services/{service}/backends/{backend}/drain", tag = "changes",
    params(("service" = String, Path, description = "Name of the service"), ("backend" = String, Path, description = "Name of the backend"), Terms),
    responses((status = 200, description = "It is remembered and in force", body = Done),
        (status = 400, description = "A name is no text, or a time is no duration", body = Failure),
        (status = 403, description = "Not for this user", body = Failure),
        (status = 404, description = "No such backend", body = Failure),
        (status = 500, description = "It cannot be remembered, and is not done", body = Failure),
        (status = 503, description = "The daemon is busy, or stopping", body = Failure)))]
async fn drain(
    State(admin): State<Admin>,
    name: Result<Named, PathRejection>,
    terms: Result<Query<Terms>, QueryRejection>,
) -> Result<Response, Response> {
    let (name, asked) = (named(name)?, asked(terms)?);
    let command = |reply| Command::Drain { name, asked, reply };
    Ok(ask(&admin, command).await)
}

/// End a drain
///
/// What was ordered is taken back, a deadline of its own with it. It takes new flows again, as its health allows; if the configuration itself says that
/// it is to take none, the answer says so.
#[utoipa::path(post, path = "/v1/services/{service}/backends/{backend}/undrain", tag = "changes",
    params(("service" = String, Path, description = "Name of the service"), ("backend" = String, Path, description = "Name of the backend")),
    responses((status = 200, description = "It is remembered and in force", body = Undrained),
        (status = 400, description = "A name is no text", body = Failure),
        (status = 403, description = "Not for this user", body = Failure),
        (status = 404, description = "No such backend", body = Failure),
        (status = 422, description = "It is drained with all others; or by the configuration alone, and nothing was ordered", body = Failure),
        (status = 500, description = "It cannot be remembered, and is not done", body = Failure),
        (status = 503, description = "The daemon is busy, or stopping", body = Failure)))]
async fn undrain(
    State(admin): State<Admin>,
    name: Result<Named, PathRejection>,
) -> Result<Response, Response> {
    let name = named(name)?;
    let command = |reply| Command::Undrain { name, reply };
    let undrained = |stays| Undrained { ok: true, stays };
    Ok(answer(exchange(&admin, command).await, undrained))
}

/// Evacuate this host
///
/// All backends are drained together, also those that are configured later, until that is ended. With a deadline, if one is given.
#[utoipa::path(post, path = "/v1/drain", tag = "changes", params(Terms),
    responses((status = 200, description = "It is remembered and in force", body = Done),
        (status = 400, description = "A time is no duration", body = Failure),
        (status = 403, description = "Not for this user", body = Failure),
        (status = 500, description = "It cannot be remembered, and is not done", body = Failure),
        (status = 503, description = "The daemon is busy, or stopping", body = Failure)))]
async fn drain_all(
    State(admin): State<Admin>,
    terms: Result<Query<Terms>, QueryRejection>,
) -> Result<Response, Response> {
    let asked = asked(terms)?;
    let command = |reply| Command::DrainAll { asked, reply };
    Ok(ask(&admin, command).await)
}

/// End the evacuation of this host
///
/// Backends that are drained by name stay so.
#[utoipa::path(post, path = "/v1/undrain", tag = "changes",
    responses((status = 200, description = "It is remembered and in force", body = Done),
        (status = 403, description = "Not for this user", body = Failure),
        (status = 500, description = "It cannot be remembered, and is not done", body = Failure),
        (status = 503, description = "The daemon is busy, or stopping", body = Failure)))]
async fn undrain_all(State(admin): State<Admin>) -> Response {
    let command = |reply| Command::UndrainAll { reply };
    ask(&admin, command).await
}

/// Has the reconciler do something that it does or refuses.
async fn ask(
    admin: &Admin,
    command: impl FnOnce(oneshot::Sender<Result<(), Refusal>>) -> Command,
) -> Response {
    answer(exchange(admin, command).await, |()| Done { ok: true })
}

/// What the reconciler has done, as `done` says it, or why it has not.
fn answer<T, D: serde::Serialize>(
    answered: Result<Result<T, Refusal>, Response>,
    done: impl FnOnce(T) -> D,
) -> Response {
    match answered {
        Ok(Ok(told)) => Json(done(told)).into_response(),
        Ok(Err(refusal)) => {
            let status = match &refusal {
                Refusal::Absent(_) => StatusCode::NOT_FOUND,
                Refusal::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
                Refusal::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            http::error(status, refusal)
        }
        Err(response) => response,
    }
}

/// Tells the reconciler something, and waits for what it answers; or gives the response that says why it does not.
async fn exchange<T>(
    admin: &Admin,
    command: impl FnOnce(oneshot::Sender<T>) -> Command,
) -> Result<T, Response> {
    let (reply, answer) = oneshot::channel();
    let asked = async {
        admin.commands.send(command(reply)).await.ok()?;
        answer.await.ok()
    };
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Some(answer)) => Ok(answer),
        Ok(None) => Err(stopping()),
        Err(_) => Err(busy()),
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

/// Read the configuration again
#[utoipa::path(post, path = "/v1/reload", tag = "changes",
    responses((status = 200, description = "It is accepted", body = Reloaded),
        (status = 403, description = "Not for this user", body = Failure),
        (status = 422, description = "It is refused, and the one in force stays", body = Failures)))]
async fn reload(State(admin): State<Admin>) -> Response {
    // To its end, though who asked goes meanwhile: a text that was read and not handed over would be taken for the one in force when the file is looked at.
    let reloading = tokio::spawn(async move { admin.reloader.reload().await });
    let reloaded = reloading
        .await
        .unwrap_or_else(|error| Err(vec![format!("the reload did not end: {error}")]));
    match reloaded {
        Ok(generation) => Json(Reloaded {
            ok: true,
            generation,
        })
        .into_response(),
        Err(errors) => {
            (StatusCode::UNPROCESSABLE_ENTITY, Json(Failures { errors })).into_response()
        }
    }
}

#[cfg(test)]
mod tests;
