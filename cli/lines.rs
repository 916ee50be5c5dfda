//! What ranks wrote, put back on stdout and stderr byte by byte; with more than one rank each line says whose it is.

use crate::failure::Failure;
use crate::output::Output;
use phalanx_api::{json, v1 as pb};
use std::io::{self, Write};

/// Pieces of lines that wait for another rank's line to be finished; beyond this they cut in.
const WAITING_BYTES: usize = 16 << 20;

/// Where lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Each stream to its own.
    Streams,
    /// Both to stderr: stdout is for the document.
    Stderr,
    /// As JSON, one object a line.
    Json,
}

/// Writes lines.
pub(crate) struct Lines {
    target: Target,
    prefixed: bool,
    /// On a terminal with a live line an unfinished line is ended, or the live line would be drawn into it.
    tidy: bool,
    stdout: Side<io::Stdout>,
    stderr: Side<io::Stderr>,
}

impl Lines {
    /// For a gang of so many ranks.
    pub(crate) fn new(target: Target, workers: i32, output: &Output) -> Self {
        Lines {
            target,
            prefixed: workers > 1,
            tidy: output.live(),
            stdout: Side::new(io::stdout(), output.stdout_is_terminal),
            stderr: Side::new(io::stderr(), output.stderr_is_terminal),
        }
    }

    /// Whether this line comes to a terminal.
    pub(crate) fn is_shown(&self, line: &pb::LogLine) -> bool {
        if self.goes_to_stderr(line) { self.stderr.is_terminal } else { self.stdout.is_terminal }
    }

    fn goes_to_stderr(&self, line: &pb::LogLine) -> bool {
        self.target == Target::Stderr || line.stream() == pb::log_line::Stream::Stderr
    }

    /// Writes a line, or a piece of one.
    pub(crate) fn write(&mut self, line: &pb::LogLine) -> Result<(), Failure> {
        if self.target == Target::Json {
            let mut stdout = io::stdout().lock();
            writeln!(stdout, "{}", json::log_line(line))?;
            return Ok(stdout.flush()?);
        }
        let written = match self.goes_to_stderr(line) {
            true => self.stderr.write(line, self.prefixed, self.tidy),
            false => self.stdout.write(line, self.prefixed, self.tidy),
        };
        Ok(written?)
    }

    /// Everything that still waits.
    pub(crate) fn finish(&mut self) -> Result<(), Failure> {
        self.stdout.flush_waiting(self.prefixed)?;
        Ok(self.stderr.flush_waiting(self.prefixed)?)
    }
}

/// One of the two.
struct Side<W> {
    to: W,
    is_terminal: bool,
    /// The rank whose line is not finished yet.
    open: Option<i32>,
    /// The last byte was no newline.
    mid_line: bool,
    waiting: Vec<pb::LogLine>,
    waiting_bytes: usize,
}

impl<W: Write> Side<W> {
    fn new(to: W, is_terminal: bool) -> Self {
        Side { to, is_terminal, open: None, mid_line: false, waiting: Vec::new(), waiting_bytes: 0 }
    }

    fn write(&mut self, line: &pb::LogLine, prefixed: bool, tidy: bool) -> io::Result<()> {
        if prefixed && self.open.is_some_and(|rank| rank != line.rank) {
            self.waiting_bytes += line.line.len();
            self.waiting.push(line.clone());
            if self.waiting_bytes <= WAITING_BYTES {
                return Ok(());
            }
            self.flush_waiting(prefixed)?;
            return self.to.flush();
        }
        self.put(line, prefixed)?;
        if tidy && self.is_terminal && self.mid_line && !line.partial {
            self.to.write_all(b"\n")?;
            self.mid_line = false;
        }
        if self.open.is_none() && !self.waiting.is_empty() {
            self.flush_waiting(prefixed)?;
        }
        self.to.flush()
    }

    fn put(&mut self, line: &pb::LogLine, prefixed: bool) -> io::Result<()> {
        if prefixed && self.open != Some(line.rank) {
            if self.mid_line {
                self.to.write_all(b"\n")?;
            }
            write!(self.to, "[{}] ", line.rank)?;
        }
        self.to.write_all(&line.line)?;
        if line.newline {
            self.to.write_all(b"\n")?;
        }
        self.mid_line = !line.newline;
        self.open = line.partial.then_some(line.rank);
        Ok(())
    }

    fn flush_waiting(&mut self, prefixed: bool) -> io::Result<()> {
        self.waiting_bytes = 0;
        for line in std::mem::take(&mut self.waiting) {
            self.put(&line, prefixed)?;
        }
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(rank: i32, text: &[u8], partial: bool, newline: bool) -> pb::LogLine {
        pb::LogLine { rank, line: text.to_vec(), partial, newline, ..pb::LogLine::default() }
    }

    fn written(lines: &[pb::LogLine], prefixed: bool) -> Vec<u8> {
        let mut side = Side::new(Vec::new(), false);
        lines.iter().for_each(|line| side.write(line, prefixed, true).unwrap());
        side.flush_waiting(prefixed).unwrap();
        side.to
    }

    #[test]
    fn one_rank_is_passed_on_byte_by_byte() {
        let lines =
            [line(0, b"a\xff\r", false, true), line(0, b"lo", true, false), line(0, b"ng", false, false)];
        assert_eq!(written(&lines, false), b"a\xff\r\nlong");
    }

    #[test]
    fn a_line_of_several_ranks_says_whose_it_is_and_stays_whole() {
        let lines = [
            line(0, b"x", false, true),
            line(1, b"lo", true, false),
            line(0, b"y", false, true),
            line(1, b"ng", false, true),
            line(1, b"end", false, false),
            line(0, b"z", false, true),
        ];
        assert_eq!(written(&lines, true), b"[0] x\n[1] long\n[0] y\n[1] end\n[0] z\n");
    }

    #[test]
    fn waiting_is_bounded() {
        let big = vec![b'x'; WAITING_BYTES];
        let lines = [line(1, b"lo", true, false), line(0, &big, false, true), line(0, b"y", false, true)];
        let out = written(&lines, true);
        assert!(out.starts_with(b"[1] lo\n[0] xxx"));
        assert!(out.ends_with(b"x\n[0] y\n"));
    }
}
