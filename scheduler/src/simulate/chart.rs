//! A simulation as a picture: nodes from top to bottom, time from left to right; in text and in SVG.

use super::outcome::{Attempt, JobOutcome, Outcome};
use phalanx_core::spec::{Scenario, ScenarioJob, ScenarioNode};
use phalanx_core::{GpuRequest, Time};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Most boxes of a picture; a browser is slow with more.
const BOXES: usize = 200_000;
/// Jobs that have a letter of their own in a text chart; of more only how much is in use is shown.
const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// What holds something on a node for a while.
struct Stay<'a> {
    spec: &'a ScenarioJob,
    job: &'a JobOutcome,
    number: usize,
    attempt: &'a Attempt,
    from: f64,
    to: f64,
}

/// All that was ever held, by node.
fn stays<'a>(scenario: &'a Scenario, outcome: &'a Outcome, last: f64) -> BTreeMap<&'a str, Vec<Stay<'a>>> {
    let mut stays: BTreeMap<&str, Vec<Stay<'_>>> = BTreeMap::new();
    for (spec, job) in scenario.jobs.iter().zip(&outcome.jobs) {
        for (number, attempt) in job.attempts.iter().enumerate() {
            let mut nodes: Vec<&str> = attempt.bundles.iter().map(|bundle| bundle.node.as_str()).collect();
            nodes.sort_unstable();
            nodes.dedup();
            for node in nodes {
                let (from, to) = (seconds(attempt.start), attempt.end.map_or(last, seconds));
                stays.entry(node).or_default().push(Stay {
                    spec,
                    job,
                    number: number + 1,
                    attempt,
                    from,
                    to,
                });
            }
        }
    }
    stays.values_mut().for_each(|stays| stays.sort_by(|a, b| a.from.total_cmp(&b.from)));
    stays
}

fn seconds(time: Time) -> f64 {
    time.as_micros() as f64 / 1e6
}

/// When the last thing happens; never nothing.
fn last_second(outcome: &Outcome) -> f64 {
    let attempts = outcome.jobs.iter().flat_map(|job| &job.attempts);
    let ends = attempts.map(|attempt| seconds(attempt.end.unwrap_or(attempt.start)));
    ends.fold(1e-6, f64::max)
}

/// A line a node, `width` cells wide. With few jobs a cell has the letter of the job that holds most there, and a legend
/// follows; with many it has the tenths of the node's GPUs (CPUs where it has none) that are held. `.` is nothing.
pub fn gantt(scenario: &Scenario, outcome: &Outcome, width: usize) -> String {
    let last = last_second(outcome);
    let stays = stays(scenario, outcome, last);
    let ran: Vec<&JobOutcome> = outcome.jobs.iter().filter(|job| !job.attempts.is_empty()).collect();
    let letters: Option<BTreeMap<&str, char>> = (ran.len() <= LETTERS.len())
        .then(|| ran.iter().zip(LETTERS).map(|(job, &letter)| (job.name.as_str(), letter as char)).collect());
    let name_width = scenario.nodes.iter().map(|node| node.name.as_str().chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for node in &scenario.nodes {
        let empty = Vec::new();
        let line =
            cells(node, stays.get(node.name.as_str()).unwrap_or(&empty), last, width, letters.as_ref());
        let _ = writeln!(text, "{:name_width$} |{line}|", node.name.as_str());
    }
    let end = span(last);
    let _ =
        writeln!(text, "{:name_width$}  0{:>rest$}", "", end, rest = width.saturating_sub(1).max(end.len()));
    match letters {
        Some(letters) => {
            let words: Vec<String> = letters.iter().map(|(job, letter)| format!("{letter} {job}")).collect();
            let _ = write!(text, "{}", words.join("  "));
        }
        None => text.push_str("tenths of each node's GPUs, or of its CPUs where it has none, that are held"),
    }
    text
}

/// A node's line.
fn cells(
    node: &ScenarioNode,
    stays: &[Stay<'_>],
    last: f64,
    width: usize,
    letters: Option<&BTreeMap<&str, char>>,
) -> String {
    let step = last / width.max(1) as f64;
    // What each job holds of each cell, in parts of the node.
    let mut held: Vec<BTreeMap<&str, f64>> = vec![BTreeMap::new(); width];
    for stay in stays {
        let (first, end) = ((stay.from / step) as usize, (stay.to / step).ceil() as usize);
        let part = part_of(node, stay);
        for (at, cell) in held.iter_mut().enumerate().take(end).skip(first) {
            let (from, to) = (at as f64 * step, (at + 1) as f64 * step);
            let overlap = (stay.to.min(to) - stay.from.max(from)).max(0.0) / step;
            *cell.entry(stay.job.name.as_str()).or_default() += part * overlap;
        }
    }
    let cell = |held: &BTreeMap<&str, f64>| {
        let most = held.iter().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(a.0)));
        let total: f64 = held.values().sum();
        match (most, letters) {
            (Some((job, _)), Some(letters)) if total > 0.0 => letters.get(job).copied().unwrap_or('?'),
            (Some(_), None) if total > 0.0 => {
                char::from_digit(((total * 10.0).round() as u32).min(10) % 10, 10)
                    .filter(|_| total < 0.95)
                    .unwrap_or('#')
            }
            _ => '.',
        }
    };
    held.iter().map(cell).collect()
}

/// How much of a node a stay holds: of its GPUs, or of its CPUs where it has none.
fn part_of(node: &ScenarioNode, stay: &Stay<'_>) -> f64 {
    let here = stay.attempt.bundles.iter().filter(|bundle| bundle.node == node.name.as_str()).count() as f64;
    let each = &stay.spec.gang.each;
    let (held, all) = match node.capacity.devices.len() {
        0 => (each.cpus.milli() as f64, node.capacity.cpus.milli() as f64),
        devices => (each.gpus.shares() as f64, 1000.0 * devices as f64),
    };
    // What takes nothing of what is counted is there nevertheless.
    (here * held / all.max(1.0)).max(1e-9)
}

/// A number of seconds as people say it.
fn span(seconds: f64) -> String {
    let units = [(86_400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s")];
    let (unit, name) = units.into_iter().find(|(unit, _)| seconds >= 2.0 * unit).unwrap_or((1.0, "s"));
    let text = format!("{:.1}", seconds / unit);
    format!("{} {name}", text.trim_end_matches('0').trim_end_matches('.'))
}

/// Height of a device, or of work without one, in pixels.
const LANE: f64 = 12.0;
const MARGIN: f64 = 8.0;
/// Room for names on the left, and width of the time axis.
const LEFT: f64 = 120.0;
const WIDE: f64 = 1200.0;

/// The picture as SVG: a band a node with a lane a GPU, below them lanes for work without GPUs; a box says who, when, how it
/// ended. The message says when there would be too much of it.
pub fn svg(scenario: &Scenario, outcome: &Outcome) -> Result<String, String> {
    let last = last_second(outcome);
    let stays = stays(scenario, outcome, last);
    let boxes: usize = outcome.jobs.iter().flat_map(|job| &job.attempts).map(boxes_of).sum();
    if boxes > BOXES {
        return Err(format!(
            "a picture of {boxes} boxes is more than the {BOXES} that can be looked at; simulate fewer jobs"
        ));
    }
    let (mut body, mut top) = (String::new(), 2.0 * MARGIN + LANE);
    for node in &scenario.nodes {
        let empty = Vec::new();
        let lanes = Lanes::of(node, stays.get(node.name.as_str()).unwrap_or(&empty));
        let height = lanes.count.max(1) as f64 * LANE;
        let _ = writeln!(
            body,
            "<text x=\"{MARGIN}\" y=\"{:.1}\">{}</text>\n<rect class=\"node\" x=\"{LEFT}\" y=\"{top:.1}\" width=\"{WIDE}\" height=\"{height:.1}\"/>",
            top + height.min(LANE),
            escaped(node.name.as_str()),
        );
        for (stay, lane, offset, share) in &lanes.boxes {
            draw(&mut body, stay, top + (*lane as f64 + offset) * LANE, share * LANE, last);
        }
        top += height + MARGIN;
    }
    let (width, height) = (LEFT + WIDE + MARGIN, top + LANE + MARGIN);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height:.1}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <style>.node{{fill:#f2f2f2}} .job{{stroke:#fff;stroke-width:.5}} .cut{{fill-opacity:.55}} .tick{{stroke:#ccc}}</style>\n"
    );
    ticks(&mut svg, last, top);
    svg.push_str(&body);
    svg.push_str("</svg>\n");
    Ok(svg)
}

fn boxes_of(attempt: &Attempt) -> usize {
    attempt.bundles.iter().map(|bundle| bundle.gpus.len().max(1)).sum()
}

/// Where each box of a node lies.
struct Lanes<'a> {
    count: usize,
    /// Stay, lane, how far down within it, how much of it.
    boxes: Vec<(&'a Stay<'a>, usize, f64, f64)>,
}

impl<'a> Lanes<'a> {
    fn of(node: &ScenarioNode, stays: &'a [Stay<'a>]) -> Self {
        let devices = node.capacity.devices.len();
        let mut lanes = Lanes { count: devices, boxes: Vec::new() };
        // By device: the shares in use, with their end. By other lane: when it is free.
        let mut shared: Vec<Vec<(f64, f64, f64)>> = vec![Vec::new(); devices];
        let mut others: Vec<f64> = Vec::new();
        for stay in stays {
            let bundles = stay.attempt.bundles.iter().filter(|bundle| bundle.node == node.name.as_str());
            let mut gpus = bundles.flat_map(|bundle| &bundle.gpus).map(|&gpu| gpu as usize).peekable();
            if gpus.peek().is_none() {
                let lane = others.iter().position(|&free| free <= stay.from).unwrap_or(others.len());
                others.resize(others.len().max(lane + 1), 0.0);
                others[lane] = stay.to;
                lanes.boxes.push((stay, devices + lane, 0.0, 1.0));
            }
            for gpu in gpus.filter(|&gpu| gpu < devices) {
                let share = match stay.spec.gang.each.gpus {
                    GpuRequest::Share(shares) => f64::from(shares) / 1000.0,
                    _ => 1.0,
                };
                let used = &mut shared[gpu];
                used.retain(|&(_, _, to)| to > stay.from);
                used.sort_by(|a, b| a.0.total_cmp(&b.0));
                let fits = |offset: f64| {
                    used.iter()
                        .all(|&(at, size, _)| at + size <= offset + 1e-9 || offset + share <= at + 1e-9)
                };
                let below = used.iter().map(|&(at, size, _)| at + size);
                let offset =
                    std::iter::once(0.0).chain(below).find(|&at| at + share <= 1.0 + 1e-9 && fits(at));
                let offset = offset.unwrap_or(0.0);
                used.push((offset, share, stay.to));
                lanes.boxes.push((stay, gpu, offset, share));
            }
        }
        lanes.count += others.len();
        lanes
    }
}

fn draw(out: &mut String, stay: &Stay<'_>, y: f64, height: f64, last: f64) {
    let x = LEFT + stay.from / last * WIDE;
    let width = ((stay.to - stay.from) / last * WIDE).max(0.2);
    let cut = if stay.attempt.outcome == "finished" { "" } else { " cut" };
    // Neighbouring numbers get hues far apart (the golden angle).
    let hue = (stay.job.name.bytes().fold(7u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()))
        as f64
        * 137.508)
        % 360.0;
    let name = escaped(&stay.job.name);
    let _ = writeln!(
        out,
        "<rect class=\"job{cut}\" x=\"{x:.2}\" y=\"{y:.2}\" width=\"{width:.2}\" height=\"{height:.2}\" fill=\"hsl({hue:.0} 60% 55%)\">\
         <title>{name}, attempt {}: {} s to {} s, {}</title></rect>",
        stay.number, stay.from, stay.to, stay.attempt.outcome,
    );
}

/// A line at every round time, at most a dozen.
fn ticks(out: &mut String, last: f64, bottom: f64) {
    let steps = [
        1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 21_600.0, 43_200.0,
        86_400.0,
    ];
    let step = steps
        .into_iter()
        .find(|step| last / step <= 12.0)
        .unwrap_or((last / 12.0 / 86_400.0).ceil() * 86_400.0);
    let mut at = 0.0;
    while at <= last {
        let x = LEFT + at / last * WIDE;
        let _ = writeln!(
            out,
            "<line class=\"tick\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{LANE}\" y2=\"{bottom:.1}\"/><text x=\"{x:.1}\" y=\"{LANE}\">{}</text>",
            span(at)
        );
        at += step;
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::simulate;

    fn simulated(text: &str) -> (Scenario, Outcome) {
        let scenario = Scenario::parse(text).unwrap();
        let outcome = simulate(&scenario, None);
        (scenario, outcome)
    }

    const SMALL: &str = "[[node]]\nname = \"a\"\ncpus = 8\ngpus = 2\n[[node]]\nname = \"cpu\"\ncpus = 2\n\
        [[job]]\nname = \"<one>\"\nseconds = 10\ngang = { gpus = 1 }\n\
        [[job]]\nname = \"two\"\nat = 10\nseconds = 10\ngang = { workers = 2, gpus = 0.5 }\n\
        [[job]]\nname = \"plain\"\nseconds = 5\ngang = { cpus = 2 }\n";

    #[test]
    fn a_text_chart_has_a_letter_a_job() {
        let (scenario, outcome) = simulated(SMALL);
        let text = gantt(&scenario, &outcome, 8);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..3], ["a   |AAAABBBB|", "cpu |CC......|", "     0   20 s"], "{text}");
        assert_eq!(lines[3], "A <one>  C plain  B two", "{text}");
    }

    #[test]
    fn with_many_jobs_a_text_chart_has_the_tenths_in_use() {
        let mut text = "[[node]]\nname = \"a\"\ncpus = 64\ngpus = 4\n".to_owned();
        for at in 0..60 {
            let gpus = if at < 30 { 2 } else { 4 };
            let _ = write!(
                text,
                "[[job]]\nname = \"j{at}\"\nat = {at}\nseconds = 1\ngang = {{ gpus = {gpus} }}\n"
            );
        }
        let (scenario, outcome) = simulated(&text);
        assert!(gantt(&scenario, &outcome, 4).starts_with("a |55##|"), "{}", gantt(&scenario, &outcome, 4));
    }

    #[test]
    fn a_picture_has_every_box_and_is_sound_xml() {
        let (scenario, outcome) = simulated(SMALL);
        let svg = svg(&scenario, &outcome).unwrap();
        assert_eq!(svg.matches("class=\"job").count(), 4, "one GPU, two halves, one without: {svg}");
        assert!(svg.contains("&lt;one&gt;") && !svg.contains("<one>"), "{svg}");
        assert!(svg.contains("<title>two, attempt 1: 10 s to 20 s, finished</title>"), "{svg}");
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        let empty = super::svg(&Scenario::default(), &simulate(&Scenario::default(), None)).unwrap();
        assert!(empty.contains("</svg>"));
    }

    #[test]
    fn shares_of_a_device_lie_below_one_another() {
        let text = "[[node]]\nname = \"a\"\ncpus = 8\ngpus = 1\n\
            [[job]]\nname = \"x\"\nseconds = 10\ngang = { gpus = 0.25 }\n[[job]]\nname = \"y\"\nseconds = 20\ngang = { gpus = 0.5 }\n\
            [[job]]\nname = \"z\"\nat = 10\nseconds = 10\ngang = { gpus = 0.25 }\n";
        let (scenario, outcome) = simulated(text);
        let last = last_second(&outcome);
        let stays = stays(&scenario, &outcome, last);
        let lanes = Lanes::of(&scenario.nodes[0], &stays["a"]);
        let places: Vec<(f64, f64)> =
            lanes.boxes.iter().map(|&(_, _, offset, share)| (offset, share)).collect();
        assert_eq!(places, [(0.0, 0.25), (0.25, 0.5), (0.0, 0.25)]);
    }

    #[test]
    fn spans_are_said_in_their_unit() {
        assert_eq!([1.5, 90.0, 300.0, 7200.0, 172_800.0].map(span), ["1.5 s", "90 s", "5 min", "2 h", "2 d"]);
    }
}
