//! The listener for machines that watch: metrics, liveness, readiness; and the status page. Read-only.
//!
//! | path | answer |
//! |---|---|
//! | `/`, `/events` | the status page, and its news |
//! | `/metrics` | everything, in the OpenMetrics text format |
//! | `/healthz` | 200 while the daemon answers at all |
//! | `/readyz` | 200 while the configuration is applied, the program attached and the host not evacuated, else 503 and what is missing |
//!
//! On loopback it answers to addresses and to `localhost` alone: `host`.

mod host;
mod metrics;
mod page;
mod scrapes;

use std::{fmt, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    middleware,
    response::{IntoResponse as _, Response},
    routing::get,
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};

use self::{metrics::Metrics, scrapes::Scrapes};
use crate::{
    dataplane::{kernel::runs::Runs, maps::Maps},
    flows::Census,
    health::ProbeTimes,
    history::History,
    http::{self, turns::Turns},
    notice::Told,
    status::Status,
};

/// Where the program's runs are asked for.
#[derive(Clone)]
struct RunSource(Arc<dyn Fn() -> Option<Runs> + Send + Sync>);

impl fmt::Debug for RunSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RunSource")
    }
}

/// What is shown.
#[derive(Clone, Debug)]
pub struct Web {
    maps: Arc<Maps>,
    status: watch::Receiver<Arc<Status>>,
    census: watch::Receiver<Arc<Census>>,
    probes: ProbeTimes,
    history: History,
    told: Arc<Told>,
    runs: RunSource,
    /// Places for those who listen to the page's news.
    readers: Arc<Semaphore>,
    /// Whose news are being made.
    writing: Turns,
    scrapes: Scrapes,
}

impl Web {
    /// Shows the counters in `maps` under the names in `status`, what the sweep did as `census` tells, how checks went,
    /// of how many flows backends were told, and on the page what `history` remembers.
    pub fn new(
        maps: Arc<Maps>,
        status: watch::Receiver<Arc<Status>>,
        census: watch::Receiver<Arc<Census>>,
        probes: ProbeTimes,
        history: History,
        told: Arc<Told>,
    ) -> Self {
        Self {
            maps,
            status,
            census,
            probes,
            history,
            told,
            runs: RunSource(Arc::new(|| None)),
            readers: Arc::new(Semaphore::new(page::READERS)),
            writing: Turns::of(1),
            scrapes: Scrapes::default(),
        }
    }

    /// Shows the program's runs too, whenever `runs` knows of any. It may block for as long as a system call does.
    pub fn with_runs(mut self, runs: impl Fn() -> Option<Runs> + Send + Sync + 'static) -> Self {
        self.runs = RunSource(Arc::new(runs));
        self
    }
}

/// Opens the listener.
///
/// # Errors
/// When the address is taken, or not this host's.
pub async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves until `shutdown` turns true.
pub async fn serve(listener: TcpListener, web: Web, mut shutdown: watch::Receiver<bool>) {
    let mut router = Router::new()
        .route("/", get(page::page))
        .route("/events", get(page::events))
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .fallback(http::not_found)
        .method_not_allowed_fallback(http::wrong_method)
        .with_state(web);
    if listener
        .local_addr()
        .is_ok_and(|address| address.ip().is_loopback())
    {
        router = router.layer(middleware::from_fn(host::guard));
    }
    let gate = http::gate::Gate::default();
    loop {
        let (stream, peer) = tokio::select! {
            () = crate::shutdown::requested(&mut shutdown) => return,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    http::accept_failed(error).await;
                    continue;
                }
            }
        };
        // Nobody waits: whoever comes next would wait too.
        let Some(place) = gate.enter_from(peer.ip()) else {
            tracing::debug!(%peer, "a connection was closed: its source has too many");
            continue;
        };
        tokio::spawn(http::serve(stream, router.clone(), place));
    }
}

async fn metrics(State(web): State<Web>) -> Response {
    let scrapes = web.scrapes.clone();
    // Tens of thousands of counters may have to be summed over all CPUs.
    let make = move || {
        let metrics = Metrics {
            status: web.status.borrow().clone(),
            census: web.census.borrow().clone(),
            maps: web.maps,
            probes: web.probes,
            told: web.told,
            runs: web.runs,
        };
        metrics.text()
    };
    match scrapes.text(make).await {
        Ok(text) => (
            [(
                header::CONTENT_TYPE,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            )],
            text,
        )
            .into_response(),
        Err(error) => http::error(StatusCode::INTERNAL_SERVER_ERROR, error),
    }
}

async fn ready(State(web): State<Web>) -> Response {
    let status = web.status.borrow().clone();
    match missing(&status) {
        None => "ready\n".into_response(),
        Some(what) => (StatusCode::SERVICE_UNAVAILABLE, format!("{what}\n")).into_response(),
    }
}

fn missing(status: &Status) -> Option<&'static str> {
    if status.generation.applied == 0 {
        Some("the configuration is not applied yet")
    } else if status.attachments.is_empty() {
        Some("the XDP program is not attached yet")
    } else if status.evacuated {
        Some("this host is evacuated: all backends are drained by `tether drain --all`")
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
