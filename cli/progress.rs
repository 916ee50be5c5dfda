//! The live line of a followed job: its state, ranks, step, loss and the time left. On a terminal only.

use crate::live;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use phalanx_api::v1 as pb;
use std::io::Write;
use std::time::{Duration, Instant};

/// A live line.
const LINE: &str = "{spinner} {wide_msg}";
/// One beneath it.
const SECOND_LINE: &str = "  {wide_msg}";
/// Between two frames of the spinner.
const FRAME: Duration = Duration::from_millis(100);
/// Before so much has been measured a time left would only jump about.
const WARM_UP: Duration = Duration::from_secs(1);
/// Begins and ends a synchronized update (mode 2026 of terminals).
const HOLD: &[u8] = b"\x1b[?2026h";
const SHOW: &[u8] = b"\x1b[?2026l";
/// The metrics worth the little room, the first that is there.
const SHOWN: [&str; 3] = ["loss", "train/loss", "val/loss"];

/// The live line; nothing at all where there is no terminal.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    seen: Seen,
}

/// What is known of the job.
#[derive(Default)]
struct Seen {
    name: String,
    state: String,
    ranks: usize,
    step: Option<u64>,
    total_steps: Option<u64>,
    metric: Option<(String, f64)>,
    first: Option<(Instant, u64)>,
}

impl Progress {
    /// A live line, or none.
    pub(crate) fn new(live: bool) -> Self {
        Progress { bar: live_bar(live), seen: Seen::default() }
    }

    /// Writes something else to the terminal without tearing the line, and without a moment in which it is not there:
    /// a terminal that knows synchronized updates shows what is between the two marks at once, others ignore them.
    pub(crate) fn suspend<T>(&self, write: impl FnOnce() -> T) -> T {
        let Some(bar) = &self.bar else { return write() };
        let mark = |mark: &[u8]| {
            // A terminal that is gone is noticed by those who write results.
            let _ = std::io::stderr().write_all(mark);
        };
        mark(HOLD);
        let written = bar.suspend(write);
        mark(SHOW);
        written
    }

    /// The job has changed.
    pub(crate) fn job(&mut self, job: &pb::Job) {
        self.seen.name = format!("{} {}", job.id, job.name);
        self.seen.state = job.state_name().to_lowercase();
        self.seen.ranks = job.placement.len();
        if !matches!(job.state(), pb::job::State::Running) {
            self.seen.first = None;
        }
        self.draw();
    }

    /// A rank has reported.
    pub(crate) fn point(&mut self, point: &pb::MetricPoint) {
        self.seen.point(point, Instant::now());
        self.draw();
    }

    /// A rank has written `step N/M`, as the built-in trainer does.
    pub(crate) fn line(&mut self, line: &[u8]) {
        if let Some((_, total)) = steps(line) {
            self.seen.total_steps = Some(total);
        }
    }

    /// Takes the line away.
    pub(crate) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn draw(&self) {
        if let Some(bar) = &self.bar {
            bar.set_message(self.seen.text(Instant::now()));
        }
    }
}

/// A spinner with a message, or nothing.
fn live_bar(live: bool) -> Option<ProgressBar> {
    live.then(|| {
        let bar = ProgressBar::with_draw_target(None, live::target());
        // The template is ours: that it reads is checked by a test.
        bar.set_style(style(LINE));
        bar.enable_steady_tick(FRAME);
        bar
    })
}

/// Two of them, one beneath the other, each cut at the terminal's edge.
#[derive(Debug)]
pub(crate) struct TwoLines {
    all: MultiProgress,
    lines: [ProgressBar; 2],
}

impl TwoLines {
    /// Two lines on stderr, where that is a terminal.
    pub(crate) fn new(live: bool) -> Option<TwoLines> {
        live.then(|| {
            let all = MultiProgress::with_draw_target(live::target());
            let lines =
                [LINE, SECOND_LINE].map(|line| all.add(ProgressBar::no_length().with_style(style(line))));
            lines[0].enable_steady_tick(FRAME);
            TwoLines { all, lines }
        })
    }

    /// Shows a text on each.
    pub(crate) fn show(&self, texts: [String; 2]) {
        self.lines.iter().zip(texts).for_each(|(line, text)| line.set_message(text));
    }

    /// Writes something else above them.
    pub(crate) fn suspend(&self, write: impl FnOnce()) {
        self.all.suspend(write);
    }

    /// Takes them away.
    pub(crate) fn finish(self) {
        self.lines.iter().for_each(ProgressBar::finish_and_clear);
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

impl Seen {
    fn point(&mut self, point: &pb::MetricPoint, now: Instant) {
        self.step = self.step.max(Some(point.step));
        self.first.get_or_insert((now, point.step));
        if let Some((name, value)) = SHOWN.iter().find_map(|&name| Some((name, *point.metrics.get(name)?))) {
            self.metric = Some((name.to_owned(), value));
        }
    }

    fn text(&self, now: Instant) -> String {
        let mut parts = vec![self.name.clone(), self.state.clone()];
        if self.ranks > 1 {
            parts.push(format!("{} ranks", self.ranks));
        }
        match (self.step, self.total_steps) {
            (Some(step), Some(total)) => parts.push(format!("step {step}/{total}")),
            (Some(step), None) => parts.push(format!("step {step}")),
            _ => {}
        }
        if let Some((name, value)) = &self.metric {
            parts.push(format!("{name} {value:.4}"));
        }
        if let Some(left) = self.left(now) {
            parts.push(format!("{} left", duration(left)));
        }
        parts.join(" · ")
    }

    fn left(&self, now: Instant) -> Option<Duration> {
        let (since, first) = self.first?;
        let (step, total) = (self.step?, self.total_steps?);
        let spent = now.saturating_duration_since(since);
        if spent < WARM_UP || step <= first || total < step {
            return None;
        }
        Some(spent.mul_f64((total - step) as f64 / (step - first) as f64))
    }
}

/// Reads `step N/M` at the start of a line.
fn steps(line: &[u8]) -> Option<(u64, u64)> {
    let line = std::str::from_utf8(line).ok()?.strip_prefix("step ")?;
    let (step, rest) = line.split_once('/')?;
    let total = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    Some((step.parse().ok()?, total.parse().ok()?))
}

/// A duration for people: `2.1 s`, `3 min 20 s`, `2 h 5 min`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..10 => format!("{:.1} s", duration.as_secs_f64()),
        10..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_reads() {
        for template in [LINE, SECOND_LINE] {
            assert!(ProgressStyle::with_template(template).is_ok());
        }
    }

    #[test]
    fn the_line_says_what_is_known() {
        let start = Instant::now();
        let mut seen =
            Seen { name: "j1 digits".into(), state: "running".into(), ranks: 2, ..Seen::default() };
        assert_eq!(seen.text(start), "j1 digits · running · 2 ranks");
        let point = |step, loss| pb::MetricPoint {
            step,
            metrics: [("loss".to_owned(), loss), ("lr".to_owned(), 1.0)].into(),
            ..pb::MetricPoint::default()
        };
        seen.point(&point(10, 0.5), start);
        seen.total_steps = steps(b"step 10/40  loss 0.5").map(|(_, total)| total);
        seen.point(&point(20, 0.25), start + Duration::from_secs(30));
        let text = seen.text(start + Duration::from_secs(30));
        assert_eq!(text, "j1 digits · running · 2 ranks · step 20/40 · loss 0.2500 · 1 min 0 s left");
    }

    #[test]
    fn only_a_line_of_steps_is_one() {
        assert_eq!(steps(b"step 3/12: loss"), Some((3, 12)));
        for line in ["", "step", "step 3", "step a/b", "a step 3/4", "step 3/"] {
            assert_eq!(steps(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn durations_fit_people() {
        let shown = [0.25, 59.9, 61.0, 7501.0].map(|seconds| duration(Duration::from_secs_f64(seconds)));
        assert_eq!(shown, ["0.2 s", "59 s", "1 min 1 s", "2 h 5 min"]);
    }
}
