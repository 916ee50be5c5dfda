//! Which devices a gang gets by how they are linked.

use super::*;
use phalanx_core::{Device, Links};

/// A node whose devices are linked as a preset says.
fn linked(world: World, node: &str, gpus: u32, preset: &str) -> World {
    let mut world = world;
    let links = Links::preset(preset, gpus as usize).unwrap();
    world.cluster.set_node(name(node), Capacity { links, ..capacity(64, gpus, &[]) });
    world
}

/// Submits a gang and says which devices each rank gets.
fn devices(world: &mut World, gang: GangSpec) -> Vec<Vec<u32>> {
    let job = world.submit(gang);
    world.step();
    world.gpus_of(job)
}

#[test]
fn a_gang_gets_the_set_that_is_linked_best() {
    let mut world = linked(World::default(), "a", 8, "pairs");
    assert_eq!(devices(&mut world, gang(1, 1, Whole(1))), [[0]]);
    assert_eq!(devices(&mut world, gang(1, 1, Whole(2))), [[2, 3]], "not 1, whose pair is in use");
    assert_eq!(devices(&mut world, gang(1, 1, Whole(1))), [[1]], "not half of a whole pair");
    assert_eq!(devices(&mut world, gang(2, 1, Whole(1))), [[4], [5]], "ranks of one gang are linked too");
    let mut world = linked(World::default(), "a", 8, "pcie");
    devices(&mut world, gang(1, 1, Whole(2)));
    assert_eq!(devices(&mut world, gang(1, 1, Whole(4))), [[4, 5, 6, 7]], "one switch before two sockets");
}

#[test]
fn every_rank_has_devices_of_one_island() {
    let odd = Links::from_pairs(4, |a, b| {
        if a % 2 == b % 2 { phalanx_core::Link::NvLink(4) } else { phalanx_core::Link::Sys }
    });
    let mut world = World::default();
    world.cluster.set_node(name("a"), Capacity { links: odd, ..capacity(64, 4, &[]) });
    assert_eq!(devices(&mut world, gang(2, 1, Whole(2))), [[0, 2], [1, 3]]);
}

#[test]
fn of_nodes_that_fit_as_well_the_one_with_the_better_links() {
    let worlds = || linked(linked(World::default(), "a", 2, "pcie"), "b", 2, "nvswitch");
    assert_eq!(worlds().placed(gang(1, 1, Whole(2))), ["b"]);
    assert_eq!(worlds().placed(gang(2, 1, Whole(1))), ["b", "b"]);
    assert_eq!(worlds().placed(gang(1, 1, Whole(1))), ["a"], "one device has no links");
    let mut tighter = linked(linked(World::default(), "a", 4, "pairs"), "b", 8, "nvswitch");
    assert_eq!(tighter.placed(gang(1, 1, Whole(4))), ["a"], "whole nodes stay whole before links count");
}

#[test]
fn a_share_of_a_fresh_device_tears_no_island() {
    let mut world = linked(World::default(), "a", 4, "pairs");
    devices(&mut world, gang(1, 1, Whole(1)));
    assert_eq!(devices(&mut world, gang(1, 1, Share(500))), [[1]]);
    assert_eq!(devices(&mut world, gang(1, 1, Share(600))), [[2]]);
    assert_eq!(devices(&mut world, gang(2, 1, Share(100))), [[2], [1]], "the fullest that still fit");
}

#[test]
fn a_standing_group_keeps_the_links_of_what_it_holds() {
    let mut world = linked(World::default(), "a", 8, "pairs");
    let (_, mut group) = super::standing::stand(&mut world, gang(4, 1, Whole(1)));
    assert_eq!(group.cluster.nodes().next().unwrap().capacity.links, Links::preset("pairs", 4).unwrap());
    let mut given = |number, gpus| {
        let bundles = super::standing::run_in(&mut group, number, gang(1, 1, gpus)).unwrap();
        bundles[0].gpus.iter().map(|share| share.index).collect::<Vec<_>>()
    };
    assert_eq!((given(50, Whole(1)), given(51, Whole(2))), (vec![0], vec![2, 3]));
}

#[test]
fn mig_instances_are_devices_of_their_own_and_one_a_worker() {
    let instance = |index| Device {
        index,
        uuid: format!("MIG-{index}"),
        name: "H100 MIG 1g.10gb".into(),
        memory_bytes: 10 << 30,
    };
    let mut world = World::default();
    let split = Capacity { devices: (0..7).map(instance).collect(), ..capacity(64, 0, &[]) };
    world.cluster.set_node(name("split"), split);
    assert_eq!(devices(&mut world, gang(3, 1, Whole(1))), [[0], [1], [2]]);
    let two = gang(1, 1, Whole(2));
    let reason = check(&world.cluster, &two).unwrap_err();
    assert!(reason.text.contains("MIG instances are used one a worker"), "{}", reason.text);
    world.cluster.set_node(name("whole"), capacity(64, 2, &[]));
    assert_eq!(world.placed(two), ["whole"], "several for one worker are whole GPUs");
    assert_eq!(world.placed(gang(4, 1, Whole(1))), ["split"; 4]);
}
