//! One node: what it has, what is free of it, who holds the rest.

use crate::bundle::Bundle;
use crate::devices::{Linkage, best_linked, linkage};
use phalanx_core::resources::{Capacity, Device, WHOLE};
use phalanx_core::spec::{GangSpec, LabelRule};
use phalanx_core::{AttemptId, DeviceShare, GpuRequest, NodeName, Rank, Resources};
use std::collections::BTreeMap;

const WHOLE_SHARE: u16 = WHOLE as u16;
/// The label that every node has: its name.
pub(crate) const NODE_LABEL: &str = "node";

/// A device's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceState {
    /// Its index on the node.
    pub(crate) index: u32,
    /// Thousandths of it that are there at all: fewer than a whole where the node is part of another.
    pub(crate) total: u16,
    /// Thousandths nobody holds.
    pub(crate) free: u16,
    /// Not given out, whatever is free of it.
    pub(crate) quarantined: bool,
    /// A MIG instance: a process sees no second one beside it.
    pub(crate) instance: bool,
}

/// A node that stands.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) name: NodeName,
    pub(crate) capacity: Capacity,
    pub(crate) schedulable: bool,
    pub(crate) cpus_free: u64,
    pub(crate) memory_free: u64,
    pub(crate) custom_free: BTreeMap<String, u64>,
    pub(crate) devices: Vec<DeviceState>,
    /// Devices that are wholly free and not quarantined.
    pub(crate) whole_free: u32,
    /// What each attempt holds here.
    pub(crate) held: BTreeMap<AttemptId, Vec<Bundle>>,
}

/// Resources of a node that a gang may not touch because another one is to have them, or that will be given back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) cpus: u64,
    pub(crate) memory: u64,
    pub(crate) custom: BTreeMap<String, u64>,
    /// Shares by position in the node's list of devices; none beyond its end.
    devices: Vec<u16>,
}

impl Kept {
    /// Keeps for both: one after the other they may have it all.
    pub(crate) fn add(&mut self, other: Kept) {
        self.cpus = self.cpus.saturating_add(other.cpus);
        self.memory = self.memory.saturating_add(other.memory);
        for (name, milli) in other.custom {
            let slot = self.custom.entry(name).or_insert(0);
            *slot = slot.saturating_add(milli);
        }
        for (position, shares) in other.devices.into_iter().enumerate() {
            let slot = self.device_mut(position);
            *slot = slot.saturating_add(shares);
        }
    }

    fn device(&self, position: usize) -> u16 {
        self.devices.get(position).copied().unwrap_or(0)
    }

    fn device_mut(&mut self, position: usize) -> &mut u16 {
        if self.devices.len() <= position {
            self.devices.resize(position + 1, 0);
        }
        &mut self.devices[position]
    }
}

/// Nothing is kept, or given back.
pub(crate) static NOTHING: Kept = Kept { cpus: 0, memory: 0, custom: BTreeMap::new(), devices: Vec::new() };

/// Which part of a node is looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ground<'a> {
    /// What is free now.
    Free,
    /// What is free now and what will be given back, but for what is kept.
    With { given: &'a Kept, kept: &'a Kept },
    /// All of it, as if nobody held anything, and quarantined devices too.
    Empty,
}

impl Node {
    /// A node that has of its devices what `parts` says by index, and the whole of those that are not named there.
    pub(crate) fn new(name: NodeName, capacity: Capacity, parts: &BTreeMap<u32, u16>) -> Self {
        let device = |described: &Device| {
            let total = parts.get(&described.index).copied().unwrap_or(WHOLE_SHARE);
            let (index, instance) = (described.index, described.is_instance());
            DeviceState { index, total, free: total, quarantined: false, instance }
        };
        let devices: Vec<DeviceState> = capacity.devices.iter().map(device).collect();
        let whole = devices.iter().filter(|device| device.free == WHOLE_SHARE).count();
        Node {
            name,
            schedulable: true,
            cpus_free: capacity.cpus.milli(),
            memory_free: capacity.memory_bytes,
            custom_free: capacity.custom.clone(),
            whole_free: whole as u32,
            devices,
            capacity,
            held: BTreeMap::new(),
        }
    }

    /// Whether its labels are what the gang asks of every rank's node.
    pub(crate) fn matches(&self, gang: &GangSpec) -> bool {
        self.matches_rules(&gang.labels)
            && gang.topology.as_ref().is_none_or(|key| self.capacity.labels.contains_key(key))
    }

    /// Thousandths of devices that it has.
    pub(crate) fn shares(&self) -> u64 {
        self.devices.iter().map(|device| u64::from(device.total)).sum()
    }

    /// The value of a label; `node` is the node's name where it is not set to something else.
    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        let own = || (key == NODE_LABEL).then(|| self.name.as_str());
        self.capacity.labels.get(key).map(String::as_str).or_else(own)
    }

    pub(crate) fn matches_rules(&self, rules: &BTreeMap<String, LabelRule>) -> bool {
        rules.iter().all(|(key, rule)| rule.matches(self.label(key)))
    }

    /// How many ranks of one gang that each ask for `each` have room here at once.
    pub(crate) fn room(&self, each: &Resources, ground: Ground<'_>) -> u32 {
        let mut room = u64::from(self.device_room(each.gpus, ground));
        let mut bound = |free: u64, wanted: u64| {
            if let Some(times) = free.checked_div(wanted) {
                room = room.min(times);
            }
        };
        bound(self.cpus_in(ground), each.cpus.milli());
        bound(self.memory_in(ground), each.memory_bytes);
        for (name, &milli) in &each.custom {
            bound(self.custom_in(name, ground), milli);
        }
        room.min(u64::from(u32::MAX)) as u32
    }

    pub(crate) fn cpus_in(&self, ground: Ground<'_>) -> u64 {
        match ground {
            Ground::Free => self.cpus_free,
            Ground::With { given, kept } => (self.cpus_free + given.cpus).saturating_sub(kept.cpus),
            Ground::Empty => self.capacity.cpus.milli(),
        }
    }

    pub(crate) fn memory_in(&self, ground: Ground<'_>) -> u64 {
        match ground {
            Ground::Free => self.memory_free,
            Ground::With { given, kept } => (self.memory_free + given.memory).saturating_sub(kept.memory),
            Ground::Empty => self.capacity.memory_bytes,
        }
    }

    pub(crate) fn custom_in(&self, name: &str, ground: Ground<'_>) -> u64 {
        let get = |map: &BTreeMap<String, u64>| map.get(name).copied().unwrap_or(0);
        match ground {
            Ground::Free => get(&self.custom_free),
            Ground::With { given, kept } => {
                (get(&self.custom_free) + get(&given.custom)).saturating_sub(get(&kept.custom))
            }
            Ground::Empty => get(&self.capacity.custom),
        }
    }

    fn device_free(&self, position: usize, ground: Ground<'_>) -> u16 {
        let device = self.devices[position];
        match ground {
            Ground::Empty => device.total,
            _ if device.quarantined => 0,
            Ground::With { given, kept } => {
                (device.free + given.device(position)).saturating_sub(kept.device(position))
            }
            Ground::Free => device.free,
        }
    }

    fn device_room(&self, gpus: GpuRequest, ground: Ground<'_>) -> u32 {
        match (gpus, ground) {
            (GpuRequest::None, _) => u32::MAX,
            (GpuRequest::Whole(devices), Ground::Free) if devices == 1 || !self.is_split() => {
                self.whole_free / devices
            }
            (GpuRequest::Whole(devices), _) => self.whole(devices, ground).count() as u32 / devices,
            (GpuRequest::Share(shares), _) => {
                let positions = 0..self.devices.len();
                positions.filter(|&at| self.device_free(at, ground) >= shares).count() as u32
            }
        }
    }

    /// Whether GPUs are split into MIG instances here.
    pub(crate) fn is_split(&self) -> bool {
        // NVIDIA's devices of one machine are mostly all split or none.
        self.devices.iter().any(|device| device.instance)
    }

    /// The places of wholly free devices of which a rank may have so many.
    fn whole(&self, devices: u32, ground: Ground<'_>) -> impl Iterator<Item = usize> {
        let may = move |at: &usize| devices == 1 || !self.devices[*at].instance;
        (0..self.devices.len()).filter(move |at| self.device_free(*at, ground) == WHOLE_SHARE && may(at))
    }

    /// How the devices are linked that so many ranks would get; the caller knows that there is room.
    pub(crate) fn linkage(&self, gpus: GpuRequest, ranks: u32, ground: Ground<'_>) -> Linkage {
        let GpuRequest::Whole(devices) = gpus else { return Linkage::default() };
        let whole: Vec<usize> = self.whole(devices, ground).collect();
        let links = &self.capacity.links;
        linkage(links, &best_linked(links, &whole, (devices * ranks) as usize))
    }

    /// Bundles for these ranks; the caller knows that there is room.
    pub(crate) fn bundles(&self, ranks: &[Rank], each: &Resources, ground: Ground<'_>) -> Vec<Bundle> {
        let mut chosen = self.choose_devices(each.gpus, ranks.len(), ground).into_iter();
        let bundle = |&rank: &Rank| {
            let gpus = chosen.next().unwrap_or_default();
            Bundle { rank, node: self.name.clone(), gpus, takes: each.clone() }
        };
        ranks.iter().map(bundle).collect()
    }

    fn choose_devices(&self, gpus: GpuRequest, ranks: usize, ground: Ground<'_>) -> Vec<Vec<DeviceShare>> {
        let free = |at: &usize| self.device_free(*at, ground);
        let share = |at: &usize, shares| DeviceShare { index: self.devices[*at].index, shares };
        match gpus {
            GpuRequest::None => Vec::new(),
            GpuRequest::Whole(devices) => {
                let whole: Vec<usize> = self.whole(devices, ground).collect();
                let links = &self.capacity.links;
                let mut left = best_linked(links, &whole, devices as usize * ranks);
                let sets = (0..ranks).map(|_| {
                    let set = best_linked(links, &left, devices as usize);
                    left.retain(|at| !set.contains(at));
                    set
                });
                sets.map(|set| set.iter().map(|at| share(at, WHOLE_SHARE)).collect()).collect()
            }
            GpuRequest::Share(shares) => {
                let partial = (0..self.devices.len()).filter(|at| (shares..WHOLE_SHARE).contains(&free(at)));
                let mut fitting: Vec<usize> = partial.collect();
                fitting.sort_by_key(|at| (free(at), *at));
                fitting.truncate(ranks);
                let whole: Vec<usize> = self.whole(1, ground).collect();
                fitting.extend(best_linked(&self.capacity.links, &whole, ranks - fitting.len()));
                fitting.iter().map(|at| vec![share(at, shares)]).collect()
            }
        }
    }

    /// Keeps all that is free.
    pub(crate) fn keep_all(&self) -> Kept {
        Kept {
            cpus: self.cpus_free,
            memory: self.memory_free,
            custom: self.custom_free.clone(),
            devices: self.devices.iter().map(|device| device.free).collect(),
        }
    }

    /// What passers must leave of what is free now, so that `ranks` ranks of a waiting gang can come to run here.
    pub(crate) fn keep_for(&self, each: &Resources, ranks: u64) -> Kept {
        let custom = each.custom.iter().map(|(name, milli)| (name.clone(), milli.saturating_mul(ranks)));
        let mut devices: Vec<usize> = (0..self.devices.len()).collect();
        devices
            .sort_by_key(|&at| (self.devices[at].quarantined, std::cmp::Reverse(self.devices[at].free), at));
        devices.truncate(u64::from(each.gpus.devices()).saturating_mul(ranks).min(devices.len() as u64) as usize);
        let mut kept = Kept {
            cpus: each.cpus.milli().saturating_mul(ranks),
            memory: each.memory_bytes.saturating_mul(ranks),
            custom: custom.collect(),
            devices: Vec::new(),
        };
        devices.into_iter().for_each(|at| *kept.device_mut(at) = WHOLE_SHARE);
        kept
    }

    /// What passers must leave of what is free now, so that a waiting gang can have these bundles here once `given` is
    /// given back.
    pub(crate) fn keep_bundles(&self, wanted: &[&Bundle], given: &Kept) -> Kept {
        let mut kept = Kept::default();
        wanted.iter().for_each(|bundle| self.add_to(&mut kept, bundle));
        kept.cpus = kept.cpus.saturating_sub(given.cpus);
        kept.memory = kept.memory.saturating_sub(given.memory);
        for (name, milli) in &given.custom {
            kept.custom.entry(name.clone()).and_modify(|kept| *kept = kept.saturating_sub(*milli));
        }
        for (kept, given) in kept.devices.iter_mut().zip(&given.devices) {
            *kept = kept.saturating_sub(*given);
        }
        kept
    }

    /// Adds what a bundle takes of this node.
    pub(crate) fn add_to(&self, sum: &mut Kept, bundle: &Bundle) {
        sum.cpus += bundle.takes.cpus.milli();
        sum.memory += bundle.takes.memory_bytes;
        for (name, milli) in &bundle.takes.custom {
            *sum.custom.entry(name.clone()).or_insert(0) += milli;
        }
        for share in &bundle.gpus {
            if let Some(at) = self.devices.iter().position(|device| device.index == share.index) {
                *sum.device_mut(at) += share.shares;
            }
        }
    }

    /// Whether a bundle's resources are free here.
    pub(crate) fn can_take(&self, bundle: &Bundle) -> bool {
        let fits = |share: &DeviceShare| {
            let device = self.devices.iter().find(|device| device.index == share.index);
            device.is_some_and(|device| device.free >= share.shares)
        };
        self.cpus_free >= bundle.takes.cpus.milli()
            && self.memory_free >= bundle.takes.memory_bytes
            && bundle.takes.custom.iter().all(|(name, &milli)| self.custom_in(name, Ground::Free) >= milli)
            && bundle.gpus.iter().all(fits)
    }

    /// Takes what a bundle says, whose resources are free.
    pub(crate) fn take(&mut self, attempt: AttemptId, bundle: &Bundle) {
        self.cpus_free -= bundle.takes.cpus.milli();
        self.memory_free -= bundle.takes.memory_bytes;
        for (name, milli) in &bundle.takes.custom {
            if let Some(free) = self.custom_free.get_mut(name) {
                *free -= milli;
            }
        }
        for share in &bundle.gpus {
            self.move_shares(share.index, |free| free - share.shares);
        }
        self.held.entry(attempt).or_default().push(bundle.clone());
    }

    /// Gives back all that an attempt holds here.
    pub(crate) fn give(&mut self, attempt: AttemptId) -> Vec<Bundle> {
        let bundles = self.held.remove(&attempt).unwrap_or_default();
        for bundle in &bundles {
            self.cpus_free += bundle.takes.cpus.milli();
            self.memory_free += bundle.takes.memory_bytes;
            for (name, milli) in &bundle.takes.custom {
                if let Some(free) = self.custom_free.get_mut(name) {
                    *free += milli;
                }
            }
            for share in &bundle.gpus {
                self.move_shares(share.index, |free| free + share.shares);
            }
        }
        bundles
    }

    fn move_shares(&mut self, index: u32, change: impl Fn(u16) -> u16) {
        if let Some(device) = self.devices.iter_mut().find(|device| device.index == index) {
            device.free = change(device.free);
        }
        self.count_whole();
    }

    pub(crate) fn quarantine(&mut self, index: u32, yes: bool) {
        if let Some(device) = self.devices.iter_mut().find(|device| device.index == index) {
            device.quarantined = yes;
        }
        self.count_whole();
    }

    fn count_whole(&mut self) {
        let whole = self.devices.iter().filter(|device| device.free == WHOLE_SHARE && !device.quarantined);
        self.whole_free = whole.count() as u32;
    }

    /// Asserts that free and held make the whole, of everything.
    pub(crate) fn assert_conserved(&self) {
        let mut cpus = self.cpus_free;
        let mut memory = self.memory_free;
        let mut shares: u64 = self.devices.iter().map(|device| u64::from(device.free)).sum();
        for bundle in self.held.values().flatten() {
            cpus += bundle.takes.cpus.milli();
            memory += bundle.takes.memory_bytes;
            shares += bundle.gpus.iter().map(|share| u64::from(share.shares)).sum::<u64>();
        }
        assert_eq!(cpus, self.capacity.cpus.milli(), "{}: CPUs are not conserved", self.name);
        assert_eq!(memory, self.capacity.memory_bytes, "{}: memory is not conserved", self.name);
        assert_eq!(shares, self.shares(), "{}: GPU shares are not conserved", self.name);
        for (name, &free) in &self.custom_free {
            let held = self.held.values().flatten().filter_map(|bundle| bundle.takes.custom.get(name));
            let total = free + held.sum::<u64>();
            assert_eq!(total, self.capacity.custom[name], "{}: {name} is not conserved", self.name);
        }
        assert!(
            self.devices.iter().all(|d| d.free <= d.total),
            "{}: a device is given back twice",
            self.name
        );
    }
}
