//! Several hosts: by name within one machine, and in network namespaces, which are hosts of their own.

use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use phalanx_collective::{
    AbortReason, Communicator, Config, Error, RankState, ReduceOp, Transport, TransportChoice, Wire,
};
use proptest::prelude::*;

use super::cases::{cases, fixed_cases, run};
use super::groups::{MASTER, PER_HOST, free_port, in_threads_with, said, spawn_by};

const AUTO: TransportChoice = TransportChoice::Auto;
const SOON: Duration = Duration::from_secs(1);

/// Hosts of so many ranks.
fn of(per_host: usize) -> impl Fn(&mut Config) + Sync {
    move |config| config.host = Some(format!("host {}", config.rank / per_host))
}

#[test]
fn hosts_give_what_the_reference_gives() {
    for (world, per_host) in [(4, 2), (6, 2), (8, 4)] {
        in_threads_with(world, AUTO, of(per_host), |comm| {
            assert_eq!(comm.transport(), Transport::Hosts);
            fixed_cases().iter().for_each(|case| run(comm, case));
        });
    }
}

#[test]
fn uneven_hosts_go_over_tcp_and_give_the_same() {
    in_threads_with(5, AUTO, of(3), |comm| {
        assert_eq!(comm.transport(), Transport::Tcp);
        fixed_cases().iter().step_by(5).for_each(|case| run(comm, case));
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]
    #[test]
    fn any_sequence_over_hosts_and_over_several_streams_gives_what_the_reference_gives(
        hosts in 2usize..4, sequence in proptest::collection::vec(cases(), 1..10), streams in 1usize..4
    ) {
        let change = |config: &mut Config| {
            of(2)(config);
            config.tcp_streams = streams;
        };
        in_threads_with(2 * hosts, AUTO, change, |comm| sequence.iter().for_each(|case| run(comm, case)));
        let change = |config: &mut Config| config.tcp_streams = streams;
        in_threads_with(3, TransportChoice::Tcp, change, |comm| {
            sequence.iter().for_each(|case| run(comm, case));
        });
    }
}

#[test]
fn half_the_bits_on_the_wire_are_near_and_equal_on_every_rank() {
    let value = |rank: usize, i: usize| ((i * 7 + rank * 13) % 1000) as f32 * 0.37 - 100.0;
    for (transport, per_host) in [(TransportChoice::Tcp, 4), (AUTO, 2)] {
        let change = |config: &mut Config| {
            of(per_host)(config);
            config.wire = Wire::Bf16;
        };
        let results = in_threads_with(4, transport, change, |comm| {
            let rank = comm.rank();
            let mut data: Vec<f32> = (0..200_000).map(|i| value(rank, i)).collect();
            comm.allreduce(&mut data, ReduceOp::Sum).unwrap();
            let mut shard: Vec<f32> = (0..200_000).map(|i| value(rank, i)).collect();
            let own = comm.reduce_scatter(&mut shard, ReduceOp::Sum).unwrap();
            assert_eq!(shard[own.clone()], data[own], "a reduce-scatter rounds as an allreduce does");
            // Other types and small operations are exact.
            let mut exact = [0.1f32 + rank as f32];
            comm.allreduce(&mut exact, ReduceOp::Sum).unwrap();
            assert_eq!(exact[0], (0.1 + 1.1) + (2.1 + 3.1));
            data
        });
        for (i, sum) in results[0].iter().enumerate() {
            let largest = (0..4).map(|rank| value(rank, i).abs()).fold(0.0, f32::max);
            let wanted: f32 = (0..4).map(|rank| value(rank, i)).sum();
            let bound = (4.0 * largest + wanted.abs()) / 256.0;
            assert!((sum - wanted).abs() <= bound, "element {i}: {sum}, {wanted} wanted");
        }
        assert!(results.iter().all(|data| *data == results[0]));
    }
}

#[test]
fn different_bits_on_the_wire_are_refused() {
    let port = free_port();
    let results: Vec<_> = std::thread::scope(|scope| {
        let connect = |rank: usize| {
            let mut config = super::groups::config(rank, 2, port, TransportChoice::Tcp);
            config.wire = [Wire::Exact, Wire::Bf16][rank];
            scope.spawn(move || Communicator::connect(config).err().unwrap().to_string())
        };
        [0, 1].map(connect).map(|rank| rank.join().unwrap()).into()
    });
    assert!(results.iter().all(|text: &String| text.contains("different bits on the wire")), "{results:?}");
}

#[test]
fn mixed_up_operations_name_both_sides_on_every_host() {
    for odd in [1, 2] {
        let errors = in_threads_with(4, AUTO, of(2), |comm| {
            let len = if comm.rank() == odd { 20_000 } else { 10_000 };
            comm.allreduce(&mut vec![1f32; len], ReduceOp::Sum).unwrap_err().to_string()
        });
        for error in errors {
            assert!(error.contains("do not fit together at number 1"), "{error}");
            assert!(error.contains("10000 x f32") && error.contains("20000 x f32"), "{error}");
        }
    }
}

#[test]
fn an_abort_a_leaver_and_a_deadline_reach_every_host() {
    let start = Instant::now();
    let errors = in_threads_with(4, AUTO, of(2), |comm| {
        if comm.rank() == 3 {
            std::thread::sleep(Duration::from_millis(100));
            comm.abort();
        }
        comm.barrier().unwrap_err()
    });
    let aborted = Error::Aborted { rank: 3, reason: AbortReason::Requested };
    assert!(errors.iter().all(|error| *error == aborted), "{errors:?}");
    let errors = in_threads_with(4, AUTO, of(2), |comm| match comm.rank() {
        2 => None,
        _ => Some(comm.allreduce(&mut vec![0f32; 50_000], ReduceOp::Sum).unwrap_err()),
    });
    let lost = Some(Error::PeerLost { rank: 2 });
    assert_eq!(errors, [lost.clone(), lost.clone(), None, lost]);
    let quick = |config: &mut Config| {
        of(2)(config);
        config.op_timeout = Duration::from_millis(300);
    };
    let errors = in_threads_with(4, AUTO, quick, |comm| {
        // The other host comes a little later, so that patience ends first where the missing rank is known.
        let late = [0, 900, 150, 150][comm.rank()];
        std::thread::sleep(Duration::from_millis(late));
        comm.barrier().unwrap_err()
    });
    assert!(
        errors.iter().any(|e| matches!(e, Error::Timeout { missing, .. } if missing == &[1])),
        "{errors:?}"
    );
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_killed_rank_is_named_on_every_host() {
    let port = free_port();
    let ranks: Vec<Child> = (0..4)
        .map(|rank| {
            let mut exe = Command::new(std::env::current_exe().unwrap());
            exe.env(PER_HOST, "2");
            spawn_by(exe, ("die-inside", rank, 4, port), AUTO)
        })
        .collect();
    for (rank, child) in ranks.into_iter().enumerate().filter(|(rank, _)| *rank != 1) {
        let output = child.wait_with_output().unwrap();
        let said = said(&output);
        assert!(said.len() == 1 && said[0].starts_with("rank 1 was lost"), "rank {rank}: {output:?}");
    }
}

#[test]
fn the_ranks_of_a_host_see_each_others_records() {
    let records = in_threads_with(4, AUTO, of(2), |comm| {
        comm.barrier().unwrap();
        comm.flight_record()
    });
    for (rank, record) in records.iter().enumerate() {
        let ranks: Vec<usize> = record.iter().map(|r| r.rank).collect();
        assert_eq!(ranks, [rank / 2 * 2, rank / 2 * 2 + 1]);
        assert!(record.iter().any(|r| r.state == RankState::Present));
    }
}

/// Two network namespaces joined by a pair of interfaces; gone with this.
struct Namespaces {
    names: [String; 2],
}

/// The address of a host.
fn address(host: usize) -> String {
    format!("10.213.7.{}", host + 1)
}

fn ip(args: &str) -> bool {
    let output = Command::new("ip").args(args.split_whitespace()).output();
    output.is_ok_and(|output| output.status.success())
}

impl Namespaces {
    /// None, with a word about it, where they cannot be made: that takes root and iproute2.
    fn new() -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let id = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::SeqCst));
        let made = Namespaces { names: [format!("phx-a{id}"), format!("phx-b{id}")] };
        let [a, b] = &made.names;
        let ends = [format!("pa{id}"), format!("pb{id}")];
        let all = ip(&format!("netns add {a}"))
            && ip(&format!("netns add {b}"))
            && ip(&format!("link add {} netns {a} type veth peer name {} netns {b}", ends[0], ends[1]))
            && (0..2).all(|host| {
                let (name, end) = (&made.names[host], &ends[host]);
                ip(&format!("-n {name} addr add {}/24 dev {end}", address(host)))
                    && ip(&format!("-n {name} link set {end} up"))
                    && ip(&format!("-n {name} link set lo up"))
            });
        if !all {
            println!("SKIPPED: no network namespaces here; they take root and iproute2");
            return None;
        }
        Some(made)
    }

    fn spawn(&self, host: usize, scenario: &str, rank: usize, port: u16) -> Child {
        let exe: PathBuf = std::env::current_exe().unwrap();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.names[host]]).arg(exe).env(MASTER, address(0));
        spawn_by(command, (scenario, rank, 4, port), AUTO)
    }

    fn cut(&self) {
        let interfaces = Command::new("ip").args(["-n", &self.names[0], "-o", "link"]).output().unwrap();
        let text = String::from_utf8_lossy(&interfaces.stdout).into_owned();
        let end = text.split_whitespace().find(|word| word.starts_with("pa")).unwrap();
        assert!(ip(&format!("-n {} link set {} down", self.names[0], end.split('@').next().unwrap())));
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.names {
            ip(&format!("netns del {name}"));
        }
    }
}

/// Ranks 0 and 1 on one host, 2 and 3 on the other.
fn on_two_hosts(scenario: &str, meanwhile: impl FnOnce(&Namespaces)) -> Option<Vec<Vec<String>>> {
    let hosts = Namespaces::new()?;
    let port = free_port();
    let ranks: Vec<Child> = (0..4).map(|rank| hosts.spawn(rank / 2, scenario, rank, port)).collect();
    meanwhile(&hosts);
    Some(ranks.into_iter().map(|child| said(&child.wait_with_output().unwrap())).collect())
}

#[test]
fn two_namespaces_are_two_hosts_and_give_what_the_reference_gives() {
    let Some(said) = on_two_hosts("cases-over-hosts", |_| {}) else { return };
    assert!(said.iter().all(|said| said == &["hosts", "done"]), "{said:?}");
}

#[test]
fn a_death_in_one_namespace_is_known_in_the_other() {
    let Some(said) = on_two_hosts("die-inside", |_| {}) else { return };
    for rank in [0, 2, 3] {
        assert!(said[rank].len() == 1 && said[rank][0].starts_with("rank 1 was lost"), "{said:?}");
    }
}

#[test]
fn a_link_that_goes_down_is_an_error_at_the_deadline() {
    let start = Instant::now();
    let cut = |hosts: &Namespaces| {
        std::thread::sleep(Duration::from_millis(1500));
        hosts.cut();
    };
    let Some(said) = on_two_hosts("until-cut", cut) else { return };
    for said in said {
        assert!(said[0].contains("waited") || said[0].contains("gave the group up"), "{said:?}");
    }
    assert!(start.elapsed() < Duration::from_secs(30) + SOON);
}
