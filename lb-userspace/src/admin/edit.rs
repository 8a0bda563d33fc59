//! Changing backends at runtime.

use std::net::IpAddr;

use axum::{
    Json,
    extract::{State, rejection::JsonRejection, rejection::PathRejection},
    response::Response,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Admin, Named,
    document::{Done, Failure},
};
use crate::{
    config::{BackendSpec, usual_weight},
    desired::Edit,
    http, model,
    reconcile::Command,
};

/// A backend in a request. Unlike what is remembered, it has no key that this version does not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PutBackend {
    /// Its address.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// Its port; none is the service's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Its share of new flows.
    #[serde(default = "usual_weight")]
    pub weight: u16,
    /// What the operator wants of it.
    #[serde(default)]
    pub admin: model::Admin,
}

/// A weight in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PutWeight {
    pub(super) weight: u16,
}

pub(super) fn routes() -> OpenApiRouter<Admin> {
    OpenApiRouter::new()
        .routes(routes!(put_backend, remove))
        .routes(routes!(put_weight))
        .routes(routes!(revert))
}

/// Add a backend to a service, or put another in the place of the one of this name
///
/// Held to the rules of the file, and kept over restarts beside it.
#[utoipa::path(put, path = "/v1/services/{service}/backends/{backend}", tag = "changes",
    params(("service" = String, Path, description = "Name of the service"), ("backend" = String, Path, description = "Name of the backend")),
    request_body = PutBackend,
    responses((status = 200, description = "It is remembered and in force", body = Done),
        (status = 400, description = "A name or the body is not understood", body = Failure),
        (status = 403, description = "Not for this user", body = Failure),
        (status = 404, description = "No such service", body = Failure),
        (status = 413, description = "Over 2 MB: no backend takes that long to describe", body = Failure),
        (status = 422, description = "It is wrong in itself, or beside the others", body = Failure),
        (status = 500, description = "It cannot be remembered, and is not done", body = Failure),
        (status = 503, description = "The daemon is busy, or stopping", body = Failure)))]
async fn put_backend(
    State(admin): State<Admin>,
    name: Result<Named, PathRejection>,
    body: Result<Json<PutBackend>, JsonRejection>,
) -> Response {
    let edit = body.map(|Json(backend)| {
        let PutBackend {
            address,
            port,
            weight,
            admin,
        } = backend;
        Edit::Put(BackendSpec {
            address,
            port,
            weight,
            admin,
        })
    });
    change(&admin, name, edit).await
}

/// Give a backend another share of new flows
#[utoipa::path(put, path = "/v1/services/{service}/backends/{backend}/weight", tag = "changes",
    params(("service" = String, Path, description = "Name of the service"), ("backend" = String, Path, description = "Name of the backend")),
    request_body = PutWeight,
    responses((status = 200, description = "It is remembered and in force", body = Done),
        (status = 400, description = "A name or the body is not understood", body = Failure),
        (status = 403, description = "Not for this user", body = Failure),
        (status = 404, description = "No such backend", body = Failure),
        (status = 413, description = "Over 2 MB: no backend takes that long to describe", body = Failure),
        (status = 422, description = "It is wrong in itself, or beside the others", body = Failure),
        (status = 500, description = "It cannot be remembered, and is not done", body = Failure),
        (status = 503, description = "The daemon is busy, or stopping", body = Failure)))]
async fn put_weight(
    State(admin): State<Admin>,
    name: Result<Named, PathRejection>,
    body: Result<Json<PutWeight>, JsonRejection>,
) -> Response {
    let edit = body.map(|Json(PutWeight { weight })| Edit::Weight(weight));
    change(&admin, name, edit).await
}

/// Drain a backend as one that leaves the file
#[utoipa::path(delete, path = "/v1/services/{service}/backends/{backend}", tag = "changes",
    params(("service" = String, Path, description = "Name of the service"), ("backend" = String, Path, description = "Name of the backend")),
    responses((status = 200, description = "It is remembered and in force", body = Done),
        (status = 400, description = "A name is no text", body = Failure),
        (status = 403, description = "Not for this user", body = Failure),
        (status = 404, description = "No such backend", body = Failure),
        (status = 422, description = "It is wrong in itself, or beside the others", body = Failure),
        (status = 500, description = "It cannot be remembered, and is not done", body = Failure),
        (status = 503, description = "The daemon is busy, or stopping", body = Failure)))]
async fn remove(State(admin): State<Admin>, name: Result<Named, PathRejection>) -> Response {
    change(&admin, name, Ok(Edit::Remove)).await
}

/// Make a backend what the file says
#[utoipa::path(post, path = "/v1/services/{service}/backends/{backend}/revert", tag = "changes",
    params(("service" = String, Path, description = "Name of the service"), ("backend" = String, Path, description = "Name of the backend")),
    responses((status = 200, description = "It is remembered and in force", body = Done),
        (status = 400, description = "A name is no text", body = Failure),
        (status = 403, description = "Not for this user", body = Failure),
        (status = 404, description = "No such backend", body = Failure),
        (status = 422, description = "It is wrong in itself, or beside the others", body = Failure),
        (status = 500, description = "It cannot be remembered, and is not done", body = Failure),
        (status = 503, description = "The daemon is busy, or stopping", body = Failure)))]
async fn revert(State(admin): State<Admin>, name: Result<Named, PathRejection>) -> Response {
    change(&admin, name, Ok(Edit::Revert)).await
}

async fn change(
    admin: &Admin,
    name: Result<Named, PathRejection>,
    edit: Result<Edit, JsonRejection>,
) -> Response {
    let name = match super::named(name) {
        Ok(name) => name,
        Err(malformed) => return malformed.into(),
    };
    let edit = match edit {
        Ok(edit) => edit,
        Err(rejection) => return http::error(rejection.status(), rejection.body_text()),
    };
    super::ask(admin, |reply| Command::Edit { name, edit, reply }).await
}
