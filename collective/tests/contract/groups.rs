//! How groups are brought up: as threads, or as processes of this very binary.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use phalanx_collective::{Communicator, Config, Transport, TransportChoice};

/// The transports of the contract.
pub(crate) const TRANSPORTS: [TransportChoice; 2] = [TransportChoice::Shm, TransportChoice::Tcp];

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub(crate) fn config(rank: usize, world: usize, port: u16, transport: TransportChoice) -> Config {
    Config {
        master_port: port,
        transport,
        arena_bytes: 4 << 20,
        rendezvous_timeout: Duration::from_secs(20),
        op_timeout: Duration::from_secs(20),
        ..Config::new(rank, world)
    }
}

/// Runs `body` as every rank, each in a thread of its own; the answers by rank.
pub(crate) fn in_threads<A: Send>(
    world: usize,
    transport: TransportChoice,
    body: impl Fn(&mut Communicator) -> A + Sync,
) -> Vec<A> {
    let port = free_port();
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..world)
            .map(|rank| {
                let body = &body;
                scope.spawn(move || {
                    let mut comm = Communicator::connect(config(rank, world, port, transport)).unwrap();
                    let wanted =
                        if transport == TransportChoice::Shm { Transport::Shm } else { Transport::Tcp };
                    assert_eq!(comm.transport(), wanted);
                    body(&mut comm)
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// What a child process is told.
const SCENARIO: &str = "CONTRACT_SCENARIO";
/// Where its flight recorder goes; empty for none.
const FLIGHT: &str = "CONTRACT_FLIGHT";

/// A rank in a process of its own that plays `scenario`.
pub(crate) fn spawn(
    scenario: &str,
    rank: usize,
    world: usize,
    port: u16,
    transport: TransportChoice,
) -> Child {
    spawn_with(scenario, rank, world, port, transport, None)
}

/// As [`spawn`], with a folder for its flight recorder.
pub(crate) fn spawn_with(
    scenario: &str,
    rank: usize,
    world: usize,
    port: u16,
    transport: TransportChoice,
    flight: Option<&Path>,
) -> Child {
    let name = serde_json::to_string(&transport).unwrap();
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "groups::play", "--nocapture", "--test-threads", "1"])
        .env(SCENARIO, format!("{scenario} {rank} {world} {port} {name}"))
        .env(FLIGHT, flight.unwrap_or(Path::new("")))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// All ranks in processes of their own; their outputs by rank.
pub(crate) fn in_processes(scenario: &str, world: usize, transport: TransportChoice) -> Vec<Output> {
    let port = free_port();
    let ranks: Vec<_> = (0..world).map(|rank| spawn(scenario, rank, world, port, transport)).collect();
    ranks.into_iter().map(|child| child.wait_with_output().unwrap()).collect()
}

/// The lines that a rank printed with [`say`].
pub(crate) fn said(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().filter_map(|line| line.split_once("say: ").map(|(_, said)| said.to_string())).collect()
}

pub(crate) fn say(text: impl std::fmt::Display) {
    println!("\nsay: {text}");
}

/// Not a test of its own: the entry of child processes.
#[test]
fn play() {
    let Ok(told) = std::env::var(SCENARIO) else { return };
    let words: Vec<&str> = told.split_whitespace().collect();
    let [scenario, rank, world, port, transport] = words[..] else { panic!("{told}") };
    let transport = serde_json::from_str(transport).unwrap();
    let mut config = config(rank.parse().unwrap(), world.parse().unwrap(), port.parse().unwrap(), transport);
    config.flight_dir = std::env::var_os(FLIGHT).filter(|path| !path.is_empty()).map(Into::into);
    match scenario {
        "cases" => super::cases::play(config),
        _ => super::faults::play(scenario, config),
    }
}
