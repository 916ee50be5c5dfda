//! Where a running service can be reached, for programs on the same machine.

use super::error::StoreError;
use super::lock::DataLock;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const FILE: &str = "service.json";

/// The addresses of a service, in `service.json` of its data folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Host and port of gRPC.
    pub grpc: String,
    /// The address of HTTP, with its scheme.
    pub http: String,
    /// The file with the token.
    pub token_file: PathBuf,
    /// The certificate authority to trust, where the service speaks TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// The name that its certificate is for, where that is not its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_name: Option<String>,
    /// The data folder.
    pub data: PathBuf,
    /// The service's process.
    pub pid: u32,
}

impl Endpoint {
    /// Leaves the addresses in the folder that the service has locked; seen whole or not at all.
    pub fn write(&self, lock: &DataLock) -> Result<(), StoreError> {
        let text = serde_json::to_vec_pretty(self).map_err(|error| StoreError::Other {
            path: lock.data_dir().join(FILE),
            message: error.to_string(),
        })?;
        write_whole(&lock.data_dir().join(FILE), &text)
    }

    /// The service that runs on a data folder now. What a dead one left behind does not count.
    pub fn read(data_dir: &Path) -> Option<Endpoint> {
        let text = std::fs::read(data_dir.join(FILE)).ok()?;
        let endpoint: Endpoint = serde_json::from_slice(&text).ok()?;
        let holder = DataLock::holder(data_dir)?;
        (holder.pid == endpoint.pid).then_some(endpoint)
    }

    /// Takes the addresses away when the service ends.
    pub fn remove(lock: &DataLock) -> Result<(), StoreError> {
        let path = lock.data_dir().join(FILE);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(StoreError::io(&path, &error)),
            _ => Ok(()),
        }
    }
}

/// Replaces a file so that every reader, and every restart, sees the old one or the new one.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let fresh = path.with_extension("new");
    let folder = path.parent().unwrap_or(Path::new("."));
    let written = (|| {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)?;
        File::open(folder)?.sync_all()
    })();
    written.map_err(|error| {
        // The error that counts is the first one.
        let _ = std::fs::remove_file(&fresh);
        StoreError::io(path, &error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn endpoint(data: &Path, pid: u32) -> Endpoint {
        Endpoint {
            grpc: "127.0.0.1:7421".to_owned(),
            http: "http://127.0.0.1:7422".to_owned(),
            token_file: data.join("token"),
            ca_file: None,
            tls_name: None,
            data: data.to_owned(),
            pid,
        }
    }

    #[test]
    fn an_endpoint_counts_while_its_service_lives() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path();
        assert_eq!(Endpoint::read(data), None);
        let lock = DataLock::acquire(data, "service").unwrap();
        let ours = endpoint(data, std::process::id());
        ours.write(&lock).unwrap();
        assert_eq!(Endpoint::read(data), Some(ours));
        assert_eq!(std::fs::metadata(data.join(FILE)).unwrap().permissions().mode() & 0o777, 0o600);
        // Left behind by an earlier process.
        endpoint(data, std::process::id() + 1).write(&lock).unwrap();
        assert_eq!(Endpoint::read(data), None);
        endpoint(data, std::process::id()).write(&lock).unwrap();
        drop(lock);
        assert_eq!(Endpoint::read(data), None, "nobody holds the folder");
        let lock = DataLock::acquire(data, "service").unwrap();
        Endpoint::remove(&lock).unwrap();
        Endpoint::remove(&lock).unwrap();
        assert!(!data.join(FILE).exists());
    }

    #[test]
    fn a_torn_file_is_no_endpoint() {
        let folder = tempfile::tempdir().unwrap();
        let _lock = DataLock::acquire(folder.path(), "service").unwrap();
        std::fs::write(folder.path().join(FILE), "{\"grpc\":\"127.0").unwrap();
        assert_eq!(Endpoint::read(folder.path()), None);
    }
}
