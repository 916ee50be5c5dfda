//! The agent's end of a guard: its process and the packet socket to it.

use super::plan::LIBRARIES;
use crate::agent::containment::Process;
use crate::agent::guard::{FromGuard, MESSAGE_BYTES, Plan, ROOM, ROOM_BYTES, ToGuard};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, SockFlag, SockType, recvmsg,
    send, sendmsg, shutdown, socketpair,
};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Seek, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::Stdio;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};

/// Descriptors that come with a rank's start: its stdout and its stderr.
const PIPES: usize = 2;

#[derive(Debug)]
pub(super) struct GuardLink {
    child: Child,
    pid: i32,
    started: u64,
    socket: AsyncFd<OwnedFd>,
    /// Room for what it says.
    buffer: Vec<u8>,
}

impl GuardLink {
    /// Starts a guard, which waits for an attempt.
    pub(super) fn start(program: &Path) -> io::Result<GuardLink> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        nix::fcntl::fcntl(&ours, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
        let socket = watched(ours)?;
        // The command is dropped here, and with it our copy of the guard's end: its death is the end of the stream.
        let child = Command::new(program)
            .arg("guard")
            .env_clear()
            .envs(std::env::var_os(LIBRARIES).map(|path| (LIBRARIES, path)))
            .env(ROOM, "-".repeat(ROOM_BYTES))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::from(theirs))
            .spawn()
            .map_err(|error| {
                io::Error::new(error.kind(), format!("cannot start `{}`: {error}", program.display()))
            })?;
        let pid = child.id().unwrap_or_default() as i32;
        let started = Process::read(pid).map_or(0, |process| process.started);
        Ok(GuardLink { child, pid, started, socket, buffer: vec![0; MESSAGE_BYTES] })
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// When it was started, in the kernel's ticks.
    pub(super) fn started(&self) -> u64 {
        self.started
    }

    /// The next message and the descriptors that came with it; `None` once the guard is gone.
    pub(super) async fn receive(&mut self) -> io::Result<Option<(FromGuard, Vec<OwnedFd>)>> {
        loop {
            let mut ready = self.socket.readable().await?;
            match ready.try_io(|socket| receive(socket.as_raw_fd(), &mut self.buffer)) {
                Ok(received) => {
                    let (length, pipes) = received?;
                    if length == 0 {
                        return Ok(None);
                    }
                    return Ok(Some((serde_json::from_slice(&self.buffer[..length])?, pipes)));
                }
                Err(_would_block) => {}
            }
        }
    }

    /// Hands an attempt to a guard that has none. Error: it is gone.
    pub(super) fn run(&self, plan: &Plan) -> io::Result<()> {
        let mut file = File::from(memfd_create(c"phalanx-plan", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(&serde_json::to_vec(plan)?)?;
        file.rewind()?;
        let text = serde_json::to_vec(&ToGuard::Run)?;
        let (parts, rights) = ([IoSlice::new(&text)], [file.as_raw_fd()]);
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        sendmsg::<()>(self.socket.as_raw_fd(), &parts, &[ControlMessage::ScmRights(&rights)], flags, None)?;
        Ok(())
    }

    /// Tells a guard without an attempt that there will be no other.
    pub(super) fn dismiss(self) -> GuardLink {
        // One that is gone needs no telling.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
        self
    }

    pub(super) fn say(&self, message: ToGuard) {
        let Ok(text) = serde_json::to_vec(&message) else { return };
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        if let Err(error) = send(self.socket.as_raw_fd(), &text, flags) {
            // A guard that is gone has nothing left to end; one that does not listen is found to be stuck.
            tracing::debug!(%error, "a guard does not listen");
        }
    }

    pub(super) fn kill(&mut self) {
        // It may have ended meanwhile.
        let _ = self.child.start_kill();
    }

    /// Waits for its process.
    pub(super) async fn ended(&mut self) {
        if let Err(error) = self.child.wait().await {
            tracing::warn!(%error, "cannot wait for a guard");
        }
    }
}

#[allow(unsafe_code)]
fn watched(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned, stays the same one and is closed by the `AsyncFd` alone.
    Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?)
}

#[allow(unsafe_code)]
fn receive(socket: RawFd, text: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = cmsg_space!([RawFd; PIPES]);
    loop {
        let mut parts = [IoSliceMut::new(text)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        let received = match recvmsg::<()>(socket, &mut parts, Some(&mut space), flags) {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        let mut pipes = Vec::new();
        for message in received.cmsgs()? {
            if let ControlMessageOwned::ScmRights(descriptors) = message {
                // SAFETY: the kernel has just made these descriptors for us, and nobody else knows them.
                pipes.extend(
                    descriptors.into_iter().map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) }),
                );
            }
        }
        return Ok((received.bytes, pipes));
    }
}
