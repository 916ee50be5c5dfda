//! How groups are brought up: as threads, or as processes of this very binary.

use std::net::TcpListener;
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
        device: rank,
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
    let wanted = match transport {
        TransportChoice::Auto | TransportChoice::Shm => Transport::Shm,
        TransportChoice::Tcp => Transport::Tcp,
        TransportChoice::Nccl => Transport::Nccl,
    };
    in_threads_with(
        world,
        transport,
        |_| {},
        |comm| {
            assert_eq!(comm.transport(), wanted);
            body(comm)
        },
    )
}

/// As [`in_threads`], with the configuration as `change` makes it.
pub(crate) fn in_threads_with<A: Send>(
    world: usize,
    transport: TransportChoice,
    change: impl Fn(&mut Config) + Sync,
    body: impl Fn(&mut Communicator) -> A + Sync,
) -> Vec<A> {
    let port = free_port();
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..world)
            .map(|rank| {
                let (body, change) = (&body, &change);
                scope.spawn(move || {
                    let mut config = config(rank, world, port, transport);
                    change(&mut config);
                    let mut comm = Communicator::connect(config).unwrap();
                    body(&mut comm)
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// What a child process is told.
const SCENARIO: &str = "CONTRACT_SCENARIO";
/// Where its flight recorder goes.
pub(crate) const FLIGHT: &str = "CONTRACT_FLIGHT";
/// Where rank 0 listens.
pub(crate) const MASTER: &str = "CONTRACT_MASTER";
/// How many ranks are taken for a host.
pub(crate) const PER_HOST: &str = "CONTRACT_PER_HOST";

/// A rank in a process of its own that plays `scenario`.
pub(crate) fn spawn(
    scenario: &str,
    rank: usize,
    world: usize,
    port: u16,
    transport: TransportChoice,
) -> Child {
    let exe = Command::new(std::env::current_exe().unwrap());
    spawn_by(exe, (scenario, rank, world, port), transport)
}

/// As [`spawn`], by a command that ends with this executable and may set its environment.
pub(crate) fn spawn_by(
    mut command: Command,
    (scenario, rank, world, port): (&str, usize, usize, u16),
    transport: TransportChoice,
) -> Child {
    let name = serde_json::to_string(&transport).unwrap();
    command
        .args(["--exact", "groups::play", "--nocapture", "--test-threads", "1"])
        .env(SCENARIO, format!("{scenario} {rank} {world} {port} {name}"))
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
    config.flight_dir = std::env::var_os(FLIGHT).map(Into::into);
    if let Ok(master) = std::env::var(MASTER) {
        config.master_addr = master;
    }
    if let Ok(per_host) = std::env::var(PER_HOST) {
        config.host = Some(format!("host {}", config.rank / per_host.parse::<usize>().unwrap()));
    }
    match scenario {
        "cases" | "cases-over-hosts" => super::cases::play(scenario, config),
        "die-on-device" => super::devices::play(config),
        _ => super::faults::play(scenario, config),
    }
}
