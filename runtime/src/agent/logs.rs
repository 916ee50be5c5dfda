//! What ranks write: one pipe per rank and stream, read to the last byte, split into lines, said in the outbox.

use super::outbox::Outbox;
use super::redact::Redactor;
use phalanx_api::v1 as pb;
use phalanx_core::Rank;
use phalanx_core::id::AttemptId;
use phalanx_core::limits::LOG_LINE_BYTES;
use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::{mpsc, oneshot};

/// What one read takes.
const READ_BYTES: usize = 256 << 10;

/// Where lines come from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    pub(super) attempt: AttemptId,
    pub(super) rank: Rank,
    pub(super) stderr: bool,
}

/// Splits bytes into lines; pieces of one above the bound are passed on as they fill. Values of secrets stay out.
#[derive(Debug)]
pub(super) struct Lines {
    source: Source,
    line: Vec<u8>,
    redactor: Arc<Redactor>,
}

impl Lines {
    pub(super) fn new(source: Source, redactor: Arc<Redactor>) -> Self {
        Lines { source, line: Vec::new(), redactor }
    }

    /// Takes bytes in and gives out the lines, and full pieces of lines, that they complete.
    pub(super) fn take(&mut self, mut bytes: &[u8], said: &mut Vec<pb::agent_event::Event>) {
        while !bytes.is_empty() {
            // A full piece waits for one more byte: only then it is known whether another piece follows.
            let space = LOG_LINE_BYTES - self.line.len();
            let window = &bytes[..bytes.len().min(space + 1)];
            match window.iter().position(|&byte| byte == b'\n') {
                Some(end) => {
                    self.line.extend_from_slice(&bytes[..end]);
                    self.say(false, true, said);
                    bytes = &bytes[end + 1..];
                }
                None if window.len() > space => {
                    self.line.extend_from_slice(&bytes[..space]);
                    self.say(true, false, said);
                    bytes = &bytes[space..];
                }
                None => {
                    self.line.extend_from_slice(bytes);
                    return;
                }
            }
        }
    }

    /// The stream has ended: an unfinished last line is a line.
    pub(super) fn finish(&mut self, said: &mut Vec<pb::agent_event::Event>) {
        if !self.line.is_empty() {
            self.say(false, false, said);
        }
    }

    fn say(&mut self, partial: bool, newline: bool, said: &mut Vec<pb::agent_event::Event>) {
        let mut line = std::mem::take(&mut self.line);
        if !self.redactor.is_empty() {
            line = self.redactor.clean(line);
            if partial {
                self.line = line.split_off(line.len() - self.redactor.open_end(&line));
            }
        }
        said.push(pb::agent_event::Event::Log(pb::LogChunk {
            rank: self.source.rank,
            stderr: self.source.stderr,
            line,
            partial,
            newline,
        }));
    }
}

/// What a reader is told.
#[derive(Debug)]
enum Order {
    /// The rank has ended: say what is in the pipe, then answer.
    Drain(oneshot::Sender<()>),
    /// The attempt is gone: say all that is left, then end.
    Finish,
}

/// The way to a reader.
#[derive(Debug)]
pub(super) struct LogReader {
    pub(super) rank: Rank,
    orders: mpsc::UnboundedSender<Order>,
    task: tokio::task::JoinHandle<()>,
}

impl LogReader {
    /// Reads a pipe until its end or until [`LogReader::finish`].
    pub(super) fn start(
        source: Source,
        pipe: OwnedFd,
        outbox: Arc<Outbox>,
        redactor: Arc<Redactor>,
    ) -> io::Result<LogReader> {
        let pipe = Receiver::from_owned_fd(pipe)?;
        let (orders, inbox) = mpsc::unbounded_channel();
        let reader = Reader { pipe, lines: Lines::new(source, redactor), outbox };
        Ok(LogReader { rank: source.rank, orders, task: tokio::spawn(reader.run(inbox)) })
    }

    /// Returns once all that the rank wrote so far has been said, however full the outbox is.
    pub(super) async fn drain(&self) {
        let (answer, answered) = oneshot::channel();
        if self.orders.send(Order::Drain(answer)).is_ok() {
            tokio::select! {
                _ = answered => {}
                // A reader that has ended has said all; an order that crosses its end is never heard, nor dropped while
                // this sender lives.
                () = self.orders.closed() => {}
            }
        }
    }

    /// Says the rest and ends, also where somebody outside the attempt still holds the pipe.
    pub(super) async fn finish(self) {
        let _ = self.orders.send(Order::Finish);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "a reader of lines failed");
        }
    }
}

struct Reader {
    pipe: Receiver,
    lines: Lines,
    outbox: Arc<Outbox>,
}

thread_local! {
    /// What readers read into, one after the other.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

impl Reader {
    /// Cancel: `Finish`. Error: a pipe that cannot be read is taken for ended.
    async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Order>) {
        let mut open = true;
        while open {
            let readable = async {
                self.outbox.room().await;
                self.pipe.readable().await
            };
            let order = tokio::select! {
                biased;
                order = orders.recv() => Some(order.unwrap_or(Order::Finish)),
                _ = readable => None,
            };
            match order {
                None => open = self.read(|pipe, buffer| pipe.try_read(buffer)) != Some(0),
                Some(Order::Drain(answer)) => {
                    open = self.drain();
                    if !open {
                        self.finish();
                    }
                    let _ = answer.send(());
                }
                Some(Order::Finish) => {
                    self.drain();
                    open = false;
                }
            }
        }
        self.finish();
    }

    /// Says what one read gives: 0 bytes at the end of the stream, `None` where nothing is there.
    fn read(&mut self, take: impl Fn(&Receiver, &mut [u8]) -> io::Result<usize>) -> Option<usize> {
        let mut said = Vec::new();
        let taken = BUFFER.with_borrow_mut(|buffer| {
            let length = take(&self.pipe, buffer)?;
            self.lines.take(&buffer[..length], &mut said);
            io::Result::Ok(length)
        });
        if !said.is_empty() {
            self.outbox.say_all(self.lines.source.attempt, said);
        }
        match taken {
            Ok(length) => Some(length),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                None
            }
            Err(error) => {
                tracing::error!(%error, source = ?self.lines.source, "cannot read what a rank writes");
                Some(0)
            }
        }
    }

    /// Says what the pipe holds now, but no more than a pipe can hold: a leaked writer must not hold up the end. False at
    /// the end of the stream.
    fn drain(&mut self) -> bool {
        let capacity = nix::fcntl::fcntl(&self.pipe, nix::fcntl::FcntlArg::F_GETPIPE_SZ).unwrap_or(0);
        let (capacity, mut taken) = ((capacity as usize).max(READ_BYTES), 0);
        while taken < capacity {
            // Past the runtime, which may not have heard yet that something is there.
            match self.read(|pipe, buffer| nix::unistd::read(pipe, buffer).map_err(io::Error::from)) {
                None => return true,
                Some(0) => return false,
                Some(length) => taken += length,
            }
        }
        true
    }

    fn finish(&mut self) {
        let mut said = Vec::new();
        self.lines.finish(&mut said);
        if !said.is_empty() {
            self.outbox.say_all(self.lines.source.attempt, said);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_core::{JobId, Secret};
    use proptest::prelude::*;

    fn split(chunks: &[&[u8]]) -> Vec<pb::LogChunk> {
        split_without(&[], chunks)
    }

    fn split_without(secrets: &[&str], chunks: &[&[u8]]) -> Vec<pb::LogChunk> {
        let attempt = AttemptId { job: JobId(1), number: 1 };
        let named = secrets.iter().map(|value| (value.to_string(), Secret::new(value.to_string()).unwrap()));
        let redactor = Arc::new(Redactor::new(&named.collect()));
        let mut lines = Lines::new(Source { attempt, rank: 0, stderr: false }, redactor);
        let mut said = Vec::new();
        chunks.iter().for_each(|chunk| lines.take(chunk, &mut said));
        lines.finish(&mut said);
        let chunk = |event| match event {
            pb::agent_event::Event::Log(chunk) => chunk,
            other => panic!("{other:?}"),
        };
        said.into_iter().map(chunk).collect()
    }

    #[test]
    fn only_a_newline_ends_a_line_and_an_unfinished_one_counts() {
        let lines = split(&[b"a\rb\n\n\xff", b"\xfe\nlast"]);
        let found: Vec<(&[u8], bool, bool)> =
            lines.iter().map(|chunk| (&chunk.line[..], chunk.partial, chunk.newline)).collect();
        let expected: [(&[u8], bool, bool); 4] =
            [(b"a\rb", false, true), (b"", false, true), (b"\xff\xfe", false, true), (b"last", false, false)];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_line_at_the_bound_is_whole_and_one_above_it_is_in_pieces() {
        let line = vec![b'x'; LOG_LINE_BYTES];
        let whole = split(&[&line, b"\n"]);
        assert_eq!(whole.len(), 1);
        assert!(!whole[0].partial && whole[0].newline);
        let pieces = split(&[&line, &line, b"y\n"]);
        let found: Vec<(usize, bool, bool)> =
            pieces.iter().map(|chunk| (chunk.line.len(), chunk.partial, chunk.newline)).collect();
        assert_eq!(found, [(LOG_LINE_BYTES, true, false), (LOG_LINE_BYTES, true, false), (1, false, true)]);
        let unfinished = split(&[&line]);
        assert!(!unfinished[0].partial && !unfinished[0].newline);
    }

    #[test]
    fn a_secret_is_kept_out_also_across_pieces_and_reads() {
        let secret = ["hunter22"];
        let lines = split_without(&secret, &[b"is hun", b"ter22.\n"]);
        assert_eq!(lines[0].line, b"is ***.");
        for cut in 1..=secret[0].len() {
            let mut line = vec![b'x'; LOG_LINE_BYTES - cut];
            line.extend_from_slice(b"hunter22 and more\n");
            let pieces = split_without(&secret, &[&line]);
            assert!(pieces.len() == 2 && pieces[0].partial && !pieces[1].partial, "{cut}");
            let whole: Vec<u8> = pieces.iter().flat_map(|piece| piece.line.clone()).collect();
            assert!(whole.ends_with(b"x*** and more"), "{cut}");
        }
    }

    proptest! {
        /// However the stream is cut, the bytes come back.
        #[test]
        fn no_byte_is_lost(chunks in prop::collection::vec(prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..40), 0..8)) {
            let cuts: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
            let mut back = Vec::new();
            for chunk in split(&cuts) {
                back.extend(chunk.line);
                if chunk.newline {
                    back.push(b'\n');
                }
            }
            prop_assert_eq!(back, chunks.concat());
        }
    }
}
