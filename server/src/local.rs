//! The door for the command line of this machine: a Unix socket in the data folder. The kernel says whose process has come,
//! so that it needs no token; only the user that the service runs as, and root, are let in.

use futures_util::{Stream, StreamExt, future};
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;

/// Only the owner may connect.
const OWNER_ONLY: u32 = 0o600;
/// Root reads every token anyway.
const ROOT: u32 = 0;

/// The socket, taken away again when its service ends. After a crash it stays behind, and the next service takes its place.
#[derive(Debug)]
pub struct LocalDoor {
    listener: UnixListener,
    path: PathBuf,
}

impl LocalDoor {
    /// Where it is in a data folder.
    pub fn path(data_dir: &Path) -> PathBuf {
        data_dir.join("phalanx.sock")
    }

    /// Opens it. The data folder has to be locked: whatever lies there is a dead service's. Error: such as a path that is
    /// longer than sockets may have (107 bytes); the command line then comes over TCP.
    pub fn open(data_dir: &Path) -> io::Result<LocalDoor> {
        let path = LocalDoor::path(data_dir);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(OWNER_ONLY))?;
        Ok(LocalDoor { listener, path })
    }

    /// Those who may come in, until `shutdown`.
    pub(crate) fn callers(self, shutdown: CancellationToken) -> impl Stream<Item = io::Result<UnixStream>> {
        let LocalDoor { listener, path } = self;
        let file = SocketFile(path);
        let callers = UnixListenerStream::new(listener).filter(move |came| {
            // Kept as long as the stream is.
            let _ = &file;
            future::ready(came.as_ref().map_or(true, is_ours))
        });
        callers.take_until(shutdown.cancelled_owned())
    }
}

/// The socket in the folder.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Where it cannot be removed, the next service does.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn is_ours(stream: &UnixStream) -> bool {
    let ours = nix::unistd::geteuid().as_raw();
    let theirs = stream.peer_cred().map(|peer| peer.uid());
    let welcome = theirs.as_ref().is_ok_and(|&uid| uid == ours || uid == ROOT);
    if !welcome {
        tracing::warn!(?theirs, "another user's process is not let in by the local socket");
    }
    welcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_the_owners_alone_and_goes_with_the_service() {
        let folder = tempfile::tempdir().unwrap();
        let path = LocalDoor::path(folder.path());
        std::fs::write(&path, "left behind").unwrap();
        let door = LocalDoor::open(folder.path()).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, OWNER_ONLY);
        let shutdown = CancellationToken::new();
        let mut callers = Box::pin(door.callers(shutdown.clone()));
        let _caller = UnixStream::connect(&path).await.unwrap();
        assert!(callers.next().await.unwrap().is_ok(), "our own user");
        shutdown.cancel();
        assert!(callers.next().await.is_none());
        drop(callers);
        assert!(!path.exists());
    }

    #[test]
    fn a_path_that_is_too_long_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("x".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        assert!(LocalDoor::open(&deep).is_err());
    }
}
