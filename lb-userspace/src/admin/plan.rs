//! What a configuration would change.

use std::path::PathBuf;

use axum::{
    Json, Router,
    extract::{
        DefaultBodyLimit, Query, State, rejection::QueryRejection, rejection::StringRejection,
    },
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::post,
};
use serde::Deserialize;
use tokio::sync::oneshot;

use super::{Admin, PATIENCE};
use crate::{config, http, reconcile::Command};

#[derive(Deserialize)]
struct Asked {
    /// The file's name, for messages.
    file: PathBuf,
}

pub(super) fn routes() -> Router<Admin> {
    Router::new()
        .route("/v1/plan", post(plan))
        .layer(DefaultBodyLimit::max(config::MAX_FILE as usize))
}

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
    // It reads files of authorities.
    let parsed = tokio::task::spawn_blocking(move || config::parse(&file, &text)).await;
    let config = match parsed {
        Ok(Ok(loaded)) => loaded.config,
        Ok(Err(problems)) => return refused(problems.iter().map(ToString::to_string).collect()),
        Err(error) => return http::error(StatusCode::INTERNAL_SERVER_ERROR, error),
    };
    let (reply, answer) = oneshot::channel();
    let asked = async {
        let command = Command::Preview {
            config: Box::new(config),
            reply,
        };
        admin.commands.send(command).await.ok()?;
        answer.await.ok()
    };
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Some(Ok(preview))) => Json(preview).into_response(),
        Ok(Some(Err(why))) => refused(vec![why]),
        Ok(None) => super::stopping(),
        Err(_) => super::busy(),
    }
}

fn refused(errors: Vec<String>) -> Response {
    let body = serde_json::json!({ "errors": errors });
    (StatusCode::UNPROCESSABLE_ENTITY, Json(body)).into_response()
}
