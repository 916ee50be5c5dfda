//! What a stream is about, and how far its reader has got with each part of it.

use phalanx_core::{JobId, SweepId};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Longest cursor, in bytes.
const CURSOR_BYTES: usize = 8 << 10;

/// A part of a stream.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Topic {
    /// Every change of every job.
    Jobs,
    /// All nodes, whenever they change.
    Nodes,
    /// All queues, whenever they change.
    Queues,
    /// The newest sweeps, whenever one of them changes.
    Sweeps,
    /// What happened, as `phalanx events` has it.
    Events,
    /// Every change of one job.
    Job(JobId),
    /// Every change of one sweep and its trials.
    Sweep(SweepId),
    /// The log of a job.
    Logs(JobId),
    /// The metrics of a job.
    Metrics(JobId),
}

/// A text that is no topic, or no cursor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unread {
    /// No topic.
    #[error(
        "`{0}` is nothing to watch; there is jobs, nodes, queues, sweeps, events, job:ID, sweep:ID, logs:ID and metrics:ID"
    )]
    Topic(String),
    /// No cursor.
    #[error("it is not the id of an event of this service; leave it out to start afresh")]
    Cursor,
}

impl Topic {
    /// The job it is about, which has to be there.
    pub(super) fn job(&self) -> Option<JobId> {
        match self {
            Topic::Job(id) | Topic::Logs(id) | Topic::Metrics(id) => Some(*id),
            Topic::Jobs | Topic::Nodes | Topic::Queues | Topic::Events => None,
            Topic::Sweeps | Topic::Sweep(_) => None,
        }
    }

    /// The sweep it is about, which has to be there.
    pub(super) fn sweep(&self) -> Option<SweepId> {
        if let Topic::Sweep(id) = self { Some(*id) } else { None }
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Topic::Jobs => f.write_str("jobs"),
            Topic::Nodes => f.write_str("nodes"),
            Topic::Queues => f.write_str("queues"),
            Topic::Events => f.write_str("events"),
            Topic::Sweeps => f.write_str("sweeps"),
            Topic::Job(id) => write!(f, "job:{id}"),
            Topic::Sweep(id) => write!(f, "sweep:{id}"),
            Topic::Logs(id) => write!(f, "logs:{id}"),
            Topic::Metrics(id) => write!(f, "metrics:{id}"),
        }
    }
}

impl FromStr for Topic {
    type Err = Unread;

    fn from_str(text: &str) -> Result<Topic, Unread> {
        let unread = || Unread::Topic(text.chars().take(64).collect());
        let topic = match text.split_once(':') {
            None => match text {
                "jobs" => Topic::Jobs,
                "nodes" => Topic::Nodes,
                "queues" => Topic::Queues,
                "events" => Topic::Events,
                "sweeps" => Topic::Sweeps,
                _ => return Err(unread()),
            },
            Some((kind, id)) => {
                if kind == "sweep" {
                    return id.parse().map(Topic::Sweep).map_err(|_| unread());
                }
                let id = id.parse().map_err(|_| unread())?;
                match kind {
                    "job" => Topic::Job(id),
                    "logs" => Topic::Logs(id),
                    "metrics" => Topic::Metrics(id),
                    _ => return Err(unread()),
                }
            }
        };
        Ok(topic)
    }
}

/// How far a reader has got: `jobs=12,logs:j1=400`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cursor(BTreeMap<Topic, u64>);

impl Cursor {
    /// The number of the last one read of a topic; none before the first.
    pub(super) fn get(&self, topic: &Topic) -> Option<u64> {
        self.0.get(topic).copied()
    }

    pub(super) fn set(&mut self, topic: Topic, at: u64) {
        self.0.insert(topic, at);
    }

    /// Of these topics only.
    pub(super) fn of(mut self, topics: &[Topic]) -> Cursor {
        self.0.retain(|topic, _| topics.contains(topic));
        self
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (topic, number)) in self.0.iter().enumerate() {
            write!(f, "{}{topic}={number}", if at == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl FromStr for Cursor {
    type Err = Unread;

    fn from_str(text: &str) -> Result<Cursor, Unread> {
        if text.len() > CURSOR_BYTES {
            return Err(Unread::Cursor);
        }
        let parts = text.split(',').filter(|_| !text.is_empty());
        let read = |part: &str| {
            let (topic, number) = part.split_once('=')?;
            Some((topic.parse().ok()?, number.parse().ok()?))
        };
        parts.map(|part| read(part).ok_or(Unread::Cursor)).collect::<Result<_, _>>().map(Cursor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_and_cursors_read_back_and_nothing_else_does() {
        for text in
            ["jobs", "nodes", "queues", "events", "sweeps", "sweep:s2", "job:j1", "logs:j20", "metrics:j3"]
        {
            assert_eq!(text.parse::<Topic>().unwrap().to_string(), text);
        }
        for text in ["", "job", "jobs:j1", "logs:1", "logs:", "sweep:j1", "logs:j1:2", "ä"] {
            assert!(text.parse::<Topic>().is_err(), "{text}");
        }
        let cursor: Cursor = "jobs=12,logs:j1=400".parse().unwrap();
        assert_eq!(cursor.to_string(), "jobs=12,logs:j1=400");
        assert_eq!((cursor.get(&Topic::Jobs), cursor.get(&Topic::Nodes)), (Some(12), None));
        assert_eq!("".parse(), Ok(Cursor::default()));
        for text in ["12", "jobs=", "jobs=-1", "jobs=1,", "x=1", &"jobs=1,".repeat(9000)] {
            assert_eq!(text.parse::<Cursor>(), Err(Unread::Cursor));
        }
    }
}
