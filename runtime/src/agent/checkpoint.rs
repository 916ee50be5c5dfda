//! Checkpoints handed over by ranks: copied or moved, synced, manifested, renamed into place, and deleted when told to.

use futures_util::future::try_join_all;
use phalanx_core::Rank;
use phalanx_core::id::AttemptId;
use phalanx_core::report::Checkpoint;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// The file that lists the others.
pub const MANIFEST: &str = "manifest.json";
/// Folders that are not finished begin like this.
const STAGING: &str = "tmp-";
const COPY_BYTES: usize = 1 << 20;
/// Deepest nesting of folders in a checkpoint.
const DEPTH: usize = 64;
/// Files and folders that are synced at a time.
const SYNCS: usize = 8;

static STAGED: AtomicU64 = AtomicU64::new(0);

/// Why a hand-over was refused, as its writer is told.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Not what can be taken over.
    #[error("`{}` {why}", .path.display())]
    Unfit {
        /// What.
        path: PathBuf,
        /// Why.
        why: &'static str,
    },
    /// Another rank has handed over this step.
    #[error(
        "rank {rank} has already handed over a checkpoint of step {step}; one rank hands over for the gang"
    )]
    Taken {
        /// The other rank.
        rank: Rank,
        /// The step.
        step: u64,
    },
    /// No room.
    #[error("no space is left on the disk of `{}` for the checkpoint; free some and hand it over again", .0.display())]
    Full(PathBuf),
    /// The hand-over was cut short.
    #[error("the copy failed: {0}; hand it over again")]
    Broken(tokio::task::JoinError),
    /// The system refused.
    #[error("cannot {what} `{}`: {error}", .path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
}

/// The list of a checkpoint's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The attempt that made it.
    pub attempt: String,
    /// The rank that handed it over.
    pub rank: Rank,
    /// The step it was made at.
    pub step: u64,
    /// Its files, by path.
    pub files: Vec<ManifestFile>,
}

/// A file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Relative to the checkpoint's folder.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// Its BLAKE3 hash in hexadecimal.
    pub blake3: String,
}

/// The checkpoints in an agent's keeping.
#[derive(Clone, Debug)]
pub(super) struct Checkpoints {
    root: PathBuf,
}

impl Checkpoints {
    /// Opens the folder of checkpoints, made where it is missing; what an interrupted hand-over left is removed.
    pub(super) fn open(root: PathBuf) -> io::Result<Checkpoints> {
        fs::create_dir_all(&root)?;
        for job in fs::read_dir(&root)?.flatten() {
            for entry in fs::read_dir(job.path()).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().starts_with(STAGING) {
                    fs::remove_dir_all(entry.path())?;
                }
            }
        }
        Ok(Checkpoints { root })
    }

    /// Takes a finished folder over; durable when this returns. A repetition by the same rank keeps the latest content.
    pub(super) async fn take(
        &self,
        attempt: AttemptId,
        rank: Rank,
        handed: Checkpoint,
    ) -> Result<PathBuf, CheckpointError> {
        let here = self.clone();
        let (hand_over, staged) = match on_disk(move || here.begin(attempt, rank, handed)).await? {
            Begun::Kept(place) => return Ok(place),
            Begun::Staged(begun) => *begun,
        };
        let synced = match staged {
            Ok((manifest, paths)) => sync_all(paths).await.map(|()| manifest),
            Err(error) => Err(error),
        };
        on_disk(move || hand_over.end(synced)).await
    }

    /// Looks at what is there already, and stages what comes.
    fn begin(&self, attempt: AttemptId, rank: Rank, handed: Checkpoint) -> Result<Begun, CheckpointError> {
        let step = handed.step;
        let job = self.root.join(attempt.job.to_string());
        let place = job.join(format!("{attempt}-{step:012}"));
        let earlier = read_manifest(&place);
        if let Some(earlier) = earlier.as_ref().filter(|earlier| earlier.rank != rank) {
            return Err(CheckpointError::Taken { rank: earlier.rank, step });
        }
        if earlier.is_some() && handed.moves && !handed.path.exists() {
            // The answer was lost, and it is handed over again.
            return Ok(Begun::Kept(place));
        }
        let new_job = !job.exists();
        fs::create_dir_all(&job).map_err(|error| failed("make", &job, error))?;
        let staging =
            job.join(format!("{STAGING}{attempt}-{step}-{rank}-{}", STAGED.fetch_add(1, Ordering::Relaxed)));
        // The folder of a new job is synced with all that is in it.
        let beside = new_job.then(|| self.root.clone());
        let hand_over = HandOver { attempt, rank, handed, staging, place, beside };
        let staged = hand_over.stage();
        Ok(Begun::Staged(Box::new((hand_over, staged))))
    }

    /// Deletes a checkpoint; what is not beneath the folder of checkpoints is left alone.
    pub(super) fn drop(&self, path: &Path) {
        let legal = path.strip_prefix(&self.root).is_ok_and(|below| {
            let mut parts = below.components();
            let plain = below.components().all(|part| matches!(part, std::path::Component::Normal(_)));
            plain && parts.nth(1).is_some() && parts.next().is_none()
        });
        if !legal {
            tracing::warn!(path = %path.display(), "asked to delete what is no checkpoint");
            return;
        }
        // Renamed first: a kill between the two leaves a leftover that the next start removes, never half a checkpoint.
        let (Some(name), Some(job)) = (path.file_name(), path.parent()) else { return };
        let doomed = job.join(format!("{STAGING}{}", name.to_string_lossy()));
        if let Err(error) = fs::rename(path, &doomed).and_then(|()| fs::remove_dir_all(&doomed))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %path.display(), "cannot delete a checkpoint");
        }
    }
}

fn read_manifest(place: &Path) -> Option<Manifest> {
    serde_json::from_slice(&fs::read(place.join(MANIFEST)).ok()?).ok()
}

fn failed(what: &'static str, path: &Path, error: io::Error) -> CheckpointError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => CheckpointError::Full(path.to_owned()),
        _ => CheckpointError::Io { what, path: path.to_owned(), error },
    }
}

fn sync(path: &Path) -> Result<(), CheckpointError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|error| failed("sync", path, error))
}

/// Does what blocks beside the runtime's tasks.
async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CheckpointError> + Send + 'static,
) -> Result<T, CheckpointError> {
    tokio::task::spawn_blocking(work).await.map_err(CheckpointError::Broken)?
}

/// Syncs all of these at a time: a file system with a journal then commits it about once, and not once for each.
async fn sync_all(paths: Vec<PathBuf>) -> Result<(), CheckpointError> {
    let size = paths.len().div_ceil(SYNCS).max(1);
    let parts: Vec<Vec<PathBuf>> = paths.chunks(size).map(<[PathBuf]>::to_vec).collect();
    let part = |paths: Vec<PathBuf>| on_disk(move || paths.iter().try_for_each(|path| sync(path)));
    try_join_all(parts.into_iter().map(part)).await.map(drop)
}

/// How far a hand-over has come before anything is synced.
enum Begun {
    /// It has been taken before.
    Kept(PathBuf),
    /// It is staged, or could not be.
    Staged(Box<(HandOver, Result<ToSync, CheckpointError>)>),
}

/// What is staged, and all of it that is to be synced.
type ToSync = (Manifest, Vec<PathBuf>);

/// A folder on its way.
struct HandOver {
    attempt: AttemptId,
    rank: Rank,
    handed: Checkpoint,
    staging: PathBuf,
    place: PathBuf,
    /// What has to be synced besides.
    beside: Option<PathBuf>,
}

impl HandOver {
    /// Copies or moves everything and writes the manifest; what is to be synced.
    fn stage(&self) -> Result<ToSync, CheckpointError> {
        let (source, staging) = (&self.handed.path, &self.staging);
        let found = fs::symlink_metadata(source).map_err(|error| failed("find", source, error))?;
        if !found.is_dir() {
            return Err(unfit(source, "is no folder; hand over the folder that holds the checkpoint"));
        }
        // What lies on another disk is copied all the same.
        let moved = self.handed.moves && fs::rename(source, staging).is_ok();
        let mut staged = Staged { files: Vec::new(), paths: self.beside.iter().cloned().collect() };
        staged.folder(if moved { staging } else { source }, staging, "", DEPTH)?;
        let Staged { mut files, mut paths } = staged;
        if files.is_empty() {
            return Err(unfit(source, "holds no file; hand a checkpoint over when it is written"));
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let (attempt, rank, step) = (self.attempt.to_string(), self.rank, self.handed.step);
        let manifest = Manifest { attempt, rank, step, files };
        let path = staging.join(MANIFEST);
        let text =
            serde_json::to_vec_pretty(&manifest).map_err(|error| failed("write", &path, error.into()))?;
        fs::write(&path, text).map_err(|error| failed("write", &path, error))?;
        paths.push(path);
        Ok((manifest, paths))
    }

    /// Moves what is synced into place, and leaves nothing of what was refused.
    fn end(self, synced: Result<Manifest, CheckpointError>) -> Result<PathBuf, CheckpointError> {
        let HandOver { handed, staging, place, .. } = self;
        let taken = synced.and_then(|manifest| publish(&staging, &place, &manifest));
        if taken.is_err() && handed.moves && !handed.path.exists() {
            // Nothing is lost of what was refused.
            let _ = fs::rename(&staging, &handed.path);
        }
        // Moved away on success, replaced content on a repetition, half a copy on failure.
        if staging.exists() {
            let _ = fs::remove_dir_all(&staging);
        }
        taken.map(|()| place)
    }
}

fn unfit(path: &Path, why: &'static str) -> CheckpointError {
    CheckpointError::Unfit { path: path.to_owned(), why }
}

/// What has been staged so far.
struct Staged {
    files: Vec<ManifestFile>,
    /// All that is to be synced.
    paths: Vec<PathBuf>,
}

impl Staged {
    /// Takes a folder in; where source and target are the same it is there already.
    fn folder(
        &mut self,
        source: &Path,
        target: &Path,
        prefix: &str,
        depth: usize,
    ) -> Result<(), CheckpointError> {
        if depth == 0 {
            return Err(unfit(source, "is nested too deep for a checkpoint"));
        }
        if source != target {
            fs::create_dir(target).map_err(|error| failed("make", target, error))?;
        }
        self.paths.push(target.to_owned());
        for entry in fs::read_dir(source).map_err(|error| failed("read", source, error))? {
            let path = entry.map_err(|error| failed("read", source, error))?.path();
            let name = path.file_name().unwrap_or_default();
            let name = name.to_str().ok_or_else(|| unfit(&path, "has a name that is not UTF-8"))?;
            let (below, copy) = (format!("{prefix}{name}"), target.join(name));
            let kind = fs::symlink_metadata(&path).map_err(|error| failed("read", &path, error))?.file_type();
            match () {
                () if kind.is_dir() => self.folder(&path, &copy, &format!("{below}/"), depth - 1)?,
                // One of an earlier checkpoint that was restored into this folder; ours takes its place.
                () if below == MANIFEST => {}
                () if kind.is_file() => self.file(&path, copy, below)?,
                () if kind.is_symlink() => {
                    return Err(unfit(&path, "is a symbolic link; a checkpoint holds files and folders"));
                }
                () => {
                    return Err(unfit(&path, "is neither file nor folder; a checkpoint holds nothing else"));
                }
            }
        }
        Ok(())
    }

    fn file(&mut self, source: &Path, target: PathBuf, path: String) -> Result<(), CheckpointError> {
        let mut from = File::open(source).map_err(|error| failed("read", source, error))?;
        let mut to = match source == target {
            true => None,
            false => Some(File::create_new(&target).map_err(|error| failed("write", &target, error))?),
        };
        let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0);
        let size = from.metadata().map_or(COPY_BYTES as u64, |found| found.len());
        let mut buffer = vec![0; usize::try_from(size).unwrap_or(COPY_BYTES).clamp(1, COPY_BYTES)];
        loop {
            let length = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(failed("read", source, error)),
            };
            hasher.update(&buffer[..length]);
            if let Some(to) = &mut to {
                to.write_all(&buffer[..length]).map_err(|error| failed("write", &target, error))?;
            }
            bytes += length as u64;
        }
        self.files.push(ManifestFile { path, bytes, blake3: hasher.finalize().to_hex().to_string() });
        self.paths.push(target);
        Ok(())
    }
}

/// Moves a staged folder into place; where an earlier one is there, the two change places in one step.
fn publish(staging: &Path, place: &Path, manifest: &Manifest) -> Result<(), CheckpointError> {
    match read_manifest(place) {
        Some(earlier) if earlier == *manifest => return Ok(()),
        Some(_) => nix::fcntl::renameat2(
            nix::fcntl::AT_FDCWD,
            staging,
            nix::fcntl::AT_FDCWD,
            place,
            nix::fcntl::RenameFlags::RENAME_EXCHANGE,
        )
        .map_err(io::Error::from),
        None => fs::rename(staging, place),
    }
    .map_err(|error| failed("move into place", place, error))?;
    place.parent().map_or(Ok(()), sync)
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_core::JobId;

    const ATTEMPT: AttemptId = AttemptId { job: JobId(2), number: 1 };

    fn handed(step: u64, path: &Path) -> Checkpoint {
        Checkpoint { step, path: path.to_owned(), moves: false }
    }

    fn made() -> (tempfile::TempDir, Checkpoints, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::open(dir.path().join("checkpoints")).unwrap();
        let source = dir.path().join("source");
        fs::create_dir_all(source.join("deep")).unwrap();
        fs::write(source.join("model"), b"weights").unwrap();
        fs::write(source.join("deep/state"), vec![7; 3 << 20]).unwrap();
        (dir, checkpoints, source)
    }

    #[tokio::test]
    async fn a_copy_with_a_manifest_that_later_changes_do_not_reach() {
        let (_dir, checkpoints, source) = made();
        let place = checkpoints.take(ATTEMPT, 0, handed(5, &source)).await.unwrap();
        assert!(place.ends_with("j2/j2.1-000000000005"), "{}", place.display());
        fs::write(source.join("model"), b"changed").unwrap();
        assert_eq!(fs::read(place.join("model")).unwrap(), b"weights");
        let manifest = read_manifest(&place).unwrap();
        let files: Vec<(&str, u64)> =
            manifest.files.iter().map(|file| (&file.path[..], file.bytes)).collect();
        assert_eq!(files, [("deep/state", 3 << 20), ("model", 7)]);
        assert_eq!(manifest.files[1].blake3, blake3::hash(b"weights").to_hex().to_string());
    }

    #[tokio::test]
    async fn the_same_rank_may_repeat_itself_and_another_may_not() {
        let (_dir, checkpoints, source) = made();
        let place = checkpoints.take(ATTEMPT, 0, handed(5, &source)).await.unwrap();
        assert_eq!(checkpoints.take(ATTEMPT, 0, handed(5, &source)).await.unwrap(), place);
        fs::write(source.join("model"), b"better").unwrap();
        checkpoints.take(ATTEMPT, 0, handed(5, &source)).await.unwrap();
        assert_eq!(fs::read(place.join("model")).unwrap(), b"better");
        let error = checkpoints.take(ATTEMPT, 1, handed(5, &source)).await.unwrap_err();
        assert!(matches!(error, CheckpointError::Taken { rank: 0, step: 5 }));
        assert_eq!(fs::read_dir(place.parent().unwrap()).unwrap().count(), 1, "no leftovers");
    }

    #[tokio::test]
    async fn what_cannot_be_kept_is_refused_and_leaves_nothing() {
        let (dir, checkpoints, source) = made();
        let refuse = async |path: &Path, word: &str| {
            let error = checkpoints.take(ATTEMPT, 0, handed(1, path)).await.unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        };
        refuse(&dir.path().join("missing"), "missing").await;
        refuse(&source.join("model"), "is no folder").await;
        fs::create_dir_all(dir.path().join("empty/deeper")).unwrap();
        refuse(&dir.path().join("empty"), "holds no file").await;
        std::os::unix::fs::symlink("/etc", source.join("deep/link")).unwrap();
        refuse(&source, "symbolic link").await;
        fs::remove_file(source.join("deep/link")).unwrap();
        nix::unistd::mkfifo(&source.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        refuse(&source, "neither file nor folder").await;
        assert_eq!(fs::read_dir(dir.path().join("checkpoints/j2")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn one_that_is_given_away_is_moved_and_a_repeated_answer_is_the_first() {
        let (_dir, checkpoints, source) = made();
        let given = Checkpoint { moves: true, ..handed(5, &source) };
        std::os::unix::fs::symlink("/etc", source.join("deep/link")).unwrap();
        checkpoints.take(ATTEMPT, 0, given.clone()).await.unwrap_err();
        fs::remove_file(source.join("deep/link")).unwrap();
        let copied = checkpoints.take(ATTEMPT, 0, handed(4, &source)).await.unwrap();
        let place = checkpoints.take(ATTEMPT, 0, given.clone()).await.unwrap();
        assert!(!source.exists());
        let (copied, moved) = (read_manifest(&copied).unwrap(), read_manifest(&place).unwrap());
        assert_eq!(moved.files, copied.files);
        assert_eq!(fs::read(place.join("deep/state")).unwrap(), vec![7; 3 << 20]);
        assert_eq!(checkpoints.take(ATTEMPT, 0, given.clone()).await.unwrap(), place);
        let missing = checkpoints.take(ATTEMPT, 0, Checkpoint { step: 6, ..given }).await;
        assert!(missing.unwrap_err().to_string().contains("source"));
    }

    #[tokio::test]
    async fn interrupted_hand_overs_are_removed_at_the_next_start_and_whole_ones_stay() {
        let (dir, checkpoints, source) = made();
        let place = checkpoints.take(ATTEMPT, 0, handed(5, &source)).await.unwrap();
        fs::create_dir_all(place.with_file_name("tmp-j2.1-6-0-9/deep")).unwrap();
        Checkpoints::open(dir.path().join("checkpoints")).unwrap();
        assert!(place.join("model").exists());
        assert_eq!(fs::read_dir(place.parent().unwrap()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn only_checkpoints_are_deleted() {
        let (dir, checkpoints, source) = made();
        let place = checkpoints.take(ATTEMPT, 0, handed(5, &source)).await.unwrap();
        let root = dir.path().join("checkpoints");
        for path in [
            &source,
            &root,
            &root.join("j2"),
            &root.join("../source"),
            &root.join("j2/../../source"),
            &place.join("deep"),
        ] {
            checkpoints.drop(path);
        }
        assert!(source.join("model").exists() && place.join("deep/state").exists());
        checkpoints.drop(&place);
        assert!(!place.exists());
        checkpoints.drop(&place);
    }
}
