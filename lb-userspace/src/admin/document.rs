//! The OpenAPI document: made of the handlers themselves, since a route can only be added together with its description.

use std::sync::LazyLock;

use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};
use utoipa::{OpenApi, ToSchema};

/// What is said of the API as a whole.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Tether's admin API",
        description = "Served on a Unix socket, `admin.sock` in the daemon's `state_dir`. Root and the daemon's own user may do everything; \
                       members of the configuration's `admin_group` may GET. Each connection carries one request.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
    ),
    servers((url = "http://tether", description = "The admin socket: `curl --unix-socket /run/tether/admin.sock http://tether/v1/status`"))
)]
pub(super) struct Document;

static TEXT: LazyLock<Result<String, String>> =
    LazyLock::new(|| document().to_json().map_err(|error| error.to_string()));

/// The document.
pub fn document() -> utoipa::openapi::OpenApi {
    super::api().into_openapi()
}

/// This document
#[utoipa::path(get, path = "/v1/openapi.json", tag = "about",
    responses((status = 200, description = "An OpenAPI 3.1 document", content_type = "application/json", body = serde_json::Value)))]
pub(super) async fn openapi() -> impl IntoResponse {
    match &*TEXT {
        Ok(text) => (
            [(axum::http::header::CONTENT_TYPE, "application/json")],
            text.as_str(),
        )
            .into_response(),
        Err(error) => crate::http::error(axum::http::StatusCode::INTERNAL_SERVER_ERROR, error),
    }
}

/// What went wrong.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub(super) struct Failure {
    /// What failed, on what, and what to do next.
    pub(super) error: String,
}

/// All that is wrong with a configuration.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub(super) struct Failures {
    /// Each with file, line, object and remedy.
    pub(super) errors: Vec<String>,
}

/// It is done.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub(super) struct Done {
    /// True.
    pub(super) ok: bool,
}

/// What was ordered is taken back.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub(super) struct Undrained {
    /// True.
    pub(super) ok: bool,
    /// Why the backend takes no new flows all the same, and what to do, if the configuration itself says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) stays: Option<String>,
}

/// The configuration was read again.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub(super) struct Reloaded {
    /// True.
    pub(super) ok: bool,
    /// The generation that it became.
    pub(super) generation: u64,
}
