//! Several losses at once: who dominates whom, and how much of the space a front takes (its hypervolume).
//!
//! Losses are minimised. Ranks as in NSGA-II (Deb et al. 2002); the hypervolume is exact, by the WFG algorithm (While,
//! Bradstreet & Barone 2012), with sweeps of their own for two losses; subsets of large hypervolume are chosen greedily
//! (Guerreiro, Fonseca & Paquete 2016).

use std::cmp::Ordering;

/// Whether losses `a` are nowhere worse than `b` and somewhere better.
pub fn dominates(a: &[f64], b: &[f64]) -> bool {
    a.iter().zip(b).all(|(a, b)| a <= b) && a.iter().zip(b).any(|(a, b)| a < b)
}

fn compare(a: &[f64], b: &[f64]) -> Ordering {
    // Adding zero makes one of the two zeros.
    let orders = a.iter().zip(b).map(|(a, b)| (a + 0.0).total_cmp(&(b + 0.0)));
    orders.into_iter().find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
}

/// The front that each point belongs to: 0 for those that no other one dominates, 1 for those that only points of front
/// 0 do, and so on.
pub fn ranks<P: AsRef<[f64]>>(points: &[P]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..points.len()).collect();
    order.sort_by(|a, b| compare(points[*a].as_ref(), points[*b].as_ref()));
    let mut ranks = vec![0; points.len()];
    // In this order nothing dominates what comes before it. The fronts so far, each by its points' indices.
    let mut fronts: Vec<Vec<usize>> = Vec::new();
    for index in order {
        let beats = |at: &usize| dominates(points[*at].as_ref(), points[index].as_ref());
        let beaten = |front: &Vec<usize>| front.iter().rev().any(beats);
        // A front that does not beat a point has none behind it that does.
        let rank = fronts.partition_point(beaten);
        if rank == fronts.len() {
            fronts.push(Vec::new());
        }
        fronts[rank].push(index);
        ranks[index] = rank;
    }
    ranks
}

/// How far apart the neighbours of each point of a front lie, over all losses in units of the front's extent; infinite
/// for its ends.
pub(crate) fn crowding(front: &[&[f64]]) -> Vec<f64> {
    let mut distances = vec![0.0; front.len()];
    let mut order: Vec<usize> = (0..front.len()).collect();
    for dim in 0..front.first().map_or(0, |point| point.len()) {
        let losses: Vec<f64> = front.iter().map(|point| point[dim]).collect();
        order.sort_by(|a, b| losses[*a].total_cmp(&losses[*b]).then(a.cmp(b)));
        let (first, last) = (order[0], order[order.len() - 1]);
        let extent = losses[last] - losses[first];
        distances[first] = f64::INFINITY;
        distances[last] = f64::INFINITY;
        if extent > 0.0 && extent.is_finite() {
            for three in order.windows(3) {
                distances[three[1]] += (losses[three[2]] - losses[three[0]]) / extent;
            }
        }
    }
    distances
}

/// The volume that points dominate up to a reference; those that are not better than it in every loss add nothing.
///
/// The work grows with the points to the power of one less than the losses: see [`hypervolume_steps`].
pub fn hypervolume(points: &[Vec<f64>], reference: &[f64]) -> f64 {
    let inside = |point: &&Vec<f64>| point.iter().zip(reference).all(|(loss, end)| loss < end);
    volume(points.iter().filter(inside).cloned().collect(), reference)
}

/// About how many steps the hypervolume of so many points takes.
pub fn hypervolume_steps(points: usize, losses: usize) -> f64 {
    (points as f64).powi(losses.saturating_sub(1).max(1) as i32)
}

fn volume(mut points: Vec<Vec<f64>>, reference: &[f64]) -> f64 {
    let Some(last) = reference.len().checked_sub(1) else { return 0.0 };
    points.sort_by(|a, b| compare(a, b));
    if last == 0 {
        return points.first().map_or(0.0, |best| reference[0] - best[0]);
    }
    if last == 1 {
        return volume_of_two(&points, reference);
    }
    let mut front = without_dominated(points);
    // With the worst of the last loss first, what comes after a point takes all of its depth: one loss less is left.
    front.sort_by(|a, b| b[last].total_cmp(&a[last]).then_with(|| compare(a, b)));
    let exclusive = |(at, point): (usize, &Vec<f64>)| {
        let (point, depth) = (&point[..last], reference[last] - point[last]);
        let shared = front[at + 1..].iter().map(|other| worse_of(point, &other[..last])).collect();
        depth * (box_of(point, &reference[..last]) - volume(shared, &reference[..last]))
    };
    front.iter().enumerate().map(exclusive).sum()
}

/// Slices between one point and the next, in ascending order of the first loss.
fn volume_of_two(points: &[Vec<f64>], reference: &[f64]) -> f64 {
    let (mut sum, mut least) = (0.0, reference[1]);
    for point in points.iter().filter(|point| point[0] < reference[0]) {
        if point[1] < least {
            sum += (reference[0] - point[0]) * (least - point[1]);
            least = point[1];
        }
    }
    sum
}

/// Of points in ascending order, those that no other one dominates or equals.
fn without_dominated(points: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let mut front: Vec<Vec<f64>> = Vec::with_capacity(points.len());
    for point in points {
        let covered = |other: &Vec<f64>| other.iter().zip(&point).all(|(a, b)| a <= b);
        if !front.iter().any(covered) {
            front.push(point);
        }
    }
    front
}

fn worse_of(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a.max(*b)).collect()
}

fn box_of(point: &[f64], reference: &[f64]) -> f64 {
    point.iter().zip(reference).map(|(loss, end)| end - loss).product()
}

/// Indices of so many points whose hypervolume is large: again and again the one that adds most to those chosen. Points
/// that are there twice come last.
pub(crate) fn subset(points: &[Vec<f64>], count: usize, reference: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..points.len()).collect();
    order.sort_by(|a, b| compare(&points[*a], &points[*b]).then(a.cmp(b)));
    let is_copy = |pair: &[usize]| points[pair[0]] == points[pair[1]];
    let copies: Vec<usize> = order.windows(2).filter(|pair| is_copy(pair)).map(|pair| pair[1]).collect();
    let mut left: Vec<usize> = order.into_iter().filter(|index| !copies.contains(index)).collect();
    if reference.len() == 2 && left.windows(2).all(|pair| points[pair[1]][1] < points[pair[0]][1]) {
        let front: Vec<&[f64]> = left.iter().map(|index| points[*index].as_slice()).collect();
        let chosen = subset_of_two(&front, count, reference).into_iter().map(|at| left[at]);
        return chosen.chain(copies).take(count).collect();
    }
    // What a point added before is a bound of what it adds now.
    let mut bounds: Vec<f64> = left.iter().map(|at| box_of(&points[*at], reference)).collect();
    let (mut chosen, mut volumes) = (Vec::new(), 0.0);
    while chosen.len() < count && !left.is_empty() {
        let best = best_addition(points, &left, &mut bounds, &chosen, volumes, reference);
        volumes += bounds[best];
        chosen.push(left.remove(best));
        bounds.remove(best);
    }
    let missing = count - chosen.len();
    chosen.extend(copies.into_iter().take(missing));
    chosen
}

/// The same of a front in ascending order of the first loss, as positions in it: what a point adds is the rectangle up to
/// the chosen ones beside it, and one more changes only what lies between the same neighbours.
fn subset_of_two(front: &[&[f64]], count: usize, reference: &[f64]) -> Vec<usize> {
    let mut gains: Vec<f64> = front.iter().map(|point| box_of(point, reference)).collect();
    let (mut chosen, mut is_chosen) = (Vec::new(), vec![false; front.len()]);
    while chosen.len() < count.min(front.len()) {
        let open = (0..front.len()).filter(|at| !is_chosen[*at]);
        let better = |best: usize, at: usize| if gains[at] > gains[best] { at } else { best };
        let Some(best) = open.reduce(better) else { break };
        chosen.push(best);
        is_chosen[best] = true;
        let before = (0..best).rev().find(|at| is_chosen[*at]);
        let after = (best + 1..front.len()).find(|at| is_chosen[*at]);
        for at in before.map_or(0, |at| at + 1)..after.unwrap_or(front.len()) {
            let (left, right) = if at < best { (before, Some(best)) } else { (Some(best), after) };
            let width = right.map_or(reference[0], |right| front[right][0]) - front[at][0];
            gains[at] = width * (left.map_or(reference[1], |left| front[left][1]) - front[at][1]);
        }
    }
    chosen
}

/// The position in `left` of the point that adds most to the chosen ones; its bound is then exact.
fn best_addition(
    points: &[Vec<f64>],
    left: &[usize],
    bounds: &mut [f64],
    chosen: &[usize],
    volumes: f64,
    reference: &[f64],
) -> usize {
    let mut by_bound: Vec<usize> = (0..left.len()).collect();
    by_bound.sort_by(|a, b| bounds[*b].total_cmp(&bounds[*a]).then(a.cmp(b)));
    let (mut best, mut most) = (by_bound[0], f64::NEG_INFINITY);
    for at in by_bound {
        if bounds[at] < most {
            break;
        }
        if !chosen.is_empty() {
            let with: Vec<Vec<f64>> =
                chosen.iter().chain([&left[at]]).map(|index| points[*index].clone()).collect();
            bounds[at] = hypervolume(&with, reference) - volumes;
        }
        if bounds[at] > most || (bounds[at] == most && at < best) {
            (best, most) = (at, bounds[at]);
        }
    }
    best
}

/// A reference a little worse than the worst of points in every loss, as Optuna takes it.
pub(crate) fn reference_of(points: &[Vec<f64>]) -> Vec<f64> {
    const LEAST: f64 = 1e-12;
    let dims = points.first().map_or(0, Vec::len);
    let worst = |dim: usize| points.iter().map(|point| point[dim]).fold(f64::NEG_INFINITY, f64::max);
    let beyond = |worst: f64| match (1.1 * worst).max(0.9 * worst) {
        0.0 => LEAST,
        beyond => beyond,
    };
    (0..dims).map(|dim| beyond(worst(dim))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;

    /// What Optuna 5 computes: `tests/fixtures/pareto.py` made it.
    const FIXTURE: &str = include_str!("../tests/fixtures/pareto.json");

    #[derive(Deserialize)]
    struct Case {
        points: Vec<Vec<f64>>,
        reference: Vec<f64>,
        ranks: Vec<usize>,
        hypervolume: f64,
        subsets: Vec<Vec<usize>>,
    }

    fn cases() -> Vec<Case> {
        let cases: Vec<Case> = serde_json::from_str(FIXTURE).unwrap();
        assert!(cases.len() >= 20);
        cases
    }

    #[test]
    fn ranks_and_hypervolumes_are_optuna_s() {
        for case in cases() {
            assert_eq!(ranks(&case.points), case.ranks);
            let found = hypervolume(&case.points, &case.reference);
            assert!((found - case.hypervolume).abs() <= 1e-9 * case.hypervolume, "{found}");
        }
    }

    #[test]
    fn greedy_subsets_are_optuna_s() {
        for case in cases() {
            for expected in &case.subsets {
                let mut found = subset(&case.points, expected.len(), &case.reference);
                found.sort_unstable();
                assert_eq!(&found, expected);
            }
        }
    }

    #[test]
    fn points_outside_of_the_reference_add_nothing() {
        assert_eq!(hypervolume(&[vec![0.0, 2.0], vec![1.0, 0.0]], &[1.0, 1.0]), 0.0);
        assert_eq!(hypervolume(&[], &[1.0, 1.0, 1.0]), 0.0);
        assert_eq!(hypervolume(&[vec![0.5]], &[2.0]), 1.5);
        assert_eq!(hypervolume(&[vec![f64::NEG_INFINITY, 0.0]], &[1.0, 1.0]), f64::INFINITY);
    }

    #[test]
    fn crowded_points_have_near_neighbours() {
        let front: [&[f64]; 4] = [&[0.0, 1.0], &[0.1, 0.9], &[0.2, 0.8], &[1.0, 0.0]];
        let found = crowding(&front);
        assert_eq!((found[0], found[3]), (f64::INFINITY, f64::INFINITY));
        assert!(found[1] < found[2], "{found:?}");
    }

    fn points(dims: usize) -> impl Strategy<Value = Vec<Vec<f64>>> {
        // Few values, so that there are ties.
        prop::collection::vec(prop::collection::vec((0_u8..8).prop_map(f64::from), dims), 1..14)
    }

    /// Cells of the integer grid that some point dominates.
    fn counted(points: &[Vec<f64>], end: usize) -> f64 {
        let dims = points[0].len();
        let covered = |cell: usize| {
            let corner = |dim: usize| (cell / end.pow(dim as u32) % end) as f64;
            points.iter().any(|point| (0..dims).all(|dim| point[dim] <= corner(dim)))
        };
        (0..end.pow(dims as u32)).filter(|cell| covered(*cell)).count() as f64
    }

    proptest! {
        #[test]
        fn the_hypervolume_is_that_of_the_cells(points in (1_usize..5).prop_flat_map(points)) {
            let dims = points[0].len();
            prop_assert_eq!(hypervolume(&points, &vec![8.0; dims]), counted(&points, 8));
        }

        #[test]
        fn a_rank_is_one_more_than_that_of_the_worst_who_dominates(points in (1_usize..4).prop_flat_map(points)) {
            let ranks = ranks(&points);
            for (at, point) in points.iter().enumerate() {
                let above = points.iter().zip(&ranks).filter(|(other, _)| dominates(other, point));
                prop_assert_eq!(ranks[at], above.map(|(_, rank)| rank + 1).max().unwrap_or(0));
            }
        }
    }
}
