//! How two GPUs of a node reach each other, in the words of `nvidia-smi topo -m`.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::sync::Arc;

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

/// Most NVLinks between two devices that a matrix may say: far more than any board has.
const NVLINKS: u32 = 1_000;

impl Link {
    /// Reads a cell of the matrix.
    pub fn parse(text: &str) -> Option<Link> {
        match text {
            "X" => Some(Link::Same),
            "PIX" => Some(Link::Pix),
            "PXB" => Some(Link::Pxb),
            "PHB" => Some(Link::Phb),
            "NODE" => Some(Link::Node),
            "SYS" => Some(Link::Sys),
            _ => {
                let count: u32 = text.strip_prefix("NV")?.parse().ok()?;
                (1..=NVLINKS).contains(&count).then_some(Link::NvLink(count))
            }
        }
    }

    /// How far it is, in steps: an NVLink island is one, then each kind of PCIe way, then the socket.
    pub const fn distance(self) -> u8 {
        match self {
            Link::Same => 0,
            Link::NvLink(_) => 1,
            Link::Pix => 2,
            Link::Pxb => 3,
            Link::Phb => 4,
            Link::Node => 5,
            Link::Sys => 6,
        }
    }

    /// How good it is to have: the scale by which NVIDIA's device plugin for Kubernetes weighs links
    /// (`go-gpuallocator`), where one NVLink is worth two PCIe switches and ten ways across sockets.
    pub const fn worth(self) -> u64 {
        match self {
            Link::Same => 0,
            Link::NvLink(count) => 100 * count as u64,
            Link::Pix => 50,
            Link::Pxb => 40,
            Link::Phb => 30,
            Link::Node => 20,
            Link::Sys => 10,
        }
    }
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

impl<'de> Deserialize<'de> for Link {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Link::parse(&text).ok_or_else(|| serde::de::Error::custom(format!("`{text}` is no link")))
    }
}

/// The links between all devices of a node: a square, symmetric matrix in the order of the devices. Empty where nothing is
/// known of them. A copy shares the matrix: thousands of nodes have one and the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links(Arc<Vec<Vec<Link>>>);

impl Serialize for Links {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.as_slice().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Links {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Links::new(Vec::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl Links {
    /// The names of [`Links::preset`].
    pub const PRESETS: [&str; 5] = ["nvswitch", "dgx-a100", "dgx-1", "pairs", "pcie"];

    /// A matrix from its rows; the message says what is wrong with it.
    pub fn new(rows: Vec<Vec<Link>>) -> Result<Self, String> {
        let devices = rows.len();
        let square = rows.iter().all(|row| row.len() == devices);
        let mirrored =
            |a: usize, b: usize| rows[a][b] == rows[b][a] && (rows[a][b] == Link::Same) == (a == b);
        if square && (0..devices).all(|a| (0..devices).all(|b| mirrored(a, b))) {
            return Ok(Links(Arc::new(rows)));
        }
        Err(format!(
            "{devices} rows must be {devices} long, the same both ways, with X between a device and itself and nowhere else"
        ))
    }

    /// The matrix over `devices` devices, asking `between` once for each pair `(a, b)` with `a < b`.
    pub fn from_pairs(devices: usize, mut between: impl FnMut(usize, usize) -> Link) -> Self {
        let mut rows = vec![vec![Link::Same; devices]; devices];
        let pairs = (0..devices).flat_map(|a| (a + 1..devices).map(move |b| (a, b)));
        for (a, b) in pairs {
            let link = between(a, b);
            rows[a][b] = link;
            rows[b][a] = link;
        }
        Links(Arc::new(rows))
    }

    /// Matrices known by name for so many devices:
    ///
    /// - `nvswitch`: every pair by 18 NVLinks (HGX H100, H200, B200);
    /// - `dgx-a100`: every pair by 12 NVLinks (HGX A100);
    /// - `dgx-1`: the hybrid cube mesh of eight V100: two quads of NVLinks, one link across from each device, else `SYS`;
    ///   for eight devices only;
    /// - `pairs`: neighbours by 4 NVLinks (bridges), else a PCIe host bridge;
    /// - `pcie`: groups of four under one PCIe switch, else across sockets.
    pub fn preset(name: &str, devices: usize) -> Option<Links> {
        let between: fn(usize, usize) -> Link = match name {
            "nvswitch" => |_, _| Link::NvLink(18),
            "dgx-a100" => |_, _| Link::NvLink(12),
            "dgx-1" if devices == 8 => cube_mesh,
            "pairs" => |a, b| if a / 2 == b / 2 { Link::NvLink(4) } else { Link::Phb },
            "pcie" => |a, b| if a / 4 == b / 4 { Link::Pix } else { Link::Sys },
            _ => return None,
        };
        Some(Links::from_pairs(devices, between))
    }

    /// Reads the table that `nvidia-smi topo -m` prints, or only its cells; what stands beside and below it (affinities,
    /// network cards, the legend) is passed over. The message says what is wrong.
    pub fn parse_table(text: &str) -> Result<Self, String> {
        let words = |line: &'_ str| line.split_whitespace().map(str::to_owned).collect::<Vec<String>>();
        let is_row = |words: &Vec<String>| match words.first() {
            Some(first) if first.starts_with("GPU") => {
                words.get(1).is_some_and(|cell| Link::parse(cell).is_some())
            }
            Some(first) => Link::parse(first).is_some() && words.get(1).is_none_or(|next| next != "="),
            None => false,
        };
        let rows: Vec<Vec<String>> = text.lines().map(words).filter(is_row).collect();
        let devices = rows.len();
        let row = |words: &Vec<String>| {
            let cells = words.iter().skip(usize::from(words[0].starts_with("GPU"))).take(devices);
            cells.map(|cell| Link::parse(cell).ok_or_else(|| format!("`{cell}` is no link"))).collect()
        };
        Links::new(rows.iter().map(row).collect::<Result<_, _>>()?)
    }

    /// The link between two devices by their place; none where either is not there.
    pub fn get(&self, a: usize, b: usize) -> Option<Link> {
        self.0.get(a)?.get(b).copied()
    }

    /// The links between some of the devices, in the order given.
    pub fn among(&self, places: &[usize]) -> Links {
        if places.iter().any(|&place| place >= self.len()) {
            return Links::default();
        }
        Links::from_pairs(places.len(), |a, b| self.0[places[a]][places[b]])
    }

    /// How many devices it covers.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Every row.
    pub fn rows(&self) -> &[Vec<Link>] {
        &self.0
    }
}

/// NVIDIA DGX-1 with Tesla V100 (system architecture white paper, 2017, figure 4): six links a device, over three others of
/// its quad and the one across.
fn cube_mesh(a: usize, b: usize) -> Link {
    const QUAD: [[u32; 4]; 4] = [[0, 1, 1, 2], [1, 0, 2, 1], [1, 2, 0, 2], [2, 1, 2, 0]];
    const ACROSS: [u32; 4] = [2, 2, 1, 1];
    match (a / 4 == b / 4, a % 4 == b % 4) {
        (true, _) => Link::NvLink(QUAD[a % 4][b % 4]),
        (false, true) => Link::NvLink(ACROSS[a % 4]),
        (false, false) => Link::Sys,
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
    fn the_table_reads_like_nvidia_smi_and_reads_back() {
        let links = Links::from_pairs(3, |a, b| if (a, b) == (0, 1) { Link::NvLink(12) } else { Link::Sys });
        let text = links.to_string();
        let lines: Vec<String> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(lines, ["GPU0 GPU1 GPU2", "GPU0 X NV12 SYS", "GPU1 NV12 X SYS", "GPU2 SYS SYS X"]);
        assert_eq!(links.get(1, 0), Some(Link::NvLink(12)));
        assert_eq!(links.get(3, 0), None);
        assert!(Link::NvLink(1) < Link::Pix && Link::Node < Link::Sys);
        assert_eq!(Links::parse_table(&text), Ok(links.clone()));
        let pasted = "\tGPU0\tGPU1\tNIC0\tCPU Affinity\tNUMA Affinity\nGPU0\t X \tPIX\tSYS\t0-15\t0\nGPU1\tPIX\t X \tNODE\t0-15\t0\nNIC0\tSYS\tNODE\t X\n\nLegend:\n\n  X    = Self\n  SYS  = Connection traversing PCIe\n";
        assert_eq!(Links::parse_table(pasted).unwrap().get(0, 1), Some(Link::Pix));
        assert!(Links::parse_table("X PIX\nPHB X").is_err() && Links::parse_table("X PIX\nPIX").is_err());
    }

    #[test]
    fn a_matrix_survives_json_and_a_bad_one_does_not() {
        let links = Links::preset("dgx-1", 8).unwrap();
        let json = serde_json::to_string(&links).unwrap();
        assert_eq!(serde_json::from_str::<Links>(&json).unwrap(), links);
        for bad in
            [r#"[["X","NV1"]]"#, r#"[["X","NV1"],["NV2","X"]]"#, r#"[["PIX"]]"#, r#"[["X","up"],["up","X"]]"#]
        {
            assert!(serde_json::from_str::<Links>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn presets_are_what_their_boards_are() {
        for name in Links::PRESETS {
            let links = Links::preset(name, 8).unwrap();
            assert_eq!((links.len(), Links::new(links.rows().to_vec()).as_ref()), (8, Ok(&links)), "{name}");
        }
        assert_eq!((Links::preset("dgx-1", 4), Links::preset("web", 2)), (None, None));
        // A V100 has six NVLinks, and reaches exactly four others by them.
        let mesh = Links::preset("dgx-1", 8).unwrap();
        for row in mesh.rows() {
            let links = row
                .iter()
                .filter_map(|link| if let Link::NvLink(count) = link { Some(*count) } else { None });
            assert_eq!((links.clone().count(), links.sum::<u32>()), (4, 6), "{mesh}");
        }
        assert_eq!(mesh.among(&[3, 0]).get(0, 1), Some(Link::NvLink(2)));
        assert!(mesh.among(&[9]).is_empty());
    }
}
