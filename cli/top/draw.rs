//! The screen of `top`: what the app knows, as text. Widths and heights are the terminal's, whatever they are.

use super::app::{App, Pane};
use super::curve::Curve;
use crate::progress::duration;
use phalanx_api::{time_of, v1 as pb};
use phalanx_core::Time;
use phalanx_core::quantity::format_bytes;
use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Row, Table, TableState};
use std::collections::VecDeque;
use std::time::Duration;

/// Nodes that are listed at most, above the main table.
const NODE_ROWS: usize = 6;
/// Columns of a bar of a node.
const BAR: usize = 10;
/// Columns of the cluster's curves.
const TREND: usize = 16;
/// Eighths of a cell, from nothing to all of it.
const BLOCKS: [&str; 9] = [" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];

/// Draws everything.
pub(super) fn draw(app: &App, frame: &mut Frame<'_>) {
    let nodes = app.snapshot.nodes.len().min(NODE_ROWS);
    let more_nodes = usize::from(app.snapshot.nodes.len() > NODE_ROWS);
    let [title, trend, node_area, main, curve, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length((nodes + more_nodes + 1) as u16),
        Constraint::Min(3),
        Constraint::Length(if app.curve.is_some() { 2 } else { 0 }),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let paint = Paint { color: app.color };
    frame.render_widget(title_line(app, &paint), title);
    frame.render_widget(trend_line(app, &paint), trend);
    draw_nodes(app, &paint, frame, node_area);
    match app.pane {
        Pane::Jobs => draw_jobs(app, &paint, frame, main),
        Pane::Sweeps => draw_sweeps(app, &paint, frame, main),
        Pane::Devices => draw_devices(app, &paint, frame, main),
    }
    if let Some(shown) = &app.curve {
        frame.render_widget(curve_lines(shown, &paint, curve.width), curve);
    }
    frame.render_widget(foot_line(app, &paint), foot);
}

/// Styles, or none where colours are not wanted.
struct Paint {
    color: bool,
}

impl Paint {
    fn with(&self, color: Color) -> Style {
        if self.color { Style::new().fg(color) } else { Style::new() }
    }

    fn head(&self) -> Style {
        self.with(Color::Cyan).add_modifier(Modifier::BOLD)
    }

    /// Fuller is warmer.
    fn heat(&self, part: f64) -> Style {
        match part {
            _ if part < 0.5 => self.with(Color::Green),
            _ if part < 0.9 => self.with(Color::Yellow),
            _ => self.with(Color::Red),
        }
    }

    fn state(&self, state: &str) -> Style {
        match state {
            "RUNNING" | "READY" | "SUCCEEDED" => self.with(Color::Green),
            "FAILED" | "LOST" => self.with(Color::Red),
            "QUEUED" | "RESTARTING" | "PREEMPTED" | "DRAINING" => self.with(Color::Yellow),
            _ => Style::new(),
        }
    }
}

fn title_line<'a>(app: &'a App, paint: &Paint) -> Line<'a> {
    let snapshot = &app.snapshot;
    if let Some(trouble) = &app.trouble {
        return Line::styled(format!("phalanx: {trouble}"), paint.with(Color::Red));
    }
    let up =
        snapshot.status.uptime.map_or(Duration::ZERO, |up| Duration::from_secs(up.seconds.max(0) as u64));
    let counted =
        [("RUNNING", "running"), ("QUEUED", "queued"), ("SUCCEEDED", "succeeded"), ("FAILED", "failed")];
    let counts = counted.map(|(state, word)| format!("{} {word}", snapshot.count(state)));
    Line::from(vec![
        Span::styled(format!("phalanx {}", snapshot.status.version), paint.head()),
        Span::raw(format!("  up {}  {} nodes  {}", duration(up), snapshot.nodes.len(), counts.join(", "))),
    ])
}

/// How busy the cluster is and was.
fn trend_line<'a>(app: &App, paint: &Paint) -> Line<'a> {
    let snapshot = &app.snapshot;
    let held = |(held, total): (f64, f64)| format!("{} of {}", short(held), short(total));
    let part = |past: &VecDeque<f64>| past.back().copied().unwrap_or(0.0);
    let mut spans = Vec::new();
    let mut add = |name: &str, past: &VecDeque<f64>, full: Option<f64>, now: String, style: Style| {
        spans.push(Span::raw(format!("{name} ")));
        spans.push(Span::styled(trend(past, full), style));
        spans.push(Span::raw(format!(" {now}   ")));
    };
    let history = &app.history;
    add("CPUs", &history.cpus, Some(1.0), held(snapshot.cpus()), paint.heat(part(&history.cpus)));
    add("GPUs", &history.gpus, Some(1.0), held(snapshot.gpus()), paint.heat(part(&history.gpus)));
    add("waiting", &history.waiting, None, snapshot.waiting().to_string(), paint.with(Color::Yellow));
    Line::from(spans)
}

/// The latest values as blocks; without a full height the largest of them is it.
fn trend(past: &VecDeque<f64>, full: Option<f64>) -> String {
    let latest: Vec<f64> = past.iter().rev().take(TREND).rev().copied().collect();
    let full = full.unwrap_or_else(|| latest.iter().copied().fold(1.0, f64::max));
    let blocks: String = latest.iter().map(|value| block(value / full)).collect();
    format!("{blocks:>TREND$}")
}

fn block(part: f64) -> &'static str {
    let eighths = (part.clamp(0.0, 1.0) * 8.0).round() as usize;
    // Something is not nothing.
    BLOCKS[if part > 0.0 { eighths.max(1) } else { 0 }]
}

fn draw_nodes(app: &App, paint: &Paint, frame: &mut Frame<'_>, area: Rect) {
    let nodes = &app.snapshot.nodes;
    let mut rows: Vec<Row<'_>> = nodes.iter().take(NODE_ROWS).map(|node| node_row(node, paint)).collect();
    if nodes.len() > NODE_ROWS {
        rows.push(Row::new([format!("… {} more", nodes.len() - NODE_ROWS)]));
    }
    let widths = [
        Constraint::Max(24),
        Constraint::Length(8),
        Constraint::Max(24),
        Constraint::Max(34),
        Constraint::Fill(1),
    ];
    let head = Row::new(["NODE", "STATE", "CPUS", "MEMORY", "DEVICES"]).style(paint.head());
    frame.render_widget(Table::new(rows, widths).header(head), area);
}

fn node_row<'a>(node: &'a pb::Node, paint: &Paint) -> Row<'a> {
    let amount = |amount: Option<pb::Amount>| {
        let amount = amount.unwrap_or_default();
        (amount.total - amount.free, amount.total)
    };
    let gauge = |(held, total): (f64, f64), text: String| {
        let part = if total > 0.0 { held / total } else { 0.0 };
        Line::from(vec![Span::styled(bar(part), paint.heat(part)), Span::raw(format!(" {text}"))])
    };
    let (cpus, memory) = (amount(node.cpus), amount(node.memory));
    let bytes = |bytes: f64| format_bytes(bytes as u64);
    let devices = node.gpus.iter().map(|gpu| {
        let held = 1.0 - gpu.free;
        let text = if held > 0.0 { block(held) } else { "·" };
        Span::styled(text, paint.heat(held))
    });
    let state = node.state().as_str_name();
    Row::new(vec![
        Line::raw(&node.name),
        Line::styled(state, paint.state(state)),
        gauge(cpus, format!("{}/{}", short(cpus.0), short(cpus.1))),
        gauge(memory, format!("{}/{}", bytes(memory.0), bytes(memory.1))),
        Line::from(devices.collect::<Vec<_>>()),
    ])
}

fn bar(part: f64) -> String {
    let filled = (part.clamp(0.0, 1.0) * BAR as f64).round() as usize;
    format!("{}{}", "█".repeat(filled), "░".repeat(BAR - filled))
}

fn draw_jobs(app: &App, paint: &Paint, frame: &mut Frame<'_>, area: Rect) {
    let jobs = &app.snapshot.jobs;
    let selected = app.selected_row();
    // Only what can be seen is made: there may be thousands.
    let (first, shown) = window(jobs.len(), selected, area.height.saturating_sub(1) as usize);
    let rows = jobs[first..first + shown].iter().map(|job| {
        let reason = job.reason.as_ref().map_or("", |reason| reason.text.lines().next().unwrap_or(""));
        Row::new(vec![
            Line::raw(&job.id),
            Line::raw(&job.name),
            Line::styled(job.state_name(), paint.state(job.state_name())),
            Line::raw(ranks(job)).alignment(Alignment::Right),
            Line::raw(&job.queue),
            Line::raw(ran(job, app.snapshot.at)).alignment(Alignment::Right),
            Line::raw(reason),
        ])
    });
    let widths = [
        Constraint::Length(8),
        Constraint::Max(24),
        Constraint::Length(10),
        Constraint::Length(5),
        Constraint::Max(12),
        Constraint::Length(11),
        Constraint::Fill(1),
    ];
    let head = Row::new(["JOB", "NAME", "STATE", "RANKS", "QUEUE", "TIME", "REASON"]).style(paint.head());
    let highlight = Style::new().add_modifier(Modifier::REVERSED);
    let table = Table::new(rows, widths).header(head).row_highlight_style(highlight);
    let mut state = TableState::new().with_selected(selected.map(|row| row - first));
    frame.render_stateful_widget(table, area, &mut state);
}

/// Which rows are shown so that the selected one is among them: the first, and how many.
fn window(rows: usize, selected: Option<usize>, height: usize) -> (usize, usize) {
    let shown = rows.min(height);
    let first = selected.unwrap_or(0).saturating_sub(height / 2).min(rows - shown);
    (first, shown)
}

fn draw_sweeps(app: &App, paint: &Paint, frame: &mut Frame<'_>, area: Rect) {
    let rows = app.snapshot.sweeps.iter().take(area.height as usize).map(|sweep| {
        let counts = sweep.counts.unwrap_or_default();
        let state = sweep.state_name();
        let best = sweep.best.as_ref().map(|best| format!("{} (trial {})", best.value, best.number));
        let over = counts.complete + counts.stopped + counts.failed + counts.cancelled;
        Row::new(vec![
            Line::raw(&sweep.id),
            Line::raw(&sweep.name),
            Line::styled(state, paint.state(state)),
            Line::raw(counts.running.to_string()).alignment(Alignment::Right),
            Line::raw((counts.queued + counts.paused).to_string()).alignment(Alignment::Right),
            Line::raw(over.to_string()).alignment(Alignment::Right),
            Line::raw(best.unwrap_or_default()),
        ])
    });
    let widths = [
        Constraint::Length(8),
        Constraint::Max(24),
        Constraint::Length(10),
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Fill(1),
    ];
    let head = Row::new(["SWEEP", "NAME", "STATE", "RUNNING", "WAITING", "OVER", "BEST"]).style(paint.head());
    frame.render_widget(Table::new(rows, widths).header(head), area);
}

fn draw_devices(app: &App, paint: &Paint, frame: &mut Frame<'_>, area: Rect) {
    let devices = app.snapshot.nodes.iter().flat_map(|node| node.gpus.iter().map(move |gpu| (node, gpu)));
    let rows = devices.take(area.height as usize).map(|(node, gpu)| {
        let used = gpu.utilization / 100.0;
        let memory = match gpu.memory_total {
            0 => String::new(),
            total => format!("{}/{}", format_bytes(gpu.memory_used), format_bytes(total)),
        };
        Row::new(vec![
            Line::raw(&node.name),
            Line::raw(gpu.index.to_string()).alignment(Alignment::Right),
            Line::raw(&gpu.name),
            Line::raw(if gpu.free < 1.0 {
                format!("{} held", short(1.0 - gpu.free))
            } else {
                "free".to_owned()
            }),
            Line::from(vec![
                Span::styled(bar(used), paint.heat(used)),
                Span::raw(format!(" {:.0} %", gpu.utilization)),
            ]),
            Line::raw(memory),
        ])
    });
    let widths = [
        Constraint::Max(24),
        Constraint::Length(5),
        Constraint::Max(28),
        Constraint::Length(10),
        Constraint::Length(17),
        Constraint::Fill(1),
    ];
    let head = Row::new(["NODE", "INDEX", "DEVICE", "HELD", "USE", "MEMORY"]).style(paint.head());
    frame.render_widget(Table::new(rows, widths).header(head), area);
}

/// The curve of the selected job: two lines of blocks, and what it is.
fn curve_lines<'a>(curve: &'a Curve, paint: &Paint, width: u16) -> Paragraph<'a> {
    let label = match curve.last {
        Some((step, value)) => format!("{} {value:.5}  step {step} ", curve.metric),
        None => return Paragraph::new("nothing reported yet"),
    };
    let columns = usize::from(width).saturating_sub(label.chars().count());
    // Two cells high: 16 eighths, of which the lowest is never empty.
    let tops = curve.heights(columns, 15);
    let cell = |height: Option<u64>, below: u64| match height {
        None => " ",
        Some(height) => BLOCKS[(height + 1).saturating_sub(below).min(8) as usize],
    };
    let line = |below: u64| tops.iter().map(|&height| cell(height, below)).collect::<String>();
    let style = paint.with(Color::Cyan);
    let blank = " ".repeat(label.chars().count());
    Paragraph::new(vec![
        Line::from(vec![Span::raw(blank), Span::styled(line(8), style)]),
        Line::from(vec![Span::raw(label), Span::styled(line(0), style)]),
    ])
}

fn foot_line<'a>(app: &'a App, paint: &Paint) -> Line<'a> {
    if let Some(id) = &app.asking {
        return Line::styled(
            format!("cancel {id}? y for yes, any other key for no"),
            paint.with(Color::Yellow),
        );
    }
    if !app.message.is_empty() {
        return Line::raw(app.message.lines().next().unwrap_or(""));
    }
    let all = if app.shows_all() { "a unfinished only" } else { "a all jobs" };
    let next = match app.pane {
        Pane::Jobs => "sweeps",
        Pane::Sweeps => "devices",
        Pane::Devices => "jobs",
    };
    Line::styled(
        format!("q leave  ↑↓ select  Tab {next}  {all}  c cancel  p pause or resume"),
        Style::new().add_modifier(Modifier::DIM),
    )
}

/// Ranks that run, or are asked for.
fn ranks(job: &pb::Job) -> String {
    let asked = job.gang.as_ref().map_or(0, |gang| gang.max_workers);
    if job.placement.is_empty() { asked.to_string() } else { job.placement.len().to_string() }
}

/// How long it has run, or waited where it has not begun.
fn ran(job: &pb::Job, now: Time) -> String {
    let time = |time: &Option<_>| time.as_ref().map(time_of);
    let (end, begin) = (time(&job.end_time).unwrap_or(now), time(&job.start_time).or(time(&job.submit_time)));
    begin.map(|begin| duration(end.since(begin))).unwrap_or_default()
}

/// A number without needless digits.
fn short(number: f64) -> String {
    let text = format!("{number:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::app::Wish;
    use super::super::snapshot::Snapshot;
    use super::*;
    use phalanx_api::timestamp;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::{Event, KeyCode};

    /// The screen of so many columns and lines.
    fn screen(app: &App, columns: u16, lines: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(columns, lines)).unwrap();
        terminal.draw(|frame| draw(app, frame)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let line =
            |y| (0..columns).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..lines).map(line).collect()
    }

    fn seconds(seconds: u64) -> Option<prost_types::Timestamp> {
        Some(timestamp(Time::from_micros(seconds * 1_000_000)))
    }

    fn job(id: u64, state: pb::job::State) -> pb::Job {
        pb::Job {
            id: format!("j{id}"),
            name: format!("digits-{id}"),
            state: state as i32,
            queue: "default".into(),
            submit_time: seconds(100),
            start_time: (state == pb::job::State::Running).then(|| seconds(150)).flatten(),
            gang: Some(pb::Gang { max_workers: 2, ..pb::Gang::default() }),
            reason: Some(pb::Reason {
                code: "FULL".into(),
                text: "asks for 8 CPUs; 2 are free\nmore".into(),
            }),
            ..pb::Job::default()
        }
    }

    fn cluster(jobs: Vec<pb::Job>) -> Snapshot {
        let gpu = |index, free| pb::Gpu {
            index,
            free,
            name: "H100".into(),
            utilization: 50.0,
            memory_total: 80 << 30,
            memory_used: 40 << 30,
            ..pb::Gpu::default()
        };
        let node = pb::Node {
            name: "alpha".into(),
            state: pb::node::State::Ready as i32,
            cpus: Some(pb::Amount { total: 16.0, free: 4.0 }),
            memory: Some(pb::Amount { total: 64e9, free: 64e9 }),
            gpus: vec![gpu(0, 0.0), gpu(1, 0.5), gpu(2, 1.0)],
            ..pb::Node::default()
        };
        let status = pb::StatusResponse {
            version: "0.1.0".into(),
            uptime: Some(prost_types::Duration { seconds: 200, nanos: 0 }),
            jobs: [("RUNNING".to_owned(), 1), ("QUEUED".to_owned(), 1)].into(),
            ..pb::StatusResponse::default()
        };
        let queues = vec![pb::Queue { name: "default".into(), length: 1, ..pb::Queue::default() }];
        let at = Time::from_micros(180_000_000);
        Snapshot { at, status, nodes: vec![node], queues, jobs, sweeps: Vec::new() }
    }

    fn app() -> App {
        App::new(cluster(vec![job(2, pb::job::State::Queued), job(1, pb::job::State::Running)]), true)
    }

    #[test]
    fn nodes_devices_and_jobs_with_their_numbers() {
        let shown = screen(&app(), 110, 16);
        assert_eq!(
            shown[0],
            "phalanx 0.1.0  up 3 min 20 s  1 nodes  1 running, 1 queued, 0 succeeded, 0 failed"
        );
        assert!(shown[1].contains("▆ 12 of 16") && shown[1].contains("▄ 1.5 of 3"), "{}", shown[1]);
        assert!(shown[1].contains("waiting") && shown[1].ends_with("█ 1"), "{}", shown[1]);
        assert!(shown[3].starts_with("alpha") && shown[3].contains("READY"), "{}", shown[3]);
        assert!(shown[3].contains("████████░░ 12/16") && shown[3].ends_with("█▄·"), "{}", shown[3]);
        let queued: Vec<&str> = shown[5].split_whitespace().collect();
        assert_eq!(queued[..7], ["j2", "digits-2", "QUEUED", "2", "default", "1", "min"]);
        assert!(shown[5].ends_with("asks for 8 CPUs; 2 are free"), "{}", shown[5]);
        assert!(shown[6].contains("RUNNING") && shown[6].contains("30 s"), "{}", shown[6]);
        assert!(shown[15].starts_with("q leave"), "{}", shown[15]);
    }

    #[test]
    fn the_selected_job_s_curve_falls() {
        let mut curve = Curve::default();
        for step in 1..=40 {
            let metrics = [("loss".to_owned(), 40.0 / f64::from(step))].into();
            curve.push(&pb::MetricPoint { step: step as u64, metrics, ..pb::MetricPoint::default() });
        }
        let mut app = app();
        app.take(app.snapshot.clone(), Some(curve));
        let shown = screen(&app, 80, 20);
        assert!(shown[18].starts_with("loss 1.00000  step 40 █"), "{}", shown[18]);
        assert!(shown[18].ends_with('▁') && shown[17].trim_start().starts_with('█'), "{shown:#?}");
    }

    #[test]
    fn every_size_is_drawn() {
        let app = app();
        for (columns, lines) in [(1, 1), (10, 3), (20, 60), (300, 5), (80, 24)] {
            let shown = screen(&app, columns, lines);
            assert_eq!(shown.len(), usize::from(lines));
        }
    }

    #[test]
    fn the_selected_of_thousands_is_on_the_screen() {
        let jobs = (1..=5000).rev().map(|id| job(id, pb::job::State::Queued)).collect();
        let mut app = App::new(cluster(jobs), false);
        assert!(matches!(app.event(Event::Key(KeyCode::End.into())), Wish::Look));
        assert_eq!(app.selected_job(), Some("j1"));
        let shown = screen(&app, 80, 24);
        assert!(shown[22].starts_with("j1 ") && shown[21].starts_with("j2 "), "{shown:#?}");
        app.event(Event::Key(KeyCode::PageUp.into()));
        assert_eq!(app.selected_job(), Some("j11"));
    }

    #[test]
    fn trouble_questions_and_panes_are_told() {
        let mut app = app();
        app.event(Event::Key(KeyCode::Char('c').into()));
        assert!(screen(&app, 80, 24)[23].starts_with("cancel j2? y"));
        let Wish::Change(_, id) = app.event(Event::Key(KeyCode::Char('y').into())) else {
            panic!("no change")
        };
        assert_eq!(id, "j2");
        app.away("the service is away".to_owned());
        assert_eq!(screen(&app, 80, 24)[0], "phalanx: the service is away");
        app.event(Event::Key(KeyCode::Tab.into()));
        assert!(screen(&app, 80, 24)[4].starts_with("SWEEP"));
        app.event(Event::Key(KeyCode::Tab.into()));
        let shown = screen(&app, 100, 24);
        assert!(
            shown[5].contains("H100") && shown[5].contains("1 held") && shown[5].contains("50 %"),
            "{}",
            shown[5]
        );
        assert!(shown[7].contains("free"), "{}", shown[7]);
        // What is over cannot be cancelled.
        app.pane = Pane::Jobs;
        app.snapshot.jobs = vec![job(2, pb::job::State::Failed)];
        app.event(Event::Key(KeyCode::Char('c').into()));
        assert!(screen(&app, 80, 24)[23].contains("not over"));
    }
}
