//! One peer's data connection: frames on their way out and in.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::net::TcpStream;

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

/// The data connection to one peer.
pub(crate) struct Link {
    pub(crate) stream: TcpStream,
    epoch: u64,
    /// Frames that others wait for go before the rest.
    urgent: VecDeque<Outgoing>,
    waiting: VecDeque<Outgoing>,
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
    /// Takes a non-blocking connection.
    pub(crate) fn new(stream: TcpStream, epoch: u64) -> Self {
        Link {
            stream,
            epoch,
            urgent: VecDeque::new(),
            waiting: VecDeque::new(),
            leaving: None,
            ahead: vec![0; AHEAD_BYTES].into_boxed_slice(),
            unused: 0..0,
            header: None,
            place: None,
        }
    }

    pub(crate) fn push(&mut self, out: Outgoing, urgent: bool) {
        if urgent { self.urgent.push_back(out) } else { self.waiting.push_back(out) }
    }

    /// Whether everything is with the kernel.
    pub(crate) fn is_flushed(&self) -> bool {
        self.leaving.is_none() && self.urgent.is_empty() && self.waiting.is_empty()
    }

    /// Whether a frame waits to be told where its payload goes.
    pub(crate) fn is_held(&self) -> bool {
        self.header.is_some() && self.place.is_none()
    }

    /// Forgets what was on its way: the operation failed and its buffer goes.
    pub(crate) fn clear(&mut self) {
        self.urgent.clear();
        self.waiting.clear();
        (self.leaving, self.place) = (None, None);
    }

    /// Sends what the kernel takes; whether anything was sent.
    ///
    /// # Safety
    /// The payloads of all frames pushed are still valid.
    pub(crate) unsafe fn flush(&mut self) -> Result<bool, Trouble> {
        let mut progress = false;
        loop {
            if self.leaving.is_none() {
                let Some(next) = self.urgent.pop_front().or_else(|| self.waiting.pop_front()) else {
                    return Ok(progress);
                };
                // SAFETY: valid by the caller's promise.
                let payload = unsafe { payload(&next) };
                self.leaving = Some((next.frame.encode(self.epoch, payload), next, 0));
            }
            let Some((header, out, sent)) = &mut self.leaving else { return Ok(progress) };
            // SAFETY: as above.
            let body = unsafe { payload(out) };
            let parts = [
                IoSlice::new(&header[(*sent).min(HEADER_BYTES)..]),
                IoSlice::new(&body[sent.saturating_sub(HEADER_BYTES)..]),
            ];
            match self.stream.write_vectored(&parts) {
                Ok(n) => {
                    progress = true;
                    *sent += n;
                    if *sent == HEADER_BYTES + body.len() {
                        self.leaving = None;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(progress),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Trouble::Closed),
            }
        }
    }

    /// Says where the payload of the frame that was announced goes.
    pub(crate) fn place(&mut self, data: *mut u8) {
        self.place = Some((data, 0));
    }

    /// Reads on.
    ///
    /// # Safety
    /// The place given last is valid for writes of the payload.
    pub(crate) unsafe fn read(&mut self) -> Result<Reading, Trouble> {
        let (header, frame) = match self.header {
            Some(known) => known,
            None => {
                let Some(header) = self.read_header()? else { return Ok(Reading::NotYet) };
                let bad = |bad: Bad| Trouble::Bad(bad.to_string());
                *self.header.insert((header, Frame::decode(&header, self.epoch).map_err(bad)?))
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
            match self.stream.read(&mut body[*got..]) {
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
            match self.stream.read(&mut self.ahead[self.unused.end..]) {
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
