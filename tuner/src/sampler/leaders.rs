//! The trials of several objectives that may be among the good ones: the foremost fronts, and no more of them than that
//! takes, so that a trial costs the same however many came before it.

use crate::pareto;

/// Most good trials there can be.
pub(super) const MAX_GOOD: usize = 100;
/// Once there are so many, the rear fronts go …
const MOST: usize = 4 * MAX_GOOD;
/// … and of a front that is too large by itself the least crowded so many stay.
const KEPT: usize = 2 * MAX_GOOD;

/// With more losses than these, hypervolumes are too dear to choose by, and distances take their place.
const HYPERVOLUME_LOSSES: usize = 3;

/// Trials by their places among all that are known, with their losses.
#[derive(Default)]
pub(super) struct Leaders {
    members: Vec<Member>,
    /// Positions of the first front. Once it has enough good ones by itself, whom it beats is never good.
    front: Vec<usize>,
    /// The best so many, until one more comes.
    best: Option<(usize, Vec<usize>)>,
}

#[derive(Clone)]
struct Member {
    index: usize,
    losses: Vec<f64>,
}

impl AsRef<[f64]> for Member {
    fn as_ref(&self) -> &[f64] {
        &self.losses
    }
}

impl Leaders {
    /// A trial is complete.
    pub(super) fn insert(&mut self, index: usize, losses: Vec<f64>) {
        let beaten = self.front.iter().any(|at| pareto::dominates(&self.members[*at].losses, &losses));
        if beaten && self.front.len() >= MAX_GOOD {
            return;
        }
        if !beaten {
            self.front.retain(|at| !pareto::dominates(&losses, &self.members[*at].losses));
            self.front.push(self.members.len());
        }
        self.members.push(Member { index, losses });
        self.best = None;
        if self.members.len() > MOST {
            self.prune();
        }
    }

    fn prune(&mut self) {
        let fronts = Fronts::of(&self.members);
        let mut kept: Vec<usize> = fronts.whole(MAX_GOOD);
        if kept.len() < MAX_GOOD {
            let next = fronts.0.get(fronts.count_within(MAX_GOOD)).cloned().unwrap_or_default();
            kept.extend(self.least_crowded(next, KEPT));
        }
        kept.sort_unstable();
        let is_first = |at: &usize| self.front.contains(&kept[*at]);
        self.front = (0..kept.len()).filter(is_first).collect();
        self.members = kept.into_iter().map(|at| self.members[at].clone()).collect();
    }

    fn least_crowded(&self, mut front: Vec<usize>, most: usize) -> Vec<usize> {
        if front.len() > most {
            let losses: Vec<&[f64]> = front.iter().map(|at| self.members[*at].as_ref()).collect();
            let distances = pareto::crowding(&losses);
            let mut order: Vec<usize> = (0..front.len()).collect();
            order.sort_by(|a, b| distances[*b].total_cmp(&distances[*a]).then(a.cmp(b)));
            front = order[..most].iter().map(|at| front[*at]).collect();
        }
        front
    }

    /// The best so many: whole fronts, and of the first that does not fit those of most hypervolume.
    pub(super) fn best(&mut self, count: usize) -> &[usize] {
        if self.best.as_ref().is_none_or(|(known, _)| *known != count) {
            self.best = Some((count, self.find_best(count)));
        }
        self.best.as_ref().map_or(&[], |(_, best)| best)
    }

    fn find_best(&self, count: usize) -> Vec<usize> {
        let fronts = Fronts::of(&self.members);
        let mut good = fronts.whole(count);
        if let Some(next) = fronts.0.get(fronts.count_within(count)).filter(|_| good.len() < count) {
            let points: Vec<Vec<f64>> = next.iter().map(|at| self.members[*at].losses.clone()).collect();
            let (reference, missing) = (pareto::reference_of(&points), count - good.len());
            let sound = reference.len() <= HYPERVOLUME_LOSSES && reference.iter().all(|end| end.is_finite());
            if sound {
                good.extend(pareto::subset(&points, missing, &reference).into_iter().map(|at| next[at]));
            } else {
                good.extend(self.least_crowded(next.clone(), missing));
            }
        }
        good.into_iter().map(|at| self.members[at].index).collect()
    }
}

/// Indices of points, front by front.
struct Fronts(Vec<Vec<usize>>);

impl Fronts {
    fn of<P: AsRef<[f64]>>(points: &[P]) -> Fronts {
        let ranks = pareto::ranks(points);
        let mut fronts = vec![Vec::new(); ranks.iter().max().map_or(0, |last| last + 1)];
        ranks.iter().enumerate().for_each(|(at, rank)| fronts[*rank].push(at));
        Fronts(fronts)
    }

    /// How many of the foremost fronts have no more than so many points together.
    fn count_within(&self, count: usize) -> usize {
        let mut total = 0;
        let fits = |front: &&Vec<usize>| {
            total += front.len();
            total <= count
        };
        self.0.iter().take_while(fits).count()
    }

    /// All points of those fronts.
    fn whole(&self, count: usize) -> Vec<usize> {
        self.0[..self.count_within(count)].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    /// What Optuna 5 takes for the good trials: `tests/fixtures/motpe.py` made it.
    const FIXTURE: &str = include_str!("../../tests/fixtures/motpe.json");

    #[derive(Deserialize)]
    struct Case {
        losses: Vec<Vec<f64>>,
        good: Vec<Vec<usize>>,
    }

    fn leaders(losses: &[Vec<f64>]) -> Leaders {
        let mut leaders = Leaders::default();
        losses.iter().enumerate().for_each(|(at, losses)| leaders.insert(at, losses.clone()));
        leaders
    }

    fn best(leaders: &mut Leaders, count: usize) -> Vec<usize> {
        let mut good = leaders.best(count).to_vec();
        good.sort_unstable();
        good
    }

    #[test]
    fn the_good_ones_are_optuna_s() {
        let cases: Vec<Case> = serde_json::from_str(FIXTURE).unwrap();
        assert!(cases.len() >= 8);
        for case in cases {
            for expected in case.good {
                assert_eq!(best(&mut leaders(&case.losses), expected.len()), expected);
            }
        }
    }

    #[test]
    fn who_was_dropped_would_not_be_good() {
        // Worse and worse, with better ones in between: far more trials than are kept.
        let losses: Vec<Vec<f64>> = (0..3000_u32)
            .map(|at| {
                let x = f64::from(at * 7919 % 3000) / 3000.0;
                vec![x, 1.0 - x + f64::from(at * 104_729 % 2999) / 500.0]
            })
            .collect();
        let mut kept = leaders(&losses);
        assert!(kept.members.len() <= MOST);
        let fronts = Fronts::of(&losses);
        let foremost = fronts.whole(MAX_GOOD);
        assert!(foremost.len() > 20);
        assert_eq!(best(&mut kept, foremost.len()), {
            let mut all = foremost;
            all.sort_unstable();
            all
        });
        assert_eq!(kept.best(MAX_GOOD).len(), MAX_GOOD);
    }

    #[test]
    fn many_losses_are_chosen_by_distance() {
        let unit = |at: u32, dim: u32| f64::from(at * (dim * 37 + 11) % 101) / 101.0;
        let losses: Vec<Vec<f64>> = (0..300).map(|at| (0..8).map(|dim| unit(at, dim)).collect()).collect();
        let mut found = best(&mut leaders(&losses), 30);
        found.dedup();
        assert_eq!(found.len(), 30);
    }

    #[test]
    fn a_front_too_large_keeps_its_ends() {
        let losses: Vec<Vec<f64>> = (0..1000).map(|at| vec![f64::from(at), f64::from(999 - at)]).collect();
        let kept = leaders(&losses);
        let indices: Vec<usize> = kept.members.iter().map(|member| member.index).collect();
        assert!(indices.len() <= MOST && indices.contains(&0) && indices.contains(&999));
    }
}
