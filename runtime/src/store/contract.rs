//! What every backend of the store must do. A backend inherits the suite by one line: `suite!(Backend::make())`.

use super::{NewLine, NewPoint, RecordBatch, RecordLimits, Records, State, Write};
use crate::controller::{Controller, NodeRecord, QueueWrite};
use crate::protocol::LogChunk;
use phalanx_core::id::AttemptId;
use phalanx_core::spec::QueueSpec;
use phalanx_core::{Group, GroupSpec, GroupState, Job, JobId, JobSpec, JobState, Reason, Time};
use phalanx_scheduler::Share;
use std::collections::BTreeMap;
use std::time::Duration;

/// A place where stores can be opened again and again.
pub(super) trait Backend {
    /// Opens what was promised here before.
    async fn state(&self) -> State;
    /// Opens what was recorded here before.
    async fn records(&self, limits: RecordLimits) -> Records;
}

/// The suite as tests of one backend.
macro_rules! suite {
    ($make:expr; $($test:ident)*) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            crate::store::contract::$test(&$make).await;
        })*
    };
    ($make:expr) => {
        crate::store::contract::suite! { $make;
            jobs_come_back_and_can_be_paged
            changes_are_numbered_without_gaps
            old_changes_go
            a_request_is_remembered_and_never_replaced
            a_commit_is_all_or_nothing
            nodes_come_and_go
            ids_go_on_after_the_last
            queues_and_what_they_have_had_come_back
            groups_come_back_until_they_are_removed
            those_who_passed_a_waiting_job_are_known
            lines_are_numbered_and_come_back_whole
            a_redelivered_batch_counts_once
            agents_with_new_numbers_start_again
            pages_end_at_their_bounds
            one_rank_or_attempt_can_be_read_alone
            a_follower_of_a_quiet_rank_misses_nothing
            the_tail_is_the_end
            a_step_counts_once
            later_names_at_an_earlier_step_count
            points_come_back_to_the_bit
            too_many_names_are_dropped
            the_latest_value_is_known
            the_oldest_lines_go_first
            old_lines_go_with_time
            all_jobs_together_have_a_bound
            a_cut_append_leaves_nothing
            readers_and_a_writer_do_not_wait_for_each_other
        }
    };
}
pub(super) use suite;

/// A job as the controller would save it.
pub(super) fn job(id: u64, state: JobState) -> Job {
    let toml = "version = 1\nname = \"digits\"\nenv = { A = \"ü\" }\n[program]\ncommand = [\"sh\", \"-c\", \"echo hi\"]\n";
    Job {
        id: JobId(id),
        spec: JobSpec::parse(toml, "job").unwrap(),
        base_dir: "/work".into(),
        embedded: false,
        state,
        reason: Reason::new("test", "because"),
        exit_code: None,
        submitted: Time::from_micros(id),
        started: None,
        ended: None,
        failures: 0,
        attempts: Vec::new(),
        checkpoints: Vec::new(),
        group: None,
        trial: None,
        run: None,
    }
}

pub(super) fn save(id: u64, state: JobState, visible: bool) -> Write {
    Write::SaveJob { job: Box::new(job(id, state)), visible }
}

pub(super) fn attempt(job: u64, number: u32) -> AttemptId {
    AttemptId { job: JobId(job), number }
}

/// A line of rank 0 in the first attempt of job 1, unless changed.
pub(super) fn line(event: u64, bytes: impl Into<Vec<u8>>) -> NewLine {
    let chunk = LogChunk { rank: 0, stderr: false, line: bytes.into(), partial: false, newline: true };
    NewLine { event, attempt: attempt(1, 1), time: Time::from_micros(1_000_000 + event), chunk }
}

fn rank_line(event: u64, rank: u32, number: u32, bytes: &str) -> NewLine {
    let mut line = line(event, bytes);
    line.chunk.rank = rank;
    line.attempt = attempt(1, number);
    line
}

pub(super) fn point(event: u64, step: u64, metrics: &[(&str, f64)]) -> NewPoint {
    let metrics = metrics.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
    NewPoint { event, attempt: attempt(1, 1), time: Time::from_micros(event), rank: 0, step, metrics }
}

pub(super) fn batch(lines: Vec<NewLine>, points: Vec<NewPoint>) -> RecordBatch {
    RecordBatch { lines, points, ..RecordBatch::new("node".parse().unwrap(), "a".to_owned()) }
}

async fn texts(records: &Records, job: u64) -> Vec<(u64, String)> {
    let rows = records.lines(JobId(job), 0, u32::MAX, usize::MAX, None, None).await.unwrap();
    rows.into_iter().map(|row| (row.seq, String::from_utf8(row.line).unwrap())).collect()
}

async fn steps(records: &Records, job: u64) -> Vec<(u64, u64, Vec<String>)> {
    let rows = records.points(JobId(job), 0, u32::MAX, None, None).await.unwrap();
    rows.into_iter().map(|row| (row.seq, row.step, row.metrics.into_keys().collect())).collect()
}

pub(super) async fn jobs_come_back_and_can_be_paged(backend: &impl Backend) {
    let state = backend.state().await;
    let states =
        [JobState::Succeeded, JobState::Queued, JobState::Running, JobState::Failed, JobState::Paused];
    let writes: Vec<Write> = (1..).zip(states).map(|(id, state)| save(id, state, true)).collect();
    state.commit(&writes).await.unwrap();
    drop(state);
    let state = backend.state().await;
    assert_eq!(state.job(JobId(3)).await.unwrap(), Some(job(3, JobState::Running)));
    assert_eq!(state.job(JobId(6)).await.unwrap(), None);
    assert_eq!(state.job(JobId(u64::MAX)).await.unwrap(), None);
    let some = async |before: Option<u64>, limit, unfinished| {
        let jobs = state.jobs(before.map(JobId), limit, unfinished).await.unwrap();
        jobs.into_iter().map(|job| job.id.0).collect::<Vec<_>>()
    };
    let ids = async |before, limit| some(before, limit, false).await;
    assert_eq!(ids(None, 2).await, [5, 4]);
    assert_eq!(ids(Some(4), 2).await, [3, 2]);
    assert_eq!(ids(Some(2), 2).await, [1]);
    assert!(ids(Some(1), 2).await.is_empty());
    assert_eq!(ids(Some(u64::MAX), 9).await.len(), 5);
    assert_eq!(some(None, 2, true).await, [5, 3]);
    assert_eq!(some(Some(3), 2, true).await, [2]);
    let live: Vec<u64> = state.load().await.unwrap().live_jobs.iter().map(|job| job.id.0).collect();
    assert_eq!(live, [2, 3, 5]);
    let counts = state.counts().await.unwrap();
    assert_eq!(counts.values().sum::<u64>(), 5);
    assert_eq!(counts.get("RUNNING"), Some(&1));
}

pub(super) async fn changes_are_numbered_without_gaps(backend: &impl Backend) {
    let state = backend.state().await;
    let writes = [
        save(1, JobState::Queued, true),
        save(2, JobState::Queued, true),
        save(1, JobState::Queued, false),
        save(1, JobState::Starting, true),
    ];
    assert_eq!(state.commit(&writes).await.unwrap(), [(JobId(1), 1), (JobId(2), 1), (JobId(1), 2)]);
    assert_eq!(state.commit(&[save(1, JobState::Running, false)]).await.unwrap(), []);
    drop(state);
    let state = backend.state().await;
    assert_eq!(state.commit(&[save(1, JobState::Failed, true)]).await.unwrap(), [(JobId(1), 3)]);
    let changes = async |after, limit| {
        let changes = state.changes(JobId(1), after, limit).await.unwrap();
        changes.into_iter().map(|(seq, job)| (seq, job.state)).collect::<Vec<_>>()
    };
    let all = [(1, JobState::Queued), (2, JobState::Starting), (3, JobState::Failed)];
    assert_eq!(changes(0, 9).await, all);
    assert_eq!(changes(1, 1).await, all[1..2]);
    assert!(changes(3, 9).await.is_empty());
}

pub(super) async fn old_changes_go(backend: &impl Backend) {
    let state = backend.state().await;
    let writes: Vec<Write> = (0..1500).map(|_| save(1, JobState::Running, true)).collect();
    assert_eq!(state.commit(&writes).await.unwrap().last(), Some(&(JobId(1), 1500)));
    let changes = state.changes(JobId(1), 0, u32::MAX).await.unwrap();
    assert_eq!((changes.len(), changes[0].0), (1000, 501));
}

pub(super) async fn a_request_is_remembered_and_never_replaced(backend: &impl Backend) {
    let state = backend.state().await;
    let request = |byte: u8, job| Write::Request {
        request_id: "r".to_owned(),
        fingerprint: [byte; 32],
        job: JobId(job),
    };
    assert_eq!(state.request("r").await.unwrap(), None);
    state.commit(&[save(1, JobState::Queued, true), request(7, 1)]).await.unwrap();
    assert!(state.commit(&[save(2, JobState::Queued, true), request(8, 2)]).await.is_err());
    drop(state);
    let state = backend.state().await;
    assert_eq!(state.request("r").await.unwrap(), Some(([7; 32], JobId(1))));
    assert_eq!(state.job(JobId(2)).await.unwrap(), None);
}

pub(super) async fn a_commit_is_all_or_nothing(backend: &impl Backend) {
    let state = backend.state().await;
    let request = Write::Request { request_id: "r".to_owned(), fingerprint: [0; 32], job: JobId(1) };
    state.commit(std::slice::from_ref(&request)).await.unwrap();
    assert!(state.commit(&[save(1, JobState::Queued, true), request]).await.is_err());
    // The failed one neither holds up the next one nor comes back with it.
    assert_eq!(state.commit(&[save(1, JobState::Running, true)]).await.unwrap(), [(JobId(1), 1)]);
    assert_eq!(state.job(JobId(1)).await.unwrap().unwrap().state, JobState::Running);
}

pub(super) async fn nodes_come_and_go(backend: &impl Backend) {
    let state = backend.state().await;
    let record = |name: &str, incarnation: &str| NodeRecord {
        draining: false,
        name: name.parse().unwrap(),
        incarnation: incarnation.to_owned(),
        capacity: Default::default(),
        address: "127.0.0.1".to_owned(),
    };
    let node = |name, incarnation| Write::Node { record: record(name, incarnation) };
    state.commit(&[node("b", "1"), node("a", "1"), node("c", "1"), node("a", "2")]).await.unwrap();
    state.commit(&[Write::RemoveNode("b".parse().unwrap())]).await.unwrap();
    drop(state);
    let nodes = backend.state().await.load().await.unwrap().nodes;
    assert_eq!(nodes, [record("a", "2"), record("c", "1")]);
}

pub(super) async fn ids_go_on_after_the_last(backend: &impl Backend) {
    let state = backend.state().await;
    assert_eq!(state.load().await.unwrap().next_job, 1);
    state.commit(&[save(41, JobState::Cancelled, true)]).await.unwrap();
    assert_eq!(state.load().await.unwrap().next_job, 42);
}

pub(super) async fn queues_and_what_they_have_had_come_back(backend: &impl Backend) {
    let state = backend.state().await;
    let set =
        |name: &str, weight| Write::Queue(QueueWrite::Set(QueueSpec { weight, ..QueueSpec::new(name) }));
    let share = |average: f64| {
        serde_json::from_value::<Share>(serde_json::json!({ "average": [["Cpu", average]], "settled": 7 }))
            .unwrap()
    };
    let had = |queue: &str, average| Write::Share { queue: queue.to_owned(), share: share(average) };
    state.commit(&[set("a", 2.0), set("b", 1.0), had("a", 0.5), had("b", 1.0)]).await.unwrap();
    let changed = [set("a", 0.1), Write::Queue(QueueWrite::Reset("b".to_owned())), had("a", 0.1 + 0.2)];
    state.commit(&changed).await.unwrap();
    drop(state);
    let loaded = backend.state().await.load().await.unwrap();
    let weights: Vec<(&str, f64)> = loaded.queues.iter().map(|(name, q)| (name.as_str(), q.weight)).collect();
    assert_eq!(weights, [("a", 0.1)]);
    // To the bit, or a decision after a restart could differ.
    assert_eq!(loaded.shares, [("a".to_owned(), share(0.1 + 0.2)), ("b".to_owned(), share(1.0))]);
}

pub(super) async fn groups_come_back_until_they_are_removed(backend: &impl Backend) {
    let state = backend.state().await;
    let group = |id: u64, name: &str, state: GroupState| {
        let spec = GroupSpec::parse(&format!("version = 1\nname = \"{name}\"\n")).unwrap();
        Group { id: JobId(id), state, ..Controller::preview_group(Time::from_micros(id), spec) }
    };
    let (first, second) = (group(3, "ä", GroupState::Pending), group(7, "b", GroupState::Pending));
    state
        .commit(&[Write::Groups(vec![second.clone(), first.clone()]), Write::NextId(JobId(8))])
        .await
        .unwrap();
    assert_eq!(state.groups().await.unwrap(), [first.clone(), second.clone()]);
    let ready = Group { state: GroupState::Ready, ..second.clone() };
    state.commit(&[Write::Groups(vec![ready.clone()])]).await.unwrap();
    let removed = Group { state: GroupState::Removed, ..first };
    state.commit(&[Write::Groups(vec![removed.clone(), ready.clone()])]).await.unwrap();
    state.commit(&[Write::Groups(vec![removed])]).await.unwrap();
    state.close().await;
    let loaded = backend.state().await.load().await.unwrap();
    assert_eq!((loaded.groups, loaded.next_job), (vec![ready.clone()], 8));
    let gone = Group { state: GroupState::Removed, ..ready };
    backend.state().await.commit(&[Write::Groups(vec![gone])]).await.unwrap();
    let loaded = backend.state().await.load().await.unwrap();
    assert_eq!((loaded.groups.len(), loaded.next_job), (0, 8), "a number does not come back");
}

pub(super) async fn those_who_passed_a_waiting_job_are_known(backend: &impl Backend) {
    let state = backend.state().await;
    let started = |id, state| {
        let mut job = job(id, state);
        job.attempts.push(
            serde_json::from_value(serde_json::json!({ "number": 1, "state": "SUCCEEDED", "placed": 0,
                "started": null, "ended": null, "exit_code": 0, "failed_rank": null, "message": "", "ranks": [] }))
            .unwrap(),
        );
        Write::SaveJob { job: Box::new(job), visible: true }
    };
    state
        .commit(&[
            started(1, JobState::Succeeded),
            save(2, JobState::Queued, true),
            started(3, JobState::Failed),
            save(4, JobState::Cancelled, true),
            started(5, JobState::Succeeded),
        ])
        .await
        .unwrap();
    assert_eq!(state.load().await.unwrap().passed, [JobId(5), JobId(3)]);
}

pub(super) async fn lines_are_numbered_and_come_back_whole(backend: &impl Backend) {
    let records = backend.records(RecordLimits::default()).await;
    let long = vec![0xc3; 1 << 20];
    let mut odd = line(2, long.clone());
    odd.chunk = LogChunk { rank: 3, stderr: true, line: long.clone(), partial: true, newline: false };
    odd.attempt = attempt(1, 2);
    let mut other = line(3, "other");
    other.attempt = attempt(2, 1);
    records
        .append(&batch(vec![line(1, ""), odd, other, line(4, b"\xff\r\0".to_vec())], vec![]))
        .await
        .unwrap();
    drop(records);
    let records = backend.records(RecordLimits::default()).await;
    records.append(&batch(vec![line(5, "after")], vec![])).await.unwrap();
    let rows = records.lines(JobId(1), 0, u32::MAX, usize::MAX, None, None).await.unwrap();
    let seqs: Vec<u64> = rows.iter().map(|row| row.seq).collect();
    assert_eq!(seqs, [1, 2, 3, 4]);
    assert_eq!((rows[1].line.clone(), rows[1].rank, rows[1].attempt), (long, 3, 2));
    assert_eq!((rows[1].stderr, rows[1].partial, rows[1].newline), (true, true, false));
    assert_eq!(
        (rows[2].line.as_slice(), rows[2].time),
        (b"\xff\r\0".as_slice(), Time::from_micros(1_000_004))
    );
    assert_eq!(rows[3].line, b"after");
    assert_eq!(texts(&records, 2).await, [(1, "other".to_owned())]);
    assert_eq!(records.last_seq(JobId(1)).await.unwrap(), (4, 0));
    assert_eq!(records.last_seq(JobId(9)).await.unwrap(), (0, 0));
}

pub(super) async fn a_redelivered_batch_counts_once(backend: &impl Backend) {
    let mut records = backend.records(RecordLimits::default()).await;
    let first = batch(vec![line(1, "a"), line(3, "b")], vec![point(2, 1, &[("x", 1.0)])]);
    records.append(&first).await.unwrap();
    for restart in [false, true] {
        if restart {
            drop(records);
            records = backend.records(RecordLimits::default()).await;
        }
        records.append(&first).await.unwrap();
        let more = batch(
            vec![line(3, "b"), line(4, "c")],
            vec![point(2, 1, &[("x", 1.0)]), point(5, 2, &[("x", 2.0)])],
        );
        records.append(&more).await.unwrap();
        let wanted = ["a", "b", "c"].map(str::to_owned);
        assert_eq!(texts(&records, 1).await, (1..).zip(wanted).collect::<Vec<_>>());
        assert_eq!(steps(&records, 1).await.len(), 2);
    }
    assert_eq!(records.applied(&"node".parse().unwrap(), "a").await.unwrap(), 5);
    assert_eq!(records.applied(&"node".parse().unwrap(), "b").await.unwrap(), 0);
}

pub(super) async fn agents_with_new_numbers_start_again(backend: &impl Backend) {
    let records = backend.records(RecordLimits::default()).await;
    records.append(&batch(vec![line(9, "a")], vec![])).await.unwrap();
    let mut fresh = batch(vec![line(1, "b")], vec![]);
    fresh.outbox = "b".to_owned();
    records.append(&fresh).await.unwrap();
    let mut elsewhere = batch(vec![line(1, "c")], vec![]);
    elsewhere.node = "other".parse().unwrap();
    records.append(&elsewhere).await.unwrap();
    assert_eq!(texts(&records, 1).await.len(), 3);
}

pub(super) async fn pages_end_at_their_bounds(backend: &impl Backend) {
    let records = backend.records(RecordLimits::default()).await;
    // Several blocks in one append, and several appends in one page.
    for start in [0, 100] {
        let lines = (1..=100).map(|n| line(start + n, vec![b'x'; 10_000])).collect();
        let points = (1..=100).map(|n| point(start + n, start + n, &[("x", n as f64)])).collect();
        records.append(&batch(lines, points)).await.unwrap();
    }
    let page = async |after, rows, bytes| {
        let rows = records.lines(JobId(1), after, rows, bytes, None, None).await.unwrap();
        (rows.first().map(|row| row.seq), rows.len())
    };
    assert_eq!(page(0, 7, usize::MAX).await, (Some(1), 7));
    assert_eq!(page(95, u32::MAX, 105_000).await, (Some(96), 10));
    assert_eq!(page(199, u32::MAX, 1).await, (Some(200), 1), "the first comes however long it is");
    assert_eq!(page(200, 7, usize::MAX).await, (None, 0));
    assert_eq!(page(u64::MAX, 7, usize::MAX).await, (None, 0));
    let (mut after, mut read) = (0, Vec::new());
    loop {
        let rows = records.points(JobId(1), after, 7, None, None).await.unwrap();
        let Some(last) = rows.last() else { break };
        after = last.seq;
        read.extend(rows.iter().map(|row| (row.seq, row.step)));
    }
    assert_eq!(read, (1..=200).map(|n| (n, n)).collect::<Vec<_>>());
}

pub(super) async fn one_rank_or_attempt_can_be_read_alone(backend: &impl Backend) {
    let records = backend.records(RecordLimits::default()).await;
    // Ranks 1 and 64 share a bit in a block's summary.
    let lines = (1..=400).map(|n| rank_line(n, [0, 1, 64, 200][n as usize % 4], 1 + (n / 300) as u32, "x"));
    let lines: Vec<NewLine> = lines.collect();
    for chunk in lines.chunks(50) {
        records.append(&batch(chunk.to_vec(), vec![])).await.unwrap();
    }
    for (rank, number) in
        [(Some(1), None), (Some(64), Some(1)), (None, Some(2)), (Some(7), None), (None, Some(3))]
    {
        let wanted = |line: &&NewLine| {
            rank.is_none_or(|rank| line.chunk.rank == rank)
                && number.is_none_or(|number| line.attempt.number == number)
        };
        let wanted: Vec<u64> = lines.iter().filter(wanted).map(|line| line.event).collect();
        let rows = records.lines(JobId(1), 0, u32::MAX, usize::MAX, rank, number).await.unwrap();
        assert_eq!(rows.iter().map(|row| row.seq).collect::<Vec<_>>(), wanted, "{rank:?} {number:?}");
        let rows = records.tail(JobId(1), 5, usize::MAX, rank, number).await.unwrap();
        let end = &wanted[wanted.len().saturating_sub(5)..];
        assert_eq!(rows.iter().map(|row| row.seq).collect::<Vec<_>>(), end, "{rank:?} {number:?}");
    }
}

pub(super) async fn a_follower_of_a_quiet_rank_misses_nothing(backend: &impl Backend) {
    let records = backend.records(RecordLimits::default()).await;
    let read = async || {
        let rows = records.lines(JobId(1), 0, 10, usize::MAX, Some(1), None).await.unwrap();
        rows.iter().map(|row| row.seq).collect::<Vec<_>>()
    };
    for n in 1..=20 {
        records.append(&batch(vec![rank_line(n, 0, 1, "x")], vec![])).await.unwrap();
        assert!(read().await.is_empty());
    }
    records.append(&batch(vec![rank_line(21, 0, 1, "x"), rank_line(22, 1, 1, "y")], vec![])).await.unwrap();
    assert_eq!(read().await, [22]);
    records.append(&batch(vec![rank_line(23, 1, 1, "y")], vec![])).await.unwrap();
    assert_eq!(read().await, [22, 23]);
}

pub(super) async fn the_tail_is_the_end(backend: &impl Backend) {
    let records = backend.records(RecordLimits::default()).await;
    assert!(records.tail(JobId(1), 5, usize::MAX, None, None).await.unwrap().is_empty());
    for start in (0..1000).step_by(100) {
        let lines = (1..=100).map(|n| line(start + n, vec![b'x'; 5000])).collect();
        records.append(&batch(lines, vec![])).await.unwrap();
    }
    let tail = async |rows, bytes| {
        let rows = records.tail(JobId(1), rows, bytes, None, None).await.unwrap();
        rows.iter().map(|row| row.seq).collect::<Vec<_>>()
    };
    assert_eq!(tail(3, usize::MAX).await, [998, 999, 1000]);
    assert_eq!(tail(150, usize::MAX).await, (851..=1000).collect::<Vec<_>>());
    assert_eq!(tail(150, 10_000).await, [999, 1000]);
    assert_eq!(tail(u32::MAX, usize::MAX).await.len(), 1000);
}

pub(super) async fn a_step_counts_once(backend: &impl Backend) {
    let mut records = backend.records(RecordLimits::default()).await;
    let report = |event, step| point(event, step, &[("x", step as f64)]);
    // Twice in one batch, again in a later one, and after a restart; steps going back are not repeats.
    records.append(&batch(vec![], vec![report(1, 5), report(2, 5), report(3, 2)])).await.unwrap();
    records
        .append(&batch(vec![], vec![report(4, 2), report(5, 3), report(6, 3), report(7, 9)]))
        .await
        .unwrap();
    drop(records);
    records = backend.records(RecordLimits::default()).await;
    let again = vec![report(8, 9), report(9, 5), report(10, 1), report(11, u64::MAX), report(12, u64::MAX)];
    records.append(&batch(vec![], again)).await.unwrap();
    let found: Vec<(u64, u64)> =
        steps(&records, 1).await.into_iter().map(|(seq, step, _)| (seq, step)).collect();
    assert_eq!(found, (1..).zip([5, 2, 3, 9, 1, u64::MAX]).collect::<Vec<_>>());
    // Another rank, attempt or job is another series.
    let mut others = vec![report(20, 5), report(21, 5), report(22, 5)];
    others[0].rank = 1;
    others[1].attempt = attempt(1, 2);
    others[2].attempt = attempt(2, 1);
    records.append(&batch(vec![], others)).await.unwrap();
    assert_eq!((steps(&records, 1).await.len(), steps(&records, 2).await.len()), (8, 1));
}

pub(super) async fn later_names_at_an_earlier_step_count(backend: &impl Backend) {
    let records = backend.records(RecordLimits::default()).await;
    let reports = vec![
        point(1, 1, &[("loss", 1.0)]),
        point(2, 2, &[("loss", 1.0)]),
        point(3, 1, &[("acc", 0.5)]),
        // Half of it is known.
        point(4, 2, &[("acc", 0.6), ("loss", 7.0)]),
        point(5, 2, &[("acc", 0.6), ("loss", 7.0)]),
        point(6, 3, &[]),
    ];
    records.append(&batch(vec![], reports)).await.unwrap();
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    let wanted = [
        (1, 1, names(&["loss"])),
        (2, 2, names(&["loss"])),
        (3, 1, names(&["acc"])),
        (4, 2, names(&["acc"])),
    ];
    assert_eq!(steps(&records, 1).await, wanted);
    let rows = records.points(JobId(1), 0, u32::MAX, None, None).await.unwrap();
    assert_eq!(rows[1].metrics["loss"], 1.0, "the first counts");
}

pub(super) async fn points_come_back_to_the_bit(backend: &impl Backend) {
    let records = backend.records(RecordLimits::default()).await;
    let odd = [f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, 5e-324, 0.1 + 0.2];
    let metrics: BTreeMap<String, f64> =
        (0..).zip(odd).map(|(n, value): (u32, f64)| (format!("µ/{n}"), value)).collect();
    let mut report = point(1, 1, &[]);
    report.metrics.clone_from(&metrics);
    records.append(&batch(vec![], vec![report])).await.unwrap();
    let rows = records.points(JobId(1), 0, 9, Some(0), Some(1)).await.unwrap();
    let bits = |metrics: &BTreeMap<String, f64>| -> Vec<(String, u64)> {
        metrics.iter().map(|(name, value)| (name.clone(), value.to_bits())).collect()
    };
    assert_eq!(bits(&rows[0].metrics), bits(&metrics));
    assert_eq!((rows[0].time, rows[0].rank, rows[0].attempt), (Time::from_micros(1), 0, 1));
}

pub(super) async fn too_many_names_are_dropped(backend: &impl Backend) {
    let records = backend.records(RecordLimits { metric_names_per_job: 2, ..RecordLimits::default() }).await;
    let reports =
        vec![point(1, 1, &[("a", 1.0), ("b", 1.0), ("c", 1.0)]), point(2, 2, &[("b", 2.0), ("d", 2.0)])];
    records.append(&batch(vec![], reports)).await.unwrap();
    let names: Vec<Vec<String>> = steps(&records, 1).await.into_iter().map(|(_, _, names)| names).collect();
    assert_eq!(names, [vec!["a".to_owned(), "b".to_owned()], vec!["b".to_owned()]]);
}

pub(super) async fn the_latest_value_is_known(backend: &impl Backend) {
    let mut records = backend.records(RecordLimits::default()).await;
    let latest = async |records: &Records, number, name| {
        let latest = records.latest_metric(JobId(1), number, name).await.unwrap();
        latest.map(|latest| (latest.step, latest.value))
    };
    assert_eq!(latest(&records, 1, "x").await, None);
    let mut other_rank = point(3, 1, &[("x", 3.0)]);
    other_rank.rank = 1;
    records
        .append(&batch(vec![], vec![point(1, 8, &[("x", 1.0)]), point(2, 4, &[("x", 2.0)]), other_rank]))
        .await
        .unwrap();
    assert_eq!(latest(&records, 1, "x").await, Some((1, 3.0)));
    // A repeat is no later value.
    records.append(&batch(vec![], vec![point(4, 8, &[("x", 9.0), ("y", 4.0)])])).await.unwrap();
    drop(records);
    records = backend.records(RecordLimits::default()).await;
    assert_eq!(latest(&records, 1, "x").await, Some((1, 3.0)));
    assert_eq!(latest(&records, 1, "y").await, Some((8, 4.0)));
    assert_eq!(latest(&records, 2, "x").await, None);
}

pub(super) async fn the_oldest_lines_go_first(backend: &impl Backend) {
    let limit = 1_000_000;
    let records = backend.records(RecordLimits { log_bytes_per_job: limit, ..RecordLimits::default() }).await;
    for start in (0..5000).step_by(100) {
        let lines = (1..=100).map(|n| line(start + n, vec![b'x'; 1000])).collect();
        records.append(&batch(lines, vec![])).await.unwrap();
    }
    let rows = records.lines(JobId(1), 0, u32::MAX, usize::MAX, None, None).await.unwrap();
    let bytes: u64 = rows.iter().map(|row| row.line.len() as u64).sum();
    assert!(bytes <= limit && bytes > limit / 2, "{bytes}");
    let first = 5000 - rows.len() as u64 + 1;
    assert!(rows.iter().map(|row| row.seq).eq(first..=5000), "the newest are kept without gaps");
    // A block larger than the bound alone is kept until a newer one is there.
    let mut huge = line(9001, vec![b'x'; 3_000_000]);
    huge.attempt = attempt(2, 1);
    let mut next = line(9002, "next");
    next.attempt = attempt(2, 1);
    records.append(&batch(vec![huge], vec![])).await.unwrap();
    assert_eq!(records.lines(JobId(2), 0, 9, usize::MAX, None, None).await.unwrap().len(), 1);
    records.append(&batch(vec![next], vec![])).await.unwrap();
    assert_eq!(texts(&records, 2).await, [(2, "next".to_owned())]);
}

pub(super) async fn old_lines_go_with_time(backend: &impl Backend) {
    let hour = Duration::from_secs(3600);
    let limits = RecordLimits { log_age: hour, ..RecordLimits::default() };
    let records = backend.records(limits).await;
    let at = |event, time: Duration| NewLine { time: Time::ZERO + time, ..line(event, format!("{event}")) };
    records.append(&batch(vec![at(1, hour)], vec![])).await.unwrap();
    records.append(&batch(vec![at(2, hour * 3 / 2)], vec![])).await.unwrap();
    records.append(&batch(vec![at(3, hour * 9 / 4)], vec![])).await.unwrap();
    assert_eq!(texts(&records, 1).await, [(2, "2".to_owned()), (3, "3".to_owned())]);
    records.append(&batch(vec![at(4, hour * 9)], vec![])).await.unwrap();
    assert_eq!(texts(&records, 1).await, [(4, "4".to_owned())], "the batch in hand is never too old");
}

pub(super) async fn all_jobs_together_have_a_bound(backend: &impl Backend) {
    let records = backend.records(RecordLimits { log_bytes: 100_000, ..RecordLimits::default() }).await;
    for n in 1..=50_u64 {
        // Ten minutes apart: the bound on all jobs is looked at once in a while.
        let time = Time::ZERO + Duration::from_secs(600 * n);
        let line = NewLine { attempt: attempt(n, 1), time, ..line(n, vec![b'x'; 10_000]) };
        records.append(&batch(vec![line], vec![])).await.unwrap();
    }
    let mut kept = Vec::new();
    for job in 1..=50 {
        kept.extend(texts(&records, job).await.iter().map(|_| job));
    }
    assert_eq!(kept, (42..=50).collect::<Vec<_>>());
}

pub(super) async fn a_cut_append_leaves_nothing(backend: &impl Backend) {
    let records = backend.records(RecordLimits::default()).await;
    records.append(&batch(vec![line(1, "first")], vec![])).await.unwrap();
    let big = batch((2..=2000).map(|n| line(n, vec![b'x'; 1000])).collect(), vec![]);
    for micros in [0, 100, 300, 1000, 3000] {
        // Whether it was cut or came through, handing it in again makes it whole.
        let _ = tokio::time::timeout(Duration::from_micros(micros), records.append(&big)).await;
        let seqs: Vec<u64> = texts(&records, 1).await.into_iter().map(|(seq, _)| seq).collect();
        assert!(seqs == [1] || seqs.len() == 2000, "{}", seqs.len());
    }
    records.append(&big).await.unwrap();
    let seqs: Vec<u64> = texts(&records, 1).await.into_iter().map(|(seq, _)| seq).collect();
    assert!(seqs.iter().copied().eq(1..=2000), "{} lines", seqs.len());
}

pub(super) async fn readers_and_a_writer_do_not_wait_for_each_other(backend: &impl Backend) {
    let records = backend.records(RecordLimits::default()).await;
    let readers: Vec<_> = (0..8_u32)
        .map(|rank| {
            let records = records.clone();
            tokio::spawn(async move {
                let (mut after, mut seen) = (0, 0);
                while after < 2000 {
                    let rows = records.lines(JobId(1), after, 100, usize::MAX, None, None).await.unwrap();
                    for row in &rows {
                        assert_eq!(row.seq, after + 1, "reader {rank} sees no gap");
                        after = row.seq;
                        seen += 1;
                    }
                    if rows.is_empty() {
                        tokio::task::yield_now().await;
                    }
                }
                seen
            })
        })
        .collect();
    for n in (0..2000).step_by(20) {
        let lines = (1..=20).map(|at| line(n + at, format!("line {}", n + at))).collect();
        records.append(&batch(lines, vec![])).await.unwrap();
    }
    for reader in readers {
        let seen = tokio::time::timeout(Duration::from_secs(30), reader).await.unwrap().unwrap();
        assert_eq!(seen, 2000);
    }
}
