//! What Slurm's `sacct` prints: columns divided by `|` (`--parsable`, `--parsable2`), or as wide as the dashes below the
//! head. Steps (`12.batch`) are passed over: their job says it all.

use super::table::{Fields, Head};
use super::{LeftOut, Row, TraceError, gang};
use phalanx_core::Placement;
use phalanx_core::resources::WHOLE;
use std::ops::Range;

const NAME: [&str; 2] = ["jobid", "jobidraw"];
const TRES: [&str; 2] = ["alloctres", "reqtres"];

pub(super) fn read(text: &str, mut take: impl FnMut(Result<Row, LeftOut>)) -> Result<(), TraceError> {
    let mut lines = text.lines().zip(1u64..).filter(|(line, _)| !line.trim().is_empty());
    let (first, _) = lines.next().ok_or_else(|| TraceError::Unfit("the trace is empty".to_owned()))?;
    let mut lines = lines.peekable();
    let columns = match lines.peek() {
        Some((dashes, _)) if dashes.contains("--") && dashes.chars().all(|c| matches!(c, '-' | ' ')) => {
            let columns = columns(dashes);
            lines.next();
            columns
        }
        _ => Vec::new(),
    };
    let names: Vec<String> = cells(first, &columns).into_iter().map(str::to_owned).collect();
    let head = Head::new(names.iter().map(String::as_str));
    head.require(&NAME)?;
    head.require(&["submit"])?;
    head.require(&["elapsedraw", "elapsed", "end"])?;
    for (line, number) in lines {
        let fields = Fields::new(&head, cells(line, &columns), number);
        let is_step = fields.text(&NAME).is_some_and(|id| id.contains('.'));
        if !is_step {
            take(row(&fields)?);
        }
    }
    Ok(())
}

/// Where each column stands, by the dashes below its head.
fn columns(dashes: &str) -> Vec<Range<usize>> {
    let mut spans: Vec<Range<usize>> = Vec::new();
    for (at, letter) in dashes.char_indices().filter(|(_, letter)| *letter == '-') {
        match spans.last_mut().filter(|span| span.end == at) {
            Some(span) => span.end = at + letter.len_utf8(),
            None => spans.push(at..at + 1),
        }
    }
    spans
}

/// The cells of a line: where the columns stand, or, without any, between bars.
fn cells<'a>(line: &'a str, columns: &[Range<usize>]) -> Vec<&'a str> {
    if columns.is_empty() {
        return line.split('|').collect();
    }
    let cell = |span: &Range<usize>| line.get(span.start..span.end.min(line.len())).unwrap_or("");
    columns.iter().map(cell).collect()
}

fn row(fields: &Fields<'_>) -> Result<Result<Row, LeftOut>, TraceError> {
    let submitted = fields.moment(&["submit"])?;
    let (start, end) = (fields.moment(&["start"])?, fields.moment(&["end"])?);
    let seconds = match (fields.number(&["elapsedraw"])?, fields.text(&["elapsed"])) {
        (Some(seconds), _) => Some(seconds),
        (None, Some(text)) => {
            Some(span(text).ok_or_else(|| fields.wrong(text, "a time such as 1-02:03:04"))?)
        }
        (None, None) => start.zip(end).map(|(start, end)| end - start),
    };
    let time_limit = match (fields.number(&["timelimitraw"])?, fields.text(&["timelimit"])) {
        (Some(minutes), _) => Some(60.0 * minutes),
        (None, Some("UNLIMITED" | "Partition_Limit")) | (None, None) => None,
        (None, Some(text)) => {
            Some(span(text).ok_or_else(|| fields.wrong(text, "a time limit such as 1-02:03:04"))?)
        }
    };
    let asked = Tres::read(fields)?;
    let never = fields.text(&["state"]).is_some_and(|state| matches!(state, "PENDING" | "REQUEUED"));
    let build = || {
        let submitted = submitted.ok_or("without a submission")?;
        let ran = |&seconds: &f64| !never && seconds >= 0.0 && (seconds > 0.0 || start.is_some());
        let seconds = seconds.filter(ran).ok_or("that never ran")?;
        let mut gang =
            gang(asked.nodes, asked.each(asked.cpus), asked.each_gpus(), asked.each(asked.memory))?;
        if asked.nodes > 1 {
            // Slurm's nodes are different ones.
            gang.placement = Placement::StrictSpread;
        }
        let (id, name) = (fields.text(&NAME).unwrap_or_default(), fields.text(&["jobname"]));
        let name = name.map_or_else(|| id.to_owned(), |name| format!("{id} {name}"));
        let queue = fields.text(&["partition"]).map(str::to_owned);
        Ok(Row {
            name,
            submitted,
            seconds,
            queue,
            time_limit: time_limit.filter(|&limit| limit >= seconds),
            gang,
        })
    };
    Ok(build())
}

/// What a job had in all: CPUs and GPUs in thousandths, memory in bytes.
struct Tres {
    nodes: u64,
    cpus: u64,
    gpus: u64,
    memory: u64,
}

impl Tres {
    /// From `cpu=8,gres/gpu=2,mem=64G,node=1`, or the columns that say as much.
    fn read(fields: &Fields<'_>) -> Result<Self, TraceError> {
        let mut asked = Tres {
            nodes: fields.count(&["nnodes", "allocnodes"], 1.0)?.unwrap_or(1).max(1),
            cpus: fields.count(&["ncpus", "alloccpus", "reqcpus"], WHOLE as f64)?.unwrap_or(WHOLE),
            gpus: 0,
            memory: 0,
        };
        let Some(text) = fields.text(&TRES) else { return Ok(asked) };
        for (kind, amount) in text.split(',').filter_map(|part| part.split_once('=')) {
            let wrong = || fields.wrong(text, "what a job has, such as `cpu=8,gres/gpu=2,mem=64G,node=1`");
            let number = || amount.parse::<u64>().map_err(|_| wrong());
            match kind {
                "node" => asked.nodes = number()?.max(1),
                "cpu" => asked.cpus = number()?.saturating_mul(WHOLE),
                // `gres/gpu:a100=2` repeats what `gres/gpu=2` says.
                "gres/gpu" => asked.gpus = number()?.saturating_mul(WHOLE),
                kind if kind.starts_with("gres/gpu:") && asked.gpus == 0 => {
                    asked.gpus = number()?.saturating_mul(WHOLE);
                }
                "mem" => asked.memory = bytes(amount).ok_or_else(wrong)?,
                _ => {}
            }
        }
        Ok(asked)
    }

    fn each(&self, all: u64) -> u64 {
        all / self.nodes
    }

    /// Whole GPUs a node, however they were dealt.
    fn each_gpus(&self) -> u64 {
        self.gpus.div_ceil(self.nodes).div_ceil(WHOLE) * WHOLE
    }
}

/// `64G`, `1500M`, `2.50T`, `4096K`, `128`: the last in MiB.
fn bytes(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let shift = match &text[end..] {
        "K" => 10,
        "" | "M" => 20,
        "G" => 30,
        "T" => 40,
        "P" => 50,
        _ => return None,
    };
    let number: f64 = text[..end].parse().ok()?;
    Some((number * (1u64 << shift) as f64) as u64)
}

/// `[DD-[HH:]]MM:SS[.mmm]` in seconds.
fn span(text: &str) -> Option<f64> {
    let (days, clock) = match text.split_once('-') {
        Some((days, clock)) => (days.parse::<u32>().ok()?, clock),
        None => (0, text),
    };
    let parts: Vec<f64> = clock.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let seconds = match parts[..] {
        [hours, minutes, seconds] => 3600.0 * hours + 60.0 * minutes + seconds,
        [minutes, seconds] => 60.0 * minutes + seconds,
        _ => return None,
    };
    (seconds.is_finite() && seconds >= 0.0).then_some(86_400.0 * f64::from(days) + seconds)
}
