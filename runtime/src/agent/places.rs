//! Where an attempt keeps what goes with it: its folder with the scratch folder, and the sockets of its ranks.

use phalanx_core::Rank;
use phalanx_core::id::AttemptId;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The longest path of a Unix socket, without the zero byte that ends it.
const SOCKET_PATH_BYTES: usize = 107;
/// The longest name of a socket: a rank of the largest gang.
const LONGEST_SOCKET: &str = "65535.sock";
/// The file that names the cgroup beneath which attempts have theirs.
const GROUPS_FILE: &str = "cgroup";

/// The file of a trial's parameters.
const PARAMS_FILE: &str = "params.json";

/// The places of one attempt.
#[derive(Clone, Debug)]
pub(super) struct AttemptPlaces {
    folder: PathBuf,
    scratch: PathBuf,
    sockets: PathBuf,
    group_name: String,
}

/// The folder of all attempts beneath an agent's data folder.
pub(super) fn attempts_folder(data_dir: &Path) -> PathBuf {
    data_dir.join("run")
}

/// Remembers where attempts' cgroups are, for an agent that finds their folders after this one was killed.
pub(super) fn note_groups(data_dir: &Path, parent: &Path) -> io::Result<()> {
    fs::write(data_dir.join(GROUPS_FILE), parent.as_os_str().as_bytes())
}

/// Where attempts' cgroups are, as an earlier agent has noted it. Whatever it says, only groups with names of this folder's
/// attempts are looked for there.
pub(super) fn noted_groups(data_dir: &Path) -> Option<PathBuf> {
    let noted = fs::read(data_dir.join(GROUPS_FILE)).ok()?;
    Some(PathBuf::from(std::ffi::OsString::from_vec(noted))).filter(|path| path.is_absolute())
}

/// Tells the agents of different data folders apart, in names that all of them share.
pub(super) fn tag(data_dir: &Path) -> String {
    blake3::hash(data_dir.as_os_str().as_bytes()).to_hex()[..10].to_owned()
}

/// Where sockets go whose path in the data folder would be too long.
fn short_root() -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let fits = |path: &PathBuf| path.is_absolute() && path.as_os_str().len() <= SOCKET_PATH_BYTES / 2;
    let parent = runtime.filter(fits).unwrap_or_else(|| PathBuf::from("/tmp"));
    parent.join(format!("phalanx-{}", nix::unistd::getuid()))
}

impl AttemptPlaces {
    pub(super) fn of(data_dir: &Path, attempt: AttemptId) -> AttemptPlaces {
        let folder = attempts_folder(data_dir).join(attempt.to_string());
        let group_name = format!("phalanx-{}-{attempt}", tag(data_dir));
        let fits = folder.join(LONGEST_SOCKET).as_os_str().len() <= SOCKET_PATH_BYTES;
        let sockets = if fits { folder.clone() } else { short_root().join(&group_name) };
        AttemptPlaces { scratch: folder.join("scratch"), folder, sockets, group_name }
    }

    /// Makes all of them, for nobody else's eyes.
    pub(super) fn make(&self) -> io::Result<()> {
        let mut private = DirBuilder::new();
        private.recursive(true).mode(0o700);
        private.create(&self.scratch)?;
        if self.sockets != self.folder {
            private.create(&self.sockets)?;
            let root = self.sockets.parent().unwrap_or(&self.sockets);
            let found = fs::symlink_metadata(root)?;
            if !found.is_dir() || found.uid() != nix::unistd::getuid().as_raw() || found.mode() & 0o022 != 0 {
                let message = format!("`{}` belongs to somebody else; set XDG_RUNTIME_DIR", root.display());
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
            }
        }
        Ok(())
    }

    /// The attempt's own folder, `PHALANX_SCRATCH`.
    pub(super) fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// The file of a trial's parameters, `PHALANX_PARAMS`.
    pub(super) fn params(&self) -> PathBuf {
        self.folder.join(PARAMS_FILE)
    }

    /// A rank's socket, `PHALANX_SOCKET`.
    pub(super) fn socket(&self, rank: Rank) -> PathBuf {
        self.sockets.join(format!("{rank}.sock"))
    }

    /// The name of the attempt's groups.
    pub(super) fn group_name(&self) -> String {
        self.group_name.clone()
    }

    /// Removes all of them.
    pub(super) fn remove(&self) -> io::Result<()> {
        if self.sockets != self.folder {
            remove(&self.sockets)?;
        }
        remove(&self.folder)
    }
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_core::JobId;

    #[test]
    fn a_socket_path_always_fits() {
        let attempt = AttemptId { job: JobId(u64::MAX), number: u32::MAX };
        for data_dir in ["/d".to_owned(), format!("/{}", "deep/".repeat(40))] {
            let places = AttemptPlaces::of(Path::new(&data_dir), attempt);
            assert!(places.socket(65_535).as_os_str().len() <= SOCKET_PATH_BYTES, "{places:?}");
        }
        let near = AttemptPlaces::of(Path::new("/d"), AttemptId { job: JobId(1), number: 2 });
        assert_eq!(near.socket(3), Path::new("/d/run/j1.2/3.sock"));
    }
}
