//! One process at a time changes a data folder, and everybody can ask which.

use super::error::StoreError;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The file that is locked; it stays when the lock is gone.
const FILE: &str = "lock";
/// How often, and how long apart, a lock without a living holder's text is looked at.
const LOOKS: u32 = 50;
const LOOK: Duration = Duration::from_millis(1);
/// Longest text in it that is looked at.
const TEXT_BYTES: u64 = 256;

/// Who has a data folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The process.
    pub pid: u32,
    /// What it is, such as `service`.
    pub purpose: String,
}

/// The right to change a data folder. The system takes it back when the process ends, however it ends.
///
/// It is a lock of the open file description (`F_OFD_SETLK`): closing another descriptor of the file does not release
/// it, and asking for the holder does not take it for a moment, as a trial with `flock` would.
#[derive(Debug)]
pub struct DataLock {
    path: PathBuf,
    _file: File,
}

impl DataLock {
    /// Makes the folder (mode 0700) where it is missing and takes it, or says who has it.
    pub fn acquire(data_dir: &Path, purpose: &str) -> Result<DataLock, StoreError> {
        make_folder(data_dir).map_err(|error| StoreError::io(data_dir, &error))?;
        let path = data_dir.join(FILE);
        let failed = |error: std::io::Error| StoreError::io(&path, &error);
        let mut options = OpenOptions::new();
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK))) {
            Ok(_) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => {
                return Err(StoreError::Locked { path: data_dir.to_owned(), holder: read_holder(&mut file) });
            }
            Err(errno) => return Err(failed(errno.into())),
        }
        let text = format!("{} {purpose}\n", std::process::id());
        // Shortened last: a reader in between sees the new holder and perhaps the end of an older, longer text.
        file.rewind().and_then(|()| file.write_all(text.as_bytes())).map_err(failed)?;
        file.set_len(text.len() as u64).map_err(failed)?;
        Ok(DataLock { path: data_dir.to_owned(), _file: file })
    }

    /// Who has the folder now; `None` where nobody has or the folder is not there.
    pub fn holder(data_dir: &Path) -> Option<Holder> {
        // Read and write: asking whether a write lock would be granted needs a descriptor that could take it.
        let mut file = OpenOptions::new().read(true).write(true).open(data_dir.join(FILE)).ok()?;
        let mut asked = whole_file(libc::F_WRLCK);
        fcntl(&file, FcntlArg::F_OFD_GETLK(&mut asked)).ok()?;
        (i32::from(asked.l_type) != libc::F_UNLCK).then(|| read_holder(&mut file))
    }

    /// The folder.
    pub fn data_dir(&self) -> &Path {
        &self.path
    }
}

fn make_folder(path: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn whole_file(kind: i32) -> libc::flock {
    let (start, to_the_end) = (0, 0);
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: to_the_end,
        // Locks of an open file description belong to no process.
        l_pid: 0,
    }
}

/// Who the file says. A lock that was taken a moment ago carries no text yet, or still that of a holder that is gone; it
/// is looked at again for a moment, and is of pid 0 where it stays so.
fn read_holder(file: &mut File) -> Holder {
    for _ in 0..LOOKS {
        let holder = parse_holder(file);
        if holder.pid != 0 && is_alive(holder.pid) {
            return holder;
        }
        std::thread::sleep(LOOK);
    }
    parse_holder(file)
}

fn parse_holder(file: &mut File) -> Holder {
    let mut text = String::new();
    // Unreadable text is as good as none.
    let _ = file.rewind().and_then(|()| file.take(TEXT_BYTES).read_to_string(&mut text));
    let (pid, purpose) = text.lines().next().unwrap_or("").split_once(' ').unwrap_or(("", "unknown"));
    Holder { pid: pid.parse().unwrap_or(0), purpose: purpose.to_owned() }
}

fn is_alive(pid: u32) -> bool {
    let Ok(pid) = i32::try_from(pid) else { return false };
    // Another user's process may not be signalled, which shows that it is there.
    !matches!(nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None), Err(Errno::ESRCH))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_folder_has_one_holder_and_everybody_can_ask_who() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("a/b");
        assert_eq!(DataLock::holder(&folder), None);
        let lock = DataLock::acquire(&folder, "service").unwrap();
        assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        let us = Holder { pid: std::process::id(), purpose: "service".to_owned() };
        assert_eq!(DataLock::holder(&folder), Some(us.clone()));
        // Asking must neither take the lock nor release it.
        assert_eq!(DataLock::holder(&folder), Some(us.clone()));
        let error = DataLock::acquire(&folder, "run").unwrap_err();
        assert!(matches!(&error, StoreError::Locked { holder, .. } if *holder == us), "{error}");
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        drop(lock);
        assert_eq!(DataLock::holder(&folder), None);
        let again = DataLock::acquire(&folder, "run").unwrap();
        assert_eq!(DataLock::holder(&folder).unwrap().purpose, "run");
        assert_eq!(again.data_dir(), folder);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let parent = tempfile::tempdir().unwrap();
        let file = parent.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = DataLock::acquire(&file.join("data"), "service").unwrap_err();
        assert!(matches!(error, StoreError::Io { .. }) && error.to_string().contains("file/data"), "{error}");
    }
}
