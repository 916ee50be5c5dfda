//! The protocol as protobuf messages, and back.

use super::{AgentEvent, Command, Group, Happening, Hello, LogChunk, RankExit};
use phalanx_api::v1 as pb;
use phalanx_core::Time;
use phalanx_core::flight::LastWords;
use phalanx_core::id::{AttemptId, IdError};
use phalanx_core::job::Member;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A message that means nothing to its receiver.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// An id that does not read as one.
    #[error(transparent)]
    Id(#[from] IdError),
    /// JSON within a message that does not fit the model.
    #[error("{field} does not read: {error}; do both sides have the same version?")]
    Json {
        /// Where.
        field: &'static str,
        /// Why.
        error: serde_json::Error,
    },
    /// A message, or a part of one, that should be there.
    #[error("{0} is missing; do both sides have the same version?")]
    Missing(&'static str),
}

/// What an agent says after its `Hello`.
#[derive(Clone, Debug, PartialEq)]
pub enum FromAgent {
    /// Something happened.
    Event(AgentEvent),
    /// It is there; live use of each device in bytes and percent.
    Heartbeat(Vec<(u64, f64)>),
}

/// What a service says.
#[derive(Clone, Debug, PartialEq)]
pub enum FromService {
    /// It took the agent in.
    Welcome {
        /// How long either side may be silent.
        node_timeout: Duration,
    },
    /// Everything up to here is committed.
    Ack(u64),
    /// It wants something.
    Command(Command),
    /// It is there.
    Heartbeat,
}

fn agent_message(message: pb::agent_message::Message) -> pb::AgentMessage {
    pb::AgentMessage { message: Some(message) }
}

fn service_message(message: pb::service_message::Message) -> pb::ServiceMessage {
    pb::ServiceMessage { message: Some(message) }
}

/// The first message of a session, as an agent sends it.
pub fn agent_hello(hello: &Hello) -> Result<pb::AgentMessage, WireError> {
    let capacity_json = serde_json::to_string(&hello.capacity)
        .map_err(|error| WireError::Json { field: "the node's capacity", error })?;
    Ok(agent_message(pb::agent_message::Message::Hello(pb::AgentHello {
        node: hello.node.to_string(),
        incarnation: hello.incarnation.clone(),
        capacity_json,
        attempts: hello.attempts.iter().map(AttemptId::to_string).collect(),
        address: hello.address.clone(),
        outbox: hello.outbox.clone(),
    })))
}

/// Reads the first message of a session.
pub fn hello(message: pb::AgentMessage) -> Result<Hello, WireError> {
    let Some(pb::agent_message::Message::Hello(hello)) = message.message else {
        return Err(WireError::Missing("an agent's hello"));
    };
    Ok(Hello {
        node: hello.node.parse()?,
        incarnation: hello.incarnation,
        outbox: hello.outbox,
        capacity: serde_json::from_str(&hello.capacity_json)
            .map_err(|error| WireError::Json { field: "the node's capacity", error })?,
        attempts: hello.attempts.iter().map(|id| id.parse()).collect::<Result<_, _>>()?,
        address: hello.address,
    })
}

/// An agent's sign of life.
pub fn agent_heartbeat(devices: &[(u64, f64)]) -> pb::AgentMessage {
    let device =
        |&(memory_used_bytes, utilization): &(u64, f64)| pb::DeviceUse { memory_used_bytes, utilization };
    let devices = devices.iter().map(device).collect();
    agent_message(pb::agent_message::Message::Heartbeat(pb::AgentHeartbeat { devices }))
}

/// Something that happened, in the form the agent keeps and sends.
pub fn agent_event(event: &AgentEvent) -> pb::AgentEvent {
    pb::AgentEvent {
        seq: event.seq,
        attempt: event.attempt.to_string(),
        time_us: event.time.as_micros(),
        event: Some(happening(&event.what)),
    }
}

/// Wraps an event for the stream.
pub fn event_message(event: pb::AgentEvent) -> pb::AgentMessage {
    agent_message(pb::agent_message::Message::Event(event))
}

/// The part of an event that says what happened.
pub fn happening(what: &Happening) -> pb::agent_event::Event {
    use pb::agent_event::Event;
    match what {
        Happening::Reserved { master_port } => {
            Event::Reserved(pb::Reserved { master_port: u32::from(*master_port) })
        }
        Happening::Refused { message } => Event::Refused(pb::Refused { message: message.clone() }),
        Happening::RankStarted { rank, pid, life } => {
            Event::RankStarted(pb::RankStarted { rank: *rank, pid: *pid, life: *life })
        }
        Happening::RankMeets { who, epoch, port } => Event::RankMeets(pb::RankMeets {
            rank: who.rank,
            life: who.life,
            epoch: *epoch,
            port: u32::from(*port),
        }),
        Happening::RankExited(exit) => Event::RankExited(pb::RankExited {
            rank: exit.rank,
            code: exit.code as u32,
            message: exit.message.clone(),
            asked: exit.asked,
            not_started: exit.not_started,
            life: exit.life,
        }),
        Happening::Flight { ranks } => Event::Flight(pb::FlightRecord { ranks_json: flight_json(ranks) }),
        Happening::Gone { unreaped } => Event::Gone(pb::Gone { unreaped: unreaped.clone() }),
        Happening::Log(chunk) => Event::Log(pb::LogChunk {
            rank: chunk.rank,
            stderr: chunk.stderr,
            line: chunk.line.clone(),
            partial: chunk.partial,
            newline: chunk.newline,
        }),
        Happening::Report { rank, step, metrics } => Event::Report(pb::MetricReport {
            rank: *rank,
            step: *step,
            metrics: metrics.iter().map(|(name, &value)| (name.clone(), value)).collect(),
        }),
        Happening::Checkpoint { step, path } => {
            Event::Checkpoint(pb::CheckpointTaken { rank: 0, step: *step, path: text_of(path), bytes: 0 })
        }
    }
}

/// Plain numbers and names, which always serialise; a record that did not would be an empty one.
fn flight_json(ranks: &[LastWords]) -> String {
    serde_json::to_string(ranks).unwrap_or_else(|_| "[]".to_owned())
}

/// Plain numbers and an address, which always serialise.
fn group_json(group: &Group) -> String {
    serde_json::to_string(group).unwrap_or_default()
}

fn port_of(number: u32) -> Result<u16, WireError> {
    u16::try_from(number).map_err(|_| WireError::Missing("a legal port"))
}

/// Reads what an agent says after its `Hello`.
pub fn from_agent(message: pb::AgentMessage) -> Result<FromAgent, WireError> {
    use pb::agent_message::Message;
    match message.message.ok_or(WireError::Missing("an agent's message"))? {
        Message::Event(event) => event_of(event).map(FromAgent::Event),
        Message::Heartbeat(beat) => {
            let devices = beat.devices.iter().map(|device| (device.memory_used_bytes, device.utilization));
            Ok(FromAgent::Heartbeat(devices.collect()))
        }
        Message::Hello(_) => Err(WireError::Missing("an event or a heartbeat after the hello")),
    }
}

/// Reads an event.
pub fn event_of(event: pb::AgentEvent) -> Result<AgentEvent, WireError> {
    use pb::agent_event::Event;
    let what = match event.event.ok_or(WireError::Missing("what happened"))? {
        Event::Reserved(reserved) => Happening::Reserved { master_port: port_of(reserved.master_port)? },
        Event::Refused(refused) => Happening::Refused { message: refused.message },
        Event::RankStarted(started) => {
            Happening::RankStarted { rank: started.rank, pid: started.pid, life: started.life }
        }
        Event::RankMeets(meets) => Happening::RankMeets {
            who: Member { rank: meets.rank, life: meets.life },
            epoch: meets.epoch,
            port: port_of(meets.port)?,
        },
        Event::RankExited(exited) => Happening::RankExited(RankExit {
            rank: exited.rank,
            code: exited.code as i32,
            message: exited.message,
            asked: exited.asked,
            not_started: exited.not_started,
            life: exited.life,
        }),
        Event::Flight(flight) => {
            let ranks = serde_json::from_str(&flight.ranks_json);
            let ranks = ranks.map_err(|error| WireError::Json { field: "a flight record", error })?;
            Happening::Flight { ranks }
        }
        Event::Gone(gone) => Happening::Gone { unreaped: gone.unreaped },
        Event::Log(chunk) => Happening::Log(LogChunk {
            rank: chunk.rank,
            stderr: chunk.stderr,
            line: chunk.line,
            partial: chunk.partial,
            newline: chunk.newline,
        }),
        Event::Report(report) => Happening::Report {
            rank: report.rank,
            step: report.step,
            metrics: report.metrics.into_iter().collect(),
        },
        Event::Checkpoint(taken) => {
            Happening::Checkpoint { step: taken.step, path: PathBuf::from(taken.path) }
        }
    };
    let (attempt, time) = (event.attempt.parse()?, Time::from_micros(event.time_us));
    Ok(AgentEvent { seq: event.seq, attempt, time, what })
}

/// The service took an agent in.
pub fn welcome(node_timeout: Duration) -> pb::ServiceMessage {
    let node_timeout_ms = node_timeout.as_millis() as u64;
    service_message(pb::service_message::Message::Welcome(pb::Welcome { acked_seq: 0, node_timeout_ms }))
}

/// Everything up to `seq` is committed.
pub fn ack(seq: u64) -> pb::ServiceMessage {
    service_message(pb::service_message::Message::Ack(pb::Ack { seq }))
}

/// The service's sign of life.
pub fn heartbeat() -> pb::ServiceMessage {
    service_message(pb::service_message::Message::Heartbeat(pb::ServiceHeartbeat {}))
}

/// A command.
///
/// # Panics
/// Where a launch does not serialise, which no launch of a valid job does.
pub fn command(command: &Command) -> pb::ServiceMessage {
    use pb::service_message::Message;
    service_message(match command {
        Command::Reserve { attempt, wants_master_port } => Message::Reserve(pb::Reserve {
            attempt: attempt.to_string(),
            wants_master_port: *wants_master_port,
        }),
        Command::Keep { attempt } => Message::Keep(pb::Keep { attempt: attempt.to_string() }),
        Command::Start(launch) => {
            let launch_json = serde_json::to_string(launch);
            assert!(launch_json.is_ok(), "a launch does not serialise: {launch_json:?}");
            Message::Start(pb::Start {
                attempt: launch.attempt.to_string(),
                launch_json: launch_json.unwrap_or_default(),
            })
        }
        Command::Stop { attempt, ask_first, grace } => Message::Stop(pb::Stop {
            attempt: attempt.to_string(),
            ask_first: *ask_first,
            grace_ms: grace.as_millis() as u64,
        }),
        Command::Judged { attempt, step } => {
            Message::Judged(pb::Judged { attempt: attempt.to_string(), step: *step })
        }
        Command::Restart { attempt, who } => {
            Message::Restart(pb::Restart { attempt: attempt.to_string(), rank: who.rank, life: who.life })
        }
        Command::Group { attempt, group } => {
            Message::Group(pb::Group { attempt: attempt.to_string(), group_json: group_json(group) })
        }
        Command::DropCheckpoint { path } => {
            Message::DropCheckpoint(pb::DropCheckpoint { path: text_of(path) })
        }
    })
}

/// Reads what a service says.
pub fn from_service(message: pb::ServiceMessage) -> Result<FromService, WireError> {
    use pb::service_message::Message;
    let command = match message.message.ok_or(WireError::Missing("a service's message"))? {
        Message::Welcome(welcome) => {
            return Ok(FromService::Welcome { node_timeout: Duration::from_millis(welcome.node_timeout_ms) });
        }
        Message::Ack(ack) => return Ok(FromService::Ack(ack.seq)),
        Message::Heartbeat(_) => return Ok(FromService::Heartbeat),
        Message::Reserve(reserve) => Command::Reserve {
            attempt: reserve.attempt.parse()?,
            wants_master_port: reserve.wants_master_port,
        },
        Message::Keep(keep) => Command::Keep { attempt: keep.attempt.parse()? },
        Message::Start(start) => {
            let launch = serde_json::from_str(&start.launch_json);
            Command::Start(launch.map_err(|error| WireError::Json { field: "a launch", error })?)
        }
        Message::Stop(stop) => Command::Stop {
            attempt: stop.attempt.parse()?,
            ask_first: stop.ask_first,
            grace: Duration::from_millis(stop.grace_ms),
        },
        Message::Judged(judged) => Command::Judged { attempt: judged.attempt.parse()?, step: judged.step },
        Message::Restart(restart) => Command::Restart {
            attempt: restart.attempt.parse()?,
            who: Member { rank: restart.rank, life: restart.life },
        },
        Message::Group(group) => {
            let read = serde_json::from_str(&group.group_json);
            let read = read.map_err(|error| WireError::Json { field: "a group", error })?;
            Command::Group { attempt: group.attempt.parse()?, group: read }
        }
        Message::DropCheckpoint(drop) => Command::DropCheckpoint { path: PathBuf::from(drop.path) },
    };
    Ok(FromService::Command(command))
}

/// Paths of the protocol are made of the data folder's own names; one that is not UTF-8 is refused at start.
fn text_of(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_core::JobId;
    use std::collections::BTreeMap;

    fn attempt() -> AttemptId {
        AttemptId { job: JobId(3), number: 2 }
    }

    #[test]
    fn every_event_reads_back() {
        let exit = RankExit {
            rank: 1,
            code: 137,
            message: "killed".into(),
            asked: true,
            not_started: false,
            life: 2,
        };
        let line = LogChunk { rank: 1, stderr: true, line: vec![0xff, b'a'], partial: true, newline: false };
        for what in [
            Happening::Reserved { master_port: 65_535 },
            Happening::Refused { message: "no".into() },
            Happening::RankStarted { rank: 3, pid: 77, life: 1 },
            Happening::RankMeets { who: Member { rank: 3, life: 1 }, epoch: 2, port: 65_535 },
            Happening::RankExited(exit),
            Happening::Flight { ranks: vec![LastWords { rank: 1, ops: Vec::new() }] },
            Happening::Gone { unreaped: "77 (sh)".into() },
            Happening::Log(line),
            Happening::Report { rank: 0, step: 9, metrics: BTreeMap::from([("a".into(), f64::INFINITY)]) },
            Happening::Checkpoint { step: 4, path: "/a/b".into() },
        ] {
            let event = AgentEvent { seq: 5, attempt: attempt(), time: Time::from_micros(8), what };
            let read = from_agent(event_message(agent_event(&event))).unwrap();
            assert_eq!(read, FromAgent::Event(event));
        }
        let read = from_agent(agent_heartbeat(&[(5, 0.5)])).unwrap();
        assert_eq!(read, FromAgent::Heartbeat(vec![(5, 0.5)]));
    }

    #[test]
    fn every_command_reads_back() {
        for sent in [
            Command::Reserve { attempt: attempt(), wants_master_port: true },
            Command::Keep { attempt: attempt() },
            Command::Stop { attempt: attempt(), ask_first: true, grace: Duration::from_millis(1500) },
            Command::Judged { attempt: attempt(), step: 7 },
            Command::Restart { attempt: attempt(), who: Member { rank: 3, life: 1 } },
            Command::Group {
                attempt: attempt(),
                group: Group {
                    epoch: 2,
                    members: vec![Member { rank: 3, life: 1 }],
                    master_addr: "h".into(),
                    master_port: 5,
                    leave: true,
                    lost: false,
                },
            },
            Command::DropCheckpoint { path: "/a".into() },
        ] {
            assert_eq!(from_service(command(&sent)).unwrap(), FromService::Command(sent));
        }
        assert_eq!(from_service(ack(7)).unwrap(), FromService::Ack(7));
        let node_timeout = Duration::from_secs(15);
        assert_eq!(from_service(welcome(node_timeout)).unwrap(), FromService::Welcome { node_timeout });
    }

    #[test]
    fn what_means_nothing_is_an_error() {
        assert!(from_agent(pb::AgentMessage { message: None }).is_err());
        assert!(from_service(pb::ServiceMessage { message: None }).is_err());
        assert!(hello(agent_heartbeat(&[])).is_err());
        let start = pb::Start { attempt: "j1.1".into(), launch_json: "{".into() };
        let start = service_message(pb::service_message::Message::Start(start));
        assert!(from_service(start).unwrap_err().to_string().starts_with("a launch does not read"));
    }
}
