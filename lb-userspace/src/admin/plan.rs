//! What a configuration would change.

use std::path::PathBuf;

use axum::{
    Json,
    extract::{
        DefaultBodyLimit, Query, State, rejection::QueryRejection, rejection::StringRejection,
    },
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Admin,
    document::{Failure, Failures},
};
use crate::{config, http, preview::Preview, reconcile::Command};

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Asked {
    /// The file's name, for messages.
    #[param(value_type = String)]
    file: PathBuf,
}

pub(super) fn routes() -> OpenApiRouter<Admin> {
    OpenApiRouter::new()
        .routes(routes!(plan))
        .layer(DefaultBodyLimit::max(config::MAX_FILE as usize))
}

/// What a configuration would change
///
/// Nothing is done.
#[utoipa::path(post, path = "/v1/plan", tag = "changes", params(Asked),
    request_body(content = String, content_type = "text/plain", description = "The configuration"),
    responses((status = 200, description = "What would change", body = Preview),
        (status = 400, description = "The file has no name, or is no text", body = Failure),
        (status = 403, description = "Not for this user", body = Failure),
        (status = 413, description = "No configuration is that long", body = Failure),
        (status = 422, description = "It would be refused", body = Failures),
        (status = 503, description = "The daemon is busy, or stopping", body = Failure)))]
async fn plan(
    State(admin): State<Admin>,
    asked: Result<Query<Asked>, QueryRejection>,
    text: Result<String, StringRejection>,
) -> Response {
    let Query(Asked { file }) = match asked {
        Ok(asked) => asked,
        Err(rejection) => return http::error(rejection.status(), rejection.body_text()),
    };
    let text = match text {
        Ok(text) => text,
        Err(rejection) => return http::error(rejection.status(), rejection.body_text()),
    };
    // It reads files of authorities and of prefixes.
    let parsed = tokio::task::spawn_blocking(move || config::parse(&file, &text)).await;
    let config = match parsed {
        Ok(Ok(loaded)) => loaded.config,
        Ok(Err(problems)) => return refused(problems.iter().map(ToString::to_string).collect()),
        Err(error) => return http::error(StatusCode::INTERNAL_SERVER_ERROR, error),
    };
    let command = |reply| Command::Preview {
        config: Box::new(config),
        reply,
    };
    match super::exchange(&admin, command).await {
        Ok(Ok(preview)) => Json(preview).into_response(),
        Ok(Err(why)) => refused(vec![why]),
        Err(response) => response,
    }
}

fn refused(errors: Vec<String>) -> Response {
    (StatusCode::UNPROCESSABLE_ENTITY, Json(Failures { errors })).into_response()
}
