//! What is left of backends' flows, for whoever waits until it is nothing.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use lb_common::flow::word::BackendRef;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{Admin, document::Failure};
use crate::{
    config::{IDLE_AFTERS, duration_within},
    dataplane::maps::{self, Maps},
    flows::left::{self, Left},
    http,
    model::Admin as Intent,
    status::{BackendStatus, ServiceStatus, Status},
};

/// Flows seen within this time are active if nothing else is said, as in the status.
const IDLE_AFTER: Duration = Duration::from_mins(10);

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AllLeft {
    /// Backends, those without flows among them.
    pub backends: Vec<BackendLeft>,
}

/// What is left of one backend's flows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackendLeft {
    /// Its service's name.
    pub service: String,
    /// Its name.
    pub backend: String,
    /// Its address, since removed backends may share their name with another.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Whether it takes no new flows, whatever its health and that of others: it is drained, disabled or removed.
    pub leaving: bool,
    /// Its flows.
    #[serde(flatten)]
    pub left: Left,
}

/// What may be asked.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Question {
    /// Flows that were not seen for so long are idle, as `10m`, which it is if it is left out.
    idle_after: Option<String>,
    /// Only backends of this service.
    service: Option<String>,
    /// Only backends of this name.
    backend: Option<String>,
}

impl Question {
    fn is_about(&self, service: &ServiceStatus, backend: &BackendStatus) -> bool {
        let matches = |wanted: &Option<String>, name: &String| {
            wanted.as_ref().is_none_or(|wanted| wanted == name)
        };
        matches(&self.service, &service.name) && matches(&self.backend, &backend.name)
    }
}

/// What is left of backends' flows
#[utoipa::path(get, path = "/v1/left", tag = "listings", params(Question),
    responses((status = 200, description = "Backends, those without flows among them", body = AllLeft),
        (status = 400, description = "The question means nothing", body = Failure),
        (status = 403, description = "Not for this user", body = Failure),
        (status = 503, description = "The daemon has only just started", body = Failure)))]
pub(super) async fn left(
    State(admin): State<Admin>,
    question: Result<Query<Question>, QueryRejection>,
) -> Response {
    let wrong = |text| http::error(StatusCode::BAD_REQUEST, text);
    let question = match question {
        Ok(Query(question)) => question,
        Err(rejection) => return wrong(rejection.body_text()),
    };
    let idle_after = match &question.idle_after {
        None => Ok(IDLE_AFTER),
        Some(text) => duration_within(text, IDLE_AFTERS),
    };
    let idle_after = match idle_after {
        Ok(time) => time,
        Err(text) => return wrong(text),
    };
    let status = admin.status.borrow().clone();
    if status.generation.resolved == 0 {
        return http::error(
            StatusCode::SERVICE_UNAVAILABLE,
            "the daemon has only just started",
        );
    }
    // Whole flow tables are looked through: tens of milliseconds for a million flows.
    let looked =
        tokio::task::spawn_blocking(move || look(&admin.maps, &status, &question, idle_after));
    match looked.await {
        Ok(left) => Json(left).into_response(),
        Err(error) => http::error(StatusCode::INTERNAL_SERVER_ERROR, error),
    }
}

fn look(maps: &Maps, status: &Status, question: &Question, idle_after: Duration) -> AllLeft {
    let references = references(maps);
    let asked_about: Vec<_> = status
        .services
        .iter()
        .flat_map(|service| {
            let backends = service.backends.iter();
            backends.map(move |backend| (service, backend))
        })
        .filter(|(service, backend)| question.is_about(service, backend))
        .map(|(service, backend)| {
            let reference = references.get(&backend.identity(service)).copied();
            (service, backend, reference)
        })
        .collect();
    let now = maps::now();
    let wanted = asked_about
        .iter()
        .filter_map(|(_, _, reference)| *reference);
    let left = left::left(maps, wanted, idle_after, now);
    let backends = asked_about
        .into_iter()
        .map(|(service, backend, reference)| BackendLeft {
            service: service.name.clone(),
            backend: backend.name.clone(),
            address: backend.address,
            port: backend.port,
            leaving: backend.removed || backend.admin != Intent::Active,
            left: reference
                .and_then(|reference| left.get(&reference).copied())
                .unwrap_or_default(),
        });
    AllLeft {
        backends: backends.collect(),
    }
}

/// What entries name backends by, by identity.
fn references(maps: &Maps) -> HashMap<u64, BackendRef> {
    maps.backend_ids()
        .map(|(identity, id)| {
            let generation = maps.state(id).generation();
            (identity, BackendRef::new(id, generation))
        })
        .collect()
}
