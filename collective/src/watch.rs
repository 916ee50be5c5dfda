//! One thread that watches descriptors of peers (pidfds, control connections) for a communicator.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::error::{Error, Result};

/// What is watched: the handler is told the index of a descriptor that became readable or was hung up, and answers
/// whether to go on watching it.
pub(crate) type Handler = Box<dyn FnMut(usize, &OwnedFd) -> bool + Send>;

/// The thread; dropping it ends the watch.
pub(crate) struct Watch {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub(crate) fn start(fds: Vec<OwnedFd>, handler: Handler) -> Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let stop = EventFd::from_flags(flags).map_err(|e| Error::system("making an eventfd", e))?;
        let stop = Arc::new(stop);
        let told = stop.clone();
        let builder = std::thread::Builder::new().name("collective-watch".into()).stack_size(128 << 10);
        let thread = builder
            .spawn(move || watch(&told, fds, handler))
            .map_err(|e| Error::system("starting the thread that watches peers", e))?;
        Ok(Watch { stop, thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.stop.write(1); // fails only when it is told already
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn watch(stop: &EventFd, fds: Vec<OwnedFd>, mut handler: Handler) {
    let mut watched: Vec<(usize, OwnedFd)> = fds.into_iter().enumerate().collect();
    loop {
        let mut polls = vec![PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        polls.extend(watched.iter().map(|(_, fd)| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        match poll(&mut polls, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return tracing::error!(%error, "no longer watching the peers of a group"),
        }
        let ready = |p: &PollFd<'_>| p.revents().is_some_and(|r| !r.is_empty());
        if ready(&polls[0]) {
            return;
        }
        let ready: Vec<bool> = polls[1..].iter().map(ready).collect();
        let mut ready = ready.into_iter();
        watched.retain(|(index, fd)| !ready.next().unwrap_or(false) || handler(*index, fd));
    }
}
