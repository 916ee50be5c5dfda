//! What NVML says about the devices, brought into our model.

use std::collections::BTreeMap;

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::TopologyLevel;
use nvml_wrapper::error::NvmlError;
use phalanx_core::{Device, Link, Links};
use serde::Serialize;

use crate::driver::{DriverError, Usage};

/// Most NVLinks that one GPU has (nvml.h, `NVML_NVLINK_MAX_LINKS`).
const LINKS_PER_GPU: u32 = 18;

/// The devices of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Inventory {
    /// The devices in the order of their index. A GPU in MIG mode is replaced by its instances, which count as devices of
    /// their own and move the indices of the GPUs after it.
    pub devices: Vec<Device>,
    /// The driver's version, such as `550.54.15`.
    pub driver: Option<String>,
    /// The links between the devices, in their order.
    pub links: Links,
    /// Why there are none, or which were left out; none when all is well.
    pub note: Option<String>,
}

/// A device of the driver, with what is needed to ask about it again.
struct Found<'nvml> {
    handle: nvml_wrapper::Device<'nvml>,
    /// The physical GPU, by the driver's index; several MIG instances share one.
    gpu: u32,
    is_mig: bool,
}

/// Reads the devices of an open driver.
pub(crate) struct Probe<'nvml> {
    nvml: &'nvml Nvml,
    found: Vec<Found<'nvml>>,
    left_out: Vec<String>,
}

impl<'nvml> Probe<'nvml> {
    pub(crate) fn new(nvml: &'nvml Nvml) -> Self {
        let mut probe = Probe { nvml, found: Vec::new(), left_out: Vec::new() };
        match nvml.device_count() {
            Ok(count) => (0..count).for_each(|gpu| probe.add(gpu)),
            Err(error) => probe.left_out.push(DriverError::refused("the number of GPUs", error).to_string()),
        }
        probe
    }

    /// Adds a GPU, or its MIG instances in its place.
    fn add(&mut self, gpu: u32) {
        let handle = match self.nvml.device_by_index(gpu) {
            Ok(handle) => handle,
            Err(error) => return self.left_out.push(format!("GPU {gpu} is left out: {error}")),
        };
        // Drivers and GPUs that do not know of MIG answer with an error.
        let in_mig_mode = handle.mig_mode().is_ok_and(|mode| mode.current != 0);
        if !in_mig_mode {
            return self.found.push(Found { handle, gpu, is_mig: false });
        }
        let before = self.found.len();
        for place in 0..handle.mig_device_count().unwrap_or(0) {
            // Places without an instance answer `NotFound`.
            if let Ok(handle) = handle.mig_device_by_index(place) {
                self.found.push(Found { handle, gpu, is_mig: true });
            }
        }
        if self.found.len() == before {
            self.left_out.push(format!(
                "GPU {gpu} is in MIG mode without an instance; make one with `nvidia-smi mig -cgi … -C`, or turn MIG off"
            ));
        }
    }

    pub(crate) fn inventory(&self) -> Inventory {
        let mut left_out = self.left_out.clone();
        let mut kept: Vec<&Found<'_>> = Vec::new();
        let mut devices = Vec::new();
        for (found, index) in self.found.iter().zip(0..) {
            match describe(found, index) {
                Ok(device) => {
                    kept.push(found);
                    devices.push(device);
                }
                Err(error) => left_out.push(format!("GPU {} is left out: {error}", found.gpu)),
            }
        }
        if self.found.is_empty() && left_out.is_empty() {
            left_out.push("the NVIDIA driver has no GPU".to_owned());
        }
        let note = (!left_out.is_empty()).then(|| left_out.join("; "));
        Inventory {
            devices,
            driver: self.nvml.sys_driver_version().ok(),
            links: links(self.nvml, &kept),
            note,
        }
    }

    pub(crate) fn usage(&self, index: u32) -> Result<Usage, DriverError> {
        let found = self.found.get(index as usize).ok_or(DriverError::NoDevice { index })?;
        let memory = found.handle.memory_info();
        let utilization = found.handle.utilization_rates();
        match (memory, utilization) {
            // A lost device fails everything; one that only lacks a counter does not.
            (Err(error), Err(_)) => Err(DriverError::refused("its use", error)),
            (memory, utilization) => Ok(Usage {
                memory_used_bytes: memory.ok().map(|memory| memory.used),
                utilization_percent: utilization.ok().map(|rates| rates.gpu),
            }),
        }
    }
}

/// The device as our model has it. Without a UUID it could not be named to a rank, so that is an error; the rest may be
/// unknown.
fn describe(found: &Found<'_>, index: u32) -> Result<Device, NvmlError> {
    Ok(Device {
        index,
        uuid: found.handle.uuid()?,
        name: found.handle.name().unwrap_or_else(|_| "unknown GPU".to_owned()),
        memory_bytes: found.handle.memory_info().map_or(0, |memory| memory.total),
    })
}

/// A place on the PCI bus: domain, bus, device. Bus ids are compared as numbers because drivers write them with four or
/// eight digits of domain.
type Place = (u32, u32, u32);

/// A GPU's place, and how many of its active NVLinks lead to which other place.
#[derive(Default)]
struct NvLinks {
    own: Option<Place>,
    remotes: BTreeMap<Place, u32>,
}

impl NvLinks {
    fn of(found: &Found<'_>) -> Self {
        // NVLink carries no traffic between MIG instances.
        if found.is_mig {
            return NvLinks::default();
        }
        let mut remotes = BTreeMap::new();
        for link in 0..LINKS_PER_GPU {
            let link = found.handle.link_wrapper_for(link);
            if link.is_active().unwrap_or(false)
                && let Ok(remote) = link.remote_pci_info()
            {
                *remotes.entry((remote.domain, remote.bus, remote.device)).or_default() += 1;
            }
        }
        let own = found.handle.pci_info().ok().map(|pci| (pci.domain, pci.bus, pci.device));
        NvLinks { own, remotes }
    }

    /// NVLinks from this GPU to `other`: those that lead straight there, and those of both that meet in a switch. What is
    /// at the other end and is not one of `gpus` is a switch; a third GPU forwards nothing. (NVML would tell a remote's
    /// kind, but nvml-wrapper 0.13 drops that answer.)
    fn to(&self, other: &NvLinks, gpus: &[Place]) -> u32 {
        let straight = other.own.and_then(|place| self.remotes.get(&place)).copied().unwrap_or(0);
        let switches = self.remotes.iter().filter(|(place, _)| !gpus.contains(place));
        let switched: u32 = switches
            .filter_map(|(place, links)| other.remotes.get(place).map(|theirs| links.min(theirs)))
            .sum();
        straight + switched
    }
}

fn links(nvml: &Nvml, found: &[&Found<'_>]) -> Links {
    let nvlinks: Vec<NvLinks> = found.iter().map(|found| NvLinks::of(found)).collect();
    let gpus: Vec<Place> = nvlinks.iter().filter_map(|links| links.own).collect();
    Links::from_pairs(found.len(), |a, b| match nvlinks[a].to(&nvlinks[b], &gpus) {
        0 => over_pcie(nvml, found[a], found[b]),
        links => Link::NvLink(links),
    })
}

fn over_pcie(nvml: &Nvml, a: &Found<'_>, b: &Found<'_>) -> Link {
    if a.gpu == b.gpu {
        // Two MIG instances of one GPU: nothing leaves the board, but peer access is not offered either.
        return Link::Pix;
    }
    match nvml.topology_common_ancestor(&a.handle, &b.handle) {
        Ok(TopologyLevel::Internal | TopologyLevel::Single) => Link::Pix,
        Ok(TopologyLevel::Multiple) => Link::Pxb,
        Ok(TopologyLevel::HostBridge) => Link::Phb,
        Ok(TopologyLevel::Node) => Link::Node,
        // The farthest is the safe belief.
        Ok(TopologyLevel::System) | Err(_) => Link::Sys,
    }
}
