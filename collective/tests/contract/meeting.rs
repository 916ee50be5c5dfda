//! Rendezvous: who may come, and what happens when not all do.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use phalanx_collective::{Communicator, Config, Error, Transport, TransportChoice};

use super::groups::{TRANSPORTS, config, free_port};

/// Every rank connects in a thread of its own with what `change` made of its configuration.
fn meet(world: usize, change: impl Fn(&mut Config) + Sync) -> Vec<Result<Communicator, Error>> {
    let port = free_port();
    std::thread::scope(|scope| {
        let connect = |rank| {
            let mut config = config(rank, world, port, TransportChoice::Auto);
            change(&mut config);
            scope.spawn(|| Communicator::connect(config))
        };
        let ranks: Vec<_> = (0..world).map(connect).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn error(result: &Result<Communicator, Error>) -> &Error {
    result.as_ref().err().unwrap()
}

#[test]
fn one_host_shares_memory_unless_told_otherwise() {
    assert!(meet(2, |_| {}).iter().all(|c| c.as_ref().is_ok_and(|c| c.transport() == Transport::Shm)));
    let one_wants_tcp = meet(2, |c| c.transport = [TransportChoice::Auto, TransportChoice::Tcp][c.rank]);
    assert!(one_wants_tcp.iter().all(|c| c.as_ref().is_ok_and(|c| c.transport() == Transport::Tcp)));
    let contrary = meet(3, |c| {
        c.transport = [TransportChoice::Auto, TransportChoice::Tcp, TransportChoice::Shm][c.rank]
    });
    for result in &contrary {
        assert_eq!(
            error(result).to_string(),
            "rank 0 refused this rank: rank 2 asked for shm, rank 1 for tcp; ask for one"
        );
    }
}

#[test]
fn a_different_configuration_is_an_error_on_every_rank() {
    for result in meet(4, |c| c.fingerprint = if c.rank % 2 == 1 { "lr = 2" } else { "lr = 1" }.into()) {
        assert_eq!(error(&result), &Error::ConfigMismatch { ranks: vec![1, 3] });
    }
}

#[test]
fn an_arena_larger_than_memory_is_refused_on_every_rank() {
    for result in meet(3, |c| c.arena_bytes = if c.rank == 1 { 1 << 40 } else { 4096 }) {
        let Error::NoMemory { arena_bytes, wanted_bytes, free_bytes, .. } = error(&result) else {
            panic!("{:?}", result.err())
        };
        assert_eq!(*arena_bytes, 1 << 40);
        assert!(wanted_bytes > free_bytes && error(&result).to_string().contains("smaller `arena_bytes`"));
    }
}

#[test]
fn whoever_did_not_come_is_named_everywhere() {
    let port = free_port();
    std::thread::scope(|scope| {
        let connect = |rank| {
            let mut config = config(rank, 4, port, TransportChoice::Auto);
            config.rendezvous_timeout = Duration::from_millis(400);
            scope.spawn(|| Communicator::connect(config))
        };
        for rank in [0, 2].map(connect) {
            let result = rank.join().unwrap();
            assert!(matches!(error(&result), Error::RendezvousTimeout { missing, .. } if missing == &[1, 3]));
        }
    });
    let mut alone = config(1, 2, port, TransportChoice::Auto);
    alone.rendezvous_timeout = Duration::from_millis(100);
    let result = Communicator::connect(alone);
    assert!(matches!(error(&result), Error::RendezvousTimeout { missing, .. } if missing == &[0]));
}

#[test]
fn strangers_and_ranks_of_another_time_do_not_break_it() {
    for transport in TRANSPORTS {
        let port = free_port();
        let ready = Barrier::new(3);
        std::thread::scope(|scope| {
            let rank = |rank, epoch, wait: bool| {
                let mut config = config(rank, 2, port, transport);
                config.epoch = epoch;
                let ready = &ready;
                scope.spawn(move || {
                    if wait {
                        ready.wait();
                    }
                    Communicator::connect(config)
                })
            };
            let (zero, stale, late, other_world) =
                (rank(0, 7, false), rank(1, 6, false), rank(1, 7, true), {
                    let ready = &ready;
                    scope.spawn(move || {
                        let mut config = config(1, 3, port, transport);
                        config.epoch = 7;
                        let result = Communicator::connect(config);
                        ready.wait();
                        result
                    })
                });
            assert_eq!(error(&stale.join().unwrap()), &Error::WrongEpoch { ours: 6, theirs: 7 });
            // A port scanner, a web browser, one that hangs up in the middle.
            let silent = TcpStream::connect(("127.0.0.1", port)).unwrap();
            let mut http = TcpStream::connect(("127.0.0.1", port)).unwrap();
            http.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
            let mut half = TcpStream::connect(("127.0.0.1", port)).unwrap();
            half.write_all(b"phalanx\x01\x10").unwrap();
            drop(half);
            ready.wait();
            assert!(zero.join().unwrap().is_ok());
            assert!(late.join().unwrap().is_ok());
            assert!(
                matches!(error(&other_world.join().unwrap()), Error::Rejected { reason } if reason.contains("world size is 3"))
            );
            drop((silent, http));
        });
    }
}

#[test]
fn a_rank_of_a_newer_time_waits_for_its_group() {
    let port = free_port();
    std::thread::scope(|scope| {
        let connect = |rank, epoch, patience: u64| {
            let mut config = config(rank, 2, port, TransportChoice::Auto);
            config.epoch = epoch;
            config.rendezvous_timeout = Duration::from_millis(patience);
            scope.spawn(|| Communicator::connect(config))
        };
        let old = connect(0, 1, 300);
        let newer = connect(1, 2, 10_000);
        assert!(matches!(error(&old.join().unwrap()), Error::RendezvousTimeout { .. }));
        let new = connect(0, 2, 10_000);
        assert!(new.join().unwrap().is_ok() && newer.join().unwrap().is_ok());
    });
}

#[test]
fn a_taken_port_and_a_name_that_is_none_are_explained() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut taken = config(0, 2, listener.local_addr().unwrap().port(), TransportChoice::Auto);
    taken.rendezvous_timeout = Duration::from_millis(50);
    let text = error(&Communicator::connect(taken)).to_string();
    assert!(text.contains("MASTER_PORT") && text.contains("in use"), "{text}");
    let mut nameless = config(1, 2, 1, TransportChoice::Auto);
    nameless.master_addr = "no such host".into();
    let text = error(&Communicator::connect(nameless)).to_string();
    assert!(text.contains("no such host"), "{text}");
}

#[test]
fn the_same_rank_twice_is_refused() {
    let port = free_port();
    std::thread::scope(|scope| {
        let connect = |rank| {
            let mut config = config(rank, 3, port, TransportChoice::Auto);
            config.rendezvous_timeout = Duration::from_secs(2);
            scope.spawn(|| Communicator::connect(config))
        };
        let ranks = [connect(0), connect(1), connect(1)];
        let errors = ranks.map(|rank| error(&rank.join().unwrap()).to_string());
        assert!(errors.iter().any(|e| e.contains("another process is rank 1 already")), "{errors:?}");
    });
}

#[test]
fn groups_meet_fast() {
    let start = Instant::now();
    assert!(meet(4, |_| {}).iter().all(Result::is_ok));
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}
