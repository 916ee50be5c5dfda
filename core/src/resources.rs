//! Resources in integers: CPUs and custom resources in thousandths, memory in bytes, each GPU a device of 1000 shares.
//! No float ever adds resources up, so ten workers of 0.1 GPU fit on one GPU.

use crate::link::Links;
use crate::quantity::{format_bytes, format_milli};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Shares that make one whole GPU, and thousandths that make one CPU.
pub const WHOLE: u64 = 1000;

/// An amount of CPU in thousandths of a core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Cpus(u64);

impl Cpus {
    /// No CPU at all.
    pub const ZERO: Cpus = Cpus(0);

    /// So many thousandths of a core.
    pub const fn from_milli(milli: u64) -> Self {
        Cpus(milli)
    }

    /// Whole cores.
    pub const fn from_cores(cores: u32) -> Self {
        Cpus(cores as u64 * WHOLE)
    }

    /// Thousandths of a core.
    pub const fn milli(self) -> u64 {
        self.0
    }

    /// Whole cores within this amount, at least one: how many threads a process should use.
    pub const fn threads(self) -> u64 {
        let whole = self.0 / WHOLE;
        if whole == 0 { 1 } else { whole }
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format_milli(self.0))
    }
}

/// The GPUs one worker asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum GpuRequest {
    /// None: the worker sees no device.
    #[default]
    None,
    /// So many whole devices, at least one.
    Whole(u32),
    /// A share of one device, 1 to 999 thousandths.
    Share(u16),
}

impl GpuRequest {
    /// The request in thousandths of a device.
    pub const fn shares(self) -> u64 {
        match self {
            GpuRequest::None => 0,
            GpuRequest::Whole(devices) => devices as u64 * WHOLE,
            GpuRequest::Share(shares) => shares as u64,
        }
    }

    /// How many distinct devices it takes.
    pub const fn devices(self) -> u32 {
        match self {
            GpuRequest::None => 0,
            GpuRequest::Whole(devices) => devices,
            GpuRequest::Share(_) => 1,
        }
    }
}

impl fmt::Display for GpuRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format_milli(self.shares()))
    }
}

/// What one worker asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Resources {
    /// CPU.
    pub cpus: Cpus,
    /// GPUs.
    pub gpus: GpuRequest,
    /// Memory in bytes; 0 asks for none in particular.
    pub memory_bytes: u64,
    /// Custom resources by name, in thousandths.
    pub custom: BTreeMap<String, u64>,
}

impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} CPU", self.cpus)?;
        if self.gpus != GpuRequest::None {
            write!(f, ", {} GPU", self.gpus)?;
        }
        if self.memory_bytes > 0 {
            write!(f, ", {} memory", format_bytes(self.memory_bytes))?;
        }
        for (name, &milli) in &self.custom {
            write!(f, ", {} {name}", format_milli(milli))?;
        }
        Ok(())
    }
}

/// One GPU (or MIG instance) of a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Device {
    /// Its index on the node, as the driver counts.
    pub index: u32,
    /// What `CUDA_VISIBLE_DEVICES` should name it by: the driver's UUID, or the index where the device is declared only.
    pub uuid: String,
    /// The model, such as `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Its memory in bytes; 0 when unknown.
    pub memory_bytes: u64,
}

impl Device {
    /// Whether it is a MIG instance, a part of a GPU. CUDA shows a process one of these and no more (MIG user guide,
    /// "CUDA visible devices").
    pub fn is_instance(&self) -> bool {
        self.uuid.starts_with("MIG-")
    }
}

/// Part of a device, or all of it, as given to a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DeviceShare {
    /// The device's index on its node.
    pub index: u32,
    /// Thousandths of it, 1 to 1000.
    pub shares: u16,
}

/// What a node has in all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// CPU.
    pub cpus: Cpus,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// GPUs, in the order of their index.
    pub devices: Vec<Device>,
    /// Custom resources by name, in thousandths.
    pub custom: BTreeMap<String, u64>,
    /// Labels that selectors match.
    pub labels: BTreeMap<String, String>,
    /// How the GPUs reach each other, in their order; empty where nobody has said.
    #[serde(default, skip_serializing_if = "Links::is_empty")]
    pub links: Links,
}
