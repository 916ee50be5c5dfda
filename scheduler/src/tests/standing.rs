//! Standing groups: their parts of nodes as ground of their own, and what they lose.

use super::{NoGpu, Share, Whole, World, attempt, gang, name, on, one_of, rule};
use crate::{Bundle, Holder, Pending, Policy, Standing, check, plan};
use phalanx_core::spec::GangSpec;
use phalanx_core::{AttemptId, JobId, NodeName, Placement, Time};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Places a group in the world and makes it stand.
pub(super) fn stand(world: &mut World, gang: GangSpec) -> (JobId, Standing) {
    let job = world.submit(gang.clone());
    world.step();
    let bundles: Vec<Bundle> = world.cluster.bundles(attempt(job)).into_iter().cloned().collect();
    assert!(!bundles.is_empty(), "the group is not placed");
    let mut standing = Standing::new(Arc::new(gang), Policy::default());
    assert!(standing.seat(&world.cluster, bundles).is_empty());
    (job, standing)
}

/// Lets a gang into a group's own queue and starts it where it fits.
pub(super) fn run_in(standing: &mut Standing, number: u64, gang: GangSpec) -> Option<Vec<Bundle>> {
    standing.queue.insert(Pending::new(JobId(number), Time::ZERO, number, gang));
    let placed = plan(Time::ZERO, &mut standing.cluster, &mut standing.queue).placements.pop();
    placed.map(|(job, bundles)| {
        let pending = standing.queue.start(job).unwrap();
        standing.cluster.hold(attempt(job), Holder::new(&pending, Time::ZERO), &bundles).unwrap();
        bundles
    })
}

fn nodes(bundles: &[Bundle]) -> Vec<&str> {
    bundles.iter().map(|bundle| bundle.node.as_str()).collect()
}

#[test]
fn gangs_run_within_what_the_group_holds_and_wait_for_room_with_a_reason() {
    let mut world = World::default().node("a", 4, 0).node("b", 4, 0);
    let (_, mut standing) = stand(&mut world, on(Placement::StrictSpread, gang(2, 2, NoGpu)));
    assert_eq!(nodes(&run_in(&mut standing, 10, gang(2, 1, NoGpu)).unwrap()).len(), 2);
    assert!(run_in(&mut standing, 11, gang(2, 1, NoGpu)).is_some());
    assert!(
        run_in(&mut standing, 12, gang(1, 1, NoGpu)).is_none(),
        "the nodes have room, the group has none"
    );
    let reason = crate::explain(&standing.cluster, &standing.queue, JobId(12)).unwrap();
    assert_eq!(reason.code, crate::ReasonCode::WaitingResources);
    assert!(reason.text.contains("1 CPU"), "{}", reason.text);
    standing.cluster.release(attempt(JobId(10)));
    let placed = plan(Time::ZERO, &mut standing.cluster, &mut standing.queue).placements;
    assert_eq!(placed[0].0, JobId(12));
    // Around the group nothing of this is seen.
    assert_eq!(world.cluster.nodes().map(|node| node.cpus_free.milli()).collect::<Vec<_>>(), [2000, 2000]);
}

#[test]
fn what_can_never_fit_in_a_group_is_refused_with_numbers() {
    let mut world = World::default().node("a", 8, 2);
    let group = gang(2, 2, Whole(1));
    let fresh = Standing::new(Arc::new(group.clone()), Policy::default());
    let (_, standing) = stand(&mut world, group);
    for ground in [&fresh, &standing] {
        assert!(ground.check(&gang(2, 2, Whole(1))).is_ok());
        let refused = ground.check(&gang(3, 2, NoGpu)).unwrap_err();
        assert!(refused.text.contains("4 CPU"), "{}", refused.text);
        assert!(ground.check(&gang(1, 1, Whole(3))).is_err());
    }
    assert!(check(&world.cluster, &gang(3, 2, NoGpu)).is_ok(), "the node itself is large enough");
}

#[test]
fn a_group_of_shares_has_no_whole_device() {
    let mut world = World::default().node("a", 8, 1);
    let (_, mut standing) = stand(&mut world, gang(1, 1, Share(500)));
    let mut tiny = gang(1, 0, Share(300));
    tiny.each.cpus = phalanx_core::Cpus::from_milli(100);
    assert!(standing.check(&gang(1, 1, Whole(1))).is_err());
    assert!(standing.check(&gang(1, 1, Share(600))).is_err());
    assert!(run_in(&mut standing, 10, tiny.clone()).is_some());
    assert!(run_in(&mut standing, 11, tiny).is_none(), "200 of 500 shares are left");
}

#[test]
fn only_lost_bundles_are_asked_for_again_and_keep_their_ranks() {
    let mut world = World::default().node("a", 2, 0).node("b", 2, 0).node("c", 2, 0);
    let (group, mut standing) = stand(&mut world, on(Placement::StrictSpread, gang(2, 2, NoGpu)));
    let lost: NodeName = world.cluster.bundles(attempt(group))[1].node.clone();
    world.cluster.set_schedulable(&lost, false);
    assert!(standing.lose(&lost) && !standing.lose(&lost));
    assert_eq!(standing.missing(), [1]);
    let again = standing.missing_gang(&world.cluster);
    assert_eq!(again.workers.max, 1);
    let job = world.submit_with(again, |pending| pending.first = true);
    let placed = world.step().placements.pop().unwrap();
    assert_eq!(placed.0, job);
    let seated = standing.as_missing(placed.1);
    let kept = world.cluster.bundles(attempt(group))[0].node.clone();
    assert!(seated[0].rank == 1 && seated[0].node != lost && seated[0].node != kept, "{seated:?}");
    standing.seat(&world.cluster, seated);
    assert!(standing.missing().is_empty());
    assert!(run_in(&mut standing, 10, gang(2, 2, NoGpu)).is_some(), "the group is whole again");
}

#[test]
fn a_lost_bundle_stays_in_the_groups_topology_domain() {
    let mut world = World::default()
        .labelled("a", 2, 0, &[("rack", "x")])
        .labelled("b", 2, 0, &[("rack", "x")])
        .labelled("c", 2, 0, &[("rack", "y")])
        .labelled("d", 1, 0, &[("rack", "x")]);
    let group = GangSpec { topology: Some("rack".into()), ..gang(2, 2, NoGpu) };
    let (_, mut standing) = stand(&mut world, group);
    world.cluster.set_schedulable(&name("a"), false);
    standing.lose(&name("a"));
    let again = standing.missing_gang(&world.cluster);
    assert!(world.placed(again).is_empty(), "only rack y has room");
}

#[test]
fn what_a_group_lost_goes_ahead_of_everything_that_waits() {
    let mut world = World::default().node("a", 4, 0);
    let filler = world.submit(gang(1, 4, NoGpu));
    world.step();
    let urgent = world.submit_with(gang(1, 4, NoGpu), |pending| pending.priority = 100);
    world.step();
    let repair = world.submit_with(gang(1, 4, NoGpu), |pending| pending.first = true);
    // While it waits nobody passes it, however small.
    world.cluster.set_node(name("b"), super::capacity(3, 0, &[]));
    let large = world.submit_with(gang(1, 4, NoGpu), |pending| pending.priority = 50);
    assert!(world.step().placements.is_empty());
    world.cluster.release(attempt(filler));
    let placed: Vec<JobId> = world.step().placements.into_iter().map(|(job, _)| job).collect();
    assert_eq!(placed, [repair]);
    world.cluster.release(attempt(repair));
    assert_eq!(world.step().placements[0].0, urgent);
    assert!(world.queue.get(large).is_some());
}

#[test]
fn nobody_takes_what_could_serve_a_lost_bundle() {
    let mut world = World::default().node("a", 4, 0);
    world.submit(gang(1, 2, NoGpu));
    world.step();
    let repair = world.submit_with(gang(1, 4, NoGpu), |pending| pending.first = true);
    let small = world.submit(gang(1, 1, NoGpu));
    assert!(world.step().placements.is_empty(), "the free CPUs are kept for the lost bundle");
    assert_eq!(world.reason(small).0, crate::ReasonCode::HeldForReservation);
    world.queue.remove(repair);
    assert_eq!(world.step().placements[0].0, small);
}

#[test]
fn every_node_has_its_name_as_a_label() {
    let mut world = World::default().node("a", 2, 0).node("b", 2, 0);
    let pinned = GangSpec { labels: rule("node", one_of(&["b"])), ..gang(2, 1, NoGpu) };
    assert_eq!(world.placed(pinned), ["b", "b"]);
}

/// Whatever is lost, seated and run: nothing is held twice, and the group ends as large as it was asked for.
#[test]
fn groups_keep_their_size_through_losses() {
    for seed in 0..200_u64 {
        let mut state = seed;
        let mut roll = |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % bound
        };
        let names: Vec<NodeName> = (0..6).map(|at| name(&format!("n{at}"))).collect();
        let mut world = names.iter().fold(World::default(), |world, node| world.node(node.as_str(), 4, 2));
        let placement = [Placement::Pack, Placement::Spread, Placement::StrictSpread][roll(3) as usize];
        let count = 2 + roll(3) as u32;
        let each = [NoGpu, Share(500), Whole(1)][roll(3) as usize];
        let (group, mut standing) = stand(&mut world, on(placement, gang(count, 1 + roll(2) as u32, each)));
        let mut round = 1;
        for step in 0..8_u64 {
            let _ = run_in(&mut standing, 100 + step, gang(1 + roll(2) as u32, 1, NoGpu));
            let lost = &names[roll(6) as usize];
            world.cluster.set_schedulable(lost, false);
            for number in 1..=round {
                world.cluster.release_on(AttemptId { job: group, number }, lost);
            }
            standing.lose(lost);
            standing.cluster.nodes().for_each(|node| assert!(node.cpus_free <= node.capacity.cpus));
            if !standing.missing().is_empty() {
                let again = standing.missing_gang(&world.cluster);
                let mut pending = Pending::new(group, Time::ZERO, group.0, again);
                pending.first = true;
                world.queue.insert(pending);
                let placed = plan(Time::ZERO, &mut world.cluster, &mut world.queue).placements.pop();
                let (_, bundles) = placed.unwrap_or_else(|| panic!("seed {seed}: five nodes have room"));
                let pending = world.queue.start(group).unwrap();
                let bundles = standing.as_missing(bundles);
                round += 1;
                let holder = Holder::new(&pending, Time::ZERO);
                world.cluster.hold(AttemptId { job: group, number: round }, holder, &bundles).unwrap();
                standing.seat(&world.cluster, bundles);
            }
            assert!(standing.missing().is_empty(), "seed {seed}");
            world.cluster.set_schedulable(lost, true);
            let held: Vec<&Bundle> = (1..=round)
                .flat_map(|number| world.cluster.bundles(AttemptId { job: group, number }))
                .collect();
            assert_eq!(held.len(), count as usize, "seed {seed}");
            assert_eq!(
                held.iter().map(|b| b.rank).collect::<BTreeSet<_>>().len(),
                count as usize,
                "seed {seed}"
            );
            if placement == Placement::StrictSpread {
                let spread: BTreeSet<&NodeName> = held.iter().map(|bundle| &bundle.node).collect();
                assert_eq!(spread.len(), count as usize, "seed {seed}");
            }
            let part: u64 = standing.cluster.nodes().map(|node| node.capacity.cpus.milli()).sum();
            assert_eq!(part, held.iter().map(|b| b.takes.cpus.milli()).sum::<u64>(), "seed {seed}");
        }
    }
}
