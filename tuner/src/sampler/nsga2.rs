//! A genetic algorithm that sorts by fronts (Deb et al. 2002), in its steady state: one child at a time, and after every
//! trial the worst of the population goes. Children by exchange, simulated binary crossover and polynomial mutation (Deb &
//! Agrawal 1995); constraints come before losses. The population is small, mutations reach far and exchange is frequent:
//! sweeps have hundreds of trials, not the tens of thousands that the paper's constants are for.

use super::{View, random};
use crate::pareto;
use crate::random::Stream;
use crate::space::{Axis, Point};
use crate::trial::{Origin, Trial, TrialState};
use phalanx_core::spec::Objective;
use std::cmp::Ordering;
use std::collections::BTreeSet;

/// The population.
const POPULATION: usize = 24;
/// Told trials before the first child.
const STARTUP_TRIALS: usize = 20;
/// How likely two parents are crossed; else the child is the first of them, mutated.
const CROSSOVER: f64 = 0.9;
/// Of a crossed pair's parameters this share comes from the second parent …
const EXCHANGED: f64 = 0.4;
/// … and of numbers this one from between both.
const BLENDED: f64 = 0.3;
/// How near children are to their parents, and mutants to what they were: larger is nearer.
const CROSSOVER_INDEX: f64 = 10.0;
const MUTATION_INDEX: f64 = 3.0;
/// Children that are drawn until one is new.
const DRAWS: u64 = 8;

/// One of the population.
#[derive(Clone, Debug)]
struct Parent {
    index: usize,
    point: Point,
    violation: f64,
    losses: Vec<f64>,
}

/// How well one does among the others.
#[derive(Clone, Copy, Debug)]
struct Standing {
    violation: f64,
    front: usize,
    crowding: f64,
    index: usize,
}

impl Standing {
    /// The better first.
    fn cmp(&self, other: &Standing) -> Ordering {
        let feasible = self.violation.total_cmp(&other.violation).then(self.front.cmp(&other.front));
        feasible.then(other.crowding.total_cmp(&self.crowding)).then(self.index.cmp(&other.index))
    }
}

/// The sampler: the population that is left of the trials so far.
#[derive(Default)]
pub(super) struct Nsga2 {
    parents: Vec<Parent>,
    told: usize,
    /// Every point that there is, in bits.
    points: BTreeSet<Vec<Option<u64>>>,
}

fn bits(point: &Point) -> Vec<Option<u64>> {
    // Adding zero makes one of the two zeros.
    point.iter().map(|float| float.map(|float| (float + 0.0).to_bits())).collect()
}

impl Nsga2 {
    /// Whether there are enough parents.
    pub(super) fn breeds(&self) -> bool {
        self.told >= STARTUP_TRIALS && self.parents.len() >= 2
    }

    pub(super) fn asked(&mut self, trial: &Trial) {
        self.points.insert(bits(&trial.point));
    }

    pub(super) fn moved(&mut self, objectives: &[Objective], trial: &Trial) {
        // One of an older study was never asked for.
        if trial.origin == Origin::Enqueued {
            self.points.insert(bits(&trial.point));
        }
        if trial.state != TrialState::Complete && trial.state != TrialState::Stopped {
            return;
        }
        self.told += 1;
        let mut losses = trial.losses(objectives);
        losses.resize(objectives.len(), f64::INFINITY);
        let (index, point, violation) = (trial.index, trial.point.clone(), trial.violation);
        self.parents.push(Parent { index, point, violation, losses });
        if self.parents.len() > POPULATION {
            let standings = self.standings();
            let worst = (0..standings.len()).max_by(|a, b| standings[*a].cmp(&standings[*b]));
            worst.map(|worst| self.parents.remove(worst));
        }
    }

    fn standings(&self) -> Vec<Standing> {
        let losses: Vec<Vec<f64>> = self.parents.iter().map(|parent| parent.losses.clone()).collect();
        let ranks = pareto::ranks(&losses);
        let mut standings: Vec<Standing> = self
            .parents
            .iter()
            .zip(&ranks)
            .map(|(parent, front)| Standing {
                violation: parent.violation,
                front: *front,
                crowding: 0.0,
                index: parent.index,
            })
            .collect();
        for front in 0..=ranks.iter().copied().max().unwrap_or(0) {
            let members: Vec<usize> = (0..ranks.len()).filter(|at| ranks[*at] == front).collect();
            let points: Vec<&[f64]> = members.iter().map(|at| losses[*at].as_slice()).collect();
            for (at, distance) in members.iter().zip(pareto::crowding(&points)) {
                standings[*at].crowding = distance;
            }
        }
        standings
    }

    /// A child of two parents, each the better of two; `None` where every draw is a point that there is already.
    pub(super) fn suggest(&self, view: &View<'_>, given: &[Option<f64>]) -> Option<Point> {
        let standings = self.standings();
        let is_new = |child: &Point| !self.points.contains(&bits(child));
        (0..DRAWS).map(|draw| self.child(view, given, &standings, draw)).find(is_new)
    }

    fn child(&self, view: &View<'_>, given: &[Option<f64>], standings: &[Standing], draw: u64) -> Point {
        let mut stream = Stream::new(view.seed, view.number(), "nsga2", &format!("parents {draw}"));
        let mut pick = || {
            let mut one = || (stream.unit() * standings.len() as f64) as usize;
            let (a, b) = (one(), one());
            if standings[a].cmp(&standings[b]).is_le() { a } else { b }
        };
        let (first, second) = (&self.parents[pick()].point, &self.parents[pick()].point);
        let crosses = stream.unit() < CROSSOVER;
        let searched = view.space.params().iter().filter(|param| param.axis != Axis::Single).count().max(1);
        let mut wanted: Point = given.to_vec();
        for (at, param) in view.space.params().iter().enumerate() {
            if given[at].is_some() {
                continue;
            }
            let mut stream =
                Stream::new(view.seed, view.number(), "nsga2", &format!("{draw} {}", param.name));
            let units = [stream.unit(), stream.unit(), stream.unit(), stream.unit()];
            let inherited = match (first[at], second[at]) {
                (Some(a), Some(b)) if crosses => Some(cross(&param.axis, a, b, units[0], units[1])),
                (own, other) => own.or(other),
            };
            wanted[at] = match inherited {
                Some(float) if units[2] < 1.0 / searched as f64 => Some(mutate(&param.axis, float, units[3])),
                inherited => inherited,
            };
        }
        view.space.complete(&wanted, |param| random::draw(view, param))
    }
}

/// The second parent's value, one between both or a little beyond them, or the first parent's.
fn cross(axis: &Axis, a: f64, b: f64, turn: f64, unit: f64) -> f64 {
    if turn < EXCHANGED {
        return b;
    }
    if turn >= EXCHANGED + BLENDED || !matches!(axis, Axis::Numeric(_)) {
        return a;
    }
    let (x, y) = (axis.share(a), axis.share(b));
    let power = 1.0 / (CROSSOVER_INDEX + 1.0);
    let spread = if unit < 0.5 { (2.0 * unit).powf(power) } else { (0.5 / (1.0 - unit)).powf(power) };
    axis.at((0.5 * (x + y + spread * (x - y))).clamp(0.0, 1.0))
}

fn mutate(axis: &Axis, float: f64, unit: f64) -> f64 {
    let Axis::Numeric(scale) = axis else { return axis.at(unit) };
    let power = 1.0 / (MUTATION_INDEX + 1.0);
    let by = if unit < 0.5 { (2.0 * unit).powf(power) - 1.0 } else { 1.0 - (2.0 - 2.0 * unit).powf(power) };
    let moved = axis.at((axis.share(float) + by).clamp(0.0, 1.0));
    // What is nearer than a step is the next step.
    if moved != float || scale.step == 0.0 {
        return moved;
    }
    (float + by.signum() * scale.step).clamp(scale.low, scale.high)
}

#[cfg(test)]
mod tests {
    use crate::space::tests::sweep;
    use crate::{Ask, Origin, Outcome, Study};
    use phalanx_core::spec::SweepSpec;

    /// ZDT1 in so many parameters: the front is f2 = 1 − √f1 where all but the first are 0.
    fn zdt1(study: &mut Study, trials: usize) -> f64 {
        for _ in 0..trials {
            let Ask::Trial(trial) = study.ask() else { panic!("over") };
            let x: Vec<f64> = trial.params.values().filter_map(|value| value.as_f64()).collect();
            let g = 1.0 + 9.0 * x[1..].iter().sum::<f64>() / (x.len() - 1) as f64;
            let values = vec![x[0], g * (1.0 - (x[0] / g).sqrt())];
            study.tell(trial.number, Outcome::Values(values)).unwrap();
        }
        study.hypervolume().unwrap()
    }

    fn two(kind: &str) -> SweepSpec {
        let params: String =
            (0..6).map(|i| format!("x{i} = {{ kind = \"float\", low = 0, high = 1 }}\n")).collect();
        let text = format!(
            "version = 1\n[sweep]\n[[objective]]\nmetric = \"a\"\nreference = 1.1\n[[objective]]\nmetric = \"b\"\n\
             reference = 1.1\n[search]\nkind = \"{kind}\"\n[params]\n{params}"
        );
        SweepSpec::parse(&text, "x").unwrap()
    }

    #[test]
    fn fronts_are_approached() {
        let found = ["random", "nsga2", "motpe", "auto"].map(|kind| zdt1(&mut Study::new(&two(kind)), 300));
        // The whole of it is 0.21 + 2/3.
        assert!(found[0] < 0.1 && found[1] > 0.6 && found[2] > 0.4 && found[3] > 0.6, "{found:?}");
    }

    #[test]
    fn the_first_trials_are_spread_and_no_child_is_a_copy() {
        let lines = "[search]\nkind = \"nsga2\"\n[params]\na = { kind = \"int\", low = 0, high = 9 }\n\
                     c = { kind = \"choice\", values = [1, 2, 3] }\n";
        let mut study = Study::new(&sweep(lines));
        for _ in 0..28 {
            let Ask::Trial(trial) = study.ask() else { panic!("over") };
            let value = (trial.params["a"].as_f64().unwrap() - 4.0).abs();
            study.tell(trial.number, Outcome::Values(vec![value])).unwrap();
        }
        let origins: Vec<Origin> = study.trials().iter().map(|trial| trial.origin).collect();
        assert_eq!(origins[..20], [Origin::Sobol; 20]);
        let bred: Vec<usize> = (20..28).filter(|at| origins[*at] == Origin::Nsga2).collect();
        assert!(!bred.is_empty());
        for at in bred {
            assert!(study.trials()[..at].iter().all(|other| other.params != study.trials()[at].params));
        }
    }

    #[test]
    fn what_is_not_feasible_dies_out() {
        let lines = "[search]\nkind = \"nsga2\"\n[[constraint]]\nmetric = \"g\"\nmax = 0.2\n[params]\n\
                     x = { kind = \"float\", low = 0, high = 1 }\n";
        let mut study = Study::new(&sweep(lines));
        for _ in 0..120 {
            let Ask::Trial(trial) = study.ask() else { panic!("over") };
            let x = trial.params["x"].as_f64().unwrap();
            let outcome = Outcome::Measured { values: vec![-x], measured: vec![x] };
            study.tell(trial.number, outcome).unwrap();
        }
        let late = &study.trials()[80..];
        assert!(late.iter().filter(|trial| trial.is_feasible()).count() > 14);
        let best = study.best().unwrap();
        assert!(best.is_feasible() && best.values[0] < -0.19, "{best:?}");
    }
}
