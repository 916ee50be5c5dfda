//! Our allreduce beside gloo's, OpenMPI's and the limit of the memory, in turn in one run.
//!
//! `cargo bench --bench allreduce [-- [WORLD] [ROUNDS]]`. A world that has goals is measured at their sizes and beside their
//! peers: with more ranks than cores the others take minutes to say nothing. gloo comes with PyTorch: the interpreter is
//! `$PHALANX_PEERS` (a program, or a folder with `venv/bin/python` or `bin/python`), else a `python3` that can import it.
//! OpenMPI comes from `apt-get install openmpi-bin libopenmpi-dev` and is measured twice: as it comes, where the kernel
//! copies large messages from one process to the other (CMA), and with that turned off (`copying`), where they pass through
//! shared memory: the faster one up to some 25 MiB. The goals are for the first; the second is printed beside it.

#[path = "support/spread.rs"]
mod spread;
#[path = "support/verdict.rs"]
mod verdict;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use phalanx_collective::TransportChoice;
use phalanx_collective::bench::{self, DEFAULT_SIZES, Measured, Plan};
use spread::spread;
use verdict::verdict;

type Failed = Box<dyn std::error::Error>;
/// Microseconds by size.
type Times = BTreeMap<usize, f64>;
/// What one must be ahead of another by, at a size.
type Goals = &'static [(usize, f64)];

/// Rounds in which each is measured once, unless said otherwise.
const ROUNDS: usize = 5;
/// Sizes up to this one are measured in one go, each larger one by itself.
const SMALL: usize = 1 << 20;
const SIZES: [usize; 5] = [DEFAULT_SIZES[0], DEFAULT_SIZES[1], DEFAULT_SIZES[2], DEFAULT_SIZES[3], 100 << 20];

/// (ranks, ours, peer) and the goals of the ratio of their times.
const GOALS: &[(usize, &str, &str, Goals)] = &[
    (
        2,
        "shm",
        "gloo",
        &[(1 << 10, 100.0), (64 << 10, 30.0), (1 << 20, 8.0), (25 << 20, 6.0), (100 << 20, 6.0)],
    ),
    (
        2,
        "shm",
        "openmpi",
        &[(1 << 10, 0.7), (64 << 10, 3.0), (1 << 20, 3.0), (25 << 20, 4.0), (100 << 20, 5.0)],
    ),
    (2, "shm", "limit", &[(1 << 20, 0.7), (25 << 20, 0.7), (100 << 20, 0.7)]),
    (2, "tcp", "gloo", &[(64 << 10, 4.0), (25 << 20, 1.0), (100 << 20, 1.0)]),
    (4, "shm", "openmpi", &[(1 << 20, 2.0)]),
];

fn main() -> Result<(), Failed> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    if let [kind, task] = &args[..]
        && kind == "worker"
    {
        return Ok(bench::work(task)?);
    }
    let world = args.first().map_or(Ok(2), |text| text.parse())?;
    let rounds = args.get(1).map_or(Ok(ROUNDS), |text| text.parse())?;
    let goals: Vec<_> = GOALS.iter().filter(|(of, ..)| *of == world).collect();
    let wanted = |peer: &str| goals.is_empty() || goals.iter().any(|(.., theirs, _)| *theirs == peer);
    let is_goal = |size: &usize| goals.iter().any(|(.., sizes)| sizes.iter().any(|(bytes, _)| bytes == size));
    let sizes: Vec<usize> = SIZES.into_iter().filter(|size| goals.is_empty() || is_goal(size)).collect();
    let python = find_python().filter(|_| wanted("gloo"));
    if python.is_none() && wanted("gloo") {
        println!(
            "gloo is absent: install PyTorch (apt-get install python3-torch) or set PHALANX_PEERS to its interpreter"
        );
    }
    let folder = tempfile::tempdir()?;
    let openmpi = compile_openmpi(folder.path());
    if let Err(why) = &openmpi {
        println!("OpenMPI is absent ({why}): apt-get install openmpi-bin libopenmpi-dev");
    }
    let mut times: BTreeMap<&str, Vec<Times>> = BTreeMap::new();
    for round in 0..rounds {
        // What is compared is measured within seconds: the cores of a virtual machine are near each other or far, for a
        // minute or for an hour.
        for sizes in sizes.chunk_by(|_, next| *next <= SMALL) {
            let mut note = |who: &'static str, measured: Times| {
                let of_who = times.entry(who).or_default();
                of_who.resize_with(round + 1, Times::new);
                of_who[round].extend(measured);
            };
            note("shm", ours(world, sizes, TransportChoice::Shm, false)?);
            if let Ok(program) = &openmpi {
                note("openmpi", mpi(program, world, sizes, None)?);
                note("copying", mpi(program, world, sizes, Some("none"))?);
            }
            note("limit", ours(world, sizes, TransportChoice::Shm, true)?);
            note("tcp", ours(world, sizes, TransportChoice::Tcp, false)?);
            if let Some(python) = &python {
                note("gloo", gloo(python, world, sizes)?);
            }
        }
    }
    print_table(world, rounds, &sizes, &times);
    for transport in [TransportChoice::Shm, TransportChoice::Tcp] {
        let mut times = Vec::new();
        for _ in 0..rounds {
            times.push(bench::death_us(world, transport, &worker)?);
        }
        times.sort_by(f64::total_cmp);
        let name = format!("{transport:?}").to_lowercase();
        println!("death of a rank known to all over {name}: {:.0} us (goal: 10000 us)", times[rounds / 2]);
    }
    Ok(())
}

fn worker() -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap_or_else(|_| "allreduce".into()));
    command.arg("worker");
    command
}

fn ours(
    world: usize,
    sizes: &[usize],
    transport: TransportChoice,
    unsynchronised: bool,
) -> Result<Times, Failed> {
    let plan = Plan { world, transport, sizes: sizes.to_vec(), unsynchronised };
    let report = bench::run(&plan, &worker)?;
    Ok(report.results.into_iter().map(|m| (m.bytes, m.us)).collect())
}

fn gloo(python: &Path, world: usize, sizes: &[usize]) -> Result<Times, Failed> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/gloo_allreduce.py");
    let mut command = Command::new(python);
    command.arg(script).arg(world.to_string()).args(sizes.iter().map(usize::to_string));
    times_of("gloo", &mut command)
}

fn compile_openmpi(folder: &Path) -> Result<PathBuf, Failed> {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/mpi_allreduce.c");
    let program = folder.join("mpi_allreduce");
    let status = Command::new("mpicc").args(["-O3", "-o"]).arg(&program).arg(source).status()?;
    if status.success() { Ok(program) } else { Err(format!("mpicc: {status}").into()) }
}

/// Over shared memory. Where ranks have no core to themselves it yields by itself instead of spinning.
fn mpi(program: &Path, world: usize, sizes: &[usize], single_copy: Option<&str>) -> Result<Times, Failed> {
    let mut command = Command::new("mpirun");
    if let Some(mechanism) = single_copy {
        command.env("OMPI_MCA_btl_vader_single_copy_mechanism", mechanism);
    }
    command.args(["--allow-run-as-root", "--oversubscribe"]);
    command.args(["--mca", "btl", "self,vader", "--mca", "pml", "ob1"]);
    command.arg("-np").arg(world.to_string()).arg(program).args(sizes.iter().map(usize::to_string));
    times_of("OpenMPI", &mut command)
}

/// What a peer's program prints: a JSON object of times by size.
fn times_of(name: &str, command: &mut Command) -> Result<Times, Failed> {
    let output = command.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("the benchmark of {name} failed: {}", output.status).into());
    }
    let times: BTreeMap<String, f64> = serde_json::from_slice(&output.stdout)?;
    let read = times.into_iter().map(|(size, us)| Ok((size.parse()?, us)));
    Ok(read.collect::<Result<_, std::num::ParseIntError>>()?)
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

fn print_table(world: usize, rounds: usize, sizes: &[usize], times: &BTreeMap<&str, Vec<Times>>) {
    println!("allreduce of f32, {world} ranks, us: median of {rounds} rounds (min to max), algbw and busbw;");
    println!("how many times the speed of each peer: median over rounds of both in one round");
    for &size in sizes {
        let of = |who: &str| -> Vec<f64> {
            times.get(who).into_iter().flatten().filter_map(|round| round.get(&size).copied()).collect()
        };
        println!("{size} bytes");
        for who in ["shm", "tcp", "gloo", "openmpi", "copying", "limit"] {
            let ours = of(who);
            if ours.is_empty() {
                continue;
            }
            let (median, low, high) = spread(&ours);
            let Measured { us, algbw_gbps, busbw_gbps, .. } = Measured::new(size, median / 1e6, world);
            print!("  {who:<8} {us:>10.1} ({low:.1} to {high:.1})  {algbw_gbps:.2} and {busbw_gbps:.2} GB/s");
            let peers: &[&str] = match who {
                "shm" => &["gloo", "openmpi", "copying", "limit"],
                "tcp" => &["gloo"],
                _ => &[],
            };
            for peer in peers {
                let ratios: Vec<f64> =
                    of(peer).iter().zip(&ours).map(|(theirs, ours)| theirs / ours).collect();
                if ratios.is_empty() {
                    continue;
                }
                let (ratio, ..) = spread(&ratios);
                print!("  {ratio:.2}x {peer}");
                let goals = GOALS.iter().find(|(w, ours, p, _)| (*w, *ours, *p) == (world, who, *peer));
                let goal = goals.and_then(|(.., goals)| goals.iter().find(|(bytes, _)| *bytes == size));
                if let Some((_, goal)) = goal {
                    print!(" (goal {goal}: {})", verdict(ratio >= *goal));
                }
            }
            println!();
        }
    }
}
