use super::*;
use crate::launch::{LaunchWork, RankLaunch};
use phalanx_core::{Cpus, JobId};
use proptest::prelude::*;

fn attempt(number: u32) -> AttemptId {
    AttemptId { job: JobId(1), number }
}

fn launch(attempt: AttemptId) -> Box<Launch> {
    let rank = |rank| RankLaunch { rank, visible_devices: String::new() };
    Box::new(Launch {
        attempt,
        work: LaunchWork::Program(vec!["true".into()]),
        workdir: "/".into(),
        env: BTreeMap::new(),
        secret_names: Vec::new(),
        secrets: BTreeMap::new(),
        cpus: Cpus::from_cores(1),
        memory_bytes: 0,
        world: 2,
        group_rank: 0,
        group_world: 1,
        master_addr: "127.0.0.1".into(),
        master_port: 1,
        restart_count: 0,
        max_restarts: 0,
        grace: Duration::from_secs(10),
        checkpoint: None,
        trial: None,
        params: None,
        elastic: false,
        ranks: vec![rank(0), rank(1)],
    })
}

fn reserve(attempt: AttemptId) -> Input {
    Input::Command(Command::Reserve { attempt, wants_master_port: true })
}

fn start(attempt: AttemptId) -> Input {
    Input::Command(Command::Start(launch(attempt)))
}

fn stop(attempt: AttemptId, ask_first: bool, seconds: u64) -> Input {
    Input::Command(Command::Stop { attempt, ask_first, grace: Duration::from_secs(seconds) })
}

fn exited(attempt: AttemptId, rank: Rank) -> Input {
    let exit = RankExit { rank, code: 0, message: String::new(), asked: false, not_started: false, life: 0 };
    Input::Exited { attempt, exit }
}

fn gone(attempt: AttemptId) -> Output {
    Output::Say(attempt, Happening::Gone { unreaped: String::new() })
}

#[test]
fn a_repeated_reserve_has_the_same_port() {
    let mut machine = AgentMachine::new();
    assert_eq!(machine.step(reserve(attempt(1))), [Output::FindPort(attempt(1))]);
    assert_eq!(machine.step(reserve(attempt(1))), []);
    let reserved = Output::Say(attempt(1), Happening::Reserved { master_port: 77 });
    assert_eq!(
        machine.step(Input::Port { attempt: attempt(1), port: Ok(77) }),
        std::slice::from_ref(&reserved)
    );
    assert_eq!(machine.step(reserve(attempt(1))), [reserved]);
}

#[test]
fn a_stop_for_what_is_unknown_is_answered_and_a_later_start_ignored() {
    let mut machine = AgentMachine::new();
    assert_eq!(machine.step(stop(attempt(1), false, 1)), [gone(attempt(1))]);
    assert_eq!(machine.attempts(), [attempt(1)], "its Gone has yet to be acknowledged");
    assert_eq!(machine.step(stop(attempt(1), false, 1)), []);
    assert_eq!(machine.step(start(attempt(1))), []);
    assert_eq!(machine.step(Input::GoneAcked(attempt(1))), []);
    assert!(machine.attempts().is_empty());
    assert_eq!(machine.step(reserve(attempt(1))), [], "what is over stays over");
    assert_eq!(machine.step(start(attempt(1))), []);
}

#[test]
fn only_an_attempt_with_a_place_is_started_and_only_once() {
    let mut machine = AgentMachine::new();
    assert!(matches!(machine.step(start(attempt(1)))[..], [Output::Say(_, Happening::Refused { .. })]));
    machine.step(reserve(attempt(1)));
    machine.step(Input::Port { attempt: attempt(1), port: Ok(1) });
    assert!(matches!(machine.step(start(attempt(1)))[..], [Output::Launch(_)]));
    assert_eq!(machine.step(start(attempt(1))), []);
    assert_eq!(machine.step(reserve(attempt(1))), []);
}

#[test]
fn asking_comes_before_signals_and_a_shorter_grace_brings_the_end_forward() {
    let mut machine = AgentMachine::new();
    let id = attempt(1);
    for input in [reserve(id), Input::Port { attempt: id, port: Ok(1) }, start(id)] {
        machine.step(input);
    }
    let seconds = Duration::from_secs;
    assert_eq!(machine.step(stop(id, true, 10)), [Output::Ask { attempt: id, grace: seconds(10) }]);
    assert_eq!(machine.step(stop(id, true, 10)), []);
    assert_eq!(machine.step(Input::AskedLongEnough(id)), [Output::End { attempt: id, grace: seconds(10) }]);
    assert_eq!(machine.step(Input::AskedLongEnough(id)), []);
    assert_eq!(machine.step(stop(id, false, 10)), []);
    assert_eq!(machine.step(stop(id, false, 1)), [Output::End { attempt: id, grace: seconds(1) }]);
    let said = machine.step(exited(id, 0));
    let [Output::Say(_, Happening::RankExited(exit))] = &said[..] else { panic!("{said:?}") };
    assert!(exit.asked);
    assert_eq!(machine.step(exited(id, 0)), [], "a rank ends once");
}

#[test]
fn a_launch_that_fails_is_refused_and_gone() {
    let mut machine = AgentMachine::new();
    machine.step(Input::Command(Command::Reserve { attempt: attempt(1), wants_master_port: false }));
    machine.step(start(attempt(1)));
    let said = machine.step(Input::LaunchFailed { attempt: attempt(1), message: "no".into() });
    assert!(matches!(said[0], Output::Say(_, Happening::Refused { .. })));
    assert_eq!(said.last(), Some(&gone(attempt(1))));
}

#[test]
fn a_restarted_agent_says_what_is_gone() {
    let (machine, outputs) =
        AgentMachine::restore(BTreeSet::from([attempt(1)]), BTreeSet::from([attempt(1), attempt(2)]));
    assert_eq!(outputs, [gone(attempt(2))]);
    assert_eq!(machine.attempts(), [attempt(1), attempt(2)]);
    assert!(!machine.is_busy());
}

/// A node as the machine drives it: the simplest one that keeps its promises.
#[derive(Default)]
struct World {
    running: BTreeSet<AttemptId>,
    launches: BTreeMap<AttemptId, u32>,
    gone: BTreeMap<AttemptId, u32>,
    exits: BTreeSet<(AttemptId, Rank, u32)>,
}

impl World {
    fn carry_out(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Launch(launch) => {
                    *self.launches.entry(launch.attempt).or_default() += 1;
                    assert!(self.running.insert(launch.attempt));
                    assert!(!self.gone.contains_key(&launch.attempt), "started after it was gone");
                }
                Output::Release(attempt) => {
                    assert!(!self.running.contains(&attempt), "released while it runs")
                }
                Output::Ask { attempt, .. } | Output::End { attempt, .. } => {
                    assert!(self.running.contains(&attempt), "ended what does not run");
                }
                Output::Say(attempt, Happening::Gone { .. }) => {
                    assert!(!self.running.contains(&attempt), "said gone while it runs");
                    *self.gone.entry(attempt).or_default() += 1;
                }
                Output::Say(attempt, Happening::RankExited(exit)) => {
                    assert!(self.exits.insert((attempt, exit.rank, exit.life)), "a process ended twice");
                    assert!(!self.gone.contains_key(&attempt), "news after gone");
                }
                Output::Judged { attempt, .. } | Output::Group { attempt, .. } => {
                    assert!(self.running.contains(&attempt), "answered what does not run");
                }
                Output::Restart { attempt, who } => {
                    assert!(self.running.contains(&attempt), "restarted what does not run");
                    let before = (attempt, who.rank, who.life - 1);
                    assert!(self.exits.contains(&before), "restarted what still runs");
                }
                Output::Say(..) | Output::FindPort(_) | Output::DropCheckpoint(_) => {}
            }
        }
    }
}

proptest! {
    /// Whatever is repeated, lost or reordered: an attempt is launched at most once and never after its end, nothing
    /// follows its `Gone`, and a `Stop` is always answered.
    #[test]
    fn commands_are_idempotent(script in prop::collection::vec((0_u8..10, 1_u32..4, any::<bool>()), 0..80)) {
        let (mut machine, mut world) = (AgentMachine::new(), World::default());
        for (kind, number, flag) in script {
            let id = attempt(number);
            let runs = world.running.contains(&id);
            let input = match kind {
                0 => Input::Command(Command::Reserve { attempt: id, wants_master_port: flag }),
                1 => Input::Port { attempt: id, port: if flag { Ok(5) } else { Err("none".into()) } },
                2 => start(id),
                3 => stop(id, flag, u64::from(number)),
                4 if runs => exited(id, u32::from(flag)),
                5 if runs => { world.running.remove(&id); Input::Gone { attempt: id, unreaped: String::new() } }
                6 => Input::AskedLongEnough(id),
                7 => Input::GoneAcked(id),
                8 if number == 1 && flag => Input::EndAll,
                9 => {
                    let who = Member { rank: u32::from(flag), life: number };
                    Input::Command(Command::Restart { attempt: id, who })
                }
                _ => continue,
            };
            world.carry_out(machine.step(input));
        }
        for number in 1..4 {
            let id = attempt(number);
            world.carry_out(machine.step(stop(id, false, 0)));
            if world.running.remove(&id) {
                world.carry_out(machine.step(Input::Gone { attempt: id, unreaped: String::new() }));
            }
            prop_assert!(world.gone.get(&id).is_some_and(|&times| times >= 1));
            prop_assert!(world.launches.get(&id).copied().unwrap_or(0) <= 1);
            world.carry_out(machine.step(Input::GoneAcked(id)));
        }
        prop_assert!(machine.attempts().is_empty());
    }
}

#[test]
fn a_place_stands_in_two_phases_and_is_given_back_in_either() {
    let reserve = |at| Input::Command(Command::Reserve { attempt: at, wants_master_port: false });
    let keep = |at| Input::Command(Command::Keep { attempt: at });
    let reserved = |at| Output::Say(at, Happening::Reserved { master_port: 0 });
    let mut machine = AgentMachine::new();
    for at in [attempt(1), attempt(2), attempt(3)] {
        assert_eq!(machine.step(reserve(at)), [reserved(at)]);
    }
    // The second phase, twice; a late repetition of the first changes nothing.
    for input in [keep(attempt(1)), keep(attempt(1)), reserve(attempt(1))] {
        assert_eq!(machine.step(input), []);
    }
    assert_eq!(machine.step(stop(attempt(1), false, 0)), [Output::Release(attempt(1)), gone(attempt(1))]);
    assert_eq!(machine.step(stop(attempt(2), false, 0)), [Output::Release(attempt(2)), gone(attempt(2))]);
    // What is over stays over, and what was never here is refused.
    assert_eq!(machine.step(keep(attempt(1))), []);
    machine.step(Input::GoneAcked(attempt(1)));
    assert_eq!(machine.step(keep(attempt(1))), []);
    assert!(matches!(&machine.step(keep(attempt(9)))[..], [Output::Say(_, Happening::Refused { .. })]));
    // An agent on its own gives back what stands too.
    machine.step(keep(attempt(3)));
    assert!(machine.is_busy());
    assert_eq!(machine.step(Input::EndAll), [Output::Release(attempt(3)), gone(attempt(3))]);
    assert!(!machine.is_busy());
}
