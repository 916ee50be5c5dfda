//! With whom this rank trains: with those that its environment names, or in an elastic gang with those that the agent names,
//! anew whenever one was killed or has been started again.

use crate::Error;
use crate::environment::Environment;
use crate::report::{Met, meet};
use phalanx_collective::{AbortHandle, Config, HeldPort};
use phalanx_core::report::Answer;
use std::io::{self, BufRead, BufReader};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// Groups of one attempt are told apart by the lower half of the collective's epoch.
const ATTEMPT_SHIFT: u32 = 32;

/// A rank's place among the others.
pub(crate) struct Place {
    pub(crate) rank: u32,
    pub(crate) world: u32,
    master_addr: String,
    master_port: u16,
    epoch: u64,
    /// In an elastic gang.
    elastic: Option<Elastic>,
}

/// How a rank of an elastic gang finds its next place.
struct Elastic {
    attempt: u64,
    socket: PathBuf,
    /// The agent's number of the group; 0 before the first.
    group: u32,
    /// Where the others find this rank, should it be the first of the next group.
    port: Arc<HeldPort>,
    bell: Option<Bell>,
}

impl Place {
    /// The first one. `None`: the training was over before this rank came to it.
    pub(crate) fn first(environment: &Environment, may_be_elastic: bool) -> Result<Option<Place>, Error> {
        let fixed = Place {
            rank: environment.rank,
            world: environment.world,
            master_addr: environment.master_addr.clone(),
            master_port: environment.master_port,
            epoch: environment.attempt,
            elastic: None,
        };
        let Some(socket) = environment.socket.clone().filter(|_| may_be_elastic && fixed.world > 1) else {
            return Ok(Some(fixed));
        };
        let port = hold_port(environment.rank)?;
        let elastic = Elastic { attempt: environment.attempt, socket, group: 0, port, bell: None };
        match elastic.next()? {
            Next::Fixed => Ok(Some(fixed)),
            Next::Over => Ok(None),
            Next::Stands(place) => Ok(Some(place)),
        }
    }

    /// Goes on to the next one, after this has been left. False: the training is over.
    pub(crate) fn move_on(&mut self) -> Result<bool, Error> {
        let Some(elastic) = &mut self.elastic else { return Ok(false) };
        elastic.bell = None;
        // Where this rank was the first of a group, that may still hold the port.
        elastic.port = hold_port(self.rank)?;
        let Next::Stands(place) = elastic.next()? else { return Ok(false) };
        *self = place;
        Ok(true)
    }

    /// Whether there is a next one, should a rank be lost.
    pub(crate) fn is_elastic(&self) -> bool {
        self.elastic.is_some()
    }

    /// Whether others had trained before this group stood together.
    pub(crate) fn is_first(&self) -> bool {
        self.elastic.as_ref().is_none_or(|elastic| elastic.group == 1)
    }

    fn bell(&self) -> Option<&Bell> {
        self.elastic.as_ref()?.bell.as_ref()
    }

    /// Whether this rank has been asked to find its next place.
    pub(crate) fn is_over(&self) -> bool {
        self.bell().is_some_and(|bell| bell.heard.leave.load(Ordering::Relaxed))
    }

    /// The ranks have met here: what `abort` gives up where one of them is lost with its host.
    pub(crate) fn met(&self, abort: AbortHandle) {
        if let Some(Bell { heard, .. }) = self.bell() {
            *heard.abort.lock().unwrap_or_else(PoisonError::into_inner) = Some(abort);
            heard.abort_if_lost();
        }
    }

    /// How the collective meets here.
    pub(crate) fn config(&self) -> Config {
        Config {
            give_up: self.bell().map(|bell| bell.heard.lost.clone()),
            epoch: self.epoch,
            master_addr: self.master_addr.clone(),
            master_port: self.master_port,
            ..Config::new(self.rank as usize, self.world as usize)
        }
    }
}

enum Next {
    Fixed,
    Over,
    Stands(Place),
}

impl Elastic {
    fn next(&self) -> Result<Next, Error> {
        let (place, stream) = match meet(&self.socket, self.group, self.port.number())? {
            Met::Fixed => return Ok(Next::Fixed),
            Met::Over => return Ok(Next::Over),
            Met::Stands(place, stream) => (place, stream),
        };
        let elastic = Elastic {
            attempt: self.attempt,
            socket: self.socket.clone(),
            group: place.epoch,
            port: self.port.clone(),
            bell: Some(Bell::on(stream).map_err(Error::io("listen at", &self.socket))?),
        };
        Ok(Next::Stands(Place {
            rank: place.rank,
            world: place.world,
            master_addr: place.master_addr,
            master_port: place.master_port,
            epoch: self.attempt << ATTEMPT_SHIFT | u64::from(place.epoch),
            elastic: Some(elastic),
        }))
    }
}

fn hold_port(rank: u32) -> Result<Arc<HeldPort>, Error> {
    HeldPort::new().map(Arc::new).map_err(|source| Error::Collective { rank, source })
}

/// Hears the agent say that a group is over.
struct Bell {
    heard: Arc<Heard>,
    stream: UnixStream,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Heard {
    leave: AtomicBool,
    /// Gives the group up; there once the ranks have met.
    abort: Mutex<Option<AbortHandle>>,
    /// One of the group will not come, or not answer, any more.
    lost: Arc<AtomicBool>,
}

impl Heard {
    fn listen(&self, mut reader: BufReader<UnixStream>) {
        let mut line = String::new();
        if reader.read_line(&mut line).is_err() {
            return;
        }
        if let Ok(Answer::Taken { leave: true, lost, .. }) = serde_json::from_str(&line) {
            self.leave.store(true, Ordering::Relaxed);
            self.lost.store(lost, Ordering::SeqCst);
            self.abort_if_lost();
        }
    }

    fn abort_if_lost(&self) {
        let abort = self.abort.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(abort) = abort.as_ref().filter(|_| self.lost.load(Ordering::SeqCst)) {
            abort.abort();
        }
    }
}

impl Bell {
    fn on(reader: BufReader<UnixStream>) -> io::Result<Bell> {
        let stream = reader.get_ref().try_clone()?;
        // It says so when it has to, however long that takes.
        stream.set_read_timeout(None)?;
        let heard = Arc::new(Heard::default());
        let ours = heard.clone();
        let thread = thread::Builder::new().name("bell".to_owned()).spawn(move || ours.listen(reader))?;
        Ok(Bell { heard, stream, thread: Some(thread) })
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        // One that the agent has closed needs it no more.
        let _ = self.stream.shutdown(Shutdown::Both);
        // The thread does nothing that could panic.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
