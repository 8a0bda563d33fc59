//! How a backend is asked for its health.

use std::{
    net::IpAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyper::{
    Method,
    header::{HeaderMap, HeaderValue},
    http::uri::PathAndQuery,
};
use rustls::pki_types::{CertificateDer, ServerName};

/// How a backend is asked for its health, and what is made of the answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What is asked.
    pub kind: CheckKind,
    /// Whether it goes to the VIP, as a client's packets do, and not to the backend's own address. In modes `ipip` and `l2` only.
    pub through_vip: bool,
    /// Time between two checks.
    pub interval: Duration,
    /// Time between two checks while a verdict is in doubt, if that is shorter.
    pub doubt_interval: Duration,
    /// By how much either interval varies, in percent of it, so that checks of many backends do not fall together.
    pub jitter_percent: u8,
    /// Time after which a check has failed, whatever of it is done.
    pub timeout: Duration,
    /// Failures in a row that change a verdict for the worse.
    pub fall: u32,
    /// Successes in a row that change it for the better.
    pub rise: u32,
    /// Time from a backend's first check on in which failures do not count, unless it has been up.
    pub startup_grace: Duration,
    /// What a backend counts as until the first verdict.
    pub initial: Initial,
    /// Checks of one service that are under way at once, at most.
    pub at_once: usize,
}

impl Check {
    /// Checks begin at so many moments of an interval and at none between, so that one awakening of the process serves several.
    pub const STEPS: u32 = 100;

    /// What a service without a word on its health gets.
    pub const DEFAULT: Self = Self {
        kind: CheckKind::Tcp,
        through_vip: false,
        interval: Duration::from_secs(2),
        doubt_interval: Duration::from_millis(500),
        jitter_percent: 10,
        timeout: Duration::from_secs(1),
        fall: 3,
        rise: 2,
        startup_grace: Duration::ZERO,
        initial: Initial::Unknown,
        at_once: 128,
    };

    /// The longest time from any moment to the end of a check that begins after it, while nothing is in doubt and no other check is in its way.
    pub fn longest_gap(&self) -> Duration {
        let jitter = self.interval * u32::from(self.jitter_percent) / 100;
        self.interval + jitter + self.interval / Self::STEPS + self.timeout
    }
}

/// What a backend counts as until its first verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Initial {
    /// It takes no new flows.
    #[default]
    Unknown,
    /// It takes new flows at once.
    Up,
}

/// What a check asks. The same for all backends of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// A TCP handshake.
    Tcp,
    /// A request over HTTP/1.1, with or without TLS.
    Http(Arc<HttpCheck>),
    /// A WebSocket's opening handshake.
    WebSocket(Arc<WebSocketCheck>),
    /// A call of `grpc.health.v1.Health/Check`.
    Grpc(Arc<GrpcCheck>),
}

impl CheckKind {
    /// How it is wrapped in TLS, if it is.
    pub fn tls(&self) -> Option<&Tls> {
        match self {
            Self::Tcp => None,
            Self::Http(check) => check.target.tls.as_ref(),
            Self::WebSocket(check) => check.target.tls.as_ref(),
            Self::Grpc(check) => check.target.tls.as_ref(),
        }
    }
}

/// What all requests have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestTarget {
    /// The host that is asked for; none is the backend's address.
    pub host: Option<HeaderValue>,
    /// Headers beside those that the protocol itself needs.
    pub headers: HeaderMap,
    /// How it is wrapped in TLS, if it is.
    pub tls: Option<Tls>,
}

impl RequestTarget {
    /// The host that a backend at an address is asked for.
    pub fn host_at(&self, address: IpAddr) -> String {
        match &self.host {
            // It was made of a string.
            Some(host) => String::from_utf8_lossy(host.as_bytes()).into_owned(),
            None => match address {
                IpAddr::V4(address) => address.to_string(),
                // RFC 3986, section 3.2.2.
                IpAddr::V6(address) => format!("[{address}]"),
            },
        }
    }
}

/// A request over HTTP/1.1, and the answer that is a yes. Redirects are not followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpCheck {
    /// Host, headers and TLS.
    pub target: RequestTarget,
    /// Method.
    pub method: Method,
    /// Path and query.
    pub path: PathAndQuery,
    /// Status codes that are a yes.
    pub status: Vec<RangeInclusive<u16>>,
    /// What the body must contain.
    pub body_contains: Option<String>,
    /// What the body, as JSON, must hold.
    pub json: Option<JsonEquals>,
}

/// A value of a JSON document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonEquals {
    /// Where (RFC 6901); the empty pointer is the document.
    pub pointer: String,
    /// A string, a number, true or false.
    pub equals: serde_json::Value,
}

/// A WebSocket's opening handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebSocketCheck {
    /// Host, headers and TLS.
    pub target: RequestTarget,
    /// Path and query.
    pub path: PathAndQuery,
    /// Whether a ping must be answered, too.
    pub ping: bool,
}

/// A call of `grpc.health.v1.Health/Check`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrpcCheck {
    /// Host, headers and TLS; HTTP/2 with prior knowledge where there is no TLS.
    pub target: RequestTarget,
    /// Whose health is asked for; empty is that of the server as a whole.
    pub service: String,
}

/// How a check is wrapped in TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Whose certificates are good.
    pub trust: Trust,
    /// The name that is asked for (SNI) and that the certificate must be for; none is the backend's address.
    pub name: Option<ServerName<'static>>,
}

/// Whose certificates are good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Those of the authorities that this host trusts.
    System,
    /// Those of the authorities in a file.
    Authorities(Arc<Authorities>),
    /// Any: nothing is verified.
    Anyone,
}

/// Certificates of authorities, as they were in a file when it was read.
#[derive(Clone, PartialEq, Eq)]
pub struct Authorities {
    path: PathBuf,
    certificates: Vec<CertificateDer<'static>>,
}

impl Authorities {
    /// Takes over what a file holds.
    pub fn new(path: PathBuf, certificates: Vec<CertificateDer<'static>>) -> Self {
        Self { path, certificates }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The certificates.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }
}

impl std::fmt::Debug for Authorities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authorities")
            .field("path", &self.path)
            .field("certificates", &self.certificates.len())
            .finish()
    }
}

/// A host as it stands in a URL or a header, without its port: what a certificate may be for.
pub(crate) fn without_port(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    match host.rsplit_once(':') {
        // More than one colon: an IPv6 address.
        Some((name, port)) if !name.contains(':') && port.bytes().all(|b| b.is_ascii_digit()) => {
            name
        }
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_told_from_its_port() {
        for (host, name) in [
            ("chat.example", "chat.example"),
            ("chat.example:8443", "chat.example"),
            ("10.0.0.1:80", "10.0.0.1"),
            ("[2001:db8::1]:80", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("2001:db8::1", "2001:db8::1"),
        ] {
            assert_eq!(without_port(host), name);
        }
    }
}
