//! Sums of resources of every kind, for quotas, guarantees and shares.

use crate::bundle::Bundle;
use phalanx_core::Resources;
use phalanx_core::resources::{Capacity, WHOLE};
use phalanx_core::spec::Limits;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A kind of resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// GPUs, in thousandths.
    Gpu,
    /// CPUs, in thousandths.
    Cpu,
    /// Memory, in bytes.
    Memory,
    /// A custom resource, in thousandths.
    Custom(String),
}

impl Kind {
    /// The word that reasons use.
    pub(crate) fn word(&self) -> &str {
        match self {
            Kind::Gpu => "GPU",
            Kind::Cpu => "CPU",
            Kind::Memory => "memory",
            Kind::Custom(name) => name,
        }
    }

    /// How much of it a request asks for.
    pub(crate) fn of(&self, each: &Resources) -> u64 {
        match self {
            Kind::Gpu => each.gpus.shares(),
            Kind::Cpu => each.cpus.milli(),
            Kind::Memory => each.memory_bytes,
            Kind::Custom(name) => each.custom.get(name).copied().unwrap_or(0),
        }
    }
}

/// Amounts by kind; a kind that is not named is not limited, or not there. Sums are exact however much nodes say they have;
/// what is read of them ends at the largest amount there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amounts(BTreeMap<Kind, u128>);

impl From<&Limits> for Amounts {
    fn from(limits: &Limits) -> Self {
        let mut amounts = Amounts::default();
        let fixed = [(Kind::Gpu, limits.gpus), (Kind::Cpu, limits.cpus), (Kind::Memory, limits.memory_bytes)];
        for (kind, amount) in fixed.into_iter().filter_map(|(kind, amount)| Some((kind, amount?))) {
            amounts.set(kind, amount);
        }
        for (name, &milli) in &limits.custom {
            amounts.set(Kind::Custom(name.clone()), milli);
        }
        amounts
    }
}

impl From<&Amounts> for Limits {
    /// Without the kinds of which there is nothing.
    fn from(amounts: &Amounts) -> Self {
        let mut limits = Limits::default();
        for (kind, amount) in amounts.iter().filter(|&(_, amount)| amount > 0) {
            match kind {
                Kind::Gpu => limits.gpus = Some(amount),
                Kind::Cpu => limits.cpus = Some(amount),
                Kind::Memory => limits.memory_bytes = Some(amount),
                Kind::Custom(name) => drop(limits.custom.insert(name.clone(), amount)),
            }
        }
        limits
    }
}

impl Amounts {
    /// Sets a kind.
    pub fn set(&mut self, kind: Kind, amount: u64) {
        self.0.insert(kind, u128::from(amount));
    }

    /// How much of a kind; 0 where it is not named.
    pub fn get(&self, kind: &Kind) -> u64 {
        self.0.get(kind).map_or(0, |&amount| shown(amount))
    }

    /// All kinds that are named.
    pub fn iter(&self) -> impl Iterator<Item = (&Kind, u64)> {
        self.0.iter().map(|(kind, &amount)| (kind, shown(amount)))
    }

    /// Whether nothing is named.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What service is counted in, in thousandths: GPUs, or CPUs where there is no GPU.
    pub(crate) fn size_milli(&self) -> u64 {
        match self.get(&Kind::Gpu) {
            0 => self.get(&Kind::Cpu),
            gpus => gpus,
        }
    }

    /// What bundles take.
    pub(crate) fn of_bundles<'a>(bundles: impl IntoIterator<Item = &'a Bundle>) -> Self {
        let mut amounts = Amounts::default();
        for bundle in bundles {
            amounts.take(&bundle.takes);
        }
        amounts
    }

    /// All that a node has.
    pub(crate) fn of_capacity(capacity: &Capacity) -> Self {
        let mut amounts = Amounts::default();
        amounts.set(Kind::Gpu, capacity.devices.len() as u64 * WHOLE);
        amounts.set(Kind::Cpu, capacity.cpus.milli());
        amounts.set(Kind::Memory, capacity.memory_bytes);
        for (name, &milli) in &capacity.custom {
            amounts.set(Kind::Custom(name.clone()), milli);
        }
        amounts
    }

    /// What so many workers take that ask for as much each.
    pub(crate) fn of_workers(each: &Resources, workers: u32) -> Self {
        let mut amounts = Amounts::default();
        amounts.take(each);
        amounts.0.values_mut().for_each(|amount| *amount *= u128::from(workers));
        amounts
    }

    fn take(&mut self, each: &Resources) {
        let fixed = [Kind::Gpu, Kind::Cpu, Kind::Memory];
        let custom = each.custom.keys().map(|name| Kind::Custom(name.clone()));
        for kind in fixed.into_iter().chain(custom) {
            let asked = u128::from(kind.of(each));
            if asked > 0 {
                *self.0.entry(kind).or_insert(0) += asked;
            }
        }
    }

    pub(crate) fn add(&mut self, other: &Amounts) {
        for (kind, &amount) in &other.0 {
            match self.0.get_mut(kind) {
                Some(slot) => *slot += amount,
                None => drop(self.0.insert(kind.clone(), amount)),
            }
        }
    }

    pub(crate) fn subtract(&mut self, other: &Amounts) {
        for (kind, &amount) in &other.0 {
            if let Some(slot) = self.0.get_mut(kind) {
                assert!(*slot >= amount, "{kind:?} is given back twice");
                *slot -= amount;
            }
        }
    }
}

fn shown(amount: u128) -> u64 {
    u64::try_from(amount).unwrap_or(u64::MAX)
}
