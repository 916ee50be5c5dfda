//! Death, deadlines, poison and mixed-up operations: an error on every rank, never a hang.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::{Duration, Instant};

use phalanx_collective::{
    AbortReason, Communicator, Config, Error, Op, RankState, ReduceOp, TransportChoice,
};

use phalanx_core::flight::{self, LastWords};

use super::groups::{FLIGHT, TRANSPORTS, config, free_port, in_threads, said, say, spawn, spawn_by};

/// Far above the 10 ms that are promised on a quiet machine, far below any deadline here.
const SOON: Duration = Duration::from_secs(1);

fn kill_self() -> ! {
    nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).unwrap();
    unreachable!()
}

/// The parts of child processes.
pub(crate) fn play(scenario: &str, config: Config) {
    let rank = config.rank;
    match scenario {
        "die-inside" | "die-outside" => {
            let mut comm = Communicator::connect(config).unwrap();
            let mut data = comm.arena_alloc::<f32>(200_000).unwrap();
            comm.allreduce(&mut data, ReduceOp::Sum).unwrap();
            if rank == 1 && scenario == "die-outside" {
                kill_self();
            }
            if rank == 1 {
                // In the middle of an operation: another thread kills the process while this one is in it.
                std::thread::spawn(|| {
                    std::thread::sleep(Duration::from_millis(100));
                    kill_self();
                });
            }
            let start = Instant::now();
            let error = loop {
                // Rank 2 is late, so that nobody gets through.
                if rank == 2 {
                    std::thread::sleep(Duration::from_millis(300));
                }
                if let Err(error) = comm.allreduce(&mut data, ReduceOp::Sum) {
                    break error;
                }
            };
            assert!(start.elapsed() < Duration::from_secs(10));
            assert_eq!(error, Error::PeerLost { rank: 1 });
            assert_eq!(comm.barrier().unwrap_err(), error, "it stays poisoned");
            let record = comm.flight_record();
            let lost = record.iter().find(|r| r.rank == 1);
            if let Some(lost) = lost {
                assert_eq!(lost.state, RankState::Lost);
                assert_eq!(lost.ops[0].call.op, Op::Allreduce);
            }
            say(format!("{error} ({} ops of it known)", lost.map_or(0, |l| l.ops.len())));
        }
        "until-cut" => {
            let mut comm =
                Communicator::connect(Config { op_timeout: Duration::from_secs(3), ..config }).unwrap();
            let error = loop {
                if let Err(error) = comm.allreduce(&mut vec![1f32; 100_000], ReduceOp::Sum) {
                    break error;
                }
            };
            say(error);
        }
        "wait-to-die" => {
            let mut comm = Communicator::connect(config).unwrap();
            let _ = comm.recv(&mut [0u8; 1], 0);
        }
        "die-at-the-door" => {
            // Says hello and dies: the real thing, with its connection closed by the kernel.
            std::thread::spawn(|| {
                std::thread::sleep(Duration::from_millis(200));
                kill_self();
            });
            let _ = Communicator::connect(config);
            kill_self();
        }
        other => panic!("no scenario {other}"),
    }
}

#[test]
fn a_killed_rank_is_named_by_every_survivor() {
    for transport in TRANSPORTS {
        for scenario in ["die-inside", "die-outside"] {
            let port = free_port();
            let ranks: Vec<_> = (0..3).map(|rank| spawn(scenario, rank, 3, port, transport)).collect();
            let outputs: Vec<_> = ranks.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
            assert_eq!(outputs[1].status.signal(), Some(libc::SIGKILL));
            for rank in [0, 2] {
                let said = said(&outputs[rank]);
                assert!(
                    said.len() == 1 && said[0].starts_with("rank 1 was lost"),
                    "{transport:?} {scenario} {:?}",
                    outputs[rank]
                );
                assert_eq!(said[0].contains("(0 ops"), transport == TransportChoice::Tcp, "{said:?}");
            }
        }
    }
}

#[test]
fn the_page_of_a_killed_rank_says_what_it_was_doing() {
    for transport in TRANSPORTS {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let start = |rank| {
            let mut exe = Command::new(std::env::current_exe().unwrap());
            exe.env(FLIGHT, folder.path());
            spawn_by(exe, ("die-inside", rank, 3, port), transport)
        };
        let ranks: Vec<_> = (0..3).map(start).collect();
        for child in ranks {
            child.wait_with_output().unwrap();
        }
        let words = |rank: u32| {
            let page = std::fs::read(folder.path().join(flight::page_name(rank.into()))).unwrap();
            LastWords::read(rank, &page).unwrap()
        };
        let text = flight::diagnose(&[words(0), words(1), words(2)]).unwrap();
        assert!(text.starts_with("rank") && text.contains("allreduce sum of 200000 x f32"), "{text}");
    }
}

#[test]
fn a_waiting_rank_hears_of_a_death_at_once() {
    for transport in TRANSPORTS {
        let port = free_port();
        let mut doomed = spawn("wait-to-die", 1, 2, port, transport);
        let mut comm = Communicator::connect(config(0, 2, port, transport)).unwrap();
        let killer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            doomed.kill().unwrap();
            let killed = Instant::now();
            doomed.wait().unwrap();
            killed
        });
        let error = comm.recv(&mut [0f32; 10], 1).unwrap_err();
        let heard = Instant::now();
        let killed = killer.join().unwrap();
        assert_eq!(error, Error::PeerLost { rank: 1 });
        assert!(heard.saturating_duration_since(killed) < SOON);
        eprintln!("{transport:?}: heard of a death after {:?}", heard.saturating_duration_since(killed));
    }
}

#[test]
fn a_rank_that_dies_at_the_door_is_named() {
    let port = free_port();
    let mut doomed = spawn("die-at-the-door", 1, 3, port, TransportChoice::Auto);
    let start = Instant::now();
    let error = Communicator::connect(config(0, 3, port, TransportChoice::Auto)).err().unwrap();
    assert_eq!(error, Error::PeerLost { rank: 1 });
    assert!(start.elapsed() < Duration::from_secs(10));
    doomed.wait().unwrap();
}

#[test]
fn a_deadline_names_who_is_missing_and_the_rest_hear_of_it() {
    for transport in TRANSPORTS {
        let port = free_port();
        let results: Vec<_> = std::thread::scope(|scope| {
            let ranks: Vec<_> = (0..3)
                .map(|rank| {
                    scope.spawn(move || {
                        let mut config = config(rank, 3, port, transport);
                        config.op_timeout = Duration::from_millis(if rank == 0 { 200 } else { 20_000 });
                        let mut comm = Communicator::connect(config).unwrap();
                        comm.barrier().unwrap();
                        if rank == 2 {
                            std::thread::sleep(Duration::from_millis(600));
                        }
                        let start = Instant::now();
                        let first = comm.allreduce(&mut [0f32; 10], ReduceOp::Sum).unwrap_err();
                        let again = comm.barrier().unwrap_err();
                        assert_eq!(first, again, "it stays poisoned");
                        (first, start.elapsed())
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        match &results[0].0 {
            Error::Timeout { op: Op::Allreduce, seq: 2, missing, waited_ms } => {
                // Over TCP a rank knows only whom it waited for itself.
                assert!(missing.contains(&2) || transport == TransportChoice::Tcp, "{missing:?}");
                assert!(!missing.is_empty() && (200..5000).contains(waited_ms));
            }
            other => panic!("{transport:?} {other}"),
        }
        for (error, waited) in &results[1..] {
            assert_eq!(error, &Error::Aborted { rank: 0, reason: AbortReason::TimedOut }, "{transport:?}");
            assert!(*waited < Duration::from_millis(200) + SOON);
        }
    }
}

#[test]
fn mixed_up_operations_are_named_on_every_rank() {
    for transport in TRANSPORTS {
        let errors = in_threads(3, transport, |comm| {
            comm.barrier().unwrap();
            if comm.rank() == 2 {
                comm.allreduce(&mut [0f32; 8], ReduceOp::Sum).unwrap_err()
            } else {
                let result = comm.allreduce(&mut [0f32; 9], ReduceOp::Sum);
                // Over TCP a rank may be done before another sees that it does not fit.
                result.and_then(|()| comm.barrier()).and_then(|()| comm.barrier()).unwrap_err()
            }
        });
        for error in errors {
            let Error::Mismatch { seq: 2, left_rank, left, right_rank: 2, right } = &error else {
                panic!("{error}")
            };
            assert!(*left_rank < 2);
            assert_eq!(
                (left.to_string(), right.to_string()),
                ("allreduce sum of 9 x f32".into(), "allreduce sum of 8 x f32".into())
            );
        }
    }
}

#[test]
fn different_kinds_and_types_do_not_mix() {
    type Called = Result<(), Error>;
    let calls: [fn(&mut Communicator) -> Called; 4] = [
        |c| c.allreduce(&mut [0f32; 4], ReduceOp::Max),
        |c| c.allreduce(&mut [0i64; 2], ReduceOp::Max),
        |c| c.broadcast(&mut [0f32; 4], 0),
        |c| c.allreduce(&mut vec![0f32; 4000], ReduceOp::Max),
    ];
    for transport in TRANSPORTS {
        for (a, b) in [(0, 1), (0, 2), (0, 3), (1, 3)] {
            let errors = in_threads(2, transport, |comm| {
                let call = calls[if comm.rank() == 0 { a } else { b }];
                call(comm).and_then(|()| comm.barrier()).and_then(|()| comm.barrier()).unwrap_err()
            });
            assert!(errors.iter().all(|e| matches!(e, Error::Mismatch { .. })), "{transport:?} {errors:?}");
        }
    }
}

#[test]
fn a_message_that_does_not_fit_is_named_on_both_sides() {
    for transport in TRANSPORTS {
        let errors = in_threads(2, transport, |comm| {
            if comm.rank() == 0 {
                comm.send(&[1f32; 3], 1).and_then(|()| comm.barrier()).unwrap_err()
            } else {
                comm.recv(&mut [0f64; 3], 0).unwrap_err()
            }
        });
        for error in errors {
            let text = error.to_string();
            assert!(
                text.contains("send to rank 1 of 3 x f32") && text.contains("recv from rank 0 of 3 x f64"),
                "{text}"
            );
        }
    }
}

#[test]
fn abort_wakes_everybody() {
    for transport in TRANSPORTS {
        let errors = in_threads(3, transport, |comm| {
            if comm.rank() == 1 {
                let handle = comm.abort_handle();
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(100));
                    handle.abort();
                });
                std::thread::sleep(Duration::from_millis(150));
            }
            let start = Instant::now();
            let error = comm.barrier().unwrap_err();
            assert!(start.elapsed() < Duration::from_millis(100) + SOON);
            error
        });
        assert!(
            errors.iter().all(|e| *e == Error::Aborted { rank: 1, reason: AbortReason::Requested }),
            "{errors:?}"
        );
    }
}

#[test]
fn a_rank_that_panics_or_leaves_does_not_hang_the_rest() {
    for transport in TRANSPORTS {
        for panics in [true, false] {
            let port = free_port();
            let results: Vec<_> = std::thread::scope(|scope| {
                let ranks: Vec<_> = (0..3)
                    .map(|rank| {
                        scope.spawn(move || {
                            let mut comm = Communicator::connect(config(rank, 3, port, transport)).unwrap();
                            // The word of an end may overtake the last message of this very barrier.
                            if let Err(early) = comm.barrier() {
                                return Some(early);
                            }
                            if rank == 1 {
                                assert!(!panics, "this panic is part of the test");
                                return None;
                            }
                            Some(comm.allreduce(&mut vec![0f32; 5000], ReduceOp::Sum).unwrap_err())
                        })
                    })
                    .collect();
                ranks.into_iter().map(|rank| rank.join().ok().flatten()).collect()
            });
            let wanted = if panics {
                Error::Aborted { rank: 1, reason: AbortReason::Panicked }
            } else {
                Error::PeerLost { rank: 1 }
            };
            assert_eq!(results, [Some(wanted.clone()), None, Some(wanted)], "{transport:?} {panics}");
        }
    }
}

#[test]
fn leaving_after_the_last_operation_harms_nobody() {
    for transport in TRANSPORTS {
        for _ in 0..20 {
            in_threads(3, transport, |comm| {
                let mut data = vec![comm.rank() as f32; 3000];
                comm.allreduce(&mut data, ReduceOp::Sum).unwrap();
                assert!(data.iter().all(|&v| v == 3.0));
            });
        }
    }
}

#[test]
fn nothing_is_left_behind() {
    let count = |path: &str, name: &str| {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().filter(|line| line.contains(name)).count()
    };
    let door = format!("phalanx-collective-{}-", std::process::id());
    let count = || (count("/proc/self/maps", "phalanx-collective"), count("/proc/net/unix", &door));
    // Other tests of this binary have groups of their own for a while: wait for a quiet moment.
    let start = Instant::now();
    loop {
        for transport in TRANSPORTS {
            in_threads(2, transport, |comm| comm.barrier().unwrap());
        }
        if count() == (0, 0) {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", count());
        std::thread::sleep(Duration::from_millis(50));
    }
    let files = std::fs::read_dir("/dev/shm").unwrap().flatten();
    assert!(files.map(|f| f.file_name()).all(|n| !n.to_string_lossy().contains("phalanx")));
}

#[test]
fn a_buffer_outlives_its_communicator() {
    let buffers = in_threads(2, TransportChoice::Shm, |comm| {
        let mut buffer = comm.arena_alloc::<f32>(1000).unwrap();
        buffer.fill(1.0);
        comm.allreduce(&mut buffer, ReduceOp::Sum).unwrap();
        let full = comm.arena_alloc::<f32>(4 << 20).unwrap_err();
        assert!(matches!(full, Error::ArenaFull { wanted_bytes, .. } if wanted_bytes == 16 << 20));
        buffer
    });
    assert!(buffers.iter().all(|b| b.iter().all(|&v| v == 2.0)));
}
