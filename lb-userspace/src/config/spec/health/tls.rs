//! How a check is wrapped in TLS.

use std::{path::Path, sync::Arc};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use toml::Spanned;

use super::{
    super::super::{problem::Findings, read::Reader, read_file},
    request::Host,
};
use crate::model::{Authorities, Tls, Trust, without_port};

const NAME_EXAMPLE: &str = "\"chat.example\"";
const CA_REMEDY: &str = "name a readable file of certificates in PEM, with BEGIN CERTIFICATE";

/// Reads the `tls` table, if it is there.
pub(super) fn read(
    parent: &mut Reader<'_>,
    host: &Option<Host<'_>>,
    findings: &mut Findings<'_>,
) -> Option<Tls> {
    let object = format!("tls of {}", parent.object);
    let mut reader = parent.table("tls", object, findings)?;
    let ca = reader.string("ca", "\"/etc/tether/ca.pem\"", findings);
    let name = reader.string("name", NAME_EXAMPLE, findings);
    let verify = reader.boolean("verify", "false", findings);
    let verify = verify.is_none_or(Spanned::into_inner);
    if let Some(ca) = &ca
        && !verify
    {
        findings.error(
            &ca.span(),
            &reader.object,
            "ca says what to verify, and verify = false that nothing is",
            "remove one of them",
        );
    }
    let trust = match ca {
        _ if !verify => Trust::Anyone,
        None => Trust::System,
        Some(ca) => match authorities(Path::new(ca.get_ref())) {
            Ok(authorities) => Trust::Authorities(Arc::new(authorities)),
            Err(wrong) => {
                let wrong = format!("ca {} {wrong}", ca.get_ref());
                findings.error(&ca.span(), &reader.object, wrong, CA_REMEDY);
                Trust::System
            }
        },
    };
    let name = match name {
        None => name_of(host),
        Some(text) => match ServerName::try_from(*text.get_ref()) {
            Ok(name) => Some(name.to_owned()),
            Err(_) => {
                findings.error(
                    &text.span(),
                    &reader.object,
                    format!("name is {:?}", text.get_ref()),
                    format!(
                        "give the name that the certificate is for, like name = {NAME_EXAMPLE}"
                    ),
                );
                None
            }
        },
    };
    reader.finish(findings);
    Some(Tls { trust, name })
}

/// What a check gets that is wrapped in TLS without a word on how.
pub(super) fn of(host: &Option<Host<'_>>) -> Tls {
    Tls {
        trust: Trust::System,
        name: name_of(host),
    }
}

/// Unless a name is given, it is the host that is asked for.
fn name_of(host: &Option<Host<'_>>) -> Option<ServerName<'static>> {
    let (host, _) = host.as_ref()?.get_ref();
    let name = ServerName::try_from(without_port(host)).ok()?;
    Some(name.to_owned())
}

/// Notes that a host is no name that a certificate could be for.
pub(super) fn no_name(reader: &Reader<'_>, host: &Host<'_>, findings: &mut Findings<'_>) {
    findings.error(
        &host.span(),
        &reader.object,
        format!("no certificate is for the host {:?}", host.get_ref().0),
        "give the name that it is for in tls.name",
    );
}

fn authorities(path: &Path) -> Result<Authorities, String> {
    if !path.is_absolute() {
        return Err("is no absolute path".to_owned());
    }
    let text = read_file(path).map_err(|error| format!("cannot be read: {error}"))?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| format!("is no PEM: {error}"))?;
    if certificates.is_empty() {
        return Err("contains no certificate".to_owned());
    }
    let mut roots = RootCertStore::empty();
    for (number, certificate) in certificates.iter().enumerate() {
        let added = roots.add(certificate.clone());
        added.map_err(|error| {
            format!(
                "contains a certificate that cannot be used, number {}: {error}",
                number + 1
            )
        })?;
    }
    Ok(Authorities::new(path.to_owned(), certificates))
}
