//! `phalanx export`: the files as the programs they are made for read them.
//!
//! Those programs are Python's, in `target/frameworks-venv`, which `.ci/run` makes; what needs them says that it skips
//! where that is absent.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use support::{Home, ended, files, frameworks, script, script_with};

/// Two ranks, and a second attempt that goes on from step 2.
const GANG: &str = r#"
if [ $RANK = 1 ]; then phalanx report --step 1 'gpu, "hot"=40'; exit 0; fi
if [ $PHALANX_ATTEMPT = 1 ]; then
    for step in 1 2 3; do phalanx report --step $step loss=0.$step zero=0; done
    exit 1
fi
phalanx report --step 2 loss=0.125 zero=0
phalanx report --step 3 loss=nan zero=0
"#;

/// Finds `phalanx` on its path, as the job's program then does.
fn with_binary(command: &mut Command) -> &mut Command {
    let binary = Path::new(env!("CARGO_BIN_EXE_phalanx")).parent().unwrap();
    command.env("PATH", format!("{}:{}", binary.display(), std::env::var("PATH").unwrap()))
}

/// A finished job of [`GANG`], exported.
fn exported(home: &Home, format: &str) -> Value {
    let job =
        home.file("job.toml", &script_with("max_failures = 1\n[gang]\nworkers = 2\ncpus = 0.1\n", GANG));
    ended(with_binary(home.phalanx(["run", "-q"]).arg(job))).expect(0);
    home.run(["export", "j1", "--to", format, "out/deep", "--json"]).expect(0).json()
}

#[test]
fn csv_is_long_and_exact() {
    let home = Home::new();
    let said = exported(&home, "csv");
    assert_eq!(said["files"], json!(["out/deep/metrics.csv"]));
    assert_eq!(files(&home.dir.path().join("out/deep")), ["metrics.csv"]);
    let text = std::fs::read_to_string(home.dir.path().join("out/deep/metrics.csv")).unwrap();
    let (head, rows) = text.split_once('\n').unwrap();
    assert_eq!(head, "job,attempt,rank,step,time,metric,value");
    let mut rows: Vec<String> = rows
        .lines()
        .map(|row| {
            let time = row.split(',').nth(4).unwrap();
            assert!(time.len() == 27 && time.ends_with('Z'), "{row}");
            row.replace(time, "T")
        })
        .collect();
    rows.sort();
    let both = |row: &str| [row.to_owned(), row.replace("loss", "zero")];
    assert!(rows.contains(&r#"j1,1,1,1,T,"gpu, ""hot""",40.0"#.to_owned()), "{rows:?}");
    let losses: Vec<&String> = rows.iter().filter(|row| row.contains(",loss,")).collect();
    assert_eq!(
        losses,
        [
            "j1,1,0,1,T,loss,0.1",
            "j1,1,0,2,T,loss,0.2",
            "j1,1,0,3,T,loss,0.3",
            "j1,2,0,2,T,loss,0.125",
            "j1,2,0,3,T,loss,NaN"
        ]
    );
    assert!(both("j1,1,0,1,T,loss,0.0")[1..].iter().all(|row| rows.contains(row)), "{rows:?}");
    // The same numbers as `metrics` says.
    let points = home.run(["metrics", "j1"]).expect(0).json_lines();
    assert_eq!(points.len() as u64, said["points"].as_u64().unwrap());
    let values: usize = points.iter().map(|point| point["metrics"].as_object().unwrap().len()).sum();
    assert_eq!(rows.len(), values);
}

#[test]
fn what_cannot_be_exported_is_an_error_that_leaves_nothing() {
    let home = Home::new();
    let job = home.file("job.toml", &script("true"));
    ended(home.phalanx(["run", "-q"]).arg(job)).expect(0);
    let unknown = home.run(["export", "j7", "--to", "csv", "out"]).expect(1);
    assert!(unknown.err().contains("j7"), "{}", unknown.err());
    home.run(["export", "j1", "--to", "excel", "out"]).expect(2);
    home.run(["export", "j1"]).expect(2);
    assert!(files(home.dir.path()) == ["data", "job.toml"], "{:?}", files(home.dir.path()));
    home.file("plain", "a file, not a folder");
    let blocked = home.run(["export", "j1", "--to", "parquet", "plain/out"]).expect(1);
    assert!(blocked.err().contains("plain"), "{}", blocked.err());
    // A job that reported nothing has a table without rows, and a run without points.
    for format in ["csv", "parquet", "tensorboard"] {
        home.run(["export", "j1", "--to", format, "out"]).expect(0);
    }
    assert_eq!(files(&home.dir.path().join("out")), ["j1", "metrics.csv", "metrics.parquet"]);
    let csv = std::fs::read_to_string(home.dir.path().join("out/metrics.csv")).unwrap();
    assert_eq!(csv, "job,attempt,rank,step,time,metric,value\n");
}

#[test]
fn tensorboard_itself_reads_the_event_files() {
    let Some(python) = frameworks("tensorboard") else { return };
    let home = Home::new();
    let said = exported(&home, "tensorboard");
    assert_eq!(said["files"].as_array().unwrap().len(), 2, "{said}");
    let read = r#"
import json, sys
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
runs = EventMultiplexer().AddRunsFromDirectory(sys.argv[1]).Reload()
scalars = {run: {tag: runs.Tensors(run, tag) for tag in tags["tensors"]} for run, tags in runs.Runs().items()}
from tensorboard.util.tensor_util import make_ndarray
print(json.dumps({run: {tag: [[e.step, float(make_ndarray(e.tensor_proto)), e.wall_time] for e in events]
    for tag, events in tags.items()} for run, tags in scalars.items()}))
"#;
    let mut command = python;
    let read = ended(command.args(["-c", read]).arg(home.dir.path().join("out/deep"))).expect(0);
    let runs: Value = serde_json::from_str(&read.out().replace("NaN", "null")).unwrap();
    let points = |run: &str, tag: &str| -> Vec<(u64, Option<f64>)> {
        let events = runs[run][tag].as_array().unwrap_or_else(|| panic!("no {run} {tag}: {runs}"));
        events.iter().map(|event| (event[0].as_u64().unwrap(), event[1].as_f64())).collect()
    };
    // The second attempt replaced steps 2 and 3 of the first one.
    let loss = points("j1", "loss");
    assert_eq!(loss.iter().map(|point| point.0).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!((loss[0].1, loss[1].1, loss[2].1), (Some(f64::from(0.1_f32)), Some(0.125), None));
    assert_eq!(points("j1", "zero"), [(1, Some(0.0)), (2, Some(0.0)), (3, Some(0.0))]);
    assert_eq!(points("j1/rank-1", "gpu, \"hot\"").last(), Some(&(1, Some(40.0))));
    // The wall time is the time of the report.
    let first = home.run(["metrics", "j1", "--rank", "0"]).expect(0).json_lines()[0]["time"].clone();
    let wall = runs["j1"]["loss"][0][2].as_f64().unwrap();
    let wall = phalanx_api::json::time(Some(&phalanx_api::timestamp(phalanx_core::Time::from_micros(
        (wall * 1e6).round() as u64,
    ))));
    assert_eq!(wall.as_str().unwrap()[..23], first.as_str().unwrap()[..23]);
}

#[test]
fn arrow_reads_the_parquet_file() {
    let Some(mut python) = frameworks("pyarrow") else { return };
    let home = Home::new();
    exported(&home, "parquet");
    let read = r#"
import json, sys, pyarrow.parquet as parquet
table = parquet.read_table(sys.argv[1])
print(json.dumps({"types": [[f.name, str(f.type)] for f in table.schema], "rows": [[str(v) for v in row.values()] for row in table.to_pylist()]}))
"#;
    let read = ended(python.args(["-c", read]).arg(home.dir.path().join("out/deep/metrics.parquet")))
        .expect(0)
        .json();
    assert_eq!(
        read["types"],
        json!([
            ["job", "string"],
            ["attempt", "int64"],
            ["rank", "int64"],
            ["step", "uint64"],
            ["time", "timestamp[us, tz=UTC]"],
            ["metric", "string"],
            ["value", "double"]
        ])
    );
    let rows = read["rows"].as_array().unwrap();
    let points = home.run(["metrics", "j1"]).expect(0).json_lines();
    let mut wanted = Vec::new();
    for point in &points {
        for (name, value) in point["metrics"].as_object().unwrap() {
            wanted.push((
                point["attempt"].to_string(),
                point["rank"].to_string(),
                point["step"].to_string(),
                name.clone(),
                value.clone(),
            ));
        }
    }
    assert_eq!(rows.len(), wanted.len());
    for (row, (attempt, rank, step, name, value)) in rows.iter().zip(&wanted) {
        let cell = |at: usize| row[at].as_str().unwrap();
        assert_eq!(
            (cell(0), cell(1), cell(2), cell(3), cell(5)),
            ("j1", attempt.as_str(), rank.as_str(), step.as_str(), name.as_str())
        );
        let read: f64 = cell(6).parse().unwrap();
        assert_eq!(Some(read).filter(|read| !read.is_nan()), value.as_f64(), "{row}");
    }
}

#[test]
fn a_sweep_has_a_table_of_its_trials_and_a_run_each() {
    let home = Home::new();
    let sweep = r#"
version = 1
[gang]
cpus = 0.5
[program]
command = ["sh", "-c", "phalanx report --step 1 loss={x}; phalanx report --step 2 loss={x}"]
[sweep]
metric = "loss"
mode = "min"
trials = 3
seed = 1
[search]
kind = "random"
[params]
x = { kind = "float", low = 0.0, high = 1.0 }
k = { kind = "int", low = 1, high = 5 }
opt = { kind = "choice", values = ["a", "b"] }
"#;
    let sweep = home.file("sweep.toml", sweep);
    ended(with_binary(home.phalanx(["run", "-q"]).arg(sweep))).expect(0);
    let trials = home.run(["trials", "s1", "--json"]).expect(0).json();
    let said = home.run(["export", "s1", "--to", "csv", "out", "--json"]).expect(0).json();
    assert_eq!(said["files"], json!(["out/metrics.csv", "out/trials.csv"]));
    let mut table = csv::Reader::from_path(home.dir.path().join("out/trials.csv")).unwrap();
    let heads = table.headers().unwrap().clone();
    assert_eq!(
        heads.iter().take(6).collect::<Vec<_>>(),
        ["number", "state", "value", "step", "job", "sampler"]
    );
    let rows: Vec<csv::StringRecord> = table.records().collect::<Result<_, _>>().unwrap();
    assert_eq!(rows.len(), 3);
    for (row, trial) in rows.iter().zip(trials.as_array().unwrap()) {
        let cell = |name: &str| &row[heads.iter().position(|head| head == name).unwrap()];
        let number = |name: &str| cell(name).parse::<f64>().unwrap();
        assert_eq!(number("number"), trial["number"].as_f64().unwrap());
        assert_eq!((cell("state"), cell("job")), ("COMPLETE", trial["job"].as_str().unwrap()));
        assert_eq!(number("value"), trial["value"].as_f64().unwrap());
        for param in ["x", "k"] {
            assert_eq!(number(param), trial["params"][param].as_f64().unwrap());
        }
        assert_eq!(cell("opt"), trial["params"]["opt"].as_str().unwrap());
    }
    let metrics = std::fs::read_to_string(home.dir.path().join("out/metrics.csv")).unwrap();
    assert_eq!(metrics.lines().count(), 1 + 6);
    home.run(["export", "s1", "--to", "tensorboard", "runs"]).expect(0);
    assert_eq!(files(&home.dir.path().join("runs")), ["trial-0000", "trial-0001", "trial-0002"]);
}
