//! Our allreduce beside gloo's and the limit of the memory, in turn in one run.
//!
//! `cargo bench --bench allreduce [-- WORLD]`. gloo comes with PyTorch: the interpreter is `$PHALANX_PEERS` (a program, or a
//! folder with `venv/bin/python` or `bin/python`), else a `python3` that can import it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use phalanx_collective::TransportChoice;
use phalanx_collective::bench::{self, DEFAULT_SIZES, Plan};

type Failed = Box<dyn std::error::Error>;
/// Microseconds by size.
type Times = BTreeMap<usize, f64>;

/// Rounds in which each is measured once.
const ROUNDS: usize = 3;
/// What shared memory must be ahead of gloo by, with two ranks.
const GOALS: [(usize, f64); 4] = [(1 << 10, 30.0), (64 << 10, 15.0), (1 << 20, 5.0), (25 << 20, 5.0)];
/// And TCP.
const TCP_GOALS: [(usize, f64); 2] = [(64 << 10, 4.0), (25 << 20, 1.0)];

fn main() -> Result<(), Failed> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    if let [kind, task] = &args[..]
        && kind == "worker"
    {
        return Ok(bench::work(task)?);
    }
    let world = args.first().map_or(Ok(2), |text| text.parse())?;
    let python = find_python();
    if python.is_none() {
        println!(
            "gloo is absent: install PyTorch (apt-get install python3-torch) or set PHALANX_PEERS to its interpreter"
        );
    }
    let mut rounds: BTreeMap<&str, Vec<Times>> = BTreeMap::new();
    for _ in 0..ROUNDS {
        rounds.entry("shm").or_default().push(ours(world, TransportChoice::Shm, false)?);
        if let Some(python) = &python {
            rounds.entry("gloo").or_default().push(gloo(python, world)?);
        }
        rounds.entry("tcp").or_default().push(ours(world, TransportChoice::Tcp, false)?);
        rounds.entry("limit").or_default().push(ours(world, TransportChoice::Shm, true)?);
    }
    print_table(world, &rounds);
    for transport in [TransportChoice::Shm, TransportChoice::Tcp] {
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            times.push(bench::death_us(world, transport, &worker)?);
        }
        times.sort_by(f64::total_cmp);
        let name = format!("{transport:?}").to_lowercase();
        println!("death of a rank known to all over {name}: {:.0} us (goal: 10000 us)", times[ROUNDS / 2]);
    }
    Ok(())
}

fn worker() -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap_or_else(|_| "allreduce".into()));
    command.arg("worker");
    command
}

fn ours(world: usize, transport: TransportChoice, unsynchronised: bool) -> Result<Times, Failed> {
    let plan = Plan { world, transport, sizes: DEFAULT_SIZES.to_vec(), unsynchronised };
    let report = bench::run(&plan, &worker)?;
    Ok(report.results.into_iter().map(|m| (m.bytes, m.us)).collect())
}

fn gloo(python: &Path, world: usize) -> Result<Times, Failed> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/gloo_allreduce.py");
    let sizes = DEFAULT_SIZES.map(|size| size.to_string());
    let output = Command::new(python)
        .arg(script)
        .arg(world.to_string())
        .args(sizes)
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(format!("the gloo benchmark failed: {}", output.status).into());
    }
    let times: BTreeMap<String, f64> = serde_json::from_slice(&output.stdout)?;
    Ok(times
        .into_iter()
        .map(|(size, us)| Ok((size.parse()?, us)))
        .collect::<Result<_, std::num::ParseIntError>>()?)
}

fn find_python() -> Option<PathBuf> {
    let mut candidates: Vec<PathBuf> = Vec::new();
    if let Some(peers) = std::env::var_os("PHALANX_PEERS").map(PathBuf::from) {
        candidates.extend([peers.join("venv/bin/python"), peers.join("bin/python"), peers]);
    }
    candidates.extend(["python3".into(), "/usr/bin/python3".into()]);
    let has_gloo = |python: &PathBuf| {
        let mut command = Command::new(python);
        command.args(["-c", "import torch.distributed as d; assert d.is_gloo_available()"]);
        // Versions before 2 have no such question; they have it built in.
        let asked = command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
        asked
            || Command::new(python)
                .args(["-c", "import torch.distributed as d; assert d.is_available()"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|s| s.success())
    };
    candidates.into_iter().find(has_gloo)
}

fn print_table(world: usize, rounds: &BTreeMap<&str, Vec<Times>>) {
    println!("allreduce of f32, {world} ranks, us: median of {ROUNDS} rounds (min to max)");
    for size in DEFAULT_SIZES {
        let spread = |who: &str| -> Option<(f64, f64, f64)> {
            let mut times: Vec<f64> = rounds.get(who)?.iter().filter_map(|r| r.get(&size).copied()).collect();
            times.sort_by(f64::total_cmp);
            Some((*times.get(times.len() / 2)?, *times.first()?, *times.last()?))
        };
        println!("{size} bytes");
        let gloo = spread("gloo");
        for who in ["shm", "tcp", "gloo", "limit"] {
            let Some((median, min, max)) = spread(who) else { continue };
            print!("  {who:<6} {median:>10.1} ({min:.1} to {max:.1})");
            let goals: &[(usize, f64)] = match who {
                "shm" if world == 2 => &GOALS,
                "tcp" if world == 2 => &TCP_GOALS,
                _ => &[],
            };
            if let Some((gloo, ..)) = gloo.filter(|_| who == "shm" || who == "tcp") {
                print!("  {:.1}x gloo", gloo / median);
                if let Some((_, goal)) = goals.iter().find(|(bytes, _)| *bytes == size) {
                    print!(" (goal {goal}x: {})", if gloo / median >= *goal { "met" } else { "missed" });
                }
            }
            if let Some((limit, ..)) = spread("limit").filter(|_| who == "shm") {
                print!("  {:.2} of the limit", limit / median);
            }
            println!();
        }
    }
}
