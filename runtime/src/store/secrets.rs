//! The secrets of a service: a file each, of mode 0600, in a folder that only the owner enters.
//!
//! They are as safe as the data folder is: not encrypted, because the key would lie beside them. They are read when the
//! service starts and when it is told of a new one.

use super::endpoint::write_whole;
use super::error::StoreError;
use phalanx_core::Secret;
use phalanx_core::secret::check_name;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The folder in the data folder.
const FOLDER: &str = "secrets";
/// Only the owner enters it.
const OWNER_ONLY: u32 = 0o700;

/// The secrets in a data folder.
#[derive(Clone, Debug)]
pub struct Secrets {
    folder: PathBuf,
}

impl Secrets {
    /// Of a data folder, whether or not there are any.
    pub fn of(data_dir: &Path) -> Secrets {
        Secrets { folder: data_dir.join(FOLDER) }
    }

    /// All of them. What lies in the folder and is no secret is passed over, and said.
    pub fn load(&self) -> Result<BTreeMap<String, Secret>, StoreError> {
        let entries = match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) => return Err(StoreError::io(&self.folder, &error)),
        };
        let mut secrets = BTreeMap::new();
        for entry in entries {
            let path = entry.map_err(|error| StoreError::io(&self.folder, &error))?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if check_name(name).is_err() {
                continue;
            }
            let value = std::fs::read_to_string(&path).map_err(|error| StoreError::io(&path, &error))?;
            match Secret::new(value) {
                Ok(secret) => drop(secrets.insert(name.to_owned(), secret)),
                Err(error) => tracing::warn!(path = %path.display(), %error, "a secret is not used"),
            }
        }
        Ok(secrets)
    }

    /// Keeps a value; on the disk when this returns.
    pub fn set(&self, name: &str, secret: &Secret) -> Result<(), StoreError> {
        let made = std::fs::DirBuilder::new().recursive(true).mode(OWNER_ONLY).create(&self.folder);
        let closed =
            made.and_then(|()| std::fs::set_permissions(&self.folder, PermissionsExt::from_mode(OWNER_ONLY)));
        closed.map_err(|error| StoreError::io(&self.folder, &error))?;
        write_whole(&self.folder.join(name), secret.reveal().as_bytes())
    }

    /// Forgets a value; one that is not there is forgotten already.
    pub fn remove(&self, name: &str) -> Result<(), StoreError> {
        let path = self.folder.join(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(StoreError::io(&path, &error)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_come_back_and_are_the_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let secrets = Secrets::of(folder.path());
        assert!(secrets.load().unwrap().is_empty());
        let value = |text: &str| Secret::new(text.to_owned()).unwrap();
        secrets.set("HF_TOKEN", &value("first")).unwrap();
        secrets.set("HF_TOKEN", &value("second\nline")).unwrap();
        secrets.set("OTHER", &value("other")).unwrap();
        secrets.remove("OTHER").unwrap();
        secrets.remove("OTHER").unwrap();
        std::fs::write(folder.path().join("secrets/not a name"), "x").unwrap();
        let loaded = secrets.load().unwrap();
        assert_eq!(loaded, BTreeMap::from([("HF_TOKEN".to_owned(), value("second\nline"))]));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder.path().join("secrets")), 0o700);
        assert_eq!(mode(&folder.path().join("secrets/HF_TOKEN")), 0o600);
    }
}
