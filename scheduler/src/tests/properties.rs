//! What holds for every cluster and every queue.

use super::*;
use proptest::prelude::*;
use proptest::sample::select;

fn gangs() -> impl Strategy<Value = GangSpec> {
    let gpus = select(vec![NoGpu, NoGpu, Whole(1), Whole(2), Whole(4), Share(250), Share(600)]);
    let placement =
        select(vec![Placement::Pack, Placement::Spread, Placement::StrictPack, Placement::StrictSpread]);
    let zones = select(vec!["", "", "x", "y"]);
    let per_rank = select(vec![false, false, false, true]);
    let topology = select(vec![None, None, None, Some("zone".to_owned())]);
    (1u32..6, 0u32..3, 0u32..4, gpus, placement, zones, per_rank, topology).prop_map(
        |(min, more, cpus, gpus, placement, zone, per_rank, topology)| {
            let labels = if zone.is_empty() { BTreeMap::new() } else { rule("zone", one_of(&[zone])) };
            let mut spec = on(placement, gang(min, cpus, gpus));
            spec.workers.max = min + more;
            spec.topology = topology;
            if per_rank {
                spec.bundles = (0..spec.workers.max)
                    .map(|rank| BundleSpec {
                        labels: if rank == 0 { labels.clone() } else { BTreeMap::new() },
                    })
                    .collect();
            } else {
                spec.labels = labels;
            }
            spec
        },
    )
}

fn nodes() -> impl Strategy<Value = Vec<Capacity>> {
    let node = (1u32..9, select(vec![0u32, 0, 1, 2, 4]), select(vec!["", "x", "y"]));
    let node = node.prop_map(|(cpus, gpus, zone)| {
        let labels = [("zone", zone)];
        capacity(cpus, gpus, if zone.is_empty() { &[] } else { &labels })
    });
    prop::collection::vec(node, 1..6)
}

fn world(nodes: Vec<Capacity>) -> World {
    let mut world = World::default();
    for (at, node) in nodes.into_iter().enumerate() {
        world.cluster.set_node(name(&format!("n{at}")), node);
    }
    world
}

/// Every rule that a placement must keep, checked against the capacities alone.
fn assert_sound(cluster: &Cluster, spec: &GangSpec, job: JobId) {
    let bundles = cluster.bundles(attempt(job));
    let count = bundles.len() as u32;
    assert!((spec.workers.min..=spec.workers.max).contains(&count), "{count} ranks of {:?}", spec.workers);
    assert!(bundles.iter().enumerate().all(|(at, bundle)| bundle.rank == at as u32), "ranks count from 0");
    let used: BTreeSet<&NodeName> = bundles.iter().map(|bundle| &bundle.node).collect();
    match spec.placement {
        Placement::StrictPack => assert_eq!(used.len(), 1),
        Placement::StrictSpread => assert_eq!(used.len(), bundles.len()),
        Placement::Pack | Placement::Spread => {}
    }
    let labels = |node: &NodeName| &cluster.nodes().find(|view| view.name == node).unwrap().capacity.labels;
    let mut devices = BTreeSet::new();
    for bundle in &bundles {
        let node = labels(&bundle.node);
        let own = spec.bundles.get(bundle.rank as usize).map(|own| &own.labels);
        for (key, rule) in spec.labels.iter().chain(own.into_iter().flatten()) {
            assert!(rule.matches(node.get(key).map(String::as_str)), "{key} on {}", bundle.node);
        }
        let shares: u64 = bundle.gpus.iter().map(|share| u64::from(share.shares)).sum();
        assert_eq!(shares, spec.each.gpus.shares());
        assert_eq!(bundle.gpus.len() as u32, spec.each.gpus.devices());
        for share in &bundle.gpus {
            assert!(devices.insert((&bundle.node, share.index)), "two ranks share a device");
        }
    }
    if let Some(key) = &spec.topology {
        let values: BTreeSet<_> = used.iter().map(|node| labels(node).get(key)).collect();
        assert!(values.len() == 1 && !values.contains(&None), "{values:?}");
    }
}

/// Whether any assignment exists, by trying all.
fn fits_by_search(nodes: &[Capacity], spec: &GangSpec) -> bool {
    fn room(node: &Capacity, spec: &GangSpec) -> u32 {
        let cpus = node.cpus.milli().checked_div(spec.each.cpus.milli()).unwrap_or(99) as u32;
        match spec.each.gpus {
            NoGpu => cpus,
            Whole(devices) => cpus.min(node.devices.len() as u32 / devices),
            Share(_) => cpus.min(node.devices.len() as u32),
        }
    }
    fn go(
        rank: usize,
        left: &mut Vec<u32>,
        used: &mut Vec<usize>,
        nodes: &[Capacity],
        spec: &GangSpec,
    ) -> bool {
        if rank == spec.workers.min as usize {
            return true;
        }
        for at in 0..nodes.len() {
            let label = |node: &Capacity, key: &str| node.labels.get(key).cloned();
            let own = spec.bundles.get(rank).map(|own| &own.labels);
            let mut rules = spec.labels.iter().chain(own.into_iter().flatten());
            let first = used.first().copied().unwrap_or(at);
            let allowed = rules.all(|(key, rule)| rule.matches(label(&nodes[at], key).as_deref()))
                && (spec.placement != Placement::StrictPack || first == at)
                && (spec.placement != Placement::StrictSpread || !used.contains(&at))
                && spec.topology.as_ref().is_none_or(|key| {
                    label(&nodes[at], key).is_some() && label(&nodes[at], key) == label(&nodes[first], key)
                });
            if !allowed || left[at] == 0 {
                continue;
            }
            left[at] -= 1;
            used.push(at);
            let found = go(rank + 1, left, used, nodes, spec);
            used.pop();
            left[at] += 1;
            if found {
                return true;
            }
        }
        false
    }
    let mut left: Vec<u32> = nodes.iter().map(|node| room(node, spec)).collect();
    go(0, &mut left, &mut Vec::new(), nodes, spec)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn placements_are_sound_and_a_plan_on_its_result_is_empty(
        nodes in nodes(), gangs in prop::collection::vec(gangs(), 1..12), ends in prop::collection::vec(any::<bool>(), 12)
    ) {
        let mut world = world(nodes);
        let mut specs = BTreeMap::new();
        let mut told = BTreeSet::new();
        for (spec, end) in gangs.into_iter().zip(ends) {
            let job = world.submit(spec.clone());
            specs.insert(job, spec);
            let before: Vec<String> = world.cluster.nodes().map(|view| format!("{view:?}")).collect();
            let plan = world.plan();
            let after: Vec<String> = world.cluster.nodes().map(|view| format!("{view:?}")).collect();
            prop_assert_eq!(before, after, "a plan leaves the cluster as it was");
            for (waiting, _) in &plan.reasons {
                told.insert(*waiting);
            }
            prop_assert_eq!(&plan.placements, &world.plan().placements, "the same state gives the same plan");
            let mut cold = world.fresh_queue();
            let cold = crate::plan(Time::ZERO, &mut world.cluster, &mut cold);
            prop_assert_eq!(&plan.placements, &cold.placements, "what is remembered changes no decision");
            prop_assert_eq!(cold.reasons.len() + cold.placements.len(), world.queue.len(), "who waits has a reason");
            let planned = world.step();
            prop_assert_eq!(&planned.placements, &plan.placements);
            for (job, _) in &planned.placements {
                assert_sound(&world.cluster, &specs[job], *job);
            }
            let again = world.plan();
            prop_assert!(again.placements.is_empty());
            prop_assert!(world.queue.iter().all(|pending| told.contains(&pending.job)), "whoever waits was told why");
            if let (true, Some((job, _))) = (end, planned.placements.first()) {
                world.cluster.release(attempt(*job));
            }
        }
    }

    #[test]
    fn an_empty_cluster_takes_exactly_what_an_exhaustive_search_finds(nodes in nodes(), spec in gangs()) {
        let mut world = world(nodes.clone());
        let fits = fits_by_search(&nodes, &spec);
        prop_assert_eq!(check(&world.cluster, &spec).is_ok(), fits);
        prop_assert_eq!(!world.placed(spec).is_empty(), fits);
    }

    #[test]
    fn releasing_everything_gives_everything_back(
        nodes in nodes(), gangs in prop::collection::vec(gangs(), 1..12), lost in 0usize..6
    ) {
        let mut world = world(nodes);
        let empty: Vec<String> = world.cluster.nodes().map(|view| format!("{view:?}")).collect();
        let jobs: Vec<JobId> = gangs.into_iter().map(|spec| world.submit(spec)).collect();
        world.step();
        let gone = name(&format!("n{lost}"));
        let back = world.cluster.nodes().find(|view| *view.name == gone).map(|view| view.capacity.clone());
        world.cluster.remove_node(&gone);
        for job in jobs {
            world.cluster.release(attempt(job));
        }
        if let Some(capacity) = back {
            world.cluster.set_node(gone, capacity);
        }
        prop_assert_eq!(world.cluster.nodes().map(|view| format!("{view:?}")).collect::<Vec<_>>(), empty);
    }
}
