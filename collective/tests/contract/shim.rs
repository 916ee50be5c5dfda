//! The contract on GPUs, against a shim of NCCL and of the CUDA driver: what a test here shows is the order of calls and the
//! mapping of errors, and nothing about devices. Each test runs in a process of its own, whose loader finds the shim.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use phalanx_collective::nccl::{Comm, Library, device_count};
use phalanx_collective::{AbortReason, Communicator, Config, DeviceMemory, Error, ReduceOp, TransportChoice};

use super::cases::{fixed_cases, run};
use super::groups::{config, free_port, in_threads, said, say};
use super::nccl_shim::{again, build};

/// What the process is to play.
const PART: &str = "CONTRACT_SHIM";

fn command(folder: &Path, part: &str, fault: &str) -> Command {
    let mut command = again("shim::within", folder);
    command.env(PART, part).env("SHIM_FAULT", fault);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    command
}

/// Plays a part against the shim; what it said.
fn play(part: &str, flags: &[&str], fault: &str) -> Option<Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    let folder = build(folder.path(), flags).map(|path| (path, folder))?;
    let output = command(&folder.0, part, fault).output().unwrap();
    Some(ended_well(&output))
}

fn ended_well(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{output:?}");
    said(output)
}

/// Not a test of its own: the entry of child processes.
#[test]
fn within() {
    let Ok(told) = std::env::var(PART) else { return };
    let words: Vec<&str> = told.split_whitespace().collect();
    match words[..] {
        ["suite"] => suite(),
        ["beside"] => beside(),
        ["library"] => library(),
        ["connect", world] => connect(world.parse().unwrap()),
        ["fail"] => fail(),
        _ => panic!("{told}"),
    }
    say("done");
}

fn suite() {
    for world in [2, 3, 4] {
        in_threads(world, TransportChoice::Nccl, |comm| {
            fixed_cases().iter().for_each(|case| run(comm, case));
        });
    }
}

#[test]
fn shim_every_operation_gives_what_the_reference_gives() {
    let Some(said) = play("suite", &[], "") else { return };
    assert_eq!(said, ["done"]);
}

/// Operations of both kinds of memory, started and blocking, of one world and alone.
fn beside() {
    in_threads(2, TransportChoice::Nccl, |comm| {
        let rank = comm.rank() as f32;
        let mut device = comm.on_device().unwrap();
        let mut buffer = device.alloc::<f32>(1000).unwrap();
        buffer.upload(&[rank; 1000]).unwrap();
        assert!(buffer.upload(&[0.0; 999]).is_err());
        let pending = device.start_allreduce(buffer, ReduceOp::Mean).unwrap();
        let mut host = [rank; 3];
        comm.allreduce(&mut host, ReduceOp::Max).unwrap();
        assert_eq!(host, [1.0; 3]);
        let buffer = pending.wait().unwrap();
        let mut back = [0.0; 1000];
        buffer.download(&mut back).unwrap();
        assert_eq!(back, [0.5; 1000]);
        let stream = std::ptr::without_provenance_mut(1); // the device's default one
        // SAFETY: as below.
        let mut memory = unsafe { DeviceMemory::<f32>::new(buffer.address(), 100, stream) };
        let mut device = comm.on_device().unwrap();
        let mut end = device.lend(memory.split_off(40)).unwrap();
        assert_eq!((memory.len(), end.len()), (40, 60));
        device.allreduce(&mut end, ReduceOp::Sum).unwrap();
        buffer.download(&mut back).unwrap();
        assert_eq!((back[39], back[40], back[99], back[100]), (0.5, 1.0, 1.0, 0.5));
        let mut device = comm.on_device().unwrap();
        // SAFETY: the memory is that of `buffer`, which lives on and is not touched meanwhile.
        let mut borrowed = unsafe { device.borrow::<f32>(buffer.address(), 10) };
        device.allreduce(&mut borrowed, ReduceOp::Sum).unwrap();
        buffer.download(&mut back).unwrap();
        assert_eq!((back[9], back[10]), (1.0, 0.5));
        assert!(
            matches!(device.alloc::<u8>(1 << 41), Err(Error::Cuda { text, .. }) if text == "out of memory")
        );
        assert!(device.broadcast(&mut borrowed, 2).is_err());
        let calls: Vec<String> = comm.flight_record()[0].ops.iter().map(|op| op.call.to_string()).collect();
        assert_eq!(calls[0], "allreduce mean of 1000 x f32");
    });
    let alone = Config { transport: TransportChoice::Nccl, master_port: free_port(), ..Config::new(0, 1) };
    let mut alone = Communicator::connect(alone).unwrap();
    let mut device = alone.on_device().unwrap();
    let mut buffer = device.alloc::<i64>(2).unwrap();
    buffer.upload(&[7, 8]).unwrap();
    device.allreduce(&mut buffer, ReduceOp::Mean).unwrap();
    let mut back = [0; 2];
    buffer.download(&mut back).unwrap();
    assert_eq!(back, [7, 8]);
    assert!(Communicator::solo().on_device().is_err());
}

#[test]
fn shim_device_and_host_memory_go_side_by_side() {
    let Some(said) = play("beside", &[], "") else { return };
    assert_eq!(said, ["done"]);
}

/// NCCL itself: split and shrunk communicators, where the library has them.
fn library() {
    let library = Library::load().unwrap();
    say(format!("{:?} {:?}", library.version().unwrap(), library.can_split_and_shrink()));
    assert_eq!(device_count().unwrap(), 8);
    let id = library.unique_id().unwrap();
    /// The shim is quick; the test's own end bounds it.
    fn wait() -> Result<(), Error> {
        Ok(())
    }
    let ranks: Vec<_> = (0..3)
        .map(|rank| {
            std::thread::spawn(move || {
                enter(rank);
                let mut comm = Comm::join(library, (rank, 3), id, &mut wait).unwrap();
                let split = comm.split((rank as i32 % 2, rank as i32), &mut wait);
                let said = split.as_ref().err().map(ToString::to_string);
                if let Ok(half) = split {
                    half.finish(&mut wait).unwrap();
                }
                // Rank 1 is dead.
                if rank != 1
                    && let Ok(rest) = comm.shrink(&[1], &mut wait)
                {
                    rest.finish(&mut wait).unwrap();
                }
                said
            })
        })
        .collect();
    for rank in ranks {
        if let Some(error) = rank.join().unwrap() {
            say(error);
        }
    }
}

/// Makes a device current: a communicator that nobody uses needs no more of it.
fn enter(rank: usize) {
    let alone = Config {
        transport: TransportChoice::Nccl,
        device: rank,
        master_port: free_port(),
        ..Config::new(0, 1)
    };
    let mut alone = Communicator::connect(alone).unwrap();
    let buffer = alone.on_device().unwrap().alloc::<u8>(1).unwrap();
    std::mem::forget(buffer); // its context stays
}

#[test]
fn shim_communicators_split_and_shrink_where_the_library_can() {
    let Some(said) = play("library", &[], "") else { return };
    assert_eq!(said, ["(2, 23, 4) (true, true)", "done"]);
    let Some(said) = play("library", &["-DSHIM_OLD"], "") else { return };
    let old = "this NCCL has no ncclCommSplit; it came with 2.18";
    assert_eq!(said, ["(2, 23, 4) (false, false)", old, old, old, "done"]);
}

/// Every rank connects; what each of them hears.
fn connect(world: usize) {
    let port = free_port();
    std::thread::scope(|scope| {
        let connect = |rank| {
            let mut config = config(rank, world, port, TransportChoice::Nccl);
            config.op_timeout = Duration::from_millis(300);
            scope.spawn(move || Communicator::connect(config).err())
        };
        let ranks: Vec<_> = (0..world).map(connect).collect();
        for rank in ranks {
            say(rank.join().unwrap().map_or("connected".to_owned(), |error| error.to_string()));
        }
    });
}

#[test]
fn shim_failures_of_the_meeting_are_errors_on_every_rank() {
    for (fault, words) in [
        ("init", "NCCL's ncclCommInitRankConfig failed with 2: unhandled system error (said by the shim)"),
        ("init-hangs", "waited"),
        ("unique-id", "ncclGetUniqueId failed with 2"),
        ("driver", "the CUDA driver does not start"),
    ] {
        let start = Instant::now();
        let Some(said) = play("connect 2", &[], fault) else { return };
        assert!(said[..2].iter().any(|text| text.contains(words)), "{fault}: {said:?}");
        assert!(said[..2].iter().all(|text| text != "connected"), "{fault}: {said:?}");
        assert!(start.elapsed() < Duration::from_secs(15));
    }
    let folder = tempfile::tempdir().unwrap();
    let Some(folder_path) = build(folder.path(), &[]) else { return };
    let output = command(&folder_path, "connect 2", "").env("SHIM_GPUS", "1").output().unwrap();
    let said = ended_well(&output);
    assert!(said.iter().any(|text| text.starts_with("there is no GPU 1 among the 1")), "{said:?}");
    assert!(said.iter().any(|text| text.contains("rank 1 cannot use NCCL: there is no GPU 1")), "{said:?}");
}

#[test]
fn without_nccl_or_a_gpu_it_says_what_is_missing() {
    let empty = tempfile::tempdir().unwrap();
    let said = ended_well(&command(empty.path(), "connect 2", "").output().unwrap());
    let missing = |text: &String| text.contains("libcuda.so.1") || text.contains("connected");
    assert!(said[..2].iter().all(missing), "{said:?}");
}

/// A failing operation poisons the group, for host memory too.
fn fail() {
    let errors = in_threads(2, TransportChoice::Nccl, |comm| {
        let mut device = comm.on_device().unwrap();
        let mut buffer = device.alloc::<f32>(10).unwrap();
        let error = device.allreduce(&mut buffer, ReduceOp::Sum).unwrap_err();
        assert_eq!(comm.barrier().unwrap_err(), error, "it stays poisoned");
        error
    });
    for error in errors {
        let known = matches!(error, Error::Nccl { .. } | Error::Aborted { reason: AbortReason::Broken, .. });
        assert!(known, "{error}");
        if let Error::Nccl { .. } = error {
            say(error);
        }
    }
}

#[test]
fn shim_failures_of_an_operation_are_errors_on_every_rank() {
    for (fault, words) in [
        ("enqueue", "NCCL's ncclAllReduce failed with 4: invalid argument"),
        ("async", "failed with 6: remote process exited"),
    ] {
        let Some(said) = play("fail", &[], fault) else { return };
        assert!(said[0].contains(words), "{fault}: {said:?}");
    }
}

#[test]
fn shim_a_death_aborts_what_waits_on_the_device() {
    let folder = tempfile::tempdir().unwrap();
    let Some(folder) = build(folder.path(), &[]).map(|path| (path, folder)) else { return };
    super::devices::a_death_is_heard_on_the_device(|command| {
        command.env("LD_LIBRARY_PATH", &folder.0).env("SHIM_FAULT", "apart");
    });
}
