//! The contract on real GPUs, where there are some; `ci/gpu.sh` runs these.

use std::io::{BufRead, BufReader};
use std::process::Command;
use std::time::{Duration, Instant};

use phalanx_collective::nccl::{Library, device_count};
use phalanx_collective::{Communicator, Config, Error, Op, ReduceOp, TransportChoice};

use super::cases::{fixed_cases, run};
use super::groups::{free_port, in_threads, said, say, spawn_by};

/// Far above the 10 ms that are promised on a quiet machine.
const SOON: Duration = Duration::from_secs(1);

/// Whether the test can run; if not, it says so.
fn there_are(wanted: usize) -> bool {
    let found = device_count().and_then(|found| Library::load().map(|_| found));
    match found {
        Ok(found) if found >= wanted => true,
        Ok(found) => {
            println!("SKIPPED: {wanted} GPUs are needed, there are {found}");
            false
        }
        Err(error) => {
            println!("SKIPPED: {error}");
            false
        }
    }
}

#[test]
fn real_device_memory_holds_what_is_put_there() {
    if !there_are(1) {
        return;
    }
    let config = Config { transport: TransportChoice::Nccl, master_port: free_port(), ..Config::new(0, 1) };
    let mut alone = Communicator::connect(config).unwrap();
    let mut device = alone.on_device().unwrap();
    let mut buffer = device.alloc::<f32>(1 << 20).unwrap();
    let data: Vec<f32> = (0..1 << 20).map(|i| i as f32).collect();
    buffer.upload(&data).unwrap();
    device.allreduce(&mut buffer, ReduceOp::Mean).unwrap();
    let mut back = vec![0.0; 1 << 20];
    buffer.download(&mut back).unwrap();
    assert_eq!(data, back);
}

/// With two ranks there is one order to add in, so that even the bits are known.
#[test]
fn real_devices_give_what_the_reference_gives() {
    if there_are(2) {
        in_threads(2, TransportChoice::Nccl, |comm| {
            fixed_cases().iter().for_each(|case| run(comm, case));
        });
    }
}

#[test]
fn real_devices_abort_what_waits_for_a_dead_rank() {
    if there_are(2) {
        a_death_is_heard_on_the_device(|_| {});
    }
}

/// Two ranks in processes of their own, of which one is killed while the other waits for it on its device.
pub(crate) fn a_death_is_heard_on_the_device(prepare: impl Fn(&mut Command)) {
    let port = free_port();
    let start = |rank| {
        let mut exe = Command::new(std::env::current_exe().unwrap());
        prepare(&mut exe);
        spawn_by(exe, ("die-on-device", rank, 2, port), TransportChoice::Nccl)
    };
    let (survivor, mut doomed) = (start(0), start(1));
    let mut out = BufReader::new(doomed.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("waits") {
        line.clear();
        assert!(out.read_line(&mut line).unwrap() > 0, "it ended too early");
    }
    std::thread::sleep(Duration::from_millis(100));
    doomed.kill().unwrap();
    let killed = Instant::now();
    doomed.wait().unwrap();
    let output = survivor.wait_with_output().unwrap();
    assert!(killed.elapsed() < SOON, "{:?}", killed.elapsed());
    let said = said(&output);
    assert!(said.len() == 2 && said[1].starts_with("rank 1 was lost"), "{output:?}");
}

/// A rank of it. Rank 1 never comes to the operation.
pub(crate) fn play(config: Config) {
    let rank = config.rank;
    let mut comm = Communicator::connect(config).unwrap();
    let mut device = comm.on_device().unwrap();
    let mut buffer = device.alloc::<f32>(10).unwrap();
    say("waits");
    if rank == 1 {
        std::thread::sleep(Duration::from_secs(60)); // killed long before
    }
    let error = device.allreduce(&mut buffer, ReduceOp::Sum).unwrap_err();
    say(&error);
    assert_eq!(error, Error::PeerLost { rank: 1 });
    let record = comm.flight_record();
    assert!(record.iter().find(|r| r.rank == 0).unwrap().ops.iter().any(|op| op.call.op == Op::Allreduce));
}
