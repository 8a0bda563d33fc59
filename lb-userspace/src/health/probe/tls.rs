//! TLS around a check. Sessions are not kept: each check is a whole handshake, as a new client's is.

use std::{
    io,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{Failure, Limit};
use crate::model::{CheckKind, Tls, Trust};

/// What is spoken within TLS (ALPN, RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Http1,
    Http2,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http/1.1",
            Self::Http2 => "h2",
        }
    }
}

/// The configurations of TLS that are in use, each once: the authorities that a host trusts take much memory.
#[derive(Debug, Default)]
pub(in super::super) struct Clients(Mutex<Vec<Known>>);

#[derive(Debug)]
struct Known {
    trust: Trust,
    protocol: Protocol,
    config: Weak<ClientConfig>,
}

impl Clients {
    /// What a check of a backend at an address needs, if it goes over TLS; or why it cannot.
    pub(super) fn client(
        &self,
        kind: &CheckKind,
        address: IpAddr,
    ) -> Option<Result<Client, String>> {
        let tls = kind.tls()?;
        let protocol = match kind {
            CheckKind::Grpc(_) => Protocol::Http2,
            CheckKind::Tcp | CheckKind::Http(_) | CheckKind::WebSocket(_) => Protocol::Http1,
        };
        Some(self.config(&tls.trust, protocol).map(|config| Client {
            config,
            name: name(tls, address),
            protocol,
        }))
    }

    /// How many are known.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    fn config(&self, trust: &Trust, protocol: Protocol) -> Result<Arc<ClientConfig>, String> {
        // What another check left when it panicked is whole.
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|one| one.config.strong_count() > 0);
        let held = known
            .iter()
            .find(|one| one.protocol == protocol && one.trust == *trust)
            .and_then(|one| one.config.upgrade());
        if let Some(config) = held {
            return Ok(config);
        }
        let config = Arc::new(config(trust, protocol)?);
        known.push(Known {
            trust: trust.clone(),
            protocol,
            config: Arc::downgrade(&config),
        });
        Ok(config)
    }
}

fn name(tls: &Tls, address: IpAddr) -> ServerName<'static> {
    tls.name
        .clone()
        .unwrap_or_else(|| ServerName::IpAddress(address.into()))
}

fn config(trust: &Trust, protocol: Protocol) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS is not to be had: {error}"))?;
    let builder = match trust {
        Trust::Anyone => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Credulous(provider()))),
        Trust::System => builder.with_root_certificates(system_authorities()?),
        Trust::Authorities(authorities) => {
            let mut roots = RootCertStore::empty();
            for certificate in authorities.certificates() {
                // The configuration is checked for this.
                roots
                    .add(certificate.clone())
                    .map_err(|error| format!("{}: {error}", authorities.path().display()))?;
            }
            builder.with_root_certificates(roots)
        }
    };
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![protocol.name().into()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn system_authorities() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Old ones that nobody can use are found on most hosts.
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        return Err("this host has no certificates of authorities: install them (ca-certificates), or give tls.ca".to_owned());
    }
    Ok(roots)
}

/// What a check of one backend needs for TLS.
#[derive(Debug)]
pub(super) struct Client {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    protocol: Protocol,
}

impl Client {
    /// Makes the handshake.
    pub(super) async fn wrap<S>(&self, stream: S, limit: Limit) -> Result<TlsStream<S>, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let connector = TlsConnector::from(Arc::clone(&self.config));
        let stream = limit
            .keep("got no TLS handshake done", async {
                let connected = connector.connect(self.name.clone(), stream).await;
                connected.map_err(|error| self.failure(&error))
            })
            .await?;
        match (self.protocol, stream.get_ref().1.alpn_protocol()) {
            // A server that does not negotiate may speak it all the same: it will be seen.
            (_, None) => Ok(stream),
            (protocol, Some(chosen)) if chosen == protocol.name().as_bytes() => Ok(stream),
            (protocol, Some(_)) => Err(Failure::no(format!(
                "got another protocol than {} by ALPN",
                protocol.name()
            ))),
        }
    }

    fn failure(&self, error: &io::Error) -> Failure {
        let error = error.get_ref().and_then(|inner| inner.downcast_ref());
        Failure::no(match error {
            None => "was closed before the TLS handshake was done".to_owned(),
            Some(Error::InvalidCertificate(error)) => self.bad_certificate(error),
            Some(Error::AlertReceived(alert)) => {
                format!("was ended by the server with the TLS alert {alert:?}")
            }
            Some(Error::PeerIncompatible(_)) => {
                "found no version or cipher of TLS that both sides have".to_owned()
            }
            Some(Error::InvalidMessage(_)) => "got an answer that is no TLS".to_owned(),
            Some(Error::NoApplicationProtocol) => {
                format!("was refused {} by ALPN", self.protocol.name())
            }
            Some(other) => format!("failed at TLS: {other}"),
        })
    }

    fn bad_certificate(&self, error: &CertificateError) -> String {
        use CertificateError as Bad;
        match error {
            Bad::UnknownIssuer => {
                "got a certificate of an authority that is not trusted".to_owned()
            }
            Bad::BadSignature => {
                "got a certificate with a signature that is not its authority's".to_owned()
            }
            Bad::Expired | Bad::ExpiredContext { .. } => {
                "got a certificate that has expired".to_owned()
            }
            Bad::NotValidYet | Bad::NotValidYetContext { .. } => {
                "got a certificate that is not valid yet".to_owned()
            }
            Bad::NotValidForName | Bad::NotValidForNameContext { .. } => {
                format!("got a certificate that is not for {}", self.name.to_str())
            }
            Bad::BadEncoding => "got a certificate that is malformed".to_owned(),
            other => format!("got a certificate that is not valid: {other}"),
        }
    }
}

/// Believes everyone.
#[derive(Debug)]
struct Credulous(Arc<CryptoProvider>);

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
