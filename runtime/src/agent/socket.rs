//! The socket on which a rank reports and hands checkpoints over: newline-delimited JSON, one socket a rank, so that it
//! is known who speaks.

use super::checkpoint::Checkpoints;
use super::outbox::Outbox;
use crate::protocol::{Group, Happening};
use phalanx_core::Rank;
use phalanx_core::id::AttemptId;
use phalanx_core::job::Member;
use phalanx_core::limits::SOCKET_LINE_BYTES;
use phalanx_core::report::{Answer, Checkpoint, Meet, Report, Request, parse_line};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Steps of a rank that are remembered in order to count each once.
const STEPS: usize = 1024;
/// How long a connection may stay silent after every process of the attempt is gone.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// How long a report waits to be judged; so long that a service which was killed is back, and shorter than programs wait
/// for an answer.
const JUDGE_BOUND: Duration = Duration::from_secs(15);
/// How long the end of an attempt waits for a checkpoint that is being copied.
const COPY_BOUND: Duration = Duration::from_secs(600);

/// The sockets of an attempt's ranks on this node.
#[derive(Debug)]
pub(super) struct Sockets {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    /// Every process of the attempt is gone.
    closing: CancellationToken,
}

#[derive(Debug)]
struct Shared {
    attempt: AttemptId,
    outbox: Arc<Outbox>,
    checkpoints: Checkpoints,
    /// The metric whose reports by rank 0 are answered only once they are judged.
    judged: Option<String>,
    /// Up to which step they have been, and whether the end is wished for.
    verdict: watch::Sender<Verdict>,
    spoken: AtomicBool,
    /// The ranks may ask whom to meet.
    elastic: bool,
    /// Who trains with whom now; of epoch 0 before the first group.
    group: watch::Sender<Group>,
    /// Ranks that have been started again, and how often.
    lives: Mutex<BTreeMap<Rank, u32>>,
}

/// What is known of a trial's reports.
#[derive(Clone, Copy, Debug, Default)]
struct Verdict {
    through: Option<u64>,
    stop: bool,
}

/// What a rank has reported, over all its connections.
#[derive(Debug, Default)]
struct Reported {
    last: Option<u64>,
    /// The last step of the metric that is judged.
    last_judged: Option<u64>,
    steps: BTreeMap<u64, BTreeSet<String>>,
}

impl Reported {
    /// The report's step and those of its values that are news.
    fn take(&mut self, report: Report) -> (u64, BTreeMap<String, f64>) {
        let step = report.step.unwrap_or_else(|| self.last.map_or(1, |last| last.saturating_add(1)));
        self.last = Some(step);
        let names = self.steps.entry(step).or_default();
        let news = report.metrics.into_iter().filter(|(name, _)| names.insert(name.clone()));
        let news = news.map(|(name, value)| (name, value.0)).collect();
        if self.steps.len() > STEPS {
            self.steps.pop_first();
        }
        (step, news)
    }
}

impl Sockets {
    /// Sockets for one attempt; none is open yet.
    pub(super) fn new(
        attempt: AttemptId,
        judged: Option<String>,
        elastic: bool,
        outbox: Arc<Outbox>,
        checkpoints: Checkpoints,
    ) -> Sockets {
        let shared = Arc::new(Shared {
            attempt,
            outbox,
            checkpoints,
            judged,
            verdict: watch::Sender::new(Verdict::default()),
            spoken: AtomicBool::new(false),
            elastic,
            group: watch::Sender::new(Group::default()),
            lives: Mutex::default(),
        });
        Sockets { shared, tasks: TaskTracker::new(), closing: CancellationToken::new() }
    }

    /// Opens the socket of a rank.
    pub(super) fn open(&self, rank: Rank, path: &Path) -> io::Result<()> {
        let listener = UnixListener::bind(path)?;
        let (shared, tasks, closing) = (self.shared.clone(), self.tasks.clone(), self.closing.clone());
        self.tasks.spawn(accept(listener, rank, shared, tasks, closing));
        Ok(())
    }

    /// Every answer from now on says that the end is wished for. Whether any rank has ever spoken.
    pub(super) fn ask_to_stop(&self) -> bool {
        self.shared.verdict.send_modify(|verdict| verdict.stop = true);
        self.shared.spoken.load(Ordering::Relaxed)
    }

    /// What rank 0 has reported up to a step is judged, and the trial goes on.
    pub(super) fn judged(&self, step: u64) {
        self.shared.verdict.send_modify(|verdict| verdict.through = verdict.through.max(Some(step)));
    }

    /// Who trains with whom from now on. Words may come twice, and an older one after a newer one.
    pub(super) fn group(&self, group: Group) {
        self.shared.group.send_if_modified(|known| {
            let age = |group: &Group| (group.epoch, group.leave, group.lost);
            let news = age(&group) > age(known) || group.is_over();
            if news {
                *known = group;
            }
            news
        });
    }

    /// A rank is started again: who speaks on its socket from now on is another process.
    pub(super) fn reborn(&self, who: Member) {
        self.shared.lives.lock().unwrap_or_else(PoisonError::into_inner).insert(who.rank, who.life);
    }

    /// Takes in what the ranks, all gone by now, had still said, and closes.
    pub(super) async fn finish(self) {
        self.closing.cancel();
        self.tasks.close();
        if tokio::time::timeout(COPY_BOUND, self.tasks.wait()).await.is_err() {
            tracing::error!(attempt = %self.shared.attempt, "a checkpoint took too long to copy and is given up");
        }
    }
}

/// Cancel: `closing`, after what waits to be accepted has been. Error: a connection that cannot be taken is left.
async fn accept(
    listener: UnixListener,
    rank: Rank,
    shared: Arc<Shared>,
    tasks: TaskTracker,
    closing: CancellationToken,
) {
    let reported = Arc::new(Mutex::new(Reported::default()));
    let serve = |stream: UnixStream| {
        let (shared, reported, closing) = (shared.clone(), reported.clone(), closing.clone());
        tasks.spawn(Connection { rank, shared, reported, closing }.run(stream));
    };
    loop {
        tokio::select! {
            () = closing.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => serve(stream),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on a rank's socket");
                    tokio::time::sleep(LAST_WORDS).await;
                }
            },
        }
    }
    let Ok(listener) = listener.into_std() else { return };
    while let Ok((stream, _)) = listener.accept() {
        if stream.set_nonblocking(true).is_ok()
            && let Ok(stream) = UnixStream::from_std(stream)
        {
            serve(stream);
        }
    }
}

struct Connection {
    rank: Rank,
    shared: Arc<Shared>,
    reported: Arc<Mutex<Reported>>,
    closing: CancellationToken,
}

impl Connection {
    /// Cancel: the attempt's end, after a last silence. Error: a broken connection ends it; its rank connects again.
    async fn run(self, stream: UnixStream) {
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        let (mut partial, mut group) = (Partial::default(), None);
        loop {
            let line = tokio::select! {
                line = partial.read(&mut reader) => line,
                lost = self.over(group) => {
                    group = None;
                    let stop = self.shared.verdict.borrow().stop;
                    say(&mut writer, &Answer::Taken { ok: true, stop, group: None, leave: true, lost }).await;
                    continue;
                }
                () = async {
                    self.closing.cancelled().await;
                    tokio::time::sleep(LAST_WORDS).await;
                } => return,
            };
            let answer = match line {
                Ok(Some(Line::Whole(line))) => self.answer(&line).await,
                Ok(Some(Line::TooLong)) => {
                    let error = format!("a line has at most {SOCKET_LINE_BYTES} bytes");
                    Answer::Refused { error }
                }
                Ok(None) | Err(_) => return,
            };
            if let Answer::Taken { group: Some(place), .. } = &answer {
                group = Some(place.epoch);
            }
            say(&mut writer, &answer).await;
        }
    }

    /// Until those of a group are to leave it; whether at once.
    async fn over(&self, group: Option<u32>) -> bool {
        let Some(epoch) = group else { return std::future::pending().await };
        let mut groups = self.shared.group.subscribe();
        let over = groups.wait_for(|group| group.leaves(epoch)).await;
        // The sender lives as long as this.
        over.is_ok_and(|group| group.lost)
    }

    async fn answer(&self, line: &[u8]) -> Answer {
        self.shared.spoken.store(true, Ordering::Relaxed);
        let taken = match parse_line(line) {
            Ok(Request::Report(report)) => self.report(report).await,
            Ok(Request::Checkpoint(checkpoint)) => self.checkpoint(checkpoint).await,
            Ok(Request::Meet(meet)) => return self.meet(meet).await,
            Err(error) => Err(error),
        };
        match taken {
            Ok(()) => Answer::taken(self.shared.verdict.borrow().stop),
            Err(error) => Answer::Refused { error },
        }
    }

    async fn report(&self, report: Report) -> Result<(), String> {
        self.shared.outbox.room().await;
        let metric = self.shared.judged.as_ref().filter(|_| self.rank == 0);
        let judged = metric.is_some_and(|metric| report.metrics.contains_key(metric));
        let step = {
            let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
            if let (true, Some(step), Some(last)) = (judged, report.step, reported.last_judged)
                && step < last
            {
                return Err(format!("step {last} has been reported already, and step {step} goes backwards"));
            }
            let (step, metrics) = reported.take(report);
            if judged {
                reported.last_judged = Some(step);
            }
            if !metrics.is_empty() {
                let report = Happening::Report { rank: self.rank, step, metrics };
                self.shared.outbox.say(self.shared.attempt, &report);
            }
            step
        };
        if judged {
            self.verdict(step).await;
        }
        Ok(())
    }

    /// Waits until the sweep has judged a step, so that the answer holds for it.
    async fn verdict(&self, step: u64) {
        let mut verdict = self.shared.verdict.subscribe();
        let judged = verdict.wait_for(|verdict| verdict.stop || verdict.through >= Some(step));
        tokio::select! {
            _ = tokio::time::timeout(JUDGE_BOUND, judged) => {}
            () = self.closing.cancelled() => {}
        }
    }

    /// Waits until it is known with whom the rank trains, or that it does not any more.
    async fn meet(&self, meet: Meet) -> Answer {
        let shared = &self.shared;
        if !shared.elastic {
            return Answer::taken(false);
        }
        let life = shared.lives.lock().unwrap_or_else(PoisonError::into_inner).get(&self.rank).copied();
        let who = Member { rank: self.rank, life: life.unwrap_or(0) };
        shared.outbox.say(shared.attempt, &Happening::RankMeets { who, epoch: meet.epoch, port: meet.port });
        let (mut groups, mut verdict) = (shared.group.subscribe(), shared.verdict.subscribe());
        let known = groups.wait_for(|group| group.is_over() || group.place_of(who, meet.epoch).is_some());
        // One that is told both has a place to stop from.
        let place = tokio::select! {
            biased;
            known = known => known.ok().and_then(|group| group.place_of(who, meet.epoch)),
            _ = verdict.wait_for(|verdict| verdict.stop) => None,
            () = self.closing.cancelled() => None,
        };
        let stop = place.is_none() || shared.verdict.borrow().stop;
        Answer::Taken { ok: true, stop, group: place, leave: false, lost: false }
    }

    async fn checkpoint(&self, checkpoint: Checkpoint) -> Result<(), String> {
        let (attempt, step) = (self.shared.attempt, checkpoint.step);
        let taken = self.shared.checkpoints.take(attempt, self.rank, checkpoint).await;
        let path = taken.map_err(|error| error.to_string())?;
        self.shared.outbox.say(attempt, &Happening::Checkpoint { step, path });
        Ok(())
    }
}

async fn say(writer: &mut OwnedWriteHalf, answer: &Answer) {
    let Ok(mut text) = serde_json::to_vec(answer) else { return };
    text.push(b'\n');
    // One that does not read its answer may still have more to say.
    let _ = writer.write_all(&text).await;
}

enum Line {
    Whole(Vec<u8>),
    /// It was longer than a line may be; what follows is the next one.
    TooLong,
}

/// A line as far as it has come.
#[derive(Default)]
struct Partial {
    line: Vec<u8>,
    too_long: bool,
}

impl Partial {
    /// Reads up to a newline or the end; `None` at the end. Cancel: what has come is kept for the next call.
    async fn read(&mut self, reader: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<Line>> {
        loop {
            let bytes = reader.fill_buf().await?;
            if bytes.is_empty() {
                let Partial { line, too_long } = std::mem::take(self);
                return Ok((!line.is_empty() && !too_long).then_some(Line::Whole(line)));
            }
            let end = bytes.iter().position(|&byte| byte == b'\n');
            let part = &bytes[..end.unwrap_or(bytes.len())];
            self.too_long |= self.line.len() + part.len() > SOCKET_LINE_BYTES;
            if self.too_long {
                self.line = Vec::new();
            } else {
                self.line.extend_from_slice(part);
            }
            let used = end.map_or(bytes.len(), |end| end + 1);
            reader.consume(used);
            if end.is_some() {
                let Partial { line, too_long } = std::mem::take(self);
                return Ok(Some(if too_long { Line::TooLong } else { Line::Whole(line) }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_core::JobId;
    use tokio::io::AsyncReadExt;

    async fn opened() -> (tempfile::TempDir, Sockets, Arc<Outbox>, UnixStream) {
        opened_for(3, None).await
    }

    async fn opened_for(
        rank: Rank,
        judged: Option<&str>,
    ) -> (tempfile::TempDir, Sockets, Arc<Outbox>, UnixStream) {
        let dir = tempfile::tempdir().unwrap();
        let outbox = Arc::new(Outbox::open(&dir.path().join("outbox")).unwrap().0);
        let checkpoints = Checkpoints::open(dir.path().join("checkpoints")).unwrap();
        let attempt = AttemptId { job: JobId(1), number: 1 };
        let sockets = Sockets::new(attempt, judged.map(str::to_owned), true, outbox.clone(), checkpoints);
        sockets.open(rank, &dir.path().join("s")).unwrap();
        let stream = UnixStream::connect(dir.path().join("s")).await.unwrap();
        (dir, sockets, outbox, stream)
    }

    async fn say(stream: &mut UnixStream, line: &[u8]) -> String {
        stream.write_all(line).await.unwrap();
        let mut answer = Vec::new();
        while answer.last() != Some(&b'\n') {
            answer.push(stream.read_u8().await.unwrap());
        }
        String::from_utf8(answer).unwrap()
    }

    fn report(event: &phalanx_api::v1::AgentEvent) -> (u64, Vec<(&str, f64)>) {
        let Some(phalanx_api::v1::agent_event::Event::Report(report)) = &event.event else {
            panic!("{event:?}")
        };
        assert_eq!(report.rank, 3);
        (report.step, report.metrics.iter().map(|(name, &value)| (&name[..], value)).collect())
    }

    const OK: &str = "{\"ok\":true,\"stop\":false}\n";

    #[tokio::test]
    async fn each_step_counts_once_and_other_names_are_kept() {
        let (_dir, _sockets, outbox, mut stream) = opened().await;
        for line in [
            &br#"{"report":{"step":3,"metrics":{"a":1}}}"#[..],
            br#"{"report":{"step":3,"metrics":{"a":1}}}"#,
            br#"{"report":{"step":3,"metrics":{"a":9,"b":2}}}"#,
            br#"{"report":{"metrics":{"a":4}}}"#,
        ] {
            assert_eq!(say(&mut stream, &[line, b"\n"].concat()).await, OK);
        }
        let events = outbox.after(0, 1 << 20).await;
        let found: Vec<_> = events.iter().map(report).collect();
        assert_eq!(found, [(3, vec![("a", 1.0)]), (3, vec![("b", 2.0)]), (4, vec![("a", 4.0)])]);
    }

    #[tokio::test]
    async fn bad_and_endless_lines_are_refused_and_the_next_one_counts() {
        let (dir, sockets, outbox, mut stream) = opened().await;
        assert!(say(&mut stream, b"hello\n").await.starts_with("{\"error\":"));
        let mut long = vec![b' '; SOCKET_LINE_BYTES + 1];
        long.push(b'\n');
        assert!(say(&mut stream, &long).await.contains("at most 1048576 bytes"));
        let missing =
            format!("{{\"checkpoint\":{{\"step\":1,\"path\":\"{}\"}}}}\n", dir.path().join("no").display());
        assert!(say(&mut stream, missing.as_bytes()).await.contains("cannot find"));
        assert!(outbox.is_empty());
        assert!(sockets.ask_to_stop(), "it has spoken");
        let answer = say(&mut stream, b"{\"report\":{\"metrics\":{\"a\":1}}}\n").await;
        assert_eq!(answer, "{\"ok\":true,\"stop\":true}\n");
    }

    #[tokio::test]
    async fn a_judged_report_is_answered_by_its_verdict() {
        let (_dir, sockets, outbox, mut stream) = opened_for(0, Some("a")).await;
        let other = b"{\"report\":{\"step\":9,\"metrics\":{\"b\":1}}}\n";
        assert_eq!(say(&mut stream, other).await, OK, "another metric is judged by nobody");
        stream.write_all(b"{\"report\":{\"step\":2,\"metrics\":{\"a\":1}}}\n").await.unwrap();
        outbox.after(1, 1 << 20).await;
        sockets.judged(1);
        let early = tokio::time::timeout(Duration::from_millis(50), stream.read_u8()).await;
        assert!(early.is_err(), "step 1 is not step 2");
        sockets.judged(2);
        assert_eq!(say(&mut stream, b"").await, OK);
        assert!(
            say(&mut stream, b"{\"report\":{\"step\":1,\"metrics\":{\"a\":1}}}\n")
                .await
                .contains("backwards")
        );
        stream.write_all(b"{\"report\":{\"step\":3,\"metrics\":{\"a\":1}}}\n").await.unwrap();
        outbox.after(2, 1 << 20).await;
        sockets.ask_to_stop();
        assert_eq!(say(&mut stream, b"").await, "{\"ok\":true,\"stop\":true}\n");
    }

    #[tokio::test]
    async fn last_words_of_the_dead_are_heard() {
        let (dir, sockets, outbox, mut stream) = opened().await;
        stream.write_all(b"{\"report\":{\"step\":1,\"metrics\":{\"a\":1}}}\n").await.unwrap();
        drop(stream);
        let mut late = std::os::unix::net::UnixStream::connect(dir.path().join("s")).unwrap();
        io::Write::write_all(&mut late, b"{\"report\":{\"step\":2,\"metrics\":{\"a\":1}}}").unwrap();
        drop(late);
        sockets.finish().await;
        assert_eq!(outbox.after(0, 1 << 20).await.len(), 2);
    }

    #[tokio::test]
    async fn a_checkpoint_is_answered_when_it_is_in_place() {
        let (dir, _sockets, outbox, mut stream) = opened().await;
        let source = dir.path().join("source");
        std::fs::create_dir(&source).unwrap();
        std::fs::write(source.join("w"), b"1").unwrap();
        let line = format!("{{\"checkpoint\":{{\"step\":4,\"path\":\"{}\"}}}}\n", source.display());
        assert_eq!(say(&mut stream, line.as_bytes()).await, OK);
        let events = outbox.after(0, 1 << 20).await;
        let Some(phalanx_api::v1::agent_event::Event::Checkpoint(taken)) = &events[0].event else { panic!() };
        assert_eq!(std::fs::read(Path::new(&taken.path).join("w")).unwrap(), b"1");
    }
}
