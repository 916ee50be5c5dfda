//! The files of a job's checkpoints, for those who have only its id.
//!
//! A file is named by an id that is made here; no text of a request ever becomes a path. What the manifest of a
//! checkpoint lists is opened beneath the checkpoint's folder, one name after the other, through no link.

use super::Handle;
use crate::agent::{MANIFEST, Manifest};
use crate::error::Error;
use crate::store::StoreError;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use phalanx_core::{JobId, KeptCheckpoint};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Component, Path};

/// Largest list of files that is read, in bytes.
const MANIFEST_BYTES: u64 = 16 << 20;
/// Bytes of an id.
const ID_BYTES: usize = 16;

/// A file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    /// What it is asked for by.
    pub id: String,
    /// The attempt that made it.
    pub attempt: u32,
    /// The step it was made at.
    pub step: u64,
    /// Its path in the checkpoint.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Its BLAKE3 hash in hexadecimal.
    pub blake3: String,
}

impl Handle {
    /// The files of a job's checkpoints, as far as they are on this machine's disks.
    pub async fn artifacts(&self, id: JobId) -> Result<Vec<Artifact>, Error> {
        let checkpoints = self.job(id).await?.checkpoints;
        blocking(move || Ok(checkpoints.iter().filter_map(|kept| listed(kept).ok()).flatten().collect()))
            .await
    }

    /// One of them, opened for reading.
    pub async fn open_artifact(&self, id: JobId, artifact: &str) -> Result<(Artifact, File), Error> {
        let checkpoints = self.job(id).await?.checkpoints;
        let wanted = artifact.to_owned();
        let unknown = Error::UnknownArtifact { job: id, artifact: wanted.chars().take(64).collect() };
        let found = blocking(move || {
            for kept in &checkpoints {
                let Ok(listed) = listed(kept) else { continue };
                if let Some(artifact) = listed.into_iter().find(|artifact| artifact.id == wanted) {
                    let file = open_beneath(&kept.path, Path::new(&artifact.name));
                    let file = file.map_err(|error| StoreError::io(&kept.path, &error))?;
                    return Ok(Some((artifact, file)));
                }
            }
            Ok(None)
        });
        found.await?.ok_or(unknown)
    }
}

/// Away from the threads that wait for others. Cancel: it goes on to its end, and changes nothing.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Error> {
    Ok(tokio::task::spawn_blocking(work).await.map_err(|_| Error::Unavailable)??)
}

/// What a checkpoint's manifest lists.
fn listed(kept: &KeptCheckpoint) -> io::Result<Vec<Artifact>> {
    let mut text = Vec::new();
    open_beneath(&kept.path, Path::new(MANIFEST))?.take(MANIFEST_BYTES).read_to_end(&mut text)?;
    let manifest: Manifest = serde_json::from_slice(&text)?;
    let files = manifest.files.into_iter().map(|file| Artifact {
        id: artifact_id(&kept.path, &file.path),
        attempt: kept.attempt,
        step: kept.step,
        name: file.path,
        bytes: file.bytes,
        blake3: file.blake3,
    });
    Ok(files.collect())
}

fn artifact_id(folder: &Path, name: &str) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("phalanx 2026 artifact id");
    for part in [folder.as_os_str().as_encoded_bytes(), name.as_bytes()] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().as_bytes()[..ID_BYTES].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Opens a file below a folder, name by name: whatever the path says, and whoever changes the folder meanwhile, it stays
/// below.
fn open_beneath(folder: &Path, path: &Path) -> io::Result<File> {
    let refused = || io::Error::new(io::ErrorKind::InvalidInput, "a path that leads out of its folder");
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let mut at = OwnedFd::from(File::open(folder)?);
    let mut names = path.components().peekable();
    while let Some(Component::Normal(name)) = names.next() {
        let last = names.peek().is_none();
        let flags = if last { flags } else { flags | OFlag::O_DIRECTORY };
        at = openat(&at, name, flags, Mode::empty())?;
        if last {
            let file = File::from(at);
            return if file.metadata()?.is_file() { Ok(file) } else { Err(refused()) };
        }
    }
    Err(refused())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_the_folder_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("checkpoint");
        std::fs::create_dir_all(root.join("deep")).unwrap();
        std::fs::write(root.join("deep/file"), "in").unwrap();
        std::fs::write(folder.path().join("secret"), "out").unwrap();
        std::os::unix::fs::symlink(folder.path(), root.join("link")).unwrap();
        std::os::unix::fs::symlink("../secret", root.join("secret")).unwrap();
        assert!(open_beneath(&root, Path::new("deep/file")).is_ok());
        for path in
            ["../secret", "deep/../../secret", "/etc/passwd", "link/secret", "secret", "deep", "", "."]
        {
            assert!(open_beneath(&root, Path::new(path)).is_err(), "{path}");
        }
    }
}
