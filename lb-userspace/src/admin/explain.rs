//! What becomes of a packet.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use utoipa::IntoParams;

use super::{Admin, document::Failure};
use crate::{
    explain::{self, Error, Explanation, Question, Rehearse, flags_of},
    http,
};

/// Runs the program for one question at a time: each takes as much memory as the flow table, and the kernel's verifier a second or more.
#[derive(Clone, Debug)]
pub(super) struct Explainer {
    program: Option<Arc<dyn Rehearse>>,
    place: Arc<Semaphore>,
}

impl Explainer {
    /// Runs this program.
    pub(super) fn new(program: Option<Arc<dyn Rehearse>>) -> Self {
        Self {
            program,
            place: Arc::new(Semaphore::new(1)),
        }
    }
}

/// The packet that is asked about.
#[derive(Clone, Debug, Deserialize, Serialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// Address and port of the client, as `192.0.2.7:40000` or `[2001:db8::7]:40000`.
    #[param(value_type = String)]
    pub client: SocketAddr,
    /// Address and port that it is for.
    #[param(value_type = String)]
    pub vip: SocketAddr,
    /// Its flags of TCP, as `syn` or `fin,ack`; without it, `ack` if the flow has an entry, else `syn`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flags: Option<String>,
    /// Its sequence number; without it, one that the flow's entry takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<u32>,
    /// Bytes of data that it carries; without it, none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<u16>,
    /// Name of the interface that it comes in by; without it, the first that the program is attached to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
}

impl Asked {
    fn question(self) -> Result<Question, String> {
        Ok(Question {
            client: self.client,
            vip: self.vip,
            flags: self.flags.as_deref().map(flags_of).transpose()?,
            seq: self.seq,
            payload: self.payload.unwrap_or(0),
            interface: self.interface,
        })
    }
}

/// What becomes of a packet, and why
///
/// The real program is run with a packet that is built for the purpose, on copies of what it writes: nothing is changed.
#[utoipa::path(get, path = "/v1/explain", tag = "listings", params(Asked),
    responses((status = 200, description = "Each stage's answer, and why", body = Explanation),
        (status = 400, description = "The question means nothing", body = Failure),
        (status = 403, description = "Not for this user", body = Failure),
        (status = 500, description = "The program could not be run", body = Failure),
        (status = 503, description = "Another packet is being explained", body = Failure)))]
pub(super) async fn explain(
    State(admin): State<Admin>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Response {
    let question = match asked {
        Ok(Query(asked)) => asked.question(),
        Err(rejection) => Err(rejection.body_text()),
    };
    let question = match question {
        Ok(question) => question,
        Err(text) => return http::error(StatusCode::BAD_REQUEST, text),
    };
    let Explainer { program, place } = admin.explainer;
    let Some(program) = program else {
        let text = "the program is not loaded yet; try again in a moment";
        return http::error(StatusCode::SERVICE_UNAVAILABLE, text);
    };
    let Ok(place) = place.try_acquire_owned() else {
        let text = "another packet is being explained; try again in a moment";
        return http::error(StatusCode::SERVICE_UNAVAILABLE, text);
    };
    let status = admin.status.borrow().clone();
    let explained = tokio::task::spawn_blocking(move || {
        let _place = place;
        explain::explain(&question, &admin.maps, &status, &*program)
    });
    match explained.await {
        Ok(Ok(explanation)) => Json(explanation).into_response(),
        Ok(Err(error @ Error::Question(_))) => http::error(StatusCode::BAD_REQUEST, error),
        Ok(Err(error @ Error::Rehearsal(_))) => {
            http::error(StatusCode::INTERNAL_SERVER_ERROR, error)
        }
        Err(error) => http::error(StatusCode::INTERNAL_SERVER_ERROR, error),
    }
}
