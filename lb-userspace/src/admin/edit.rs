//! Changing backends at runtime.

use std::net::IpAddr;

use axum::{
    Json, Router,
    extract::{State, rejection::JsonRejection, rejection::PathRejection},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::{post, put},
};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::{Admin, Named, PATIENCE};
use crate::{
    config::{BackendSpec, usual_weight},
    desired::{Edit, Refusal},
    http, model,
    reconcile::Command,
};

/// A backend in a request. Unlike what is remembered, it has no key that this version does not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PutBackend {
    /// Its address.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PutWeight {
    pub(super) weight: u16,
}

pub(super) fn routes() -> Router<Admin> {
    Router::new()
        .route(
            "/v1/services/{service}/backends/{backend}",
            put(put_backend).delete(remove),
        )
        .route(
            "/v1/services/{service}/backends/{backend}/weight",
            put(put_weight),
        )
        .route(
            "/v1/services/{service}/backends/{backend}/revert",
            post(revert),
        )
}

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

async fn put_weight(
    State(admin): State<Admin>,
    name: Result<Named, PathRejection>,
    body: Result<Json<PutWeight>, JsonRejection>,
) -> Response {
    let edit = body.map(|Json(PutWeight { weight })| Edit::Weight(weight));
    change(&admin, name, edit).await
}

async fn remove(State(admin): State<Admin>, name: Result<Named, PathRejection>) -> Response {
    change(&admin, name, Ok(Edit::Remove)).await
}

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
    let (reply, answer) = oneshot::channel();
    let asked = async {
        let command = Command::Edit { name, edit, reply };
        admin.commands.send(command).await.ok()?;
        answer.await.ok()
    };
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Some(Ok(()))) => Json(serde_json::json!({ "ok": true })).into_response(),
        Ok(Some(Err(refusal))) => {
            let status = match &refusal {
                Refusal::Absent(_) => StatusCode::NOT_FOUND,
                Refusal::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
                Refusal::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            http::error(status, refusal)
        }
        Ok(None) => super::stopping(),
        Err(_) => super::busy(),
    }
}
