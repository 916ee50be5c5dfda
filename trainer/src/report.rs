//! The way to the agent: lines of JSON over `$PHALANX_SOCKET`, answered one by one.

use crate::Error;
use phalanx_core::report::{Answer, Checkpoint, Meet, Metric, Place, Report, Request};
use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long an agent that cannot be reached, or does not answer a report, is waited for: it may be restarting.
const REPORT_DEADLINE: Duration = Duration::from_secs(120);
/// How long an agent may take to make a checkpoint durable.
const CHECKPOINT_DEADLINE: Duration = Duration::from_secs(600);
/// How long the others may take to leave a group that is over: the step under way, and what follows it.
const MEET_DEADLINE: Duration = Duration::from_secs(600);
/// Pauses between attempts to reach it: doubling from the first to the second.
const RETRY_PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));
/// Reports that may wait for their answers while training goes on.
const REPORTS_IN_FLIGHT: usize = 256;

/// A connection that comes back.
struct Line {
    path: PathBuf,
    stream: Option<BufReader<UnixStream>>,
}

impl Line {
    fn new(path: PathBuf) -> Line {
        Line { path, stream: None }
    }

    /// Sends one request and waits for its answer, repeating it over new connections until `deadline` has passed.
    fn exchange(&mut self, request: &Request, deadline: Duration) -> Result<Taken, Error> {
        let started = Instant::now();
        let mut line = serde_json::to_vec(request).map_err(|error| self.fail(error.to_string()))?;
        line.push(b'\n');
        let mut pause = RETRY_PAUSES.0;
        loop {
            let left = deadline.saturating_sub(started.elapsed()).max(Duration::from_millis(1));
            match self.attempt(&line, left) {
                Ok(Answer::Taken { stop, group, .. }) => return Ok(Taken { stop, group }),
                Ok(Answer::Refused { error }) => return Err(self.fail(format!("refused a line: {error}"))),
                Err(error) if started.elapsed() + pause >= deadline => {
                    return Err(self.fail(format!("has not answered for {} s: {error}", deadline.as_secs())));
                }
                Err(_) => {
                    self.stream = None;
                    thread::sleep(pause);
                    pause = (pause * 2).min(RETRY_PAUSES.1);
                }
            }
        }
    }

    fn attempt(&mut self, line: &[u8], left: Duration) -> io::Result<Answer> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => none.insert(BufReader::new(UnixStream::connect(&self.path)?)),
        };
        stream.get_ref().set_read_timeout(Some(left))?;
        stream.get_ref().set_write_timeout(Some(left))?;
        stream.get_mut().write_all(line)?;
        let mut answer = Vec::new();
        stream.read_until(b'\n', &mut answer)?;
        if answer.last() != Some(&b'\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        serde_json::from_slice(&answer).map_err(io::Error::other)
    }

    fn fail(&self, reason: String) -> Error {
        Error::Agent { path: self.path.clone(), reason }
    }
}

/// Hands the checkpoint folder `path` over to be moved away; it is durable when this returns.
pub(crate) fn hand_over(socket: &Path, step: u64, path: &Path) -> Result<(), Error> {
    let request = Request::Checkpoint(Checkpoint { step, path: path.to_owned(), moves: true });
    Line::new(socket.to_owned()).exchange(&request, CHECKPOINT_DEADLINE).map(|_taken| ())
}

/// What an agent says to a line that it takes.
struct Taken {
    stop: bool,
    group: Option<Place>,
}

/// What an agent says to a rank that wants to meet the others.
pub(crate) enum Met {
    /// They stand as its environment says.
    Fixed,
    /// Where it stands, and the way on which it hears that it is to stand elsewhere.
    Stands(Place, BufReader<UnixStream>),
    /// There is nobody to train with any more.
    Over,
}

/// Asks the agent at `socket` whom this rank, which has left the group `epoch` (0: none), is to train with; the others
/// would find it at `port`.
pub(crate) fn meet(socket: &Path, epoch: u32, port: u16) -> Result<Met, Error> {
    let mut line = Line::new(socket.to_owned());
    let Taken { stop, group } = line.exchange(&Request::Meet(Meet { epoch, port }), MEET_DEADLINE)?;
    Ok(match (group, line.stream) {
        (Some(place), Some(stream)) => Met::Stands(place, stream),
        _ if stop => Met::Over,
        _ => Met::Fixed,
    })
}

enum Message {
    Report(Request),
    /// Answered once everything before it is.
    Flush(SyncSender<()>),
}

/// The thread that delivers, and the way to it.
type Worker = (SyncSender<Message>, JoinHandle<Result<(), Error>>);

/// Reports metrics from a thread of its own, in order; outside a job it does nothing.
pub(crate) struct Reporter {
    worker: Option<Worker>,
    stop: Arc<AtomicBool>,
}

impl Reporter {
    /// To the agent at `socket`, if there is one.
    pub(crate) fn new(socket: Option<PathBuf>) -> Reporter {
        let stop = Arc::new(AtomicBool::new(false));
        let worker = socket.map(|socket| {
            let (sender, receiver) = mpsc::sync_channel(REPORTS_IN_FLIGHT);
            let stop = stop.clone();
            (sender, thread::spawn(move || deliver(Line::new(socket), &receiver, &stop)))
        });
        Reporter { worker, stop }
    }

    /// Whether the agent has asked to stop.
    pub(crate) fn stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Queues a report.
    pub(crate) fn report(&mut self, step: u64, metrics: Vec<(String, f64)>) -> Result<(), Error> {
        if self.worker.is_none() {
            return Ok(());
        }
        let metrics: BTreeMap<String, Metric> =
            metrics.into_iter().map(|(name, value)| (name, Metric(value))).collect();
        self.send(Message::Report(Request::Report(Report { step: Some(step), metrics })))
    }

    /// Waits until every report is answered, so that [`Self::stop`] speaks of all of them.
    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        if self.worker.is_none() {
            return Ok(());
        }
        let (sender, receiver) = mpsc::sync_channel(1);
        self.send(Message::Flush(sender))?;
        match receiver.recv() {
            Ok(()) => Ok(()),
            Err(_) => self.failure(),
        }
    }

    fn send(&mut self, message: Message) -> Result<(), Error> {
        match &self.worker {
            Some((sender, _)) if sender.send(message).is_err() => self.failure(),
            _ => Ok(()),
        }
    }

    /// Why the thread ended.
    fn failure(&mut self) -> Result<(), Error> {
        let Some((sender, thread)) = self.worker.take() else { return Ok(()) };
        drop(sender);
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

fn deliver(mut line: Line, messages: &Receiver<Message>, stop: &AtomicBool) -> Result<(), Error> {
    for message in messages {
        match message {
            Message::Report(request) => {
                if line.exchange(&request, REPORT_DEADLINE)?.stop {
                    stop.store(true, Ordering::Relaxed);
                }
            }
            // Whoever asked may have gone.
            Message::Flush(answer) => drop(answer.send(())),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// An agent that hangs up in the middle of its first answer, then behaves, and asks to stop at step 2.
    #[test]
    fn a_lost_answer_is_asked_for_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let agent = thread::spawn(move || {
            let mut lines = Vec::new();
            for connection in 0..2 {
                let mut stream = BufReader::new(listener.accept().unwrap().0);
                loop {
                    let mut line = String::new();
                    if stream.read_line(&mut line).unwrap() == 0 {
                        break;
                    }
                    lines.push(line.trim().to_owned());
                    if connection == 0 {
                        stream.get_mut().write_all(b"{\"ok\":tr").unwrap();
                        break;
                    }
                    let stop = line.contains("\"step\":2");
                    stream
                        .get_mut()
                        .write_all(format!("{{\"ok\":true,\"stop\":{stop}}}\n").as_bytes())
                        .unwrap();
                }
            }
            lines
        });
        let mut reporter = Reporter::new(Some(path));
        reporter.report(1, vec![("loss".to_owned(), 0.5)]).unwrap();
        reporter.flush().unwrap();
        assert!(!reporter.stop());
        reporter.report(2, vec![("loss".to_owned(), f64::NAN)]).unwrap();
        reporter.flush().unwrap();
        assert!(reporter.stop());
        drop(reporter);
        let first = r#"{"report":{"step":1,"metrics":{"loss":0.5}}}"#;
        let second = r#"{"report":{"step":2,"metrics":{"loss":"nan"}}}"#;
        assert_eq!(agent.join().unwrap(), [first, first, second]);
    }

    #[test]
    fn a_refusal_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let agent = thread::spawn(move || {
            let mut stream = BufReader::new(listener.accept().unwrap().0);
            stream.read_line(&mut String::new()).unwrap();
            stream.get_mut().write_all(b"{\"error\":\"no room\"}\n").unwrap();
        });
        let error = hand_over(&path, 3, Path::new("/x")).unwrap_err().to_string();
        assert!(error.contains("refused a line: no room"), "{error}");
        agent.join().unwrap();
    }

    #[test]
    fn outside_a_job_nothing_happens() {
        let mut reporter = Reporter::new(None);
        reporter.report(1, vec![("loss".to_owned(), 0.5)]).unwrap();
        reporter.flush().unwrap();
        assert!(!reporter.stop());
    }
}
