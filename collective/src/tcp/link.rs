//! One peer's data connection: frames on their way out and in.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{MsgFlags, sendmsg};

use super::frame::{Bad, Frame, HEADER_BYTES, fits};

/// Read ahead: a header and a small payload come with one system call.
const AHEAD_BYTES: usize = 8 << 10;

/// A frame to be sent. The payload stays where it is until the operation has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outgoing {
    pub(crate) frame: Frame,
    pub(crate) payload: *const u8,
}

/// Why a connection cannot go on.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The other end is closed or broken.
    Closed,
    /// It brought something that is no frame of this group.
    Bad(String),
}

/// What reading came to.
pub(crate) enum Reading {
    /// Nothing more is there for now.
    NotYet,
    /// A frame begins; say where its payload goes.
    Header(Frame),
    /// A frame is there and whole.
    Whole(Frame),
}

/// The data connection to one peer: frames go over its streams in turn, and are read in the same turn, so that they arrive
/// in the order in which they were sent.
pub(crate) struct Link {
    streams: Vec<Stream>,
    /// Whose turn it is to send and to be read.
    next_out: usize,
    next_in: usize,
    epoch: u64,
    /// Whether payloads are covered by checksums: not where no wire lies between, for it would cost a tenth.
    covered: bool,
    /// Frames that others wait for go before the rest.
    urgent: VecDeque<Outgoing>,
    waiting: VecDeque<Outgoing>,
}

/// One of the streams.
struct Stream {
    socket: TcpStream,
    /// On its way out, and bytes of header and payload that are gone.
    leaving: Option<([u8; HEADER_BYTES], Outgoing, usize)>,
    ahead: Box<[u8]>,
    /// The part of `ahead` that is read and not used.
    unused: std::ops::Range<usize>,
    /// On its way in.
    header: Option<([u8; HEADER_BYTES], Frame)>,
    /// Where its payload goes, and how much of it is there.
    place: Option<(*mut u8, usize)>,
}

// SAFETY: the pointers are used within one operation only, which is one thread's.
unsafe impl Send for Link {}

impl Link {
    /// Takes non-blocking connections, in the same order on both sides.
    pub(crate) fn new(sockets: Vec<TcpStream>, epoch: u64) -> Self {
        let address = |end: io::Result<SocketAddr>| end.ok().map(|a| a.ip());
        let covered = sockets.iter().any(|s| address(s.peer_addr()) != address(s.local_addr()));
        Link {
            streams: sockets.into_iter().map(Stream::new).collect(),
            next_out: 0,
            next_in: 0,
            epoch,
            covered,
            urgent: VecDeque::new(),
            waiting: VecDeque::new(),
        }
    }

    pub(crate) fn push(&mut self, out: Outgoing, urgent: bool) {
        if urgent { self.urgent.push_back(out) } else { self.waiting.push_back(out) }
    }

    /// Whether everything is with the kernel.
    pub(crate) fn is_flushed(&self) -> bool {
        self.urgent.is_empty() && self.waiting.is_empty() && self.streams.iter().all(|s| s.leaving.is_none())
    }

    /// Whether a frame waits to be told where its payload goes.
    pub(crate) fn is_held(&self) -> bool {
        let next = &self.streams[self.next_in];
        next.header.is_some() && next.place.is_none()
    }

    /// What to wait for, should more be expected or not.
    pub(crate) fn polls<'a>(&'a self, expects: bool, polls: &mut Vec<PollFd<'a>>) {
        for (at, stream) in self.streams.iter().enumerate() {
            let mut wanted = PollFlags::empty();
            wanted.set(PollFlags::POLLIN, expects && at == self.next_in && !self.is_held());
            wanted.set(PollFlags::POLLOUT, stream.leaving.is_some());
            if !wanted.is_empty() {
                polls.push(PollFd::new(stream.socket.as_fd(), wanted));
            }
        }
    }

    /// Forgets what was on its way: the operation failed and its buffer goes.
    pub(crate) fn clear(&mut self) {
        self.urgent.clear();
        self.waiting.clear();
        for stream in &mut self.streams {
            (stream.leaving, stream.place) = (None, None);
        }
    }

    /// Sends what the kernel takes of one frame for each stream; whether anything was sent. No more at a time: data that piles
    /// up in the kernel leaves the cache before it is read.
    ///
    /// # Safety
    /// The payloads of all frames pushed are still valid.
    pub(crate) unsafe fn flush(&mut self) -> Result<bool, Trouble> {
        for _ in 0..self.streams.len() {
            let next = &mut self.streams[self.next_out];
            if next.leaving.is_some() {
                break;
            }
            let Some(out) = self.urgent.pop_front().or_else(|| self.waiting.pop_front()) else { break };
            // SAFETY: valid by the caller's promise.
            let payload = unsafe { payload(&out) };
            next.leaving = Some((out.frame.encode(self.epoch, payload, self.covered), out, 0));
            self.next_out = (self.next_out + 1) % self.streams.len();
        }
        let mut progress = false;
        for stream in &mut self.streams {
            // SAFETY: passed on.
            progress |= unsafe { stream.send()? };
        }
        Ok(progress)
    }

    /// Says where the payload of the frame that was announced goes.
    pub(crate) fn place(&mut self, data: *mut u8) {
        self.streams[self.next_in].place = Some((data, 0));
    }

    /// Reads on.
    ///
    /// # Safety
    /// The place given last is valid for writes of the payload.
    pub(crate) unsafe fn read(&mut self) -> Result<Reading, Trouble> {
        // SAFETY: passed on.
        let reading = unsafe { self.streams[self.next_in].read(self.epoch)? };
        if let Reading::Whole(_) = reading {
            self.next_in = (self.next_in + 1) % self.streams.len();
        }
        Ok(reading)
    }
}

impl Stream {
    fn new(socket: TcpStream) -> Self {
        let ahead = vec![0; AHEAD_BYTES].into_boxed_slice();
        Stream { socket, leaving: None, ahead, unused: 0..0, header: None, place: None }
    }

    /// Sends what the kernel takes of the frame that is leaving.
    unsafe fn send(&mut self) -> Result<bool, Trouble> {
        let mut progress = false;
        while let Some((header, out, sent)) = &mut self.leaving {
            // SAFETY: valid by the caller's promise.
            let body = unsafe { payload(out) };
            let parts = [
                IoSlice::new(&header[(*sent).min(HEADER_BYTES)..]),
                IoSlice::new(&body[sent.saturating_sub(HEADER_BYTES)..]),
            ];
            // Not `write_vectored`: with that, a peer's end could be a SIGPIPE.
            let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
            match sendmsg::<()>(self.socket.as_raw_fd(), &parts, &[], flags, None) {
                Ok(n) => {
                    progress = true;
                    *sent += n;
                    if *sent == HEADER_BYTES + body.len() {
                        self.leaving = None;
                    }
                }
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(_) => return Err(Trouble::Closed),
            }
        }
        Ok(progress)
    }

    unsafe fn read(&mut self, epoch: u64) -> Result<Reading, Trouble> {
        let (header, frame) = match self.header {
            Some(known) => known,
            None => {
                let Some(header) = self.read_header()? else { return Ok(Reading::NotYet) };
                let bad = |bad: Bad| Trouble::Bad(bad.to_string());
                *self.header.insert((header, Frame::decode(&header, epoch).map_err(bad)?))
            }
        };
        let Some((data, got)) = &mut self.place else { return Ok(Reading::Header(frame)) };
        let length = frame.length as usize;
        // SAFETY: valid by the caller's promise; initialised memory of the caller or of ours.
        let body = unsafe { std::slice::from_raw_parts_mut(*data, length) };
        let take = self.unused.len().min(length - *got);
        body[*got..*got + take].copy_from_slice(&self.ahead[self.unused.start..self.unused.start + take]);
        self.unused.start += take;
        *got += take;
        while *got < length {
            match self.socket.read(&mut body[*got..]) {
                Ok(0) => return Err(Trouble::Closed),
                Ok(n) => *got += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Reading::NotYet),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Trouble::Closed),
            }
        }
        if !fits(&header, body) {
            return Err(Trouble::Bad("a frame whose checksum does not fit".into()));
        }
        (self.header, self.place) = (None, None);
        Ok(Reading::Whole(frame))
    }

    fn read_header(&mut self) -> Result<Option<[u8; HEADER_BYTES]>, Trouble> {
        while self.unused.len() < HEADER_BYTES {
            self.ahead.copy_within(self.unused.clone(), 0);
            self.unused = 0..self.unused.len();
            match self.socket.read(&mut self.ahead[self.unused.end..]) {
                Ok(0) => return Err(Trouble::Closed),
                Ok(n) => self.unused.end += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Trouble::Closed),
            }
        }
        let mut header = [0; HEADER_BYTES];
        header.copy_from_slice(&self.ahead[self.unused.start..self.unused.start + HEADER_BYTES]);
        self.unused.start += HEADER_BYTES;
        Ok(Some(header))
    }
}

/// # Safety
/// The payload is valid.
unsafe fn payload<'a>(out: &Outgoing) -> &'a [u8] {
    match out.frame.length {
        0 => &[],
        // SAFETY: valid by the caller's promise.
        length => unsafe { std::slice::from_raw_parts(out.payload, length as usize) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;

    fn pair(streams: usize) -> (Link, Link) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = |_| {
            let there = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let here = listener.accept().unwrap().0;
            here.set_nonblocking(true).and_then(|()| there.set_nonblocking(true)).unwrap();
            (here, there)
        };
        let (here, there) = (0..streams).map(connect).unzip();
        let link = |sockets| Link { covered: true, ..Link::new(sockets, 5) };
        (link(here), link(there))
    }

    fn frame(payload: &[u8], seq: u64) -> Outgoing {
        let frame = Frame { seq, code: 1, bytes: 2, offset: 3, phase: 4, length: payload.len() as u32 };
        Outgoing { frame, payload: payload.as_ptr() }
    }

    /// Until something other than "not yet"; what is on its way arrives in a moment.
    fn read(link: &mut Link) -> Result<Reading, Trouble> {
        loop {
            // SAFETY: places given below live in the tests.
            match unsafe { link.read() } {
                Ok(Reading::NotYet) => std::thread::yield_now(),
                other => return other,
            }
        }
    }

    #[test]
    fn frames_arrive_in_order_and_urgent_ones_first() {
        for streams in 1..4 {
            frames_arrive_in_order_over(streams);
        }
    }

    fn frames_arrive_in_order_over(streams: usize) {
        let (mut a, mut b) = pair(streams);
        let payloads: Vec<Vec<u8>> =
            [0, 10, 20_000].map(|n| (0..n).map(|i| (i % 251) as u8).collect()).into();
        a.push(frame(&payloads[0], 1), false);
        a.push(frame(&payloads[1], 2), false);
        a.push(frame(&payloads[2], 3), true);
        while !a.is_flushed() {
            // SAFETY: the payloads live.
            unsafe { a.flush() }.unwrap();
        }
        for (seq, payload) in [(3, &payloads[2]), (1, &payloads[0]), (2, &payloads[1])] {
            let Ok(Reading::Header(header)) = read(&mut b) else { panic!() };
            assert!(b.is_held());
            let mut got = vec![0; header.length as usize];
            b.place(got.as_mut_ptr());
            assert!(matches!(read(&mut b), Ok(Reading::Whole(f)) if f.seq == seq));
            assert_eq!(&got, payload);
        }
        drop(a);
        assert!(matches!(read(&mut b), Err(Trouble::Closed)));
    }

    #[test]
    fn a_changed_payload_and_a_stray_byte_are_seen() {
        let (mut a, mut b) = pair(1);
        let payload = [7u8; 100];
        let mut wire = frame(&payload, 1).frame.encode(5, &payload, true).to_vec();
        wire.extend([7; 99]);
        wire.push(6);
        a.streams[0].socket.write_all(&wire).unwrap();
        assert!(matches!(read(&mut b), Ok(Reading::Header(_))));
        let mut got = [0; 100];
        b.place(got.as_mut_ptr());
        assert!(matches!(read(&mut b), Err(Trouble::Bad(what)) if what.contains("checksum")));

        let (mut a, mut b) = pair(1);
        a.streams[0].socket.write_all(&[0; HEADER_BYTES]).unwrap();
        assert!(matches!(read(&mut b), Err(Trouble::Bad(what)) if what.contains("no frame")));

        let (mut a, mut b) = pair(1);
        a.streams[0].socket.write_all(&frame(&[], 1).frame.encode(6, &[], true)).unwrap();
        assert!(matches!(read(&mut b), Err(Trouble::Bad(what)) if what == "a frame of epoch 6"));
    }
}
