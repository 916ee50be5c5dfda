//! SQLite under the contract, and what only a file can suffer: kills, torn tails, full disks, strangers and versions.

use super::contract::{Backend, attempt, batch, job, line, save, suite};
use super::{Access, RecordLimits, Records, State, StoreError};
use phalanx_core::{Job, JobId, JobState};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

struct Sqlite(TempDir);

impl Sqlite {
    fn make() -> Self {
        Sqlite(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Backend for Sqlite {
    async fn state(&self) -> State {
        State::open(self.path(), Access::ReadWrite).await.unwrap()
    }

    async fn records(&self, limits: RecordLimits) -> Records {
        Records::open(self.path(), Access::ReadWrite, limits).await.unwrap()
    }
}

mod sqlite {
    use super::Sqlite;
    super::suite!(Sqlite::make());
}

async fn open_both(path: &Path, access: Access) -> Result<(State, Records), StoreError> {
    Ok((State::open(path, access).await?, Records::open(path, access, RecordLimits::default()).await?))
}

#[tokio::test]
async fn files_belong_to_their_owner_alone() {
    let backend = Sqlite::make();
    let (state, records) = open_both(backend.path(), Access::ReadWrite).await.unwrap();
    state.commit(&[save(1, JobState::Queued, true)]).await.unwrap();
    records.append(&batch(vec![line(1, "x")], vec![])).await.unwrap();
    let files: Vec<_> = std::fs::read_dir(backend.path()).unwrap().map(|entry| entry.unwrap()).collect();
    assert!(files.len() >= 4, "{files:?}");
    for file in files {
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{file:?}");
    }
}

#[tokio::test]
async fn reading_needs_no_writer_and_sees_what_one_writes() {
    let backend = Sqlite::make();
    let absent = State::open(backend.path(), Access::ReadOnly).await.unwrap_err();
    assert!(matches!(absent, StoreError::Absent { .. }), "{absent}");
    assert_eq!(std::fs::read_dir(backend.path()).unwrap().count(), 0, "reading makes no file");
    let (state, records) = open_both(backend.path(), Access::ReadWrite).await.unwrap();
    let (read_state, read_records) = open_both(backend.path(), Access::ReadOnly).await.unwrap();
    for n in 1..=3 {
        state.commit(&[save(n, JobState::Queued, true)]).await.unwrap();
        records.append(&batch(vec![line(n, "x")], vec![])).await.unwrap();
        assert_eq!(read_state.load().await.unwrap().next_job, n + 1);
        assert_eq!(read_records.last_seq(JobId(1)).await.unwrap().0, n);
    }
    assert!(read_state.commit(&[save(9, JobState::Queued, true)]).await.is_err());
    assert!(read_records.append(&batch(vec![line(9, "x")], vec![])).await.is_err());
    for state in [state, read_state] {
        state.close().await;
    }
    for records in [records, read_records] {
        records.close().await;
    }
    let (state, records) = open_both(backend.path(), Access::ReadOnly).await.unwrap();
    assert_eq!(state.jobs(None, 9, false).await.unwrap().len(), 3);
    assert_eq!(records.tail(JobId(1), 9, 99, None, None).await.unwrap().len(), 3);
}

#[tokio::test]
async fn another_versions_folder_is_refused_and_left_alone() {
    let backend = Sqlite::make();
    backend.state().await.close().await;
    let path = backend.path().join("state.db");
    let mut bytes = std::fs::read(&path).unwrap();
    // Offset 60 of the header: the user version, big-endian.
    bytes[60..64].copy_from_slice(&999_u32.to_be_bytes());
    std::fs::write(&path, &bytes).unwrap();
    for access in [Access::ReadWrite, Access::ReadOnly] {
        let error = State::open(backend.path(), access).await.unwrap_err();
        let StoreError::Newer { found: 999, known, .. } = error else { panic!("{error}") };
        let text = error.to_string();
        let known = format!(" {known};");
        assert!(text.contains("999") && text.contains(&known) && text.contains("--data"), "{text}");
    }
    assert!(std::fs::read(&path).unwrap() == bytes, "the file was touched");
}

#[tokio::test]
async fn what_is_no_database_of_ours_is_refused_and_left_alone() {
    let noise: Vec<u8> = (0..9000_u32).map(|n| ((n * 7919) >> 3) as u8).collect();
    let backend = Sqlite::make();
    backend
        .state()
        .await
        .commit(&(1..500).map(|n| save(n, JobState::Queued, true)).collect::<Vec<_>>())
        .await
        .unwrap();
    backend.state().await.close().await;
    let mut damaged = std::fs::read(backend.path().join("state.db")).unwrap();
    damaged[4096..].iter_mut().for_each(|byte| *byte ^= 0x5a);
    for bytes in [noise, damaged] {
        let backend = Sqlite::make();
        std::fs::write(backend.path().join("state.db"), &bytes).unwrap();
        let error = match State::open(backend.path(), Access::ReadWrite).await {
            Err(error) => error,
            Ok(state) => state.load().await.unwrap_err(),
        };
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
        assert!(error.to_string().contains("state.db"), "{error}");
        assert!(std::fs::read(backend.path().join("state.db")).unwrap() == bytes, "the file was touched");
    }
}

#[tokio::test]
async fn a_strangers_database_is_refused() {
    let backend = Sqlite::make();
    backend.records(RecordLimits::default()).await.close().await;
    let stranger = Sqlite::make();
    std::fs::copy(backend.path().join("records.db"), stranger.path().join("state.db")).unwrap();
    let path = stranger.path().join("state.db");
    let mut bytes = std::fs::read(&path).unwrap();
    // Offset 68 of the header: the application id.
    bytes[68..72].fill(0);
    std::fs::write(&path, &bytes).unwrap();
    let error = State::open(stranger.path(), Access::ReadWrite).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
}

#[tokio::test]
async fn a_torn_log_loses_only_its_end() {
    let backend = Sqlite::make();
    let state = backend.state().await;
    for n in 1..=20 {
        state.commit(&[save(n, JobState::Queued, true)]).await.unwrap();
    }
    let copy = |bytes: &[u8]| {
        let torn = Sqlite::make();
        std::fs::copy(backend.path().join("state.db"), torn.path().join("state.db")).unwrap();
        std::fs::write(torn.path().join("state.db-wal"), bytes).unwrap();
        torn
    };
    let log = std::fs::read(backend.path().join("state.db-wal")).unwrap();
    let mut kept = Vec::new();
    for part in [10, 40, 70, 99, 100] {
        let torn = copy(&log[..log.len() * part / 100]);
        let jobs = torn.state().await.load().await.unwrap().live_jobs;
        assert!(jobs.iter().map(|job| job.id.0).eq(1..=jobs.len() as u64), "what is left has no gap");
        kept.push(jobs.len());
    }
    assert!(kept.is_sorted() && kept[0] < kept[3] && kept[4] == 20, "{kept:?}");
    let mut flipped = log.clone();
    let at = flipped.len() * 60 / 100;
    flipped[at] ^= 1;
    let torn = copy(&flipped);
    let jobs = torn.state().await.load().await.unwrap().live_jobs.len();
    assert!(jobs >= kept[1] && jobs < 20, "{jobs}");
    torn.state().await.commit(&[save(99, JobState::Queued, true)]).await.unwrap();
}

/// A job as an earlier build has written it. When this fails, give the new field a `#[serde(default)]`.
#[test]
fn jobs_of_earlier_builds_still_parse() {
    let text = include_str!("fixtures/job_1.json");
    let found: Job = serde_json::from_str(text).unwrap();
    assert_eq!((found.id, found.state), (JobId(7), JobState::Running));
    assert_eq!(found.attempts.len(), 2);
    assert_eq!(found.attempts[0].failed_rank, Some(1));
    assert_eq!(found.checkpoints[0].metric, Some(0.1 + 0.2));
    assert!(found.run.is_some());
    let again: Job = serde_json::from_slice(&serde_json::to_vec(&found).unwrap()).unwrap();
    assert_eq!(again, found);
}

const CHILD: &str = "PHALANX_STORE_TEST_CHILD";

/// What the killed process runs: commits for ever, and says on stdout what it was promised.
#[test]
fn child_that_commits_for_ever() {
    use std::io::Write as _;
    let Some(path) = std::env::var_os(CHILD).map(PathBuf::from) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let (state, records) = open_both(&path, Access::ReadWrite).await.unwrap();
        let mut next = state.load().await.unwrap().next_job;
        let applied = records.applied(&"node".parse().unwrap(), "a").await.unwrap();
        let mut event = applied;
        loop {
            let lines = (1..=50).map(|n| line(event + n, format!("{}", event + n))).collect();
            let points =
                (1..=50).map(|n| super::contract::point(event + n, event + n, &[("x", (event + n) as f64)]));
            records.append(&batch(lines, points.collect())).await.unwrap();
            event += 50;
            state
                .commit(&[save(next, JobState::Queued, true), save(next, JobState::Running, true)])
                .await
                .unwrap();
            let mut out = std::io::stdout().lock();
            writeln!(out, "promised {next} {event}").unwrap();
            out.flush().unwrap();
            next += 1;
        }
    });
}

#[tokio::test]
async fn a_killed_writer_keeps_every_promise() {
    let backend = Sqlite::make();
    let mut rounds_with_promises = 0;
    for round in 0..12_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::tests::child_that_commits_for_ever", "--nocapture"])
            .env(CHILD, backend.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        tokio::time::sleep(Duration::from_millis(60 + 23 * round)).await;
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut promised = said.lines().filter_map(|line| {
            let (job, event) = line.split_once("promised ")?.1.split_once(' ')?;
            Some((job.parse::<u64>().ok()?, event.parse::<u64>().ok()?))
        });
        let (state, records) = open_both(backend.path(), Access::ReadWrite).await.unwrap();
        let loaded = state.load().await.unwrap();
        let (lines, points) = records.last_seq(JobId(1)).await.unwrap();
        if let Some((job, event)) = promised.next_back() {
            rounds_with_promises += 1;
            assert!(loaded.next_job > job, "{} {job}", loaded.next_job);
            assert!(lines >= event && points >= event, "{lines} {points} {event}");
        }
        assert!(loaded.live_jobs.iter().map(|job| job.id.0).eq(1..loaded.next_job));
        // Both saves of a commit or none.
        assert!(loaded.live_jobs.iter().all(|job| job.state == JobState::Running));
        for job in &loaded.live_jobs {
            assert_eq!(state.changes(job.id, 0, 9).await.unwrap().len(), 2);
        }
        let rows = records.lines(JobId(1), 0, u32::MAX, usize::MAX, None, None).await.unwrap();
        assert_eq!(lines % 50, 0, "whole batches");
        for (n, row) in (1..=lines).zip(&rows) {
            assert_eq!((row.seq, row.line.as_slice()), (n, n.to_string().as_bytes()));
        }
        assert_eq!((rows.len() as u64, points), (lines, lines));
        state.close().await;
        records.close().await;
    }
    assert!(rounds_with_promises >= 3, "the kills came too early to show anything");
}

/// A small file system of its own, gone with the test.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount(bytes: u64) -> Option<SmallDisk> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
            .arg(folder.path())
            .stderr(Stdio::null());
        if !mount.status().is_ok_and(|status| status.success()) {
            eprintln!("skipped: a small tmpfs cannot be mounted here");
            return None;
        }
        Some(SmallDisk(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Nothing more can be done about it here.
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_and_recovers() {
    let Some(disk) = SmallDisk::mount(8 << 20) else { return };
    let path = disk.0.path();
    let (state, records) = open_both(path, Access::ReadWrite).await.unwrap();
    state.commit(&[save(1, JobState::Running, true)]).await.unwrap();
    records.append(&batch(vec![line(1, "kept")], vec![])).await.unwrap();
    let ballast = path.join("ballast");
    let filled = std::fs::write(&ballast, vec![0; 16 << 20]);
    assert!(filled.is_err(), "the disk is full");
    let big = batch((2..=100).map(|n| line(n, vec![b'x'; 60_000])).collect(), vec![]);
    let mut promised = 1;
    let refused = loop {
        match state.commit(&[save(promised + 1, JobState::Queued, true)]).await {
            Ok(_) => promised += 1,
            Err(error) => break error,
        }
        assert!(promised < 10_000, "a full disk takes everything");
    };
    for error in [refused, records.append(&big).await.unwrap_err()] {
        assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
        assert!(error.to_string().contains("no space"), "{error}");
    }
    // What was promised is there, what was refused is not, and reading goes on.
    assert_eq!(state.load().await.unwrap().next_job, promised + 1);
    assert_eq!(records.tail(JobId(1), 9, 999, None, None).await.unwrap().len(), 1);
    let (reader, _) = open_both(path, Access::ReadOnly).await.unwrap();
    assert_eq!(reader.load().await.unwrap().next_job, promised + 1);
    std::fs::remove_file(&ballast).unwrap();
    state.commit(&[save(promised + 1, JobState::Queued, true)]).await.unwrap();
    records.append(&big).await.unwrap();
    assert_eq!(records.last_seq(JobId(1)).await.unwrap().0, 100);
    assert_eq!(state.job(JobId(1)).await.unwrap(), Some(job(1, JobState::Running)));
}

/// Ratios against what the disk takes in one go: `cargo test --release -p phalanx-runtime store_speed -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn store_speed() {
    let backend = Sqlite::make();
    let gib = 1_u64 << 30;
    let limits = RecordLimits { log_bytes_per_job: 2 * gib, ..RecordLimits::default() };
    let records = backend.records(limits).await;
    let started = std::time::Instant::now();
    let plain = backend.path().join("plain");
    let mut file = std::fs::File::create(&plain).unwrap();
    for _ in 0..1024 {
        std::io::Write::write_all(&mut file, &vec![7; 1 << 20]).unwrap();
    }
    file.sync_all().unwrap();
    let plain_s = started.elapsed().as_secs_f64();
    std::fs::remove_file(&plain).unwrap();
    let started = std::time::Instant::now();
    let mut event = 0;
    for _ in 0..1024 {
        let lines = (1..=1024).map(|n| line(event + n, vec![b'x'; 1024])).collect();
        records.append(&batch(lines, vec![])).await.unwrap();
        event += 1024;
    }
    let lines_s = started.elapsed().as_secs_f64();
    println!(
        "1 GiB in lines of 1 KiB: {:.0} MB/s; a plain file, synced: {:.0} MB/s",
        1074.0 / lines_s,
        1074.0 / plain_s
    );
    let mut worst = Duration::ZERO;
    for _ in 0..20 {
        let started = std::time::Instant::now();
        assert_eq!(records.tail(JobId(1), 1000, 1 << 20, None, None).await.unwrap().len(), 1000);
        worst = worst.max(started.elapsed());
    }
    println!("tail of 1,000 lines of it: at most {worst:?}");
    let started = std::time::Instant::now();
    let (points, per_batch) = (500_000, 500);
    for _ in 0..points / per_batch {
        let points = (1..=per_batch).map(|n| {
            let (rank, step) = ((event + n) % 8, (event + n) / 8);
            let mut point =
                super::contract::point(event + n, step, &[("loss", n as f64), ("acc", 0.5), ("lr", 0.1)]);
            point.rank = rank as u32;
            point.attempt = attempt(2, 1);
            point
        });
        records.append(&batch(vec![], points.collect())).await.unwrap();
        event += per_batch;
    }
    println!("points of three metrics: {:.0} a second", points as f64 / started.elapsed().as_secs_f64());
    let started = std::time::Instant::now();
    let (mut after, mut read) = (0, 0);
    loop {
        let rows = records.points(JobId(2), after, 10_000, None, None).await.unwrap();
        let Some(last) = rows.last() else { break };
        (after, read) = (last.seq, read + rows.len());
    }
    println!("reading {read} points: {:.2} s", started.elapsed().as_secs_f64());
    let state = backend.state().await;
    let started = std::time::Instant::now();
    for n in 1..=500 {
        state.commit(&[save(n, JobState::Queued, true)]).await.unwrap();
    }
    println!("durable commits of one job: {:.0} a second", 500.0 / started.elapsed().as_secs_f64());
}
