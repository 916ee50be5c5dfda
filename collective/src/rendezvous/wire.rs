//! What ranks say while they meet: length-prefixed JSON after a magic word.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::{TransportChoice, Wire};
use crate::error::Error;

/// Begins every message; its last byte is the version.
const MAGIC: [u8; 8] = *b"phalanx\x01";
const HEAD_BYTES: usize = MAGIC.len() + 4;
/// Bound on a message: the addresses of the largest world fit many times.
const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// A rank to rank 0: who it is and what it wants.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) rank: usize,
    pub(crate) world: usize,
    pub(crate) epoch: u64,
    pub(crate) fingerprint: String,
    /// Equal on ranks that can share memory and see one another die.
    pub(crate) host: String,
    /// CPUs it may run on.
    pub(crate) cpus: Vec<usize>,
    pub(crate) transport: TransportChoice,
    /// Why it cannot use NCCL, where it was asked to.
    pub(crate) no_nccl: Option<String>,
    pub(crate) arena_bytes: usize,
    pub(crate) wire: Wire,
    pub(crate) tcp_streams: usize,
    /// Memory that is free on its host, and that it may itself still use, where something says.
    pub(crate) host_free_bytes: Option<u64>,
    pub(crate) free_bytes: Option<u64>,
    /// Where it listens for its peers if they meet over TCP.
    pub(crate) mesh_port: u16,
}

/// Rank 0 to a rank.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// It is in; these have not come yet.
    Waiting { missing: Vec<usize> },
    /// All have come, and this is how they go on.
    Welcome(Welcome),
    /// It comes to nothing.
    Failed(Failure),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Welcome {
    /// Known to the ranks of this group only.
    pub(crate) nonce: u64,
    /// Ranks on the receiver's host, and CPUs they may run on between them.
    pub(crate) host_ranks: usize,
    pub(crate) host_cpus: usize,
    /// Connections for data between two ranks.
    pub(crate) streams: usize,
    /// `ncclUniqueId`, where GPUs meet too.
    pub(crate) nccl_id: Option<Vec<u8>>,
    pub(crate) way: Way,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Way {
    /// The memory is fetched from this abstract Unix socket.
    Shm { door: String, arena_bytes: usize },
    /// Each connects to all below it. Rank 0's address is the one it was met at, with the port given here.
    Tcp { mesh: Vec<SocketAddr> },
    /// As TCP, and memory is shared by the ranks of each host; the first of them has it.
    Hosts { mesh: Vec<SocketAddr>, blocks: Vec<Vec<usize>>, arena_bytes: usize },
}

/// An error that all ranks are told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Failure {
    Timeout { missing: Vec<usize>, waited_ms: u64 },
    ConfigMismatch { ranks: Vec<usize> },
    WrongEpoch { group: u64 },
    Rejected { reason: String },
    PeerLost { rank: usize },
    NoMemory { arena_bytes: u64, ranks: usize, wanted_bytes: u64, free_bytes: u64 },
    System { what: String, cause: String },
}

impl Failure {
    pub(crate) fn error(self, our_epoch: u64) -> Error {
        match self {
            Failure::Timeout { missing, waited_ms } => Error::RendezvousTimeout { missing, waited_ms },
            Failure::ConfigMismatch { ranks } => Error::ConfigMismatch { ranks },
            Failure::WrongEpoch { group } => Error::WrongEpoch { ours: our_epoch, theirs: group },
            Failure::Rejected { reason } => Error::Rejected { reason },
            Failure::PeerLost { rank } => Error::PeerLost { rank },
            Failure::NoMemory { arena_bytes, ranks, wanted_bytes, free_bytes } => {
                Error::NoMemory { arena_bytes, ranks, wanted_bytes, free_bytes }
            }
            Failure::System { what, cause } => Error::System { what: format!("rank 0: {what}"), cause },
        }
    }

    /// What to tell the others of an error of rank 0's own.
    pub(crate) fn of(error: &Error) -> Self {
        match error.clone() {
            Error::RendezvousTimeout { missing, waited_ms } => Failure::Timeout { missing, waited_ms },
            Error::ConfigMismatch { ranks } => Failure::ConfigMismatch { ranks },
            Error::Rejected { reason } => Failure::Rejected { reason },
            Error::PeerLost { rank } => Failure::PeerLost { rank },
            Error::NoMemory { arena_bytes, ranks, wanted_bytes, free_bytes } => {
                Failure::NoMemory { arena_bytes, ranks, wanted_bytes, free_bytes }
            }
            Error::System { what, cause } => Failure::System { what, cause },
            other => Failure::Rejected { reason: other.to_string() },
        }
    }
}

/// Writes a message. The streams are new and messages small, so this does not block for long; the caller has set a
/// write timeout all the same.
pub(crate) fn write(mut stream: &TcpStream, message: &impl Serialize) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let mut bytes = Vec::with_capacity(HEAD_BYTES + body.len());
    bytes.extend(MAGIC);
    bytes.extend((body.len() as u32).to_le_bytes());
    bytes.extend(body);
    stream.write_all(&bytes)
}

/// Bytes of a message as they come in on a non-blocking stream.
#[derive(Default)]
pub(crate) struct Inbox {
    bytes: Vec<u8>,
}

/// What reading came to.
pub(crate) enum Read1<T> {
    Message(T),
    NotYet,
    /// The stream has ended or is not one of ours.
    Closed,
}

impl Inbox {
    /// Reads what is there.
    pub(crate) fn read<T: DeserializeOwned>(&mut self, mut stream: &TcpStream) -> Read1<T> {
        loop {
            match self.parse() {
                Ok(Some(message)) => return Read1::Message(message),
                Ok(None) => {}
                Err(reason) => {
                    tracing::debug!(reason, "a connection to the rendezvous is not of this group");
                    return Read1::Closed;
                }
            }
            let mut part = [0; 4096];
            match stream.read(&mut part) {
                Ok(0) => return Read1::Closed,
                Ok(n) => self.bytes.extend(&part[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Read1::NotYet,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Read1::Closed,
            }
        }
    }

    /// Takes the first message, if it is whole.
    fn parse<T: DeserializeOwned>(&mut self) -> Result<Option<T>, &'static str> {
        let magic = &self.bytes[..self.bytes.len().min(MAGIC.len())];
        if !MAGIC.starts_with(magic) {
            return Err("wrong magic word or version");
        }
        let Some(length) = self.bytes.get(MAGIC.len()..HEAD_BYTES) else { return Ok(None) };
        let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
        if length > MAX_MESSAGE_BYTES {
            return Err("message too long");
        }
        let Some(body) = self.bytes.get(HEAD_BYTES..HEAD_BYTES + length) else { return Ok(None) };
        let message = serde_json::from_slice(body).map_err(|_| "not a message of this version")?;
        self.bytes.drain(..HEAD_BYTES + length);
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_in_pieces_and_nonsense_is_refused() {
        let body = serde_json::to_vec(&Answer::Waiting { missing: vec![1] }).unwrap();
        let mut bytes = MAGIC.to_vec();
        bytes.extend((body.len() as u32).to_le_bytes());
        bytes.extend(&body);
        let mut inbox = Inbox::default();
        for byte in &bytes[..bytes.len() - 1] {
            inbox.bytes.push(*byte);
            assert!(matches!(inbox.parse::<Answer>(), Ok(None)));
        }
        inbox.bytes.push(bytes[bytes.len() - 1]);
        assert!(matches!(inbox.parse::<Answer>(), Ok(Some(Answer::Waiting { missing })) if missing == [1]));
        assert!(inbox.bytes.is_empty());
        for wrong in [
            &b"GET / HTTP/1.1"[..],
            b"phalanx\x02",
            b"phalanx\x01\xff\xff\xff\xff",
            b"phalanx\x01\x01\0\0\0x",
        ] {
            let mut inbox = Inbox { bytes: wrong.to_vec() };
            assert!(inbox.parse::<Answer>().is_err());
        }
    }
}
