//! The files of an outbox: records one after the other, in segments that are deleted when all in them is committed.
//!
//! A record is its length (4 bytes), the first 8 bytes of its BLAKE3 hash, and its payload: a kind, then events or the
//! number up to which the service has committed. A segment's name is the number that follows what came before it, so
//! that the numbering outlives its events.

use phalanx_api::v1 as pb;
use prost::Message;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A segment that is larger is followed by a new one.
const SEGMENT_BYTES: u64 = 16 << 20;
/// A segment that is smaller is not worth replacing when all in it is committed.
const KEPT_BYTES: u64 = 256 << 10;
const HEAD_BYTES: usize = 12;
const EVENTS: u8 = 1;
const ACKED: u8 = 2;

/// A record, ready to be written.
pub(super) struct Record(Vec<u8>);

impl Record {
    pub(super) fn events<'a>(events: impl Iterator<Item = &'a pb::AgentEvent>) -> Record {
        let mut record = Record::start(EVENTS);
        for event in events {
            // A vector takes everything.
            let _ = event.encode_length_delimited(&mut record);
        }
        Record::finish(record)
    }

    fn acked(seq: u64) -> Record {
        let mut record = Record::start(ACKED);
        record.extend(seq.to_le_bytes());
        Record::finish(record)
    }

    fn start(kind: u8) -> Vec<u8> {
        let mut record = vec![0; HEAD_BYTES];
        record.push(kind);
        record
    }

    fn finish(mut record: Vec<u8>) -> Record {
        let length = (record.len() - HEAD_BYTES) as u32;
        let hash = blake3::hash(&record[HEAD_BYTES..]);
        record[..4].copy_from_slice(&length.to_le_bytes());
        record[4..HEAD_BYTES].copy_from_slice(&hash.as_bytes()[..8]);
        Record(record)
    }
}

/// What was found in the files.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub(super) events: Vec<pb::AgentEvent>,
    pub(super) next_seq: u64,
}

#[derive(Debug)]
struct Segment {
    first: u64,
    path: PathBuf,
}

/// The files of an outbox, the oldest first; the last one is written to.
#[derive(Debug)]
pub(super) struct Segments {
    dir: PathBuf,
    list: Vec<Segment>,
    pub(super) active: Option<(File, u64)>,
}

impl Segments {
    pub(super) fn load(dir: &Path) -> io::Result<(Segments, Loaded)> {
        let mut list: Vec<Segment> = std::fs::read_dir(dir)?
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let first = path.file_name()?.to_str()?.strip_suffix(".log")?.parse().ok()?;
                Some(Segment { first, path })
            })
            .collect();
        list.sort_by_key(|segment| segment.first);
        let mut loaded =
            Loaded { next_seq: list.last().map_or(1, |segment| segment.first), events: Vec::new() };
        let mut acked = 0;
        let mut active = None;
        for segment in &list {
            let bytes = std::fs::read(&segment.path)?;
            let good = read_records(&bytes, &mut loaded.events, &mut acked);
            active = Some((segment.path.clone(), good as u64));
        }
        loaded.events.retain(|event| event.seq > acked);
        let last = loaded.events.last().map_or(0, |event| event.seq);
        loaded.next_seq = loaded.next_seq.max(last + 1).max(acked + 1);
        let active = match active {
            None => None,
            Some((path, good)) => {
                let file = OpenOptions::new().append(true).open(path)?;
                file.set_len(good)?;
                Some((file, good))
            }
        };
        Ok((Segments { dir: dir.to_owned(), list, active }, loaded))
    }

    /// Replaces everything by these events.
    pub(super) fn restart(&mut self, events: &[pb::AgentEvent]) -> io::Result<()> {
        self.active = None;
        let old = std::mem::take(&mut self.list);
        for segment in old {
            std::fs::remove_file(segment.path)?;
        }
        self.append(&Record::events(events.iter()), 1)
    }

    /// Writes a record; afterwards it is whole in the file or not there at all. `next_seq` follows what is in it.
    pub(super) fn append(&mut self, record: &Record, next_seq: u64) -> io::Result<()> {
        if self.active.as_ref().is_none_or(|&(_, length)| length >= SEGMENT_BYTES) {
            self.begin(next_seq)?;
        }
        let Some((file, length)) = &mut self.active else { return Ok(()) };
        match file.write_all(&record.0) {
            Ok(()) => {
                *length += record.0.len() as u64;
                Ok(())
            }
            Err(error) => {
                // Where even that fails, a new segment is begun, and the torn end of this one is ignored.
                if file.set_len(*length).is_err() {
                    self.active = None;
                }
                Err(error)
            }
        }
    }

    fn begin(&mut self, next_seq: u64) -> io::Result<()> {
        // A segment may hold earlier events than its name says when it was begun for them; only the highest name counts.
        let path = self.dir.join(format!("{next_seq:020}.log"));
        let file = OpenOptions::new().append(true).create(true).open(&path)?;
        let length = file.metadata()?.len();
        if self.list.last().is_none_or(|last| last.path != path) {
            self.list.push(Segment { first: next_seq, path });
        }
        self.active = Some((file, length));
        Ok(())
    }

    /// Everything up to `seq` is committed; `idle` where nothing else is in the outbox.
    pub(super) fn acked(&mut self, seq: u64, next_seq: u64, idle: bool) -> io::Result<()> {
        if idle && self.active.as_ref().is_some_and(|&(_, length)| length >= KEPT_BYTES) {
            self.begin(next_seq)?;
        }
        // What a segment holds ends before the next one's name.
        while self.list.len() > 1 && self.list[1].first <= seq + 1 {
            let segment = self.list.remove(0);
            std::fs::remove_file(segment.path)?;
        }
        self.append(&Record::acked(seq), next_seq)
    }
}

/// Reads whole records; the length of what is whole.
fn read_records(bytes: &[u8], events: &mut Vec<pb::AgentEvent>, acked: &mut u64) -> usize {
    let mut at = 0;
    while let Some(payload) = read_record(&bytes[at..]) {
        match payload.split_first() {
            Some((&EVENTS, mut rest)) => {
                while !rest.is_empty() {
                    let Ok(event) = pb::AgentEvent::decode_length_delimited(&mut rest) else { return at };
                    events.push(event);
                }
            }
            Some((&ACKED, seq)) => {
                let Ok(seq) = seq.try_into() else { return at };
                *acked = (*acked).max(u64::from_le_bytes(seq));
            }
            _ => return at,
        }
        at += HEAD_BYTES + payload.len();
    }
    at
}

fn read_record(bytes: &[u8]) -> Option<&[u8]> {
    let length = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let payload = bytes.get(HEAD_BYTES..HEAD_BYTES.checked_add(length)?)?;
    (!payload.is_empty() && blake3::hash(payload).as_bytes()[..8] == bytes[4..HEAD_BYTES]).then_some(payload)
}
