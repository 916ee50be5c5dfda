//! Which whole devices of a node a gang gets: those that are linked best, so that what is left stays linked well.

use phalanx_core::Links;
use std::cmp::Reverse;

/// Sets of devices that are weighed one by one: all of one board of 16 GPUs. Of more, only those that grow from each device
/// by its best neighbours.
const WEIGHED_SETS: u64 = 13_000;

/// How a set of devices is linked: the better, the less. The farthest of its links counts first (an NVLink island is left
/// for a PCIe switch, and that for a socket, only where it has to be), then what all its links are worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Linkage {
    farthest: u8,
    worth: Reverse<u64>,
}

/// The same with what the set tears apart: the worth of its links to devices that stay free.
type Weight = (Linkage, u64);

/// The `count` devices, of those that are free, that are linked best; of equals those that tear the least apart, then the
/// first. Where nothing is known of links, the first.
pub(crate) fn best_linked(links: &Links, free: &[usize], count: usize) -> Vec<usize> {
    if count == 0 || count >= free.len() || are_alike(links, free) {
        return free.iter().take(count).copied().collect();
    }
    let mut sets = Sets { links, free, best: None };
    if combinations(free.len(), count) <= WEIGHED_SETS {
        sets.weigh_all(count, 0, &mut Vec::with_capacity(count), 0, 0);
    } else {
        (0..free.len()).for_each(|first| sets.grow(first, count));
    }
    let mut chosen = sets.best.map(|(_, set)| set).unwrap_or_default();
    chosen.sort_unstable();
    chosen
}

/// How a set is linked.
pub(crate) fn linkage(links: &Links, set: &[usize]) -> Linkage {
    let pairs = set.iter().enumerate().flat_map(|(at, &a)| set[at + 1..].iter().map(move |&b| (a, b)));
    let each = pairs.filter_map(|(a, b)| links.get(a, b));
    each.fold(Linkage::default(), |sum, link| Linkage {
        farthest: sum.farthest.max(link.distance()),
        worth: Reverse(sum.worth.0 + link.worth()),
    })
}

/// Whether every choice among these devices is as good as any other.
fn are_alike(links: &Links, free: &[usize]) -> bool {
    let Some(first) = free.get(..2).and_then(|pair| links.get(pair[0], pair[1])) else { return true };
    free.iter().enumerate().all(|(at, &a)| free[at + 1..].iter().all(|&b| links.get(a, b) == Some(first)))
}

/// How many sets of `count` there are among `of`.
fn combinations(of: usize, count: usize) -> u64 {
    let count = count.min(of - count) as u64;
    (0..count).try_fold(1u64, |all, at| Some(all.checked_mul(of as u64 - at)? / (at + 1))).unwrap_or(u64::MAX)
}

struct Sets<'a> {
    links: &'a Links,
    free: &'a [usize],
    best: Option<(Weight, Vec<usize>)>,
}

impl Sets<'_> {
    /// Every set of `left` more devices from the place `from` on, in the order of their places.
    fn weigh_all(&mut self, left: usize, from: usize, set: &mut Vec<usize>, farthest: u8, worth: u64) {
        if self.best.as_ref().is_some_and(|(best, _)| farthest > best.0.farthest) {
            return;
        }
        if left == 0 {
            return self.weigh(set, Linkage { farthest, worth: Reverse(worth) });
        }
        for at in from..=self.free.len() - left {
            let device = self.free[at];
            let to = set.iter().filter_map(|&other| self.links.get(other, device));
            let (far, more) =
                to.fold((farthest, worth), |(far, sum), link| (far.max(link.distance()), sum + link.worth()));
            set.push(device);
            self.weigh_all(left - 1, at + 1, set, far, more);
            set.pop();
        }
    }

    /// The set that grows from one device by whichever is linked to it best.
    fn grow(&mut self, first: usize, count: usize) {
        let mut set = vec![self.free[first]];
        while set.len() < count {
            let rest = self.free.iter().filter(|device| !set.contains(device));
            let with = rest.map(|&device| {
                let mut larger = set.clone();
                larger.push(device);
                (linkage(self.links, &larger), device)
            });
            let Some((_, device)) = with.min() else { return };
            set.push(device);
        }
        let linked = linkage(self.links, &set);
        self.weigh(&set, linked);
    }

    fn weigh(&mut self, set: &[usize], linked: Linkage) {
        if self.best.as_ref().is_some_and(|(best, _)| linked > best.0) {
            return;
        }
        let (links, rest) = (self.links, self.free.iter().filter(|device| !set.contains(device)));
        let torn = rest.flat_map(|&a| set.iter().filter_map(move |&b| links.get(a, b)));
        let weight = (linked, torn.map(|link| link.worth()).sum());
        if self.best.as_ref().is_none_or(|(best, _)| weight < *best) {
            self.best = Some((weight, set.to_vec()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_core::Link;

    fn best(preset: &str, free: &[usize], count: usize) -> Vec<usize> {
        best_linked(&Links::preset(preset, 8).unwrap(), free, count)
    }

    #[test]
    fn an_island_before_a_switch_before_a_socket() {
        assert_eq!(best("pairs", &[1, 2, 3, 4], 2), [2, 3]);
        assert_eq!(best("pcie", &[0, 2, 3, 5, 6, 7], 3), [0, 2, 3]);
        assert_eq!(best("dgx-1", &[0, 1, 2, 3, 4, 5, 6, 7], 4), [0, 1, 2, 3]);
        let both = Links::from_pairs(4, |a, b| match (a, b) {
            (0, 1) => Link::Sys,
            (1, 2) => Link::Phb,
            (0, 2) => Link::Pix,
            (2, 3) => Link::NvLink(1),
            _ => Link::Node,
        });
        assert_eq!(best_linked(&both, &[0, 1, 2, 3], 2), [2, 3]);
        assert_eq!(best_linked(&both, &[0, 1, 2], 2), [0, 2]);
        assert_eq!(best_linked(&both, &[0, 1, 3], 2), [0, 3]);
    }

    #[test]
    fn what_is_left_stays_together() {
        assert_eq!(best("pairs", &[0, 1, 2, 4, 5], 1), [2], "not half of a pair");
        assert_eq!(best("pcie", &[0, 1, 2, 3, 4, 5], 2), [4, 5], "a switch that is torn already");
        assert_eq!(best("pcie", &[0, 1, 2, 3, 4, 5], 1), [4]);
        assert_eq!(
            best("pcie", &[0, 1, 2, 3, 4, 5, 6], 5),
            [0, 1, 2, 3, 4],
            "a whole switch and as little more as can be"
        );
    }

    #[test]
    fn without_a_difference_the_first() {
        assert_eq!(best("nvswitch", &[1, 3, 5, 7], 2), [1, 3]);
        assert_eq!(best_linked(&Links::default(), &[4, 5, 6], 2), [4, 5]);
        assert_eq!(best("pairs", &[3], 1), [3]);
    }

    #[test]
    fn growing_finds_an_island_among_very_many() {
        let islands = Links::from_pairs(64, |a, b| if a / 8 == b / 8 { Link::NvLink(2) } else { Link::Sys });
        let free: Vec<usize> = (0..64).filter(|at| at / 8 == 5 || at % 3 == 0).collect();
        assert_eq!(best_linked(&islands, &free, 8), (40..48).collect::<Vec<_>>());
        assert_eq!((combinations(8, 4), combinations(16, 8), combinations(400, 200)), (70, 12_870, u64::MAX));
    }
}
