//! TLS to the primary, with libpq's meaning of `sslmode` and `sslrootcert`.
//!
//! - Without `sslrootcert` the certificate is not looked at, as with libpq: that hides from listeners, not from impostors.
//! - A certificate that itself stands in the `sslrootcert` file is trusted as it stands, whatever its dates: PostgreSQL's usual
//!   self-signed certificate is its own authority, which the general verifier refuses as a server certificate.
//! - Names are those of the certificate's subjectAltName; the common name is not looked at.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

use super::conninfo::{ConnInfo, HostAddress, RootCerts, SslMode};
use super::error::{ReplicationError, one_line};
use super::socket::Socket;

/// Shakes hands over a socket on which the server has agreed to TLS.
pub(super) fn connect(
    conninfo: &ConnInfo,
    host: &HostAddress,
    socket: Socket,
) -> Result<Box<StreamOwned<ClientConnection, Socket>>, ReplicationError> {
    let failed = |reason: String| ReplicationError::Tls { address: host.to_string(), reason };
    let name = match host {
        HostAddress::Tcp { host, .. } => host.clone(),
        HostAddress::Unix { .. } => return Err(failed("TLS is for TCP only".into())),
    };
    let name = ServerName::try_from(name).map_err(|error| failed(one_line(&error)))?;
    let config = client_config(conninfo)?;
    let session = ClientConnection::new(config, name).map_err(|error| failed(one_line(&error)))?;
    let mut stream = Box::new(StreamOwned::new(session, socket));
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock).map_err(|error| failed(one_line(&error)))?;
    }
    Ok(stream)
}

fn certificate_error(path: &Path, reason: impl std::fmt::Display) -> ReplicationError {
    ReplicationError::Certificate { path: path.display().to_string(), reason: reason.to_string() }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ReplicationError> {
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(|certificates| certificates.collect::<Result<Vec<_>, _>>())
        .map_err(|error| certificate_error(path, error))?;
    if certificates.is_empty() {
        return Err(certificate_error(path, "no certificate in this file"));
    }
    Ok(certificates)
}

fn client_config(conninfo: &ConnInfo) -> Result<Arc<ClientConfig>, ReplicationError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let internal =
        |error: rustls::Error| ReplicationError::Tls { address: conninfo.to_string(), reason: one_line(&error) };
    let verifier = Arc::new(Verifier::new(conninfo, Arc::clone(&provider))?);
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(internal)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let config = match &conninfo.ssl_client_cert {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = read_certificates(certificate)?;
            let key_der = PrivateKeyDer::from_pem_file(key).map_err(|error| certificate_error(key, error))?;
            builder
                .with_client_auth_cert(chain, key_der)
                .map_err(|error| certificate_error(certificate, one_line(&error)))?
        }
    };
    Ok(Arc::new(config))
}

/// Checks the server's certificate as far as `sslmode` asks for it. The signatures of the handshake are always checked.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    trust: Option<Trust>,
}

#[derive(Debug)]
struct Trust {
    authorities: Arc<WebPkiServerVerifier>,
    certificates: Vec<CertificateDer<'static>>,
    check_name: bool,
}

impl Verifier {
    fn new(conninfo: &ConnInfo, provider: Arc<CryptoProvider>) -> Result<Self, ReplicationError> {
        let Some(source) = &conninfo.ssl_root_certs else { return Ok(Verifier { provider, trust: None }) };
        let (path, certificates) = match source {
            RootCerts::File(path) => (path.as_path(), read_certificates(path)?),
            RootCerts::System => (Path::new("system"), rustls_native_certs::load_native_certs().certs),
        };
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(certificates.iter().cloned());
        let authorities = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|error| certificate_error(path, error))?;
        let check_name = conninfo.ssl_mode == SslMode::VerifyFull;
        Ok(Verifier { provider, trust: Some(Trust { authorities, certificates, check_name }) })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(trust) = &self.trust else { return Ok(ServerCertVerified::assertion()) };
        if trust.certificates.contains(end_entity) {
            if trust.check_name {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        // The name is the last thing that is checked, so everything else is right when only the name is wrong.
        match trust.authorities.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !trust.check_name => Ok(ServerCertVerified::assertion()),
            outcome => outcome,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
