//! The rules of scheduling, one test each.

use crate::{Cluster, HoldError, Holder, Pending, Plan, Policy, Queue, ReasonCode, check, explain, plan};
use phalanx_core::resources::{Capacity, Device};
use phalanx_core::spec::{BundleSpec, GangSpec, Workers};
use phalanx_core::{AttemptId, Cpus, GpuRequest, JobId, LabelRule, NodeName, Placement, Time};
use std::collections::{BTreeMap, BTreeSet};

mod links;
mod properties;
mod standing;

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

fn capacity(cpus: u32, gpus: u32, labels: &[(&str, &str)]) -> Capacity {
    let device =
        |index| Device { index, uuid: format!("GPU-{index}"), name: "H100".into(), memory_bytes: 80 << 30 };
    Capacity {
        cpus: Cpus::from_cores(cpus),
        memory_bytes: 64 << 30,
        devices: (0..gpus).map(device).collect(),
        custom: BTreeMap::new(),
        labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        ..Capacity::default()
    }
}

/// A small world: a cluster, a queue and the next number.
#[derive(Default)]
struct World {
    cluster: Cluster,
    queue: Queue,
    next: u64,
}

impl World {
    fn node(mut self, node: &str, cpus: u32, gpus: u32) -> Self {
        self.cluster.set_node(name(node), capacity(cpus, gpus, &[]));
        self
    }

    fn labelled(mut self, node: &str, cpus: u32, gpus: u32, labels: &[(&str, &str)]) -> Self {
        self.cluster.set_node(name(node), capacity(cpus, gpus, labels));
        self
    }

    fn submit(&mut self, gang: GangSpec) -> JobId {
        self.submit_with(gang, |_| {})
    }

    fn submit_with(&mut self, gang: GangSpec, change: impl FnOnce(&mut Pending)) -> JobId {
        self.next += 1;
        let mut pending = Pending::new(JobId(self.next), Time::ZERO, self.next, gang);
        change(&mut pending);
        let job = pending.job;
        self.queue.insert(pending);
        job
    }

    fn plan(&mut self) -> Plan {
        plan(Time::ZERO, &mut self.cluster, &mut self.queue)
    }

    /// Plans and carries the plan out.
    fn step(&mut self) -> Plan {
        let plan = self.plan();
        for (job, bundles) in &plan.placements {
            let pending = self.queue.start(*job).unwrap();
            self.cluster.hold(attempt(*job), Holder::new(&pending, Time::ZERO), bundles).unwrap();
        }
        plan
    }

    /// Where each rank of a job would run.
    fn placed(&mut self, gang: GangSpec) -> Vec<String> {
        let job = self.submit(gang);
        let plan = self.step();
        let found = plan.placements.iter().find(|(placed, _)| *placed == job);
        found
            .map(|(_, bundles)| bundles.iter().map(|bundle| bundle.node.to_string()).collect())
            .unwrap_or_default()
    }

    fn reason(&mut self, job: JobId) -> (ReasonCode, String) {
        self.plan();
        let reason = explain(&self.cluster, &self.queue, job).unwrap();
        (reason.code, reason.text)
    }

    /// The same gangs waiting in a queue that remembers nothing but who started.
    fn fresh_queue(&self) -> Queue {
        let mut queue = self.queue.forgetful();
        for pending in self.queue.iter() {
            queue.insert(pending.clone());
        }
        queue
    }

    fn gpus_of(&self, job: JobId) -> Vec<Vec<u32>> {
        let bundles = self.cluster.bundles(attempt(job));
        bundles.iter().map(|bundle| bundle.gpus.iter().map(|share| share.index).collect()).collect()
    }
}

fn attempt(job: JobId) -> AttemptId {
    AttemptId { job, number: 1 }
}

fn gang(workers: u32, cpus: u32, gpus: GpuRequest) -> GangSpec {
    let mut gang = GangSpec { workers: Workers { min: workers, max: workers }, ..GangSpec::default() };
    gang.each.cpus = Cpus::from_cores(cpus);
    gang.each.gpus = gpus;
    gang
}

fn on(placement: Placement, gang: GangSpec) -> GangSpec {
    GangSpec { placement, ..gang }
}

fn rule(key: &str, rule: LabelRule) -> BTreeMap<String, LabelRule> {
    BTreeMap::from([(key.to_owned(), rule)])
}

fn one_of(values: &[&str]) -> LabelRule {
    LabelRule::In(values.iter().map(|value| (*value).to_owned()).collect())
}

use GpuRequest::{None as NoGpu, Share, Whole};

#[test]
fn ten_workers_of_a_tenth_share_one_device() {
    let mut world = World::default().node("a", 10, 2);
    for _ in 0..10 {
        world.submit(gang(1, 1, Share(100)));
    }
    assert_eq!(world.step().placements.len(), 10);
    let free: Vec<u16> =
        world.cluster.nodes().next().unwrap().devices.iter().map(|device| device.free).collect();
    assert_eq!(free, [0, 1000]);
}

#[test]
fn ranks_of_one_gang_never_share_a_device() {
    let mut world = World::default().node("a", 10, 2);
    let job = world.submit(gang(2, 1, Share(300)));
    world.step();
    assert_eq!(world.gpus_of(job), [[0], [1]]);
    let third = world.submit(gang(3, 1, Share(100)));
    assert_eq!(world.reason(third).0, ReasonCode::Infeasible);
}

#[test]
fn a_share_goes_to_the_fullest_device_that_still_fits() {
    let mut world = World::default().node("a", 10, 1).node("b", 10, 1);
    let jobs = [700, 400, 500].map(|shares| world.submit(gang(1, 1, Share(shares))));
    world.step();
    let node = |job| world.cluster.bundles(attempt(job))[0].node.to_string();
    assert_eq!(jobs.map(node), ["a", "b", "b"]);
    assert_eq!(world.placed(gang(1, 1, Share(100))), ["b"]);
    assert_eq!(world.placed(gang(1, 1, Share(200))), ["a"]);
}

#[test]
fn whole_requests_need_whole_devices() {
    let mut world = World::default().node("a", 10, 2);
    world.submit(gang(1, 1, Share(100)));
    world.step();
    let job = world.submit(gang(1, 1, Whole(2)));
    assert_eq!(world.reason(job).0, ReasonCode::WaitingResources);
    let job = world.submit(gang(1, 1, Whole(1)));
    world.step();
    assert_eq!(world.gpus_of(job), [[1]]);
}

#[test]
fn best_fit_leaves_whole_nodes_whole() {
    let mut world = World::default().node("a", 32, 8).node("b", 32, 8);
    assert_eq!(world.placed(gang(1, 1, Whole(2))), ["a"]);
    assert_eq!(world.placed(gang(1, 1, Whole(2))), ["a"]);
    assert_eq!(world.placed(gang(1, 1, Whole(8))), ["b"]);
}

#[test]
fn work_without_gpus_stays_off_gpu_nodes_while_others_have_room() {
    let mut world = World::default().node("gpu", 64, 8).node("c1", 2, 0).node("c2", 2, 0);
    assert_eq!(world.placed(gang(4, 1, NoGpu)), ["c1", "c1", "c2", "c2"]);
    assert_eq!(world.placed(gang(1, 1, NoGpu)), ["gpu"]);
}

#[test]
fn pack_uses_the_fewest_nodes_and_the_tightest_for_the_rest() {
    let mut world = World::default().node("a", 8, 0).node("b", 4, 0).node("c", 3, 0);
    assert_eq!(world.placed(gang(11, 1, NoGpu)), [&["a"; 8][..], &["c"; 3][..]].concat());
}

#[test]
fn spread_uses_the_most_nodes_and_doubles_up_only_then() {
    let mut world = World::default().node("a", 8, 0).node("b", 4, 0).node("c", 1, 0);
    let mut nodes = world.placed(on(Placement::Spread, gang(3, 1, NoGpu)));
    nodes.sort();
    assert_eq!(nodes, ["a", "b", "c"]);
    let mut nodes = world.placed(on(Placement::Spread, gang(4, 1, NoGpu)));
    nodes.sort();
    assert_eq!(nodes, ["a", "a", "b", "b"]);
}

#[test]
fn strict_pack_takes_one_node_or_none() {
    let mut world = World::default().node("a", 4, 0).node("b", 6, 0);
    assert_eq!(world.placed(on(Placement::StrictPack, gang(5, 1, NoGpu))), ["b"; 5]);
    let job = world.submit(on(Placement::StrictPack, gang(5, 1, NoGpu)));
    let (code, text) = world.reason(job);
    assert_eq!(code, ReasonCode::WaitingResources);
    assert!(text.contains("no single node has room for more than 4 of 5 workers"), "{text}");
    let job = world.submit(on(Placement::StrictPack, gang(7, 1, NoGpu)));
    assert_eq!(world.reason(job).0, ReasonCode::Infeasible);
}

#[test]
fn strict_spread_takes_different_nodes_or_none() {
    let mut world = World::default().node("a", 4, 0).node("b", 6, 0);
    let job = world.submit(on(Placement::StrictSpread, gang(3, 1, NoGpu)));
    assert_eq!(world.reason(job).0, ReasonCode::Infeasible);
    world.queue.remove(job);
    let mut nodes = world.placed(on(Placement::StrictSpread, gang(2, 4, NoGpu)));
    nodes.sort();
    assert_eq!(nodes, ["a", "b"]);
}

#[test]
fn a_gang_is_placed_whole_or_not_at_all() {
    let mut world = World::default().node("a", 4, 0).node("b", 4, 0);
    world.submit(gang(5, 1, NoGpu));
    world.step();
    let job = world.submit(gang(4, 1, NoGpu));
    assert!(world.step().placements.is_empty());
    assert!(world.cluster.bundles(attempt(job)).is_empty());
}

#[test]
fn labels_select_nodes() {
    let world = || {
        World::default()
            .labelled("a", 4, 0, &[("zone", "x"), ("ssd", "yes")])
            .labelled("b", 4, 0, &[("zone", "y")])
            .labelled("c", 4, 0, &[])
    };
    let nodes = |rules: BTreeMap<String, LabelRule>| {
        let placed = world().placed(GangSpec { labels: rules, ..gang(12, 1, NoGpu) });
        if placed.is_empty() {
            let fits =
                |n| !world().placed(GangSpec { labels: BTreeMap::new(), ..gang(n, 1, NoGpu) }).is_empty();
            assert!(fits(12));
        }
        placed
    };
    assert!(nodes(rule("zone", one_of(&["x"]))).is_empty());
    let some = |rules, workers| {
        let placed: BTreeSet<String> =
            world().placed(GangSpec { labels: rules, ..gang(workers, 1, NoGpu) }).into_iter().collect();
        placed.into_iter().collect::<Vec<_>>().join("")
    };
    assert_eq!(some(rule("zone", one_of(&["x"])), 4), "a");
    assert_eq!(some(rule("zone", one_of(&["x", "y"])), 8), "ab");
    assert_eq!(some(rule("zone", LabelRule::NotIn(BTreeSet::from(["x".to_owned()]))), 8), "bc");
    assert_eq!(some(rule("ssd", LabelRule::Exists(true)), 4), "a");
    assert_eq!(some(rule("ssd", LabelRule::Exists(false)), 8), "bc");
}

#[test]
fn bundles_give_ranks_labels_of_their_own() {
    let world =
        || World::default().labelled("a", 2, 0, &[("zone", "x")]).labelled("b", 2, 0, &[("zone", "y")]);
    let bundles = |zones: &[&str]| -> Vec<BundleSpec> {
        let spec = |zone: &&str| match *zone {
            "" => BundleSpec::default(),
            zone => BundleSpec { labels: rule("zone", one_of(&[zone])) },
        };
        zones.iter().map(spec).collect()
    };
    let ask = |placement, zones: &[&str]| {
        let spec = GangSpec { bundles: bundles(zones), ..on(placement, gang(zones.len() as u32, 1, NoGpu)) };
        world().placed(spec)
    };
    assert_eq!(ask(Placement::Pack, &["y", "x", "y"]), ["b", "a", "b"]);
    assert_eq!(ask(Placement::Pack, &["", "", "x", "x"]), ["b", "b", "a", "a"]);
    assert_eq!(ask(Placement::Pack, &["", "x"]), ["a", "a"]);
    assert_eq!(ask(Placement::Spread, &["", "x"]), ["b", "a"]);
    assert_eq!(ask(Placement::StrictSpread, &["", "y"]), ["a", "b"]);
    assert_eq!(ask(Placement::StrictPack, &["", "y"]), ["b", "b"]);
    assert!(ask(Placement::StrictPack, &["x", "y"]).is_empty());
    assert!(ask(Placement::Pack, &["x", "x", "x"]).is_empty());
    assert!(ask(Placement::StrictSpread, &["x", "x"]).is_empty());
    let mut world = world();
    let job = world.submit(GangSpec { bundles: bundles(&["x", "z"]), ..gang(2, 1, NoGpu) });
    let (code, text) = world.reason(job);
    assert_eq!(code, ReasonCode::NoMatchingLabel);
    assert!(text.contains("rank 1 asks for a node with zone = z") && text.contains("x, y"), "{text}");
}

#[test]
fn topology_keeps_a_gang_in_one_domain_and_the_largest_free() {
    let world = || {
        World::default()
            .labelled("r1a", 4, 0, &[("rack", "r1")])
            .labelled("r1b", 4, 0, &[("rack", "r1")])
            .labelled("r2a", 4, 0, &[("rack", "r2")])
            .node("none", 64, 0)
    };
    let racked = |workers| GangSpec { topology: Some("rack".into()), ..gang(workers, 1, NoGpu) };
    assert_eq!(world().placed(racked(3)), ["r2a"; 3]);
    assert_eq!(world().placed(racked(8)), [["r1a"; 4], ["r1b"; 4]].concat());
    let mut world = world();
    let job = world.submit(racked(9));
    let (code, text) = world.reason(job);
    assert_eq!(code, ReasonCode::NoTopologyDomain);
    assert!(text.contains("rack = r1") && text.contains("room for 8"), "{text}");
    let job = world.submit(GangSpec { topology: Some("pod".into()), ..gang(1, 1, NoGpu) });
    assert_eq!(world.reason(job).0, ReasonCode::NoTopologyDomain);
}

#[test]
fn an_elastic_gang_starts_with_the_most_that_fits() {
    let mut world = World::default().node("a", 5, 0);
    let elastic = |min, max| GangSpec { workers: Workers { min, max }, ..gang(1, 1, NoGpu) };
    assert_eq!(world.placed(elastic(1, 4)).len(), 4);
    assert_eq!(world.placed(elastic(2, 4)).len(), 0);
    world.queue = Queue::new();
    assert_eq!(world.placed(elastic(1, 4)).len(), 1);
}

#[test]
fn higher_priority_then_earlier_submission_goes_first() {
    let mut world = World::default().node("a", 1, 0);
    let low = world.submit(gang(1, 1, NoGpu));
    let first = world.submit_with(gang(1, 1, NoGpu), |pending| pending.priority = 5);
    let second = world.submit_with(gang(1, 1, NoGpu), |pending| pending.priority = 5);
    let mut order = Vec::new();
    for _ in 0..3 {
        let plan = world.step();
        order.push(plan.placements[0].0);
        world.cluster.release(attempt(plan.placements[0].0));
    }
    assert_eq!(order, [first, second, low]);
}

#[test]
fn losing_the_resources_to_a_higher_priority_is_a_reason_of_its_own() {
    let mut world = World::default().node("a", 1, 0);
    let low = world.submit(gang(1, 1, NoGpu));
    world.submit_with(gang(1, 1, NoGpu), |pending| pending.priority = 5);
    assert_eq!(world.reason(low).0, ReasonCode::WaitingPriority);
    world.step();
    assert_eq!(world.reason(low).0, ReasonCode::WaitingResources);
}

#[test]
fn passing_is_bounded_and_only_what_the_first_could_use_is_kept() {
    let mut world = World::default().node("a", 4, 2).node("c", 4, 0);
    world.queue = Queue::with_policy(Policy { max_bypass: 3, ..Policy::default() });
    let long = world.submit(gang(1, 1, Whole(1)));
    world.step();
    let head = world.submit(gang(1, 1, Whole(2)));
    for _ in 0..3 {
        let job = world.submit(gang(1, 1, Whole(1)));
        assert_eq!(world.step().placements.len(), 1, "may still pass");
        world.cluster.release(attempt(job));
    }
    let late = world.submit(gang(1, 1, Whole(1)));
    assert!(world.step().placements.is_empty());
    let (code, text) = world.reason(late);
    assert_eq!(code, ReasonCode::HeldForReservation);
    assert!(text.contains(&head.to_string()), "{text}");
    assert_eq!(world.placed(gang(1, 1, NoGpu)), ["c"], "what the head cannot use is free for all");
    world.cluster.release(attempt(long));
    assert_eq!(world.step().placements[0].0, head);
}

#[test]
fn cpus_of_a_gpu_node_pass_a_kept_head_as_far_as_it_does_not_need_them() {
    let mut world = World::default().node("a", 4, 1);
    world.queue = Queue::with_policy(Policy { max_bypass: 0, ..Policy::default() });
    world.submit(gang(1, 1, Whole(1)));
    world.step();
    world.submit(gang(1, 1, Whole(1)));
    assert_eq!(world.placed(gang(1, 2, NoGpu)), ["a"]);
    assert!(world.placed(gang(1, 1, NoGpu)).is_empty(), "the head needs one CPU beside its GPU");
}

#[test]
fn infeasible_gangs_are_parked_until_a_node_makes_them_possible() {
    let mut world = World::default().node("a", 4, 1);
    let job = world.submit(gang(1, 1, Whole(2)));
    let (code, text) = world.reason(job);
    assert_eq!(code, ReasonCode::Infeasible);
    assert!(text.contains("2 GPU") && text.contains("the largest node, a, has 1 GPU"), "{text}");
    assert_eq!(world.placed(gang(1, 1, Whole(1))), ["a"], "a parked gang holds nobody up");
    world.cluster.set_node(name("b"), capacity(4, 2, &[]));
    assert_eq!(world.step().placements[0].0, job);
}

#[test]
fn check_names_what_is_missing() {
    let world = World::default().node("a", 4, 1);
    let check = |gang: GangSpec| check(&world.cluster, &gang).map_err(|reason| (reason.code, reason.text));
    assert_eq!(check(gang(1, 1, Whole(1))), Ok(()));
    let mut odd = gang(1, 1, NoGpu);
    odd.each.custom.insert("license".into(), 1000);
    let (code, text) = check(odd).unwrap_err();
    assert_eq!(code, ReasonCode::Infeasible);
    assert!(text.contains("`license`"), "{text}");
    let (code, text) =
        check(GangSpec { labels: rule("zone", one_of(&["x"])), ..gang(1, 1, NoGpu) }).unwrap_err();
    assert_eq!(code, ReasonCode::NoMatchingLabel);
    assert!(text.contains("zone = x") && text.contains("no node has `zone`"), "{text}");
    let empty = crate::check(&Cluster::new(), &gang(1, 1, NoGpu)).unwrap_err();
    assert!(empty.text.contains("no nodes"), "{}", empty.text);
    let mut huge = gang(65_536, 1, Whole(65_536));
    huge.each.memory_bytes = u64::MAX;
    assert!(check(huge).is_err(), "nothing overflows");
}

#[test]
fn a_reason_says_what_is_asked_what_is_free_what_binds_who_holds_and_its_place() {
    let mut world = World::default().node("a", 16, 4);
    world.submit_with(gang(1, 2, Whole(3)), |pending| pending.label = "bert".into());
    world.step();
    let waiting = world.submit(gang(2, 1, Whole(2)));
    let plan = world.plan();
    let reason = &plan.reasons[0].1;
    for part in [
        "asks for 2 workers with 1 CPU, 2 GPU each (4 GPU, 2 CPU in all)",
        "a 1 of 4 GPU, 14 of 16 CPU",
        "GPU binds: 4 GPU asked, 1 GPU free, room for 0 of 2 workers",
        "held by bert (3 GPU)",
        "first in the queue",
    ] {
        assert!(reason.text.contains(part), "`{part}` is not in: {}", reason.text);
    }
    assert_eq!((reason.place, &reason.holders), (Some(1), &vec![JobId(1)]));
    assert_eq!(explain(&world.cluster, &world.queue, waiting).as_ref(), Some(reason));
    assert_eq!(explain(&world.cluster, &world.queue, JobId(99)), None);
}

#[test]
fn drained_nodes_and_quarantined_devices_take_no_new_work() {
    let mut world = World::default().node("a", 4, 2);
    world.cluster.quarantine(&name("a"), 0);
    let job = world.submit(gang(1, 1, Whole(1)));
    world.step();
    assert_eq!(world.gpus_of(job), [[1]]);
    let waiting = world.submit(gang(1, 1, Share(100)));
    assert_eq!(world.reason(waiting).0, ReasonCode::WaitingResources);
    world.cluster.unquarantine(&name("a"), 0);
    world.cluster.set_schedulable(&name("a"), false);
    assert!(world.step().placements.is_empty());
    world.cluster.set_schedulable(&name("a"), true);
    assert_eq!(world.step().placements[0].0, waiting);
}

#[test]
fn a_device_comes_back_node_by_node() {
    let mut world = World::default().node("a", 1, 1).node("b", 1, 1);
    let job = world.submit(on(Placement::StrictSpread, gang(2, 1, Whole(1))));
    world.step();
    world.cluster.release_on(attempt(job), &name("b"));
    world.cluster.release_on(attempt(job), &name("b"));
    assert_eq!(world.cluster.bundles(attempt(job)).len(), 1);
    assert_eq!(world.placed(gang(1, 1, Whole(1))), ["b"]);
    world.cluster.release(attempt(job));
    world.cluster.release(attempt(job));
    assert!(world.cluster.holder(attempt(job)).is_none());
}

#[test]
fn a_lost_node_takes_its_holdings_along_and_comes_back_empty() {
    let mut world = World::default().node("a", 2, 0).node("b", 2, 0);
    let job = world.submit(gang(4, 1, NoGpu));
    world.step();
    assert_eq!(world.cluster.remove_node(&name("a")), [attempt(job)]);
    assert!(world.cluster.remove_node(&name("a")).is_empty());
    assert_eq!(world.cluster.bundles(attempt(job)).len(), 2);
    world.cluster.set_node(name("a"), capacity(2, 0, &[]));
    assert_eq!(world.placed(gang(2, 1, NoGpu)), ["a"; 2]);
}

#[test]
fn a_node_that_rejoins_keeps_the_holdings_it_has_room_for() {
    let mut world = World::default().node("a", 4, 0);
    let (one, two) = (world.submit(gang(1, 1, NoGpu)), world.submit(gang(1, 3, NoGpu)));
    world.step();
    assert!(world.cluster.set_node(name("a"), capacity(6, 1, &[])).is_empty());
    assert_eq!(world.cluster.nodes().next().unwrap().cpus_free, Cpus::from_cores(2));
    assert_eq!(world.cluster.set_node(name("a"), capacity(2, 0, &[])), [attempt(two)]);
    assert_eq!(world.cluster.bundles(attempt(one)).len(), 1);
}

#[test]
fn holdings_are_restored_whole_or_refused() {
    let mut world = World::default().node("a", 4, 1);
    let job = world.submit(gang(2, 1, NoGpu));
    world.step();
    let bundles: Vec<_> = world.cluster.bundles(attempt(job)).into_iter().cloned().collect();
    let holder = world.cluster.holder(attempt(job)).unwrap().clone();
    let refused = world.cluster.hold(attempt(job), holder.clone(), &bundles);
    assert_eq!(refused, Err(HoldError::Twice { attempt: attempt(job) }));
    let mut fresh = World::default().node("a", 1, 1).cluster;
    assert!(matches!(fresh.hold(attempt(job), holder.clone(), &bundles), Err(HoldError::NotFree { .. })));
    assert_eq!(
        fresh.nodes().next().unwrap().cpus_free,
        Cpus::from_cores(1),
        "a refused holding gives all back"
    );
    let refused = Cluster::new().hold(attempt(job), holder, &bundles);
    assert!(matches!(refused, Err(HoldError::UnknownNode { .. })));
}
