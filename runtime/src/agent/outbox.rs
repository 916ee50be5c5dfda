//! What happened on this node and is not yet committed by the service: numbered, in memory and in a file.
//!
//! The file survives the end of the agent and of the service; it is not synced, for after a loss of power the ranks are
//! gone anyway. Producers of what can wait (lines, reports) wait for [`Outbox::room`]; nothing said is ever refused. A
//! disk that takes nothing leaves the outbox in memory until it does again.

mod segment;

use crate::protocol::{Happening, wire};
use phalanx_api::v1 as pb;
use phalanx_core::Time;
use phalanx_core::id::AttemptId;
use segment::{Record, Segments};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;

/// Memory that events may take before producers wait.
const ROOM_BYTES: usize = 64 << 20;
/// What an event takes in memory beyond its text.
const EVENT_BYTES: usize = 160;
/// Between two tries to write to a disk that takes nothing.
const DISK_RETRY: Duration = Duration::from_secs(1);
/// What an identity is read from: unique by the kernel's word.
const UUID_FILE: &str = "/proc/sys/kernel/random/uuid";
/// Changes with every start of the machine.
const BOOT_FILE: &str = "/proc/sys/kernel/random/boot_id";

/// Events that wait for the service. See the module.
#[derive(Debug)]
pub(super) struct Outbox {
    id: String,
    inner: Mutex<Inner>,
    room: Notify,
    news: Notify,
}

#[derive(Debug)]
struct Inner {
    queue: VecDeque<pb::AgentEvent>,
    bytes: usize,
    next_seq: u64,
    segments: Segments,
    /// The first event that is not in the file, and when the next try is due.
    unwritten: Option<(u64, Instant)>,
    /// Attempts with events in the queue or under way: the number of their `Gone`, once it has been said.
    attempts: BTreeMap<String, Option<u64>>,
}

/// What an earlier agent of the same folder left to say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct LeftOver {
    /// Attempts whose `Gone` has been said.
    pub(super) said: Vec<AttemptId>,
    /// Attempts with events but no `Gone`.
    pub(super) open: Vec<AttemptId>,
}

impl Outbox {
    /// Opens the outbox in a folder, or makes one; a torn end of its files is ignored.
    pub(super) fn open(dir: &Path) -> io::Result<(Outbox, LeftOver)> {
        let boot = std::fs::read_to_string(BOOT_FILE).unwrap_or_default().trim().to_owned();
        Outbox::open_for_boot(dir, &boot)
    }

    fn open_for_boot(dir: &Path, boot: &str) -> io::Result<(Outbox, LeftOver)> {
        std::fs::create_dir_all(dir)?;
        let known = read_identity(dir);
        let (mut segments, loaded) = Segments::load(dir)?;
        let mut queue: VecDeque<pb::AgentEvent> = loaded.events.into();
        let mut next_seq = loaded.next_seq;
        let id = match known {
            Some((id, its_boot)) if its_boot == boot => id,
            // After a loss of power the file may lack what the service has taken in already: numbers would repeat.
            _ => {
                let id = std::fs::read_to_string(UUID_FILE)?.trim().to_owned();
                for (event, seq) in queue.iter_mut().zip(1..) {
                    event.seq = seq;
                }
                next_seq = queue.len() as u64 + 1;
                segments.restart(queue.make_contiguous())?;
                write_identity(dir, &id, boot)?;
                id
            }
        };
        let bytes = queue.iter().map(weight).sum();
        let mut attempts: BTreeMap<String, Option<u64>> = BTreeMap::new();
        for event in &queue {
            let gone = is_gone(event).then_some(event.seq);
            let entry = attempts.entry(event.attempt.clone()).or_default();
            *entry = gone.or(*entry);
        }
        let pick = |said: bool| {
            let attempts = attempts.iter().filter(|(_, gone)| gone.is_some() == said);
            attempts.filter_map(|(attempt, _)| attempt.parse().ok()).collect()
        };
        let left = LeftOver { said: pick(true), open: pick(false) };
        let inner = Inner { queue, bytes, next_seq, segments, unwritten: None, attempts };
        Ok((Outbox { id, inner: Mutex::new(inner), room: Notify::new(), news: Notify::new() }, left))
    }

    /// Names the numbering.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says one thing.
    pub(super) fn say(&self, attempt: AttemptId, what: &Happening) {
        self.say_all(attempt, [wire::happening(what)]);
    }

    /// Says several things of one attempt. Never waits for room; what can wait calls [`Outbox::room`] before.
    pub(super) fn say_all(
        &self,
        attempt: AttemptId,
        events: impl IntoIterator<Item = pb::agent_event::Event>,
    ) {
        let (name, time_us) = (attempt.to_string(), now().as_micros());
        let mut inner = self.lock();
        let first = inner.next_seq;
        for event in events {
            let seq = inner.next_seq;
            inner.next_seq += 1;
            let event = pb::AgentEvent { seq, attempt: name.clone(), time_us, event: Some(event) };
            let gone = is_gone(&event).then_some(seq);
            match inner.attempts.get_mut(&name) {
                Some(known) => *known = gone.or(*known),
                None => drop(inner.attempts.insert(name.clone(), gone)),
            }
            inner.bytes += weight(&event);
            inner.queue.push_back(event);
        }
        inner.write(first);
        drop(inner);
        self.news.notify_waiters();
    }

    /// Waits until there is room for what can wait.
    pub(super) async fn room(&self) {
        loop {
            let freed = self.room.notified();
            if self.lock().bytes < ROOM_BYTES {
                return;
            }
            freed.await;
        }
    }

    /// Waits until there are events after `seq` and takes copies of at most `limit_bytes` of them, but at least one.
    pub(super) async fn after(&self, seq: u64, limit_bytes: usize) -> Vec<pb::AgentEvent> {
        loop {
            let news = self.news.notified();
            {
                let inner = self.lock();
                let start = inner.queue.partition_point(|event| event.seq <= seq);
                let mut bytes = 0;
                let fits = inner.queue.iter().skip(start).take_while(|event| {
                    let fits = bytes < limit_bytes;
                    bytes += weight(event);
                    fits
                });
                let batch: Vec<pb::AgentEvent> = fits.cloned().collect();
                if !batch.is_empty() {
                    return batch;
                }
            }
            news.await;
        }
    }

    /// Forgets what the service has committed; tells the attempts whose `Gone` was among it.
    pub(super) fn ack(&self, seq: u64) -> Vec<AttemptId> {
        let mut inner = self.lock();
        while inner.queue.front().is_some_and(|event| event.seq <= seq) {
            let Some(event) = inner.queue.pop_front() else { break };
            inner.bytes -= weight(&event);
        }
        let over = |gone: &Option<u64>| gone.is_some_and(|gone| gone <= seq);
        let done: Vec<String> = inner
            .attempts
            .iter()
            .filter(|(_, gone)| over(gone))
            .map(|(attempt, _)| attempt.clone())
            .collect();
        inner.attempts.retain(|_, gone| !over(gone));
        let next_seq = inner.next_seq;
        let idle = inner.queue.is_empty() && inner.unwritten.is_none();
        if let Err(error) = inner.segments.acked(seq, next_seq, idle) {
            tracing::debug!(%error, "the outbox keeps more on disk than it has to");
        }
        drop(inner);
        self.room.notify_waiters();
        done.iter().filter_map(|attempt| attempt.parse().ok()).collect()
    }

    /// Whether everything said is committed.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().queue.is_empty()
    }
}

impl Inner {
    fn write(&mut self, first: u64) {
        let from = match self.unwritten {
            None => first,
            Some((from, due)) if Instant::now() >= due => from,
            Some(_) => return,
        };
        let start = self.queue.partition_point(|event| event.seq < from);
        let (next_seq, record) = (self.next_seq, Record::events(self.queue.iter().skip(start)));
        match self.segments.append(&record, next_seq) {
            Ok(()) => {
                if self.unwritten.take().is_some() {
                    tracing::info!("the outbox is on disk again");
                }
            }
            Err(error) => {
                if self.unwritten.is_none() {
                    tracing::error!(%error, "cannot write the outbox; what happens is kept in memory only");
                }
                self.unwritten = Some((from, Instant::now() + DISK_RETRY));
            }
        }
    }
}

fn is_gone(event: &pb::AgentEvent) -> bool {
    matches!(event.event, Some(pb::agent_event::Event::Gone(_)))
}

fn weight(event: &pb::AgentEvent) -> usize {
    use pb::agent_event::Event;
    EVENT_BYTES
        + match &event.event {
            Some(Event::Log(chunk)) => chunk.line.len(),
            Some(Event::Report(report)) => report.metrics.keys().map(|name| name.len() + EVENT_BYTES).sum(),
            _ => 0,
        }
}

/// The wall clock.
pub(super) fn now() -> Time {
    Time::ZERO + SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn read_identity(dir: &Path) -> Option<(String, String)> {
    let text = std::fs::read_to_string(dir.join("id")).ok()?;
    let (id, boot) = text.trim().split_once(' ')?;
    Some((id.to_owned(), boot.to_owned()))
}

fn write_identity(dir: &Path, id: &str, boot: &str) -> io::Result<()> {
    let (new, path) = (dir.join("id.new"), dir.join("id"));
    std::fs::write(&new, format!("{id} {boot}\n"))?;
    std::fs::File::open(&new)?.sync_all()?;
    std::fs::rename(new, path)?;
    std::fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests;
