//! The command line's side of the admin API.

mod lines;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, task::JoinHandle};

use super::{
    AllLeft, AskedPacket, BackendLeft,
    edit::{PutBackend, PutWeight},
};
use crate::{
    explain::Explanation,
    inventory::{BackendRow, ServiceRow},
    model::{Asked, BackendName},
    preview::Preview,
    status::Status,
};

/// Time in which the daemon answers.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest answer that is read, in bytes: the status of tens of thousands of backends.
const ANSWER: usize = 64 << 20;

/// Why a request to the daemon failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens.
    #[error(
        "no daemon answers at {}: {source}; start one with `tether run --config FILE`, or name its socket with --socket (it is `admin.sock` in the daemon's `state_dir`)",
        path.display()
    )]
    Absent {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not for this user.
    #[error("{} is for root, the daemon's own user, and members of admin_group if the configuration names one; run this as root", path.display())]
    Forbidden {
        /// The socket.
        path: PathBuf,
    },
    /// It said no.
    #[error("{0}")]
    Refused(String),
    /// It said: not now.
    #[error("{0}")]
    Later(String),
    /// It did not answer, or not as it should.
    #[error("the daemon at {} gave no usable answer: {why}; see its log", path.display())]
    Unusable {
        /// The socket.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// A daemon, by its socket.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
}

/// An answer or a part of one, and the connection that brings the rest.
type Answer<T> = (T, Connection);

/// Brings an answer as long as it is held.
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Deserialize)]
struct Failure {
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    errors: Vec<String>,
}

#[derive(Deserialize)]
struct Done {}

#[derive(Deserialize)]
struct Undrained {
    #[serde(default)]
    stays: Option<String>,
}

#[derive(Deserialize)]
struct Reloaded {
    generation: u64,
}

impl Client {
    /// The daemon whose socket is at `path`. Nothing is opened yet.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// The state of things.
    ///
    /// # Errors
    /// When there is no daemon, or it does not answer.
    pub async fn status(&self) -> Result<Status, Error> {
        self.ask(Method::GET, "/v1/status", Body::None).await
    }

    /// All services, with what came for them.
    ///
    /// # Errors
    /// When there is no daemon, or it does not answer.
    pub async fn services(&self) -> Result<Vec<ServiceRow>, Error> {
        self.ask(Method::GET, "/v1/services", Body::None).await
    }

    /// The backends of one service, or of all, with what they were sent.
    ///
    /// # Errors
    /// When there is no daemon, or no such service.
    pub async fn backends(&self, of: Option<&str>) -> Result<Vec<BackendRow>, Error> {
        let path = match of {
            Some(service) => format!("/v1/backends?service={}", encoded(service)),
            None => "/v1/backends".to_owned(),
        };
        self.ask(Method::GET, &path, Body::None).await
    }

    /// Stops new flows to a backend; with a deadline of this drain's own, if one is asked for.
    ///
    /// # Errors
    /// When there is no daemon, or no such backend.
    pub async fn drain(&self, name: &BackendName, asked: Option<Asked>) -> Result<(), Error> {
        self.change(&format!("{}/{}", path_of(name), drain(asked)))
            .await
    }

    /// Stops new flows to all backends, those to come among them; with a deadline of this drain's own, if one is asked for.
    ///
    /// # Errors
    /// When there is no daemon, or it cannot remember that.
    pub async fn drain_all(&self, asked: Option<Asked>) -> Result<(), Error> {
        self.change(&format!("/v1/{}", drain(asked))).await
    }

    /// Ends the drain of all backends.
    ///
    /// # Errors
    /// When there is no daemon, or it cannot remember that.
    pub async fn undrain_all(&self) -> Result<(), Error> {
        self.change("/v1/undrain").await
    }

    /// What is left of the flows of all backends of a name, or without one of all there are. Flows are idle that have been silent for `idle_after`,
    /// or for ten minutes if that is not given.
    ///
    /// # Errors
    /// When there is no daemon, or it has only just started.
    pub async fn left(
        &self,
        name: Option<&BackendName>,
        idle_after: Option<Duration>,
    ) -> Result<Vec<BackendLeft>, Error> {
        let name = name.map(|name| {
            let (service, backend) = (encoded(&name.service), encoded(&name.backend));
            format!("service={service}&backend={backend}")
        });
        let idle_after = idle_after.map(|time| format!("idle_after={}", ms(time)));
        let terms: Vec<String> = name.into_iter().chain(idle_after).collect();
        let path = format!("/v1/left?{}", terms.join("&"));
        let all: AllLeft = self.ask(Method::GET, &path, Body::None).await?;
        Ok(all.backends)
    }

    /// What becomes of a packet, and why.
    ///
    /// # Errors
    /// When there is no daemon, the question means nothing, or the program cannot be run.
    pub async fn explain(&self, asked: &AskedPacket) -> Result<Explanation, Error> {
        let path = format!("/v1/explain?{}", lines::text_of(asked));
        self.ask(Method::GET, &path, Body::None).await
    }

    /// Takes back what was ordered of a backend; gives why it takes no new flows all the same, if the configuration itself says so.
    ///
    /// # Errors
    /// When there is no daemon, no such backend, or nothing to take back from one that is drained otherwise.
    pub async fn undrain(&self, name: &BackendName) -> Result<Option<String>, Error> {
        let path = format!("{}/undrain", path_of(name));
        let Undrained { stays } = self.ask(Method::POST, &path, Body::None).await?;
        Ok(stays)
    }

    /// Adds a backend, or puts another in the place of one.
    ///
    /// # Errors
    /// When there is no daemon or no such service, or the backend is wrong in itself or beside the others.
    pub async fn put_backend(&self, name: &BackendName, backend: &PutBackend) -> Result<(), Error> {
        let Done {} = self
            .ask(Method::PUT, &path_of(name), self.json(backend)?)
            .await?;
        Ok(())
    }

    /// Removes a backend: it is drained.
    ///
    /// # Errors
    /// When there is no daemon, or no such backend.
    pub async fn remove_backend(&self, name: &BackendName) -> Result<(), Error> {
        let Done {} = self.ask(Method::DELETE, &path_of(name), Body::None).await?;
        Ok(())
    }

    /// Gives a backend another share of new flows.
    ///
    /// # Errors
    /// When there is no daemon, no such backend, or the weight is out of bounds.
    pub async fn set_weight(&self, name: &BackendName, weight: u16) -> Result<(), Error> {
        let path = format!("{}/weight", path_of(name));
        let body = self.json(&PutWeight { weight })?;
        let Done {} = self.ask(Method::PUT, &path, body).await?;
        Ok(())
    }

    /// Makes a backend what the file says of it.
    ///
    /// # Errors
    /// When there is no daemon, no such backend, or others that were changed at runtime stand in the way.
    pub async fn revert(&self, name: &BackendName) -> Result<(), Error> {
        self.change(&format!("{}/revert", path_of(name))).await
    }

    /// What a configuration would change, if its file were loaded now.
    ///
    /// # Errors
    /// When there is no daemon, or the configuration would be refused: all its errors, a line each.
    pub async fn plan(&self, file: &Path, text: String) -> Result<Preview, Error> {
        let path = format!("/v1/plan?file={}", encoded(&file.to_string_lossy()));
        self.ask(Method::POST, &path, Body::Text(text)).await
    }

    fn json(&self, value: &impl Serialize) -> Result<Body, Error> {
        serde_json::to_vec(value)
            .map(Body::Json)
            .map_err(|error| self.unusable(error))
    }

    /// Has the configuration read again; gives the generation that it became.
    ///
    /// # Errors
    /// When there is no daemon, or the configuration is refused: all its errors, a line each.
    pub async fn reload(&self) -> Result<u64, Error> {
        let reloaded: Reloaded = self.ask(Method::POST, "/v1/reload", Body::None).await?;
        Ok(reloaded.generation)
    }

    async fn change(&self, path: &str) -> Result<(), Error> {
        let Done {} = self.ask(Method::POST, path, Body::None).await?;
        Ok(())
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<T, Error> {
        let exchange = async {
            let answer = self.send(method, path, body).await?;
            let (body, _connection) = self.succeeded(answer).await?;
            let bytes = self.whole(body).await?;
            serde_json::from_slice(&bytes).map_err(|error| self.unusable(error))
        };
        match tokio::time::timeout(PATIENCE, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(self.silent()),
        }
    }

    /// Sends a request and waits for the head of its answer.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<Answer<Response<Incoming>>, Error> {
        let stream = UnixStream::connect(&self.path).await.map_err(|source| {
            let path = self.path.clone();
            if source.kind() == io::ErrorKind::PermissionDenied {
                Error::Forbidden { path }
            } else {
                Error::Absent { path, source }
            }
        })?;
        // By single buffers, which the standard library writes to sockets without a signal: by several at once, a daemon that answers and goes before it
        // has read all would end this process, which has SIGPIPE do that for the sake of its standard output.
        let (mut sender, connection) = http1::Builder::new()
            .writev(false)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.unusable(error))?;
        let connection = Connection(tokio::spawn(async move {
            // What goes wrong with it, who waits for the answer is told.
            drop(connection.await);
        }));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "tether");
        let request = match body {
            Body::None => request.body(Full::default()),
            Body::Text(text) => request
                .header(header::CONTENT_TYPE, "text/plain; charset=utf-8")
                .body(Full::new(Bytes::from(text))),
            Body::Json(text) => request
                .header(header::CONTENT_TYPE, "application/json")
                .body(Full::new(Bytes::from(text))),
        }
        .map_err(|error| self.unusable(error))?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| self.unusable(error))?;
        Ok((response, connection))
    }

    /// The body of an answer that is a yes.
    async fn succeeded(
        &self,
        (response, connection): Answer<Response<Incoming>>,
    ) -> Result<Answer<Incoming>, Error> {
        let status = response.status();
        let body = response.into_body();
        if status.is_success() {
            return Ok((body, connection));
        }
        let bytes = self.whole(body).await?;
        let failure: Failure = serde_json::from_slice(&bytes)
            .map_err(|_| self.unusable(format!("status {status}")))?;
        let text = failure.error.unwrap_or_else(|| failure.errors.join("\n"));
        Err(match status {
            StatusCode::FORBIDDEN => Error::Refused(format!("{}: {text}", self.path.display())),
            StatusCode::SERVICE_UNAVAILABLE => Error::Later(text),
            _ => Error::Refused(text),
        })
    }

    async fn whole(&self, body: Incoming) -> Result<Bytes, Error> {
        let collected = Limited::new(body, ANSWER).collect().await;
        Ok(collected.map_err(|error| self.unusable(error))?.to_bytes())
    }

    fn silent(&self) -> Error {
        self.unusable(format!("nothing within {} s", PATIENCE.as_secs()))
    }

    fn unusable(&self, why: impl std::fmt::Display) -> Error {
        Error::Unusable {
            path: self.path.clone(),
            why: why.to_string(),
        }
    }
}

/// What goes with a request.
enum Body {
    None,
    Text(String),
    Json(Vec<u8>),
}

/// Where a backend is in the API.
fn path_of(name: &BackendName) -> String {
    format!(
        "/v1/services/{}/backends/{}",
        encoded(&name.service),
        encoded(&name.backend)
    )
}

/// How a drain is asked for.
fn drain(asked: Option<Asked>) -> String {
    let mut verb = "drain".to_owned();
    if let Some(asked) = asked {
        verb += &format!("?deadline={}", ms(asked.deadline));
        if let Some(over) = asked.close_over {
            verb += &format!("&close_over={}", ms(over));
        }
    }
    verb
}

fn ms(time: Duration) -> String {
    format!("{}ms", time.as_millis())
}

/// A name as one segment of a URL's path (RFC 3986, section 2.3: what is not unreserved is percent-encoded).
fn encoded(name: &str) -> String {
    let mut text = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text += &format!("%{byte:02X}");
        }
    }
    text
}
