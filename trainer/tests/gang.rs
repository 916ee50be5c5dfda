//! Whole gangs of real processes under a stand-in for the agent: what is promised of runs, restarts and failures.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Metrics of a report whose values do not depend on the clock, as bits, by name.
type Metrics = BTreeMap<String, u64>;

/// What the ranks of a run told their agent.
#[derive(Default)]
struct Heard {
    reports: Vec<(u64, Metrics)>,
    checkpoints: Vec<(u64, PathBuf)>,
}

impl Heard {
    fn values(&self, metric: &str) -> Vec<(u64, f64)> {
        let of = |(step, metrics): &(u64, Metrics)| Some((*step, f64::from_bits(*metrics.get(metric)?)));
        self.reports.iter().filter_map(of).collect()
    }
}

/// An agent that keeps what it hears, copies checkpoints, and asks to stop from `stop_at` on.
struct Agent {
    folder: tempfile::TempDir,
    heard: Arc<Mutex<Heard>>,
}

impl Agent {
    fn new(stop_at: Option<u64>) -> Agent {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        let heard = Arc::new(Mutex::new(Heard::default()));
        let (into, copies) = (heard.clone(), folder.path().to_owned());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (into, copies) = (into.clone(), copies.clone());
                thread::spawn(move || {
                    let mut stream = BufReader::new(stream.unwrap());
                    let mut line = String::new();
                    while stream.read_line(&mut line).unwrap_or(0) > 0 {
                        let step = hear(&line, &into, &copies);
                        let stop = stop_at.is_some_and(|at| step >= at);
                        let answer = format!("{{\"ok\":true,\"stop\":{stop}}}\n");
                        if stream.get_mut().write_all(answer.as_bytes()).is_err() {
                            return;
                        }
                        line.clear();
                    }
                });
            }
        });
        Agent { folder, heard }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, Heard> {
        self.heard.lock().unwrap()
    }

    fn checkpoint(&self, step: u64) -> PathBuf {
        self.heard().checkpoints.iter().find(|(at, _)| *at == step).unwrap().1.clone()
    }
}

fn hear(line: &str, heard: &Mutex<Heard>, copies: &Path) -> u64 {
    let value: serde_json::Value = serde_json::from_str(line).unwrap();
    if let Some(report) = value.get("report") {
        let metrics = report["metrics"].as_object().unwrap().iter();
        let metrics = metrics.filter(|(name, _)| !name.ends_with("_per_s"));
        let metrics =
            metrics.map(|(name, value)| (name.clone(), value.as_f64().unwrap().to_bits())).collect();
        let step = report["step"].as_u64().unwrap();
        heard.lock().unwrap().reports.push((step, metrics));
        return step;
    }
    if value.get("meet").is_some() {
        // The gang is of a fixed size.
        return 0;
    }
    let checkpoint = &value["checkpoint"];
    let step = checkpoint["step"].as_u64().unwrap();
    let (from, to) = (Path::new(checkpoint["path"].as_str().unwrap()), copies.join(format!("kept-{step}")));
    fs::create_dir_all(&to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
    heard.lock().unwrap().checkpoints.push((step, to));
    step
}

/// Three noisy blobs in six dimensions, the same every time.
fn blobs(rows: usize) -> String {
    let mut text = "a,b,\"c, d\",e,f,g,kind\n".to_owned();
    let mut noise = 1u64;
    for row in 0..rows {
        let class = row % 3;
        for column in 0..6 {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let centre = if column % 3 == class { 1.0 } else { 0.0 };
            let value = centre + (noise >> 40) as f64 / f64::from(1 << 24) * 1.5;
            write!(text, "{value:.4},").unwrap();
        }
        writeln!(text, "{}", ["red", "green", "blue"][class]).unwrap();
    }
    text
}

const TRAIN: &str = r#"
    data = { kind = "csv", path = "blobs.csv", target = "kind", validation = 0.2 }
    model = { kind = "mlp", hidden = [24] }
    optimizer = { kind = "adam", lr = 0.01 }
    schedule = { kind = "cosine", warmup = 3 }
    epochs = 3
    batch_size = 31
    clip = 1.0
    log_every = 1
    seed = 5
"#;

fn job(agent: &Agent, train: &str, more: &str) -> PathBuf {
    fs::write(agent.path("blobs.csv"), blobs(403)).unwrap();
    let path = agent.path("job.toml");
    fs::write(&path, format!("version = 1\n[train]\n{train}\n{more}")).unwrap();
    path
}

fn rank_binary() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().parent().unwrap().join("examples").join("rank")
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn start(
    agent: &Agent,
    file: &Path,
    rank: usize,
    world: usize,
    port: u16,
    checkpoint: Option<&Path>,
) -> Child {
    let scratch = agent.path(&format!("scratch-{rank}"));
    fs::create_dir_all(&scratch).unwrap();
    let mut command = Command::new(rank_binary());
    command
        .arg(file)
        .env("RANK", rank.to_string())
        .env("WORLD_SIZE", world.to_string())
        .env("MASTER_ADDR", "127.0.0.1")
        .env("MASTER_PORT", port.to_string())
        .env("OMP_NUM_THREADS", "1")
        .env("PHALANX_ATTEMPT", "1")
        .env("PHALANX_SOCKET", agent.path("socket"))
        .env("PHALANX_SCRATCH", scratch)
        .env_remove("PHALANX_CHECKPOINT")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some(checkpoint) = checkpoint {
        command.env("PHALANX_CHECKPOINT", checkpoint);
    }
    command.spawn().unwrap()
}

fn run(agent: &Agent, file: &Path, world: usize, checkpoint: Option<&Path>) -> Vec<Output> {
    let port = free_port();
    let ranks: Vec<Child> =
        (0..world).map(|rank| start(agent, file, rank, world, port, checkpoint)).collect();
    ranks.into_iter().map(|rank| rank.wait_with_output().unwrap()).collect()
}

#[track_caller]
fn succeed(agent: &Agent, file: &Path, world: usize, checkpoint: Option<&Path>) -> String {
    let outputs = run(agent, file, world, checkpoint);
    for output in &outputs {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    for output in &outputs[1..] {
        assert!(output.stdout.is_empty(), "only rank 0 prints");
    }
    String::from_utf8(outputs[0].stdout.clone()).unwrap()
}

fn message(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn a_rerun_is_the_same_bit_for_bit() {
    for world in [1, 2] {
        let (first, second) = (Agent::new(None), Agent::new(None));
        let out = succeed(&first, &job(&first, TRAIN, ""), world, None);
        assert_eq!(out, succeed(&second, &job(&second, TRAIN, ""), world, None));
        assert_eq!(first.heard().reports, second.heard().reports);
        let last = out.lines().last().unwrap();
        let accuracy: f64 = last.strip_prefix("validation accuracy: ").unwrap().parse().unwrap();
        assert!(accuracy > 0.8, "{out}");
        assert_eq!(out.matches("accuracy: ").count(), 1);
        // 322 training rows in batches of 31 are 11 steps an epoch; checkpoints are made at the end of each.
        let heard = first.heard();
        let steps: Vec<u64> = heard.values("loss").iter().map(|(step, _)| *step).collect();
        assert_eq!(steps, (1..=33).collect::<Vec<_>>());
        for metric in ["val/loss", "val/accuracy"] {
            let steps: Vec<u64> = heard.values(metric).iter().map(|(step, _)| *step).collect();
            assert_eq!(steps, [11, 22, 33], "{metric}");
        }
        assert_eq!(heard.checkpoints.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [11, 22, 33]);
        assert!((heard.values("val/accuracy")[2].1 - accuracy).abs() < 1e-4);
        // What stays is the flight recorder's, until the attempt's scratch folder goes.
        let mut left = fs::read_dir(first.path("scratch-0")).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(left.all(|name| !name.to_string_lossy().starts_with("checkpoint")), "staged folders go");
    }
}

#[test]
fn any_number_of_workers_has_the_same_losses() {
    let losses = |world: usize, train: &str| {
        let agent = Agent::new(None);
        succeed(&agent, &job(&agent, train, ""), world, None);
        let heard = agent.heard();
        [heard.values("loss"), heard.values("val/loss"), heard.values("val/accuracy")].concat()
    };
    for more in ["", "accumulate = 3"] {
        let train = format!("{TRAIN}{more}");
        let alone = losses(1, &train);
        for world in [2, 4] {
            for ((step, found), (_, expected)) in losses(world, &train).iter().zip(&alone) {
                assert!((found - expected).abs() <= 1e-4 * expected.abs(), "{world} workers, step {step}");
            }
        }
    }
    let train = format!("{TRAIN}deterministic = \"logical-shards\"");
    let alone = losses(1, &train);
    assert!(!alone.is_empty());
    for world in [2, 4, 8] {
        assert_eq!(losses(world, &train), alone, "{world} workers");
    }
    let agent = Agent::new(None);
    let error = message(&run(&agent, &job(&agent, &train, ""), 3, None)[0]);
    assert!(error.contains("which 3 workers cannot share evenly; use 1, 2, 4 or 8"), "{error}");
    // Shards change the order of sums, not the run.
    for ((step, found), (_, expected)) in losses(1, TRAIN).iter().zip(&alone) {
        assert!((found - expected).abs() <= 1e-4 * expected.abs(), "step {step}");
    }
}

#[test]
fn a_resumed_run_is_the_undisturbed_one_bit_for_bit() {
    for optimizer in
        ["kind = \"adam\", lr = 0.01", "kind = \"sgd\", lr = 0.1, momentum = 0.9", "kind = \"lion\""]
    {
        let train = TRAIN.replace("kind = \"adam\", lr = 0.01", optimizer);
        let whole = Agent::new(None);
        let policy = "[checkpoint]\nevery_steps = 5";
        succeed(&whole, &job(&whole, &train, policy), 2, None);
        // In the middle of an epoch, at the very end, and with nothing left to do.
        for step in [5, 15, 33] {
            let agent = Agent::new(None);
            let out = succeed(&agent, &job(&agent, &train, policy), 2, Some(&whole.checkpoint(step)));
            let (resumed, whole) = (agent.heard(), whole.heard());
            let mut expected = whole.reports[step as usize..].to_vec();
            if expected.is_empty() {
                // What is left is to say how good the model is.
                let (step, mut metrics) = whole.reports[whole.reports.len() - 1].clone();
                metrics.retain(|metric, _| metric.starts_with("val/"));
                expected.push((step, metrics));
            }
            assert_eq!(resumed.reports, expected, "{optimizer} from {step}");
            assert!(out.lines().next().unwrap().ends_with(&format!("going on from step {step}")), "{out}");
            assert!(out.lines().last().unwrap().starts_with("validation accuracy: "), "{out}");
        }
    }
}

#[test]
fn a_checkpoint_is_readable_by_anybody() {
    let agent = Agent::new(None);
    succeed(&agent, &job(&agent, TRAIN, ""), 1, None);
    let folder = agent.checkpoint(33);
    let bytes = fs::read(folder.join("model.safetensors")).unwrap();
    let model = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut names = model.names();
    names.sort_unstable();
    assert_eq!(names, ["0.bias", "0.weight", "2.bias", "2.weight"]);
    assert_eq!(model.tensor("0.weight").unwrap().shape(), [24, 6]);
    let state: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.join("trainer.json")).unwrap()).unwrap();
    assert_eq!(state["classes"], serde_json::json!(["blue", "green", "red"]));
    assert_eq!(state["features"][2], "c, d");
    assert_eq!(state["position"], serde_json::json!({"step": 33, "epoch": 3, "index": 0}));
}

#[test]
fn damaged_and_foreign_checkpoints_are_refused() {
    let agent = Agent::new(None);
    let file = job(&agent, TRAIN, "");
    succeed(&agent, &file, 1, None);
    let good = agent.checkpoint(22);
    let refused = |file: &Path, damage: &dyn Fn(&Path), expected: &str| {
        let copy = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(&good).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
        damage(copy.path());
        let error = message(&run(&agent, file, 1, Some(copy.path()))[0]);
        assert!(error.starts_with(&format!("error: checkpoint {}: ", copy.path().display())), "{error}");
        assert!(error.contains(expected), "{error}");
    };
    for name in ["model.safetensors", "optimizer.safetensors", "trainer.json"] {
        let flip = |folder: &Path| {
            let mut bytes = fs::read(folder.join(name)).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(folder.join(name), bytes).unwrap();
        };
        refused(&file, &flip, &format!("{name} is damaged"));
        let truncate = |folder: &Path| {
            let bytes = fs::read(folder.join(name)).unwrap();
            fs::write(folder.join(name), &bytes[..bytes.len() - 1]).unwrap();
        };
        refused(&file, &truncate, &format!("{name} is damaged"));
        refused(
            &file,
            &|folder| fs::remove_file(folder.join(name)).unwrap(),
            &format!("{name} cannot be read"),
        );
    }
    refused(&file, &|folder| fs::write(folder.join("checksums.b3"), "?").unwrap(), "checksums.b3 is damaged");
    let other_list = |folder: &Path| fs::write(folder.join("manifest.json"), "{\"files\": []}").unwrap();
    refused(&file, &other_list, "model.safetensors is damaged");
    for (from, to, expected) in [
        ("[24]", "[25]", "the model was `mlp 6-24-3 relu` and is now `mlp 6-25-3 relu`"),
        ("\"adam\"", "\"adamw\"", "the optimizer was `adam` and is now `adamw`"),
        ("seed = 5", "seed = 6", "`seed` was `5` and is now `6`"),
        ("validation = 0.2", "validation = 0.3", "the hash of the data was"),
    ] {
        let other = job(&agent, &TRAIN.replace(from, to), "");
        refused(&other, &|_| {}, expected);
    }
}

#[test]
fn asked_to_stop_all_ranks_leave_a_checkpoint_and_end_well() {
    let agent = Agent::new(Some(11));
    let out = succeed(&agent, &job(&agent, TRAIN, ""), 2, None);
    assert_eq!(out.lines().last(), Some("stopped at step 11 as asked"));
    let heard = agent.heard();
    assert_eq!(heard.reports.last().unwrap().0, 11, "the answer to a score holds at once");
    assert_eq!(heard.checkpoints.last().unwrap().0, 11);
}

#[test]
fn sigterm_ends_with_a_checkpoint() {
    let agent = Agent::new(None);
    let file = job(
        &agent,
        &TRAIN.replace("epochs = 3", "epochs = 4000000"),
        "[checkpoint]\nevery_steps = 1000000000",
    );
    let port = free_port();
    let ranks: Vec<Child> = (0..2).map(|rank| start(&agent, &file, rank, 2, port, None)).collect();
    wait_for(|| agent.heard().reports.len() > 20);
    // One rank is enough: they agree.
    assert!(Command::new("kill").arg(ranks[1].id().to_string()).status().unwrap().success());
    for rank in ranks {
        let output = rank.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let heard = agent.heard();
    assert_eq!(heard.checkpoints.len(), 1);
    assert!(heard.checkpoints[0].0 >= 20);
}

#[track_caller]
fn wait_for(mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(30), "waited in vain");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_killed_rank_is_named_by_the_other() {
    let agent = Agent::new(None);
    let file = job(&agent, &TRAIN.replace("epochs = 3", "epochs = 4000000"), "");
    let port = free_port();
    let mut ranks: Vec<Child> = (0..2).map(|rank| start(&agent, &file, rank, 2, port, None)).collect();
    wait_for(|| agent.heard().reports.len() > 20);
    ranks[1].kill().unwrap();
    let killed = Instant::now();
    let survivor = ranks.remove(0).wait_with_output().unwrap();
    assert!(killed.elapsed() < Duration::from_secs(5));
    let error = message(&survivor);
    assert!(error.starts_with("error: rank 0: rank 1 was lost"), "{error}");
    ranks.remove(0).wait().unwrap();
}

/// Each time another rank is killed at another moment, and the next gang, of the same or another number of workers, goes on.
#[test]
fn ranks_killed_at_any_point_change_no_bit() {
    const KILLS: usize = 6;
    let train = TRAIN.replace("epochs = 3", "epochs = 100\ndeterministic = \"logical-shards\"");
    let policy = "[checkpoint]\nevery_steps = 5";
    let undisturbed = Agent::new(None);
    succeed(&undisturbed, &job(&undisturbed, &train, policy), 2, None);
    let expected: BTreeMap<u64, Metrics> = undisturbed.heard().reports.iter().cloned().collect();
    assert_eq!(expected.len(), 1100);
    for worlds in [[2, 2, 2], [4, 1, 2]] {
        let agent = Agent::new(None);
        let file = job(&agent, &train, policy);
        for (round, &world) in worlds.iter().cycle().take(KILLS).enumerate() {
            let port = free_port();
            let heard = agent.heard().reports.len();
            let latest = agent.heard().checkpoints.last().map(|(_, path)| path.clone());
            let mut ranks: Vec<Child> =
                (0..world).map(|rank| start(&agent, &file, rank, world, port, latest.as_deref())).collect();
            wait_for(|| agent.heard().reports.len() > heard + 7 * round);
            thread::sleep(Duration::from_micros(730 * round as u64));
            ranks[round % world].kill().unwrap();
            for (rank, child) in ranks.into_iter().enumerate() {
                let status = child.wait_with_output().unwrap().status;
                assert!(!status.success(), "rank {rank} of round {round} was not to come to the end");
            }
        }
        let latest = agent.heard().checkpoints.last().map(|(_, path)| path.clone());
        succeed(&agent, &file, worlds[0], latest.as_deref());
        let found: BTreeMap<u64, Metrics> = agent.heard().reports.iter().cloned().collect();
        assert_eq!(found, expected, "{worlds:?}");
    }
}

#[test]
fn ranks_of_different_configurations_do_not_train() {
    let (one, other) = (Agent::new(None), Agent::new(None));
    let files = [job(&one, TRAIN, ""), job(&other, &TRAIN.replace("lr = 0.01", "lr = 0.02"), "")];
    let port = free_port();
    let ranks: Vec<Child> = (0..2).map(|rank| start(&one, &files[rank], rank, 2, port, None)).collect();
    for rank in ranks {
        let error = message(&rank.wait_with_output().unwrap());
        assert!(error.contains("configuration"), "{error}");
    }
    assert!(one.heard().reports.is_empty());
}

#[test]
fn a_loss_that_is_no_number_stops_the_run() {
    let agent = Agent::new(None);
    let train =
        TRAIN.replace("kind = \"adam\", lr = 0.01", "kind = \"sgd\", lr = 1e30").replace("clip = 1.0", "");
    let error = message(&run(&agent, &job(&agent, &train, ""), 1, None)[0]);
    assert!(
        error.contains("the loss is NaN at step ") || error.contains("the loss is inf at step "),
        "{error}"
    );
    assert!(error.contains("there is no checkpoint; lower `optimizer.lr`"), "{error}");

    // One step is fine, and makes a checkpoint; the next ones are not.
    let agent = Agent::new(None);
    let train =
        format!("{train}schedule = {{ kind = \"step\", every = 1, gamma = 1e36 }}").replace("1e30", "1e-6");
    let train = train.replace("schedule = { kind = \"cosine\", warmup = 3 }", "");
    let error = message(&run(&agent, &job(&agent, &train, "[checkpoint]\nevery_steps = 1"), 2, None)[0]);
    let last = agent.heard().checkpoints.last().unwrap().0;
    assert!(error.contains(&format!("the last checkpoint is of step {last}; lower")), "{error}");
    let loaded = fs::read(agent.checkpoint(last).join("model.safetensors")).unwrap();
    let model = safetensors::SafeTensors::deserialize(&loaded).unwrap();
    for (name, tensor) in model.tensors() {
        let (words, _) = tensor.data().as_chunks::<4>();
        assert!(words.iter().all(|word| f32::from_le_bytes(*word).is_finite()), "{name}");
    }
}

#[test]
fn what_the_data_cannot_give_is_refused() {
    let agent = Agent::new(None);
    let error = message(&run(&agent, &job(&agent, &TRAIN.replace("31", "323"), ""), 1, None)[0]);
    assert_eq!(
        error,
        "error: `train.batch_size` is 323, and the training part of blobs.csv has 322 rows; make it at most 322\n"
    );
    let wide = TRAIN.replace("[24]", "[65536, 65536]");
    let error = message(&run(&agent, &job(&agent, &wide, ""), 1, None)[0]);
    assert!(error.contains("the limit is 1073741824; make it smaller"), "{error}");
    let error = message(&run(&agent, &job(&agent, &TRAIN.replace("\"kind\"", "\"sort\""), ""), 1, None)[0]);
    assert!(
        error.starts_with("error: blobs.csv, line 1: there is no column `sort` (`data.target`)"),
        "{error}"
    );
}

#[test]
fn numbers_are_learnt_too() {
    let agent = Agent::new(None);
    let mut text = "x,y,z\n".to_owned();
    (0..200).for_each(|row| {
        let (x, y) = (f64::from(row % 17), f64::from(row % 23));
        writeln!(text, "{x},{y},{}", 0.5 * x - 0.25 * y + 1.0).unwrap();
    });
    fs::write(agent.path("plane.csv"), text).unwrap();
    let file = agent.path("plane.toml");
    let train = r#"
        data = { kind = "csv", path = "plane.csv", target = "z", validation = 0.25 }
        model = { kind = "linear" }
        optimizer = { kind = "sgd", lr = 0.1 }
        steps = 200
        eval_every = 80
    "#;
    fs::write(&file, format!("version = 1\n[train]\n{train}")).unwrap();
    let out = succeed(&agent, &file, 2, None);
    assert_eq!(out.lines().last(), Some("validation r2: 1.0000"));
    let heard = agent.heard();
    assert_eq!(heard.values("val/r2").iter().map(|(step, _)| *step).collect::<Vec<_>>(), [80, 160, 200]);
    assert_eq!(heard.values("loss").len(), 20);
}

/// Small runs of every kind of model, and of what shares work out otherwise; on libtorch, where that is built in.
fn kinds() -> Vec<(&'static str, String)> {
    let backend = if cfg!(feature = "tch") { "tch" } else { "burn" };
    let common = format!(
        "epochs = 2\nbatch_size = 24\nlog_every = 1\nseed = 5\nbackend = \"{backend}\"\noptimizer = {{ kind = \"adamw\", lr = 0.01 }}\n"
    );
    let blobs = "data = { kind = \"csv\", path = \"blobs.csv\", target = \"kind\", validation = 0.2";
    let text = "data = { kind = \"text\", path = \"blobs.csv\", validation = 0.2, context = 16 }";
    let transformer = "model = { kind = \"transformer\", layers = 1, width = 16, heads = 2, dropout = 0.1 }";
    vec![
        ("linear", format!("{blobs} }}\nmodel = {{ kind = \"linear\" }}\n{common}")),
        (
            "mlp",
            format!("{blobs} }}\nmodel = {{ kind = \"mlp\", hidden = [8, 8], dropout = 0.2 }}\n{common}"),
        ),
        (
            "cnn",
            format!(
                "{blobs}, shape = [1, 2, 3] }}\nmodel = {{ kind = \"cnn\", channels = [4], hidden = 8 }}\n{common}"
            ),
        ),
        ("transformer", format!("{text}\n{transformer}\n{common}clip = 1.0\n")),
        ("encoder", format!("{blobs} }}\n{transformer}\n{common}")),
        (
            "sharded optimizer",
            format!(
                "{blobs} }}\nmodel = {{ kind = \"mlp\" }}\n{common}clip = 0.5\nema = 0.9\nshard_optimizer = true\n"
            ),
        ),
    ]
}

#[test]
fn every_kind_of_model_keeps_the_promises() {
    for (kind, train) in kinds() {
        let policy = "[checkpoint]\nevery_steps = 7";
        let first = Agent::new(None);
        let out = succeed(&first, &job(&first, &train, policy), 2, None);
        let losses = |agent: &Agent| {
            let heard = agent.heard();
            [heard.values("loss"), heard.values("val/loss"), heard.values("val/accuracy")].concat()
        };
        let expected = losses(&first);
        assert!(expected.len() > 10, "{kind}: {out}");

        let again = Agent::new(None);
        assert_eq!(out, succeed(&again, &job(&again, &train, policy), 2, None), "{kind}");
        assert_eq!(first.heard().reports, again.heard().reports, "{kind}: bit for bit");

        let resumed = Agent::new(None);
        succeed(&resumed, &job(&resumed, &train, policy), 2, Some(&first.checkpoint(7)));
        assert_eq!(resumed.heard().reports[..], first.heard().reports[7..], "{kind}: resumed bit for bit");

        for world in [1, 4] {
            let agent = Agent::new(None);
            succeed(&agent, &job(&agent, &train, policy), world, None);
            for ((step, found), (_, expected)) in losses(&agent).iter().zip(&expected) {
                let off = (found - expected).abs();
                assert!(
                    off <= 1e-4 * expected.abs(),
                    "{kind}, {world} workers, step {step}: {found} {expected}"
                );
            }
        }

        let train =
            format!("{}deterministic = \"logical-shards\"\n", train.replace("shard_optimizer = true", ""));
        let shards = [1, 2, 4].map(|world| {
            let agent = Agent::new(None);
            succeed(&agent, &job(&agent, &train, policy), world, None);
            losses(&agent)
        });
        assert_eq!(shards[0], shards[1], "{kind}: logical shards");
        assert_eq!(shards[0], shards[2], "{kind}: logical shards");
    }
}

/// In bf16 every kind of model trains about as in f32, a rerun and a resumed run have the same bits, and so does any number of
/// workers by logical shards.
#[cfg(feature = "tch")]
#[test]
fn bf16_keeps_the_promises() {
    let loss = |metrics: &Metrics| f64::from_bits(metrics["loss"]);
    for (kind, train) in kinds() {
        let policy = "[checkpoint]\nevery_steps = 7";
        let losses = |train: &str, world: usize, from: Option<&Path>| {
            let agent = Agent::new(None);
            succeed(&agent, &job(&agent, train, policy), world, from);
            let reports = std::mem::take(&mut agent.heard().reports);
            (agent, reports)
        };
        let (_, wide) = losses(&train, 2, None);
        let narrow = format!("{train}precision = \"bf16\"\n");
        let (first, found) = losses(&narrow, 2, None);
        assert_ne!(found, wide, "{kind}: it computes in fewer bits");
        let begins = |reports: &[(u64, Metrics)]| loss(&reports[0].1);
        let ends = |reports: &[(u64, Metrics)]| {
            reports.iter().rev().take(10).map(|(_, metrics)| loss(metrics)).sum::<f64>() / 10.0
        };
        assert!((begins(&found) / begins(&wide) - 1.0).abs() < 0.01, "{kind}: {}", begins(&found));
        assert!((ends(&found) / ends(&wide) - 1.0).abs() < 0.1, "{kind}: {} {}", ends(&found), ends(&wide));
        assert_eq!(losses(&narrow, 2, None).1, found, "{kind}: bit for bit");
        assert_eq!(losses(&narrow, 2, Some(&first.checkpoint(7))).1[..], found[7..], "{kind}: resumed");
        // What was begun in one precision goes on in the other.
        assert_eq!(losses(&train, 2, Some(&first.checkpoint(7))).1.len(), found.len() - 7, "{kind}");
        let shards = narrow.replace("shard_optimizer = true", "") + "deterministic = \"logical-shards\"\n";
        assert_eq!(losses(&shards, 1, None).1, losses(&shards, 4, None).1, "{kind}: logical shards");
    }
}

/// Digits are read about as well with bf16, and what is learnt is of f32 all the same.
#[cfg(feature = "tch")]
#[test]
fn bf16_reads_digits() {
    let digits = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/digits/digits.csv");
    let accuracy = |more: &str| {
        let agent = Agent::new(None);
        let train = format!(
            "data = {{ kind = \"csv\", path = \"{digits}\", target = \"label\", validation = 0.2, shape = [1, 8, 8] }}\n\
             model = {{ kind = \"cnn\", channels = [8, 16] }}\nbackend = \"tch\"\nepochs = 10\nseed = 1\n{more}"
        );
        succeed(&agent, &job(&agent, &train, ""), 2, None);
        let accuracy = agent.heard().values("val/accuracy").last().unwrap().1;
        (accuracy, agent)
    };
    let (wide, _) = accuracy("");
    let (narrow, agent) = accuracy("precision = \"bf16\"");
    assert!(wide > 0.96 && narrow > wide - 0.015, "{wide} {narrow}");
    let last = agent.heard().checkpoints.last().unwrap().1.clone();
    for file in ["model.safetensors", "optimizer.safetensors"] {
        let bytes = fs::read(last.join(file)).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        for (name, tensor) in tensors.tensors() {
            assert_eq!(tensor.dtype(), safetensors::Dtype::F32, "{file}: {name}");
            let low_bits = |value: &[u8]| value[0] != 0 || value[1] != 0;
            assert!(tensor.data().chunks(4).any(low_bits), "{file}: {name} has values that bf16 lacks");
        }
    }
}

/// What is said of a model at the end of each epoch, by what it is to tell.
#[test]
fn every_task_has_its_metrics() {
    let judged = |data: &str, train: &str| {
        let agent = Agent::new(None);
        let file = job(&agent, &format!("{train}\nepochs = 2\nbatch_size = 20\nseed = 3"), "");
        fs::write(agent.path("pairs.csv"), data).unwrap();
        succeed(&agent, &file, 2, None);
        let (_, last) = agent.heard().reports.last().unwrap().clone();
        let metrics = last.into_iter().map(|(name, bits)| (name, f64::from_bits(bits)));
        metrics.filter(|(name, _)| name.starts_with("val/")).collect::<BTreeMap<String, f64>>()
    };
    let names = |metrics: &BTreeMap<String, f64>| metrics.keys().cloned().collect::<Vec<_>>().join(" ");
    let mut pairs = "x,y,one\n".to_owned();
    for row in 0..200 {
        let (x, y) = (f64::from(row % 17), f64::from(row % 23));
        writeln!(pairs, "{x},{y},{}", u8::from(x > 8.0)).unwrap();
    }
    let table = "data = { kind = \"csv\", path = \"pairs.csv\", target = \"one\", validation = 0.3 }\n\
                 model = { kind = \"linear\" }\noptimizer = { kind = \"adam\", lr = 0.1 }";
    for loss in ["cross-entropy", "bce"] {
        let metrics = judged(&pairs, &format!("{table}\nloss = \"{loss}\""));
        assert_eq!(names(&metrics), "val/accuracy val/auc val/f1 val/loss", "{loss}");
        assert!(metrics["val/auc"] > 0.95 && metrics["val/f1"] > 0.8, "{loss}: {metrics:?}");
    }
    let metrics = judged(&pairs, &format!("{table}\nloss = \"mse\""));
    assert_eq!(names(&metrics), "val/loss val/r2");
    let text = "data = { kind = \"text\", path = \"pairs.csv\", validation = 0.2, context = 8 }\n\
                model = { kind = \"transformer\", layers = 1, width = 16, heads = 2 }";
    let metrics = judged(&pairs, text);
    assert_eq!(names(&metrics), "val/accuracy val/loss val/perplexity");
    let perplexity = metrics["val/loss"].exp();
    assert!((metrics["val/perplexity"] - perplexity).abs() < 1e-9 * perplexity, "{metrics:?}");
}

/// Both backends have the same losses, and go on from each other's checkpoints.
#[cfg(feature = "tch")]
#[test]
fn libtorch_trains_as_the_layers_do() {
    for (kind, train) in kinds() {
        let policy = "[checkpoint]\nevery_steps = 7";
        let (torch, layers, moved) = (Agent::new(None), Agent::new(None), Agent::new(None));
        succeed(&torch, &job(&torch, &train, policy), 2, None);
        let plain = train.replace("\"tch\"", "\"burn\"");
        succeed(&layers, &job(&layers, &plain, policy), 2, None);
        succeed(&moved, &job(&moved, &plain, policy), 2, Some(&torch.checkpoint(7)));
        let expected = layers.heard().values("loss");
        assert!(expected.len() > 10, "{kind}");
        for agent in [&torch, &moved] {
            let found = agent.heard().values("loss");
            for ((step, found), (_, expected)) in found.iter().rev().zip(expected.iter().rev()) {
                let off = (found - expected).abs();
                assert!(off <= 1e-3 * expected.abs(), "{kind}, step {step}: {found} {expected}");
            }
        }
    }
}

/// Nets of several buckets, so that some are on their way while the rest is computed.
#[test]
fn reducing_early_changes_no_bit() {
    let common =
        "epochs = 2\nbatch_size = 24\nlog_every = 1\nseed = 5\noptimizer = { kind = \"sgd\", lr = 0.01 }\n";
    let data = "data = { kind = \"csv\", path = \"blobs.csv\", target = \"kind\"";
    let nets = [
        format!("{data} }}\nmodel = {{ kind = \"mlp\", hidden = [600, 600] }}\naccumulate = 2\n{common}"),
        format!(
            "{data}, shape = [1, 2, 3] }}\nmodel = {{ kind = \"cnn\", pool = 1, hidden = 2000 }}\n{common}"
        ),
        format!("{data} }}\nmodel = {{ kind = \"transformer\", layers = 2, width = 192 }}\n{common}"),
    ];
    for net in nets {
        let reports = [false, true].map(|overlap| {
            let agent = Agent::new(None);
            succeed(&agent, &job(&agent, &format!("{net}overlap = {overlap}\n"), ""), 2, None);
            std::mem::take(&mut agent.heard().reports)
        });
        assert!(reports[0].len() > 10);
        assert_eq!(reports[0], reports[1], "{net}");
    }
}

/// A run that is shared out goes on from the checkpoint of one that is not, and of another number of workers.
#[test]
fn checkpoints_do_not_depend_on_how_the_optimizer_is_shared_out() {
    let (_, train) = kinds().pop().unwrap();
    let (shared, policy) = (Agent::new(None), "[checkpoint]\nevery_steps = 7");
    succeed(&shared, &job(&shared, &train, policy), 2, None);
    let alone = Agent::new(None);
    let plain = train.replace("shard_optimizer = true", "");
    succeed(&alone, &job(&alone, &plain, policy), 1, Some(&shared.checkpoint(7)));
    let (shared, alone) = (shared.heard().values("val/loss"), alone.heard().values("val/loss"));
    assert_eq!(shared.len(), alone.len());
    for ((step, found), (_, expected)) in alone.iter().zip(&shared) {
        assert!((found - expected).abs() < 1e-4 * expected.abs(), "step {step}: {found} {expected}");
    }
}

#[test]
fn a_damaged_checkpoint_gives_way_to_the_one_before() {
    let agent = Agent::new(None);
    let file = job(&agent, TRAIN, "");
    succeed(&agent, &file, 1, None);
    let late = agent.checkpoint(33);
    fs::write(late.join("model.safetensors"), "no").unwrap();
    let output = run(&agent, &file, 1, Some(&late)).remove(0);
    assert!(output.status.success());
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("model.safetensors is damaged") && error.contains("kept-22"), "{error}");
    assert!(String::from_utf8(output.stdout).unwrap().contains("going on from step 22"));
}

#[test]
fn the_trained_model_is_exported_with_what_it_means() {
    let agent = Agent::new(None);
    let train = format!("{TRAIN}\nexport = \"out/model.safetensors\"")
        .replace("validation = 0.2", "validation = 0.2, test = 0.1");
    let out = succeed(&agent, &job(&agent, &train, ""), 2, None);
    assert!(out.contains("the model is in out/model.safetensors\nvalidation accuracy: "), "{out}");
    assert!(out.lines().last().unwrap().starts_with("test accuracy: "), "{out}");
    assert_eq!(agent.heard().values("test/accuracy").len(), 1);
    for metric in ["val/f1", "test/loss", "test/f1"] {
        assert!(!agent.heard().values(metric).is_empty(), "{metric}");
    }
    let bytes = fs::read(agent.path("out/model.safetensors")).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let about = header.metadata().as_ref().unwrap();
    assert_eq!(about["phalanx.classes"], r#"["blue","green","red"]"#);
    assert_eq!(about["phalanx.step"], "30");
    let model = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let last = fs::read(agent.checkpoint(30).join("model.safetensors")).unwrap();
    let last = safetensors::SafeTensors::deserialize(&last).unwrap();
    assert_eq!(model.tensor("0.weight").unwrap().data(), last.tensor("0.weight").unwrap().data());
}

/// Without an agent checkpoints are kept in the scratch folder: the best, and the latest.
#[test]
fn the_best_checkpoints_and_the_latest_are_kept() {
    let agent = Agent::new(None);
    let policy = "[checkpoint]\nkeep = 1\nmetric = \"val/loss\"\nmode = \"max\"";
    let file = job(&agent, &TRAIN.replace("epochs = 3", "epochs = 5"), policy);
    let scratch = agent.path("kept");
    fs::create_dir_all(&scratch).unwrap();
    let status = Command::new(rank_binary())
        .arg(&file)
        .env("PHALANX_SCRATCH", &scratch)
        .env_remove("PHALANX_SOCKET")
        .env_remove("PHALANX_CHECKPOINT")
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let mut kept: Vec<String> = fs::read_dir(&scratch)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    kept.sort_unstable();
    // The loss falls, so that the worst, which counts as the best here, is the first.
    assert_eq!(kept, ["step-11", "step-55"]);
}
