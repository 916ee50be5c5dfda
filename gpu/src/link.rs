//! How two devices reach each other, in the words of `nvidia-smi topo -m`.

use std::fmt;

use serde::{Serialize, Serializer};

/// The way between two devices, the nearest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Link {
    /// A device and itself (`X`).
    Same,
    /// So many bonded NVLinks, directly or through NVSwitches (`NV4`).
    NvLink(u32),
    /// At most one PCIe bridge (`PIX`).
    Pix,
    /// Several PCIe bridges, none of them a host bridge (`PXB`).
    Pxb,
    /// A PCIe host bridge (`PHB`).
    Phb,
    /// The interconnect between host bridges of one NUMA node (`NODE`).
    Node,
    /// The interconnect between NUMA nodes (`SYS`), and whatever the driver would not say.
    Sys,
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Link::Same => f.pad("X"),
            Link::NvLink(links) => f.pad(&format!("NV{links}")),
            Link::Pix => f.pad("PIX"),
            Link::Pxb => f.pad("PXB"),
            Link::Phb => f.pad("PHB"),
            Link::Node => f.pad("NODE"),
            Link::Sys => f.pad("SYS"),
        }
    }
}

impl Serialize for Link {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The links between all devices of a node: a square, symmetric matrix in the order of the devices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Links(Vec<Vec<Link>>);

impl Links {
    /// The matrix over `devices` devices, asking `between` once for each pair `(a, b)` with `a < b`.
    pub(crate) fn from_pairs(devices: usize, mut between: impl FnMut(usize, usize) -> Link) -> Self {
        let mut rows = vec![vec![Link::Same; devices]; devices];
        let pairs = (0..devices).flat_map(|a| (a + 1..devices).map(move |b| (a, b)));
        for (a, b) in pairs {
            let link = between(a, b);
            rows[a][b] = link;
            rows[b][a] = link;
        }
        Links(rows)
    }

    /// The link between two devices by their place in the inventory; none where either is not there.
    pub fn get(&self, a: usize, b: usize) -> Option<Link> {
        self.0.get(a)?.get(b).copied()
    }

    /// How many devices it covers.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no device.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Links {
    /// A table as `nvidia-smi topo -m` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:6}", "")?;
        for column in 0..self.len() {
            write!(f, "{:6}", format!("GPU{column}"))?;
        }
        for (index, row) in self.0.iter().enumerate() {
            write!(f, "\n{:6}", format!("GPU{index}"))?;
            for link in row {
                write!(f, "{link:6}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_reads_like_nvidia_smi() {
        let links = Links::from_pairs(3, |a, b| if (a, b) == (0, 1) { Link::NvLink(12) } else { Link::Sys });
        let lines: Vec<String> = links
            .to_string()
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(lines, ["GPU0 GPU1 GPU2", "GPU0 X NV12 SYS", "GPU1 NV12 X SYS", "GPU2 SYS SYS X"]);
        assert_eq!(links.get(1, 0), Some(Link::NvLink(12)));
        assert_eq!(links.get(3, 0), None);
        assert!(Link::NvLink(1) < Link::Pix && Link::Node < Link::Sys);
    }
}
