//! `phalanx study`: ask and tell over stdin and stdout, for programs that run their own trials.

use crate::args::Global;
use crate::failure::Failure;
use crate::file::JobFile;
use crate::output::Output;
use phalanx_core::limits::SOCKET_LINE_BYTES;
use phalanx_tuner::{Record, Study, log, protocol};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

/// Answers that wait for one write of the journal.
const GROUP_BYTES: usize = 64 << 10;
/// Read from stdin at once.
const READ_BYTES: usize = 64 << 10;

/// Propose trials and hear of them over stdin and stdout, one JSON object a line
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  phalanx study sweep.toml --journal sweep.log   go on where the journal ends
  phalanx study wider.toml --learn sweep.log     begin with what another study found
  echo '{\"op\":\"ask\"}' | phalanx study sweep.toml

Requests, one a line, and their answers:
  {\"op\":\"ask\"}                                        {\"trial\":{\"number\":0,\"params\":{…}}} or {\"done\":true}
  {\"op\":\"report\",\"number\":0,\"step\":1,\"value\":0.5}    {\"decision\":\"continue\"}, stop or pause
  {\"op\":\"tell\",\"number\":0,\"value\":0.4}               {\"ok\":true,\"best\":{…}}; or \"state\":\"failed\"")]
pub(crate) struct StudyArgs {
    /// The sweep; it need not say what to run
    #[arg(value_name = "SWEEP.toml")]
    file: PathBuf,
    /// Keep every trial in this file, and go on from what is in it
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
    /// Learn from the complete trials in the journal of another study; may be given more than once. A journal that has
    /// begun knows them already
    #[arg(long, value_name = "FILE")]
    learn: Vec<PathBuf>,
}

pub(crate) fn run(global: &Global, args: &StudyArgs, output: &Output) -> Result<(), Failure> {
    let file = JobFile::read(&args.file, global)?;
    let spec = file.problems_of_sweep().map_err(|problems| file.refused(&problems))?;
    if let Some(sweep) = spec.learn_from.first() {
        return Err(Failure::usage(format!(
            "{}: `sweep.learn_from` names {sweep} of a service; a study learns from journals, with --learn",
            file.shown
        )));
    }
    let (mut study, mut journal) = match &args.journal {
        None => (Study::new(&spec), None),
        Some(path) => {
            let (journal, records) = Journal::open(path)?;
            let rebuilt = Study::rebuild(&spec, records);
            let study = rebuilt.map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
            (study, Some(journal))
        }
    };
    if study.trials().is_empty() {
        args.learn.iter().try_for_each(|path| learn(&mut study, path, output))?;
    }
    // A new study's first record says whose journal this is.
    commit(&mut study, journal.as_mut())?;
    serve(&mut study, journal.as_mut())
}

/// Takes in what the journal of another study has.
fn learn(study: &mut Study, path: &Path, output: &Output) -> Result<(), Failure> {
    let shown = path.display();
    let failed =
        |error: &dyn std::fmt::Display| Failure::usage(format!("cannot learn from {shown}: {error}"));
    let bytes = std::fs::read(path).map_err(|error| failed(&error))?;
    let (records, _) = log::decode(&bytes).map_err(|error| failed(&error))?;
    let count = study.learn_from(&records).map_err(|error| failed(&error))?;
    output.say(&format!("knows {count} trials of {shown}"));
    Ok(())
}

/// Answers requests in order until stdin ends. Requests that are there together share one write of the journal.
fn serve(study: &mut Study, mut journal: Option<&mut Journal>) -> Result<(), Failure> {
    let (mut input, mut stdout) = (Lines::new(), io::stdout().lock());
    let mut answers = Vec::with_capacity(GROUP_BYTES);
    loop {
        while let Some(line) = input.next_line() {
            let answer = match line {
                Line::Whole(bytes) => protocol::answer(study, bytes),
                Line::TooLong => {
                    serde_json::json!({ "error": format!("a line has at most {SOCKET_LINE_BYTES} bytes") })
                }
            };
            writeln!(answers, "{answer}")?;
            if answers.len() >= GROUP_BYTES {
                break;
            }
        }
        commit(study, journal.as_deref_mut())?;
        stdout.write_all(&answers)?;
        stdout.flush()?;
        if answers.len() < GROUP_BYTES {
            // Everything there was is answered.
            if !input.read()? {
                break;
            }
        }
        answers.clear();
    }
    journal.map_or(Ok(()), Journal::finish)
}

fn commit(study: &mut Study, journal: Option<&mut Journal>) -> Result<(), Failure> {
    let records = study.take_records();
    match journal {
        Some(journal) if !records.is_empty() => journal.append(&records),
        _ => Ok(()),
    }
}

/// The file that a study is kept in.
///
/// What is appended is with the kernel before it is answered, so that the end of this process loses nothing. A thread
/// brings it to the disk as fast as the disk goes: a loss of power takes the last milliseconds with it, and the trials
/// and the driver on this machine too.
struct Journal {
    file: File,
    path: PathBuf,
    syncer: Option<Syncer>,
}

impl Journal {
    /// Opens or begins a journal, drops a record that was cut off, and locks it against a second study.
    fn open(path: &Path) -> Result<(Journal, Vec<Record>), Failure> {
        let failed =
            |error: io::Error| Failure::failed(format!("cannot use the journal {}: {error}", path.display()));
        let is_new = !path.exists();
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = options.map_err(failed)?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => Failure::failed(format!(
                "the journal {} is in use; end the other study first",
                path.display()
            )),
            TryLockError::Error(error) => failed(error),
        })?;
        if is_new {
            let folder =
                path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        let decoded = log::decode(&bytes);
        let (records, taken) =
            decoded.map_err(|error| Failure::failed(format!("{}: {error}", path.display())))?;
        file.set_len(taken as u64).map_err(failed)?;
        file.seek(SeekFrom::End(0)).map_err(failed)?;
        let syncer = Syncer::start(file.try_clone().map_err(failed)?);
        Ok((Journal { file, path: path.to_owned(), syncer: Some(syncer) }, records))
    }

    fn append(&mut self, records: &[Record]) -> Result<(), Failure> {
        self.file.write_all(&log::encode(records)).map_err(|error| self.failed(&error))?;
        match &self.syncer {
            Some(syncer) if syncer.nudge() => Ok(()),
            _ => self.finish(),
        }
    }

    /// Brings everything to the disk; the error is that of any write on the way there.
    fn finish(&mut self) -> Result<(), Failure> {
        let synced = self.syncer.take().map_or(Ok(()), Syncer::finish).and_then(|()| self.file.sync_data());
        synced.map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &io::Error) -> Failure {
        let path = self.path.display();
        Failure::failed(format!(
            "cannot write the journal {path}: {error}; what was not answered was not kept"
        ))
    }
}

/// A thread that syncs a file whenever it is nudged, once for all nudges that came meanwhile. It ends with its sender,
/// or at the first error.
struct Syncer {
    nudges: SyncSender<()>,
    thread: JoinHandle<io::Result<()>>,
}

impl Syncer {
    fn start(file: File) -> Syncer {
        let (nudges, nudged): (SyncSender<()>, Receiver<()>) = sync_channel(1);
        let thread = std::thread::spawn(move || nudged.iter().try_for_each(|()| file.sync_data()));
        Syncer { nudges, thread }
    }

    /// `false` once the disk has failed.
    fn nudge(&self) -> bool {
        !matches!(self.nudges.try_send(()), Err(TrySendError::Disconnected(())))
    }

    fn finish(self) -> io::Result<()> {
        drop(self.nudges);
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that syncs it panicked")))
    }
}

/// Stdin in lines of bounded length.
struct Lines {
    buffer: Vec<u8>,
    /// Up to here lines were given out.
    taken: usize,
    /// Up to here there is no newline.
    searched: usize,
    ended: bool,
    /// Within a line that is longer than allowed.
    skipping: bool,
}

enum Line<'a> {
    Whole(&'a [u8]),
    TooLong,
}

impl Lines {
    fn new() -> Lines {
        Lines { buffer: Vec::new(), taken: 0, searched: 0, ended: false, skipping: false }
    }

    /// The next line that has been read whole.
    fn next_line(&mut self) -> Option<Line<'_>> {
        loop {
            let (start, newline) =
                (self.taken, self.buffer[self.searched..].iter().position(|byte| *byte == b'\n'));
            let end = match newline {
                Some(at) => self.searched + at,
                None if self.ended && start < self.buffer.len() => self.buffer.len(),
                None => {
                    self.searched = self.buffer.len();
                    let too_long = self.buffer.len() - start > SOCKET_LINE_BYTES;
                    if too_long || self.skipping {
                        self.taken = self.searched;
                    }
                    let first = too_long && !self.skipping;
                    self.skipping |= too_long;
                    return first.then_some(Line::TooLong);
                }
            };
            self.taken = (end + 1).min(self.buffer.len());
            self.searched = self.taken;
            if std::mem::take(&mut self.skipping) {
                // The rest of a line that was refused already.
                continue;
            }
            return match &self.buffer[start..end] {
                line if line.len() > SOCKET_LINE_BYTES => Some(Line::TooLong),
                line => Some(Line::Whole(line)),
            };
        }
    }

    /// Waits for more; `false` at the end.
    fn read(&mut self) -> io::Result<bool> {
        if self.ended {
            return Ok(false);
        }
        self.buffer.drain(..self.taken);
        self.searched -= self.taken;
        self.taken = 0;
        let filled = self.buffer.len();
        self.buffer.resize(filled + READ_BYTES, 0);
        // Not through the standard library's own buffer, which would be a second copy.
        let count = loop {
            match nix::unistd::read(io::stdin(), &mut self.buffer[filled..]) {
                Ok(count) => break count,
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        };
        self.buffer.truncate(filled + count);
        self.ended = count == 0;
        // What is left without a newline is the last line.
        Ok(!self.ended || filled > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_of(chunks: &[&[u8]]) -> Vec<String> {
        let mut lines = Lines::new();
        let mut found = Vec::new();
        for (index, chunk) in chunks.iter().enumerate() {
            lines.buffer.extend_from_slice(chunk);
            lines.ended = index + 1 == chunks.len();
            while let Some(line) = lines.next_line() {
                found.push(match line {
                    Line::Whole(bytes) => String::from_utf8_lossy(bytes).into_owned(),
                    Line::TooLong => "too long".to_owned(),
                });
            }
        }
        found
    }

    #[test]
    fn lines_are_put_together_from_what_arrives() {
        assert_eq!(lines_of(&[b"a\nb", b"c\n\nd", b""]), ["a", "bc", "", "d"]);
        let long = vec![b'x'; SOCKET_LINE_BYTES];
        assert_eq!(lines_of(&[&long, b"\nb\n", b""]).len(), 2);
        assert_eq!(lines_of(&[&long, b"x", b"y", b"z\nb\n", b""]), ["too long", "b"]);
    }

    #[test]
    fn a_journal_is_one_study_s_and_loses_its_torn_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.log");
        let spec =
            phalanx_core::spec::SweepSpec::parse("version = 1\n[sweep]\nmetric = \"m\"\n", "s").unwrap();
        let (mut journal, records) = Journal::open(&path).unwrap();
        assert!(records.is_empty());
        let mut study = Study::new(&spec);
        study.ask();
        journal.append(&study.take_records()).unwrap();
        assert!(Journal::open(&path).is_err_and(|failure| failure.message.contains("in use")));
        journal.finish().unwrap();
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&whole[..], b"{\"told\":{\"num"].concat()).unwrap();
        let (journal, records) = Journal::open(&path).unwrap();
        assert_eq!(records.len(), 2);
        drop(journal);
        assert_eq!(std::fs::read(&path).unwrap(), whole);
    }
}
