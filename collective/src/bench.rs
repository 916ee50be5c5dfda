//! Latency and bandwidth of an allreduce between processes, as nccl-tests states them.
//!
//! Every buffer is rewritten by its rank before each timed call (a reused buffer flatters shared memory), and barriers
//! come before the clock starts; neither is timed. Results are verified. A figure is the median over blocks of calls of
//! the mean over calls and ranks.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::Transport;
use crate::arena::ArenaBuffer;
use crate::communicator::Communicator;
use crate::config::{Config, MAX_WORLD, TransportChoice};
use crate::element::{DType, ReduceOp};
use crate::error::{Error, Result};
use crate::recorder::now_ns;

/// Sizes measured unless others are asked for, in bytes.
pub const DEFAULT_SIZES: [usize; 4] = [1 << 10, 64 << 10, 1 << 20, 25 << 20];
/// Bound on one buffer.
pub const MAX_BYTES: usize = 4 << 30;
/// Blocks of calls that are timed; one more before them warms up. Many short ones: what else the machine does spoils some
/// of them and not the median.
const BLOCKS: usize = 31;
/// A block moves about this much, within the bounds on its calls.
const BLOCK_BYTES: usize = 16 << 20;
const CALLS: std::ops::RangeInclusive<usize> = 2..=100;
/// Bound on the whole.
const TIMEOUT: Duration = Duration::from_secs(600);

/// What to measure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Number of ranks, each a process.
    pub world: usize,
    /// Which transport; `Auto` takes shared memory, as all ranks are on this host. With `Nccl` each rank has a GPU and its
    /// buffers there.
    pub transport: TransportChoice,
    /// Sizes in bytes, multiples of 4.
    pub sizes: Vec<usize>,
    /// Leaves out every synchronisation (over shared memory): the limit that the memory sets.
    pub unsynchronised: bool,
}

/// What was measured, in the form of `phalanx bench allreduce --json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Number of ranks.
    pub world: usize,
    /// What the data moved over.
    pub transport: crate::Transport,
    /// Element type.
    pub dtype: DType,
    /// By size.
    pub results: Vec<Measured>,
}

/// One size.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Size of the buffer of each rank.
    pub bytes: usize,
    /// Time of a call in microseconds.
    pub us: f64,
    /// Bytes over time, in decimal GB/s.
    pub algbw_gbps: f64,
    /// What moved through each rank's connection at best: algbw · 2 (n - 1) / n.
    pub busbw_gbps: f64,
}

impl Measured {
    /// A call that took so long between so many ranks.
    pub fn new(bytes: usize, seconds: f64, world: usize) -> Self {
        let algbw_gbps = bytes as f64 / seconds / 1e9;
        let busbw_gbps = algbw_gbps * 2.0 * (world as f64 - 1.0) / world as f64;
        Measured { bytes, us: seconds * 1e6, algbw_gbps, busbw_gbps }
    }
}

/// What a worker is told, as JSON in its last argument.
#[derive(Debug, Serialize, Deserialize)]
struct Task {
    plan: Plan,
    rank: usize,
    port: u16,
    /// Not measuring: rank 1 waits to be killed and the others report when they heard of it.
    death: bool,
}

/// Processes that are ended with this.
struct Workers(Vec<Child>);

impl Drop for Workers {
    fn drop(&mut self) {
        for worker in &mut self.0 {
            let _ = worker.kill(); // it may have ended
            let _ = worker.wait();
        }
    }
}

/// Measures. `command` makes the command of a worker: this executable with arguments that lead to [`work`] with the one
/// that is added.
///
/// # Errors
/// [`Error::Invalid`] for an impossible plan, [`Error::System`] if a worker fails; its own message is on stderr.
pub fn run(plan: &Plan, command: &dyn Fn() -> Command) -> Result<Report> {
    validate(plan)?;
    let mut workers = start(plan, false, command)?;
    let mut lines = outputs(&mut workers)?;
    let timer = watchdog(&workers);
    let mut line = String::new();
    lines[0].read_line(&mut line).map_err(|e| Error::system("reading from a benchmark worker", e))?;
    for (rank, worker) in workers.0.iter_mut().enumerate() {
        let status = worker.wait().map_err(|e| Error::system("waiting for a benchmark worker", e))?;
        if !status.success() {
            return Err(Error::system(format!("rank {rank} of the benchmark failed"), status));
        }
    }
    drop(timer);
    serde_json::from_str(&line).map_err(|e| Error::system("reading the result of the benchmark", e))
}

/// How long after the death of a rank the last of the others has its error, in microseconds.
///
/// # Errors
/// As [`run`].
pub fn death_us(world: usize, transport: TransportChoice, command: &dyn Fn() -> Command) -> Result<f64> {
    let plan = Plan { world, transport, sizes: vec![4], unsynchronised: false };
    validate(&plan)?;
    let mut workers = start(&plan, true, command)?;
    let mut lines = outputs(&mut workers)?;
    let _timer = watchdog(&workers);
    let mut answer = |rank: usize| -> Result<u64> {
        let mut line = String::new();
        lines[rank].read_line(&mut line).map_err(|e| Error::system("reading from a benchmark worker", e))?;
        line.trim().parse().map_err(|e| Error::system(format!("reading the answer of rank {rank}"), e))
    };
    for rank in 0..world {
        answer(rank)?; // it is about to wait
    }
    std::thread::sleep(Duration::from_millis(100)); // now all sleep, which is the slowest case
    let killed_ns = now_ns();
    workers.0[1].kill().map_err(|e| Error::system("killing a benchmark worker", e))?;
    let mut last_ns = killed_ns;
    for rank in (0..world).filter(|&rank| rank != 1) {
        last_ns = last_ns.max(answer(rank)?);
    }
    Ok((last_ns - killed_ns) as f64 / 1e3)
}

fn validate(plan: &Plan) -> Result<()> {
    if !(2..=MAX_WORLD).contains(&plan.world) {
        return Err(Error::invalid(format!(
            "a world of {} has nothing to exchange; ask for 2 to {MAX_WORLD}",
            plan.world
        )));
    }
    if plan.transport == TransportChoice::Nccl {
        let devices = crate::nccl::device_count()?;
        if devices < plan.world {
            let what = format!(
                "{} ranks need as many GPUs, and this process sees {devices}; use --world {devices}",
                plan.world
            );
            return Err(Error::NoDevice { what });
        }
        crate::nccl::Library::load()?;
    }
    match plan.sizes.iter().find(|&&bytes| bytes == 0 || bytes % 4 != 0 || bytes > MAX_BYTES) {
        Some(bytes) => {
            Err(Error::invalid(format!("a size of {bytes} bytes; ask for multiples of 4 up to 4 GiB")))
        }
        None if plan.sizes.is_empty() => Err(Error::invalid("no sizes to measure; name at least one")),
        None => Ok(()),
    }
}

fn start(plan: &Plan, death: bool, command: &dyn Fn() -> Command) -> Result<Workers> {
    // Free a moment ago; should another take it meanwhile, rank 0 says so.
    let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|l| l.local_addr());
    let port = port.map_err(|e| Error::system("looking for a free port", e))?.port();
    let mut workers = Workers(Vec::new());
    for rank in 0..plan.world {
        let task = Task { plan: plan.clone(), rank, port, death };
        let task = serde_json::to_string(&task).map_err(|e| Error::system("describing a task", e))?;
        let mut command = command();
        command.arg(task).stdin(Stdio::null()).stdout(Stdio::piped());
        workers.0.push(command.spawn().map_err(|e| Error::system("starting a benchmark worker", e))?);
    }
    Ok(workers)
}

fn outputs(workers: &mut Workers) -> Result<Vec<BufReader<std::process::ChildStdout>>> {
    let taken = workers.0.iter_mut().map(|w| w.stdout.take().map(BufReader::new)).collect::<Option<_>>();
    taken.ok_or_else(|| Error::invalid("a benchmark worker has no output"))
}

/// Ends the workers should they not come to an end themselves; dropping the answer calls it off.
fn watchdog(workers: &Workers) -> std::sync::mpsc::Sender<()> {
    let (call_off, called_off) = std::sync::mpsc::channel();
    let pids: Vec<_> = workers.0.iter().map(|w| nix::unistd::Pid::from_raw(w.id() as i32)).collect();
    std::thread::spawn(move || {
        if called_off.recv_timeout(TIMEOUT) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            for pid in pids {
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL); // it may have ended
            }
        }
    });
    call_off
}

/// The part of a worker: does the task in `task` and, as rank 0, prints the report as one line of JSON.
///
/// # Errors
/// Those of the operations, and [`Error::Invalid`] if a result is wrong or `task` is none.
pub fn work(task: &str) -> Result<()> {
    // A worker whose benchmark was killed has nobody to work for.
    let _ = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL); // without it, deadlines end it
    let task: Task = serde_json::from_str(task).map_err(|e| Error::invalid(format!("no task: {e}")))?;
    let largest = task.plan.sizes.iter().copied().max().unwrap_or(0);
    let mut comm = Communicator::connect(Config {
        master_port: task.port,
        transport: task.plan.transport,
        device: task.rank,
        arena_bytes: largest.next_multiple_of(4096),
        rendezvous_timeout: Duration::from_secs(60),
        op_timeout: Duration::from_secs(60),
        ..Config::new(task.rank, task.plan.world)
    })?;
    if task.death {
        return hear_of_death(&mut comm);
    }
    let mut results = Vec::new();
    for &bytes in &task.plan.sizes {
        let seconds = measure(&mut comm, bytes, task.plan.unsynchronised)?;
        results.push(Measured::new(bytes, seconds, task.plan.world));
    }
    if comm.rank() == 0 {
        let report = Report { world: comm.world(), transport: comm.transport(), dtype: DType::F32, results };
        println!("{}", serde_json::to_string(&report).map_err(|e| Error::system("writing the report", e))?);
    }
    Ok(())
}

fn hear_of_death(comm: &mut Communicator) -> Result<()> {
    comm.barrier()?;
    println!("{}", now_ns());
    if comm.rank() == 1 {
        std::thread::sleep(TIMEOUT); // killed long before
    }
    let waited = comm.barrier();
    let heard_ns = now_ns();
    match waited {
        Err(Error::PeerLost { rank: 1 }) => {
            println!("{heard_ns}");
            Ok(())
        }
        Err(error) => Err(error),
        Ok(()) => Err(Error::invalid("nobody died")),
    }
}

/// Seconds of one call.
fn measure(comm: &mut Communicator, bytes: usize, unsynchronised: bool) -> Result<f64> {
    let mut data = comm.arena_alloc::<f32>(bytes / 4)?;
    let mut device = match comm.transport() {
        Transport::Nccl => Some(comm.on_device()?.alloc::<f32>(bytes / 4)?),
        _ => None,
    };
    let calls = (BLOCK_BYTES / bytes).clamp(*CALLS.start(), *CALLS.end());
    let mut blocks = Vec::new();
    for block in 0..=BLOCKS {
        let mut time = Duration::ZERO;
        for call in 0..calls {
            fill(comm.rank(), call, &mut data);
            if let Some(device) = &mut device {
                device.upload(&data)?;
            }
            comm.barrier()?; // some may have slept here and be late …
            comm.barrier()?; // … and now all are awake
            let start = Instant::now();
            match &mut device {
                _ if unsynchronised => comm.unsynchronised(&mut data, ReduceOp::Sum)?,
                Some(device) => comm.on_device()?.allreduce(device, ReduceOp::Sum)?,
                None => comm.allreduce(&mut data, ReduceOp::Sum)?,
            }
            time += start.elapsed();
            if unsynchronised {
                comm.barrier()?;
            } else if call == calls - 1 {
                if let Some(device) = &device {
                    device.download(&mut data)?;
                }
                verify(comm.world(), call, &data)?;
            }
        }
        let mut seconds = [time.as_secs_f64() / calls as f64];
        comm.allreduce(&mut seconds, ReduceOp::Mean)?;
        if block > 0 {
            blocks.push(seconds[0]);
        }
    }
    blocks.sort_by(f64::total_cmp);
    Ok(blocks[blocks.len() / 2])
}

/// Small whole numbers, so that sums are exact in any order.
fn value(call: usize, i: usize) -> f32 {
    (i % 256) as f32 + (call % 16) as f32
}

fn fill(rank: usize, call: usize, data: &mut ArenaBuffer<f32>) {
    for (i, place) in data.iter_mut().enumerate() {
        *place = value(call, i) + rank as f32;
    }
}

fn verify(world: usize, call: usize, data: &ArenaBuffer<f32>) -> Result<()> {
    let ranks = (world * (world - 1) / 2) as f32;
    let wrong = |(i, v): &(usize, &f32)| **v != value(call, *i) * world as f32 + ranks;
    match data.iter().enumerate().find(wrong) {
        Some((i, v)) => Err(Error::invalid(format!("wrong result: element {i} of {} is {v}", data.len()))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidths_are_those_of_nccl_tests() {
        let m = Measured::new(1_000_000, 1e-3, 4);
        assert_eq!((m.bytes, m.us, m.algbw_gbps, m.busbw_gbps), (1_000_000, 1000.0, 1.0, 1.5));
    }

    #[test]
    fn impossible_plans_are_refused() {
        let plan = |world, sizes: &[usize]| Plan {
            world,
            transport: TransportChoice::Auto,
            sizes: sizes.to_vec(),
            unsynchronised: false,
        };
        for wrong in [plan(1, &[4]), plan(2, &[]), plan(2, &[6]), plan(2, &[0]), plan(MAX_WORLD + 1, &[4])] {
            assert!(matches!(validate(&wrong), Err(Error::Invalid { .. })), "{wrong:?}");
        }
        assert!(validate(&plan(2, &DEFAULT_SIZES)).is_ok());
    }
}
