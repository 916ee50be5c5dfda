//! What this machine gives away as a node: what it has, unless the flags say otherwise.

use clap::Args;
use phalanx_core::quantity::{parse_bytes, parse_milli};
use phalanx_core::resources::Capacity;
use phalanx_core::{Cpus, Device, Links, NodeName};
use phalanx_gpu::Inventory;
use std::collections::BTreeMap;
use std::num::NonZero;

/// Flags of commands that make a node of this machine.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct NodeArgs {
    /// CPUs to give away, fractions allowed [default: all of this machine]
    #[arg(long, value_name = "N", value_parser = parse_milli)]
    pub(crate) cpus: Option<u64>,
    /// GPUs to give away; declared where this machine has none [default: all it has]
    #[arg(long, value_name = "N")]
    pub(crate) gpus: Option<u32>,
    /// How the GPUs are linked, where the driver does not say or says it wrong [default: as the driver says]
    #[arg(long, value_name = "PRESET", value_parser = Links::PRESETS)]
    pub(crate) gpu_links: Option<String>,
    /// Memory to give away, such as 64GiB [default: all of this machine]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub(crate) memory: Option<u64>,
}

impl NodeArgs {
    /// The flags again, for an agent of another process.
    pub(crate) fn as_flags(&self) -> Vec<String> {
        let mut flags = Vec::new();
        if let Some(milli) = self.cpus {
            flags.extend(["--cpus".to_owned(), Cpus::from_milli(milli).to_string()]);
        }
        if let Some(gpus) = self.gpus {
            flags.extend(["--gpus".to_owned(), gpus.to_string()]);
        }
        if let Some(preset) = &self.gpu_links {
            flags.extend(["--gpu-links".to_owned(), preset.clone()]);
        }
        if let Some(bytes) = self.memory {
            flags.extend(["--memory".to_owned(), bytes.to_string()]);
        }
        flags
    }

    /// What the node has.
    pub(crate) fn capacity(&self, labels: BTreeMap<String, String>) -> Capacity {
        let cores = || std::thread::available_parallelism().map_or(1, NonZero::get);
        let cpus = self.cpus.map_or_else(|| Cpus::from_cores(cores() as u32), Cpus::from_milli);
        let (devices, links) = self.devices();
        let memory_bytes = self.memory.unwrap_or_else(|| memory_bytes().unwrap_or(0));
        Capacity { cpus, memory_bytes, devices, custom: BTreeMap::new(), labels, links }
    }

    /// The GPUs, and how they reach each other: as the driver says, or as the flags declare.
    fn devices(&self) -> (Vec<Device>, Links) {
        let real = if self.gpus == Some(0) { Inventory::default() } else { phalanx_gpu::inventory(None) };
        let (devices, links) = match self.gpus {
            Some(count) if real.devices.is_empty() => (phalanx_gpu::declared(count), Links::default()),
            Some(count) if (count as usize) < real.devices.len() => {
                let kept: Vec<usize> = (0..count as usize).collect();
                (real.devices.into_iter().take(kept.len()).collect(), real.links.among(&kept))
            }
            _ => (real.devices, real.links),
        };
        let declared = self.gpu_links.as_deref().and_then(|name| Links::preset(name, devices.len()));
        (devices, declared.unwrap_or(links))
    }
}

/// This machine's name as a node.
pub(crate) fn node_name() -> NodeName {
    let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    host.parse().or_else(|_| "local".parse()).unwrap_or_else(|_| unreachable!("`local` is a legal name"))
}

/// The names and addresses that others may know this machine by: those of a certificate for all of it.
pub(crate) fn own_names() -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    names.extend(nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()));
    let addresses = nix::ifaddrs::getifaddrs().into_iter().flatten().filter_map(|at| at.address);
    names.extend(addresses.filter_map(|address| {
        let v4 = address.as_sockaddr_in().map(|address| address.ip().to_string());
        v4.or_else(|| address.as_sockaddr_in6().map(|address| address.ip().to_string()))
    }));
    names.sort();
    names.dedup();
    names
}

/// Memory that this machine, or the container we are in, has.
pub(crate) fn memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let total = line.split_ascii_whitespace().next()?.parse::<u64>().ok()? * 1024;
    let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limits =
        limits.iter().filter_map(|file| std::fs::read_to_string(file).ok()?.trim().parse::<u64>().ok());
    Some(limits.fold(total, u64::min))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_say_what_the_node_has() {
        let gpu_links = Some("pairs".to_owned());
        let args = NodeArgs { cpus: Some(1500), gpus: Some(2), gpu_links, memory: Some(1 << 30) };
        let flags = ["--cpus", "1.5", "--gpus", "2", "--gpu-links", "pairs", "--memory", "1073741824"];
        assert_eq!(args.as_flags(), flags);
        let capacity = args.capacity(BTreeMap::new());
        assert_eq!(capacity.links, Links::preset("pairs", 2).unwrap());
        assert_eq!(
            (capacity.cpus, capacity.memory_bytes, capacity.devices.len()),
            (Cpus::from_milli(1500), 1 << 30, 2)
        );
        assert!(memory_bytes().is_some_and(|bytes| bytes > 0));
    }
}
