//! TLS of the faces: a certificate and its key, from files or made here under an authority of the service's own.
//!
//! The authority is made once and kept; certificates are made anew at every start, so that they fit the address the
//! service is bound to and never run out under it. Clients trust the authority's file, `ca.pem`.

use jiff::{Timestamp, ToSpan, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, date_time_ymd,
};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// How long an authority is good for.
const AUTHORITY_YEARS: i64 = 10;
/// How long a certificate is good for: as long as public ones once were.
const CERTIFICATE_DAYS: i64 = 397;
/// The clocks of others may be behind by so much.
const SKEW_DAYS: i64 = 1;
/// Keys are their owner's alone.
const OWNER_ONLY: u32 = 0o600;
/// Certificates are for everybody to read.
const READABLE: u32 = 0o644;
/// The authority's certificate.
pub const CA_FILE: &str = "ca.pem";
const CA_KEY_FILE: &str = "ca-key.pem";
/// A service's certificate.
pub const CERT_FILE: &str = "cert.pem";
/// Its key.
pub const KEY_FILE: &str = "key.pem";

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or written.
    #[error("cannot use {}: {error}; check that it is there and yours", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file without what is wanted of it.
    #[error("{} is not {wanted}: {message}", .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What was wanted.
        wanted: &'static str,
        /// What was found.
        message: String,
    },
    /// A certificate could not be made.
    #[error("cannot make a certificate for {names}: {error}; are these names of this machine?")]
    Make {
        /// For whom.
        names: String,
        /// Why.
        error: rcgen::Error,
    },
}

/// What a service shows to prove who it is.
#[derive(Clone)]
pub struct Identity {
    /// The certificate and those above it, in PEM.
    chain: Vec<u8>,
    /// Its key, in PEM.
    key: Vec<u8>,
    acceptor: TlsAcceptor,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity(…)")
    }
}

impl Identity {
    /// Reads a certificate and its key; says now what a client would find wrong with them later.
    pub fn load(cert: &Path, key: &Path) -> Result<Identity, TlsError> {
        let (chain, key_pem) = (read(cert)?, read(key)?);
        let content = |path: &Path, wanted: &'static str, message: String| TlsError::Content {
            path: path.to_owned(),
            wanted,
            message,
        };
        let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&chain)
            .collect::<Result<_, _>>()
            .map_err(|error| content(cert, "a certificate in PEM", error.to_string()))?;
        if certificates.is_empty() {
            return Err(content(cert, "a certificate in PEM", "there is none in it".to_owned()));
        }
        let private = PrivateKeyDer::from_pem_slice(&key_pem)
            .map_err(|error| content(key, "a private key in PEM", error.to_string()))?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|config| config.with_no_client_auth().with_single_cert(certificates, private))
            .map_err(|error| content(key, "the key of that certificate", error.to_string()))?;
        Ok(Identity { chain, key: key_pem, acceptor: TlsAcceptor::from(Arc::new(config)) })
    }

    /// Makes a certificate for these names and addresses in a folder, and the authority where there is none yet. Returns
    /// the file that clients trust, too.
    pub fn make(folder: &Path, names: &[String]) -> Result<(Identity, PathBuf), TlsError> {
        let failed = |error| TlsError::Make { names: names.join(", "), error };
        std::fs::create_dir_all(folder).map_err(|error| TlsError::File { path: folder.to_owned(), error })?;
        let ca_file = folder.join(CA_FILE);
        let issuer = authority(&ca_file, &folder.join(CA_KEY_FILE))?;
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::new(names.to_vec()).map_err(failed)?;
        params.distinguished_name = named("Phalanx service");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        good_for(&mut params, CERTIFICATE_DAYS);
        let certificate = params.signed_by(&key, &issuer).map_err(failed)?;
        let (cert_file, key_file) = (folder.join(CERT_FILE), folder.join(KEY_FILE));
        write(&key_file, &key.serialize_pem(), OWNER_ONLY)?;
        write(&cert_file, &certificate.pem(), READABLE)?;
        Ok((Identity::load(&cert_file, &key_file)?, ca_file))
    }

    /// Takes connections of HTTP/1.1.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.clone()
    }

    /// The same for gRPC.
    pub(crate) fn for_grpc(&self) -> tonic::transport::ServerTlsConfig {
        let identity = tonic::transport::Identity::from_pem(&self.chain, &self.key);
        tonic::transport::ServerTlsConfig::new().identity(identity)
    }
}

/// The authority in a folder; made where it is missing.
fn authority(cert: &Path, key: &Path) -> Result<Issuer<'static, KeyPair>, TlsError> {
    let failed = |error| TlsError::Make { names: "an authority".to_owned(), error };
    let mut params = CertificateParams::default();
    params.distinguished_name = named("Phalanx authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    good_for(&mut params, AUTHORITY_YEARS * 365);
    if cert.exists() && key.exists() {
        let pem = String::from_utf8(read(key)?).unwrap_or_default();
        let key = KeyPair::from_pem(&pem).map_err(|error| TlsError::Content {
            path: key.to_owned(),
            wanted: "the key of an authority",
            message: error.to_string(),
        })?;
        // Its name and its key are what a certificate says of who signed it.
        return Ok(Issuer::new(params, key));
    }
    let pair = KeyPair::generate().map_err(failed)?;
    let certificate = params.self_signed(&pair).map_err(failed)?;
    write(key, &pair.serialize_pem(), OWNER_ONLY)?;
    write(cert, &certificate.pem(), READABLE)?;
    Ok(Issuer::new(params, pair))
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn good_for(params: &mut CertificateParams, days: i64) {
    let day = |days: i64| {
        let now = Timestamp::now().to_zoned(TimeZone::UTC).date();
        let at = now.checked_add(days.days()).unwrap_or(now);
        date_time_ymd(at.year().into(), at.month() as u8, at.day() as u8)
    };
    params.not_before = day(-SKEW_DAYS);
    params.not_after = day(days);
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|error| TlsError::File { path: path.to_owned(), error })
}

/// Replaces a file as a whole.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), TlsError> {
    let fresh = path.with_extension(format!("new.{}", std::process::id()));
    let mut options = OpenOptions::new();
    let written = options.write(true).create(true).truncate(true).mode(mode).open(&fresh);
    let written = written.and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written
        .and_then(|()| std::fs::rename(&fresh, path))
        .map_err(|error| TlsError::File { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn an_authority_is_made_once_and_keys_are_the_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("tls");
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        let (_, ca_file) = Identity::make(&folder, &names).unwrap();
        let (ca, cert) = (read(&ca_file).unwrap(), read(&folder.join(CERT_FILE)).unwrap());
        Identity::make(&folder, &names).unwrap();
        assert_eq!(read(&ca_file).unwrap(), ca, "clients go on trusting it");
        assert_ne!(read(&folder.join(CERT_FILE)).unwrap(), cert);
        for file in [CA_KEY_FILE, KEY_FILE] {
            let mode = std::fs::metadata(folder.join(file)).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, OWNER_ONLY, "{file}");
        }
        assert!(Identity::load(&folder.join(CERT_FILE), &folder.join(CA_KEY_FILE)).is_err(), "another key");
        assert!(Identity::load(&folder.join(KEY_FILE), &folder.join(KEY_FILE)).is_err(), "no certificate");
        assert!(Identity::load(&folder.join("none"), &folder.join(KEY_FILE)).is_err());
        assert!(Identity::make(&folder, &["not a name \u{e9}".to_owned()]).is_err());
    }
}
