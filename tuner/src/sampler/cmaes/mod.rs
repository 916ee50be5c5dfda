//! Covariance matrix adaptation (Hansen & Ostermeier 2001) over the numbers that are always there, in the unit box of their
//! scales. Integers have a margin, restarts double the population (IPOP, Auger & Hansen 2005), and what is known when it
//! begins shapes the first distribution (warm start, Nomura et al., arXiv 2012.06932).
//!
//! Trials may be in flight over the end of a generation: one that ends later counts in the next one, pulled to where that
//! generation's distribution might have sampled it. All of this follows from the log: places are sampled again from the
//! trial's number when it is handed out.

mod distribution;
mod margin;

use super::View;
use super::normal::quantile;
use super::rank::Rank;
use crate::random::Stream;
use crate::space::{Axis, Point, Scale, Space};
use crate::trial::{Origin, Trial};
use distribution::Distribution;
use margin::Steps;
use nalgebra::{DMatrix, DVector};
use phalanx_core::spec::MetricMode;

/// The first width in a unit box.
const SIGMA: f64 = 0.2;
/// The best share of what is known shapes the first distribution …
const KNOWN_SHARE: f64 = 0.1;
/// … where at least so many are known per dimension; it is this wide around each of them.
const KNOWN_PER_DIM: usize = 3;
const KNOWN_WIDTH: f64 = 0.1;
/// Draws until one lies in the box; the last one is cut off.
const DRAWS: usize = 20;
/// Below this width in every coordinate a run has ended.
const SMALLEST_WIDTH: f64 = 1e-8;
/// A run has ended when the best losses of its latest generations differ by no more than this share.
const SMALLEST_GAIN: f64 = 1e-11;
/// Populations no longer double beyond this.
const LARGEST_POPULATION: usize = 1024;

/// A coordinate of the unit box.
#[derive(Clone, Debug)]
struct Coordinate {
    param: usize,
    scale: Scale,
    steps: Option<Steps>,
}

/// One run, from its start to its restart.
#[derive(Clone, Debug)]
struct Run {
    distribution: Distribution,
    /// Along each coordinate, how much wider values are sampled than the distribution is (1 without steps).
    stretch: Vec<f64>,
    /// How many runs came before it.
    restarts: u64,
    generation: u64,
    /// Ended trials since the last generation: (rank, place).
    batch: Vec<(Rank, DVector<f64>)>,
    /// The best loss of each generation.
    bests: Vec<f64>,
}

/// Where and when a trial was sampled.
#[derive(Clone, Debug)]
struct Sample {
    restarts: u64,
    generation: u64,
    place: DVector<f64>,
}

/// The sampler.
pub(super) struct Cmaes {
    coordinates: Vec<Coordinate>,
    seed: u64,
    run: Option<Run>,
    /// By the trial's place among all that are known; `None` for those of others, and for those that have been learnt from.
    samples: Vec<Option<Sample>>,
    /// Ended trials of others until the first run begins, the best first.
    elders: Vec<(Rank, DVector<f64>)>,
}

impl Cmaes {
    /// `None` where no number is always there.
    pub(super) fn new(space: &Space, seed: u64) -> Option<Cmaes> {
        let coordinate = |(param, found): (usize, &crate::space::Param)| match found.axis {
            Axis::Numeric(scale) if found.when.is_empty() => {
                Some(Coordinate { param, scale, steps: Steps::new(scale) })
            }
            _ => None,
        };
        let coordinates: Vec<Coordinate> = space.params().iter().enumerate().filter_map(coordinate).collect();
        (!coordinates.is_empty()).then(|| Cmaes {
            coordinates,
            seed,
            run: None,
            samples: Vec::new(),
            elders: Vec::new(),
        })
    }

    /// The numbers of the next trial; all else is open. `None` where the numerics allow no distribution.
    pub(super) fn suggest(&self, view: &View<'_>) -> Option<Point> {
        let begun = if self.run.is_none() { Some(self.begin()?) } else { None };
        let run = self.run.as_ref().or(begun.as_ref())?;
        let place = self.sample(run, view.number());
        let mut point: Point = vec![None; view.space.params().len()];
        for (coordinate, float) in self.coordinates.iter().zip(self.floats(run, &place)) {
            point[coordinate.param] = Some(float);
        }
        Some(point)
    }

    /// What a place means, coordinate by coordinate.
    fn floats(&self, run: &Run, place: &DVector<f64>) -> impl Iterator<Item = f64> {
        self.coordinates.iter().enumerate().map(|(dim, coordinate)| {
            let mean = run.distribution.mean[dim];
            let stretched = mean + run.stretch[dim] * (place[dim] - mean);
            Axis::Numeric(coordinate.scale).at(stretched.clamp(0.0, 1.0))
        })
    }

    /// Where a point lies in the unit box.
    fn place_of(&self, point: &Point) -> DVector<f64> {
        let share = |c: &Coordinate| point[c.param].map_or(0.5, |float| Axis::Numeric(c.scale).share(float));
        DVector::from_iterator(self.coordinates.len(), self.coordinates.iter().map(share))
    }

    pub(super) fn asked(&mut self, trial: &Trial) {
        if trial.origin != Origin::Cmaes {
            return;
        }
        if self.run.is_none() {
            self.run = self.begin();
            self.elders = Vec::new();
        }
        let Some(run) = &self.run else { return };
        let mut place = self.sample(run, trial.number);
        // The log of an earlier version may have it from elsewhere: what was tried is what counts.
        let tried = self.coordinates.iter().map(|coordinate| trial.point[coordinate.param]);
        if !self.floats(run, &place).map(Some).eq(tried) {
            place = self.place_of(&trial.point);
        }
        let sample = Sample { restarts: run.restarts, generation: run.generation, place };
        self.samples.resize(trial.index + 1, None);
        self.samples[trial.index] = Some(sample);
    }

    pub(super) fn moved(&mut self, mode: MetricMode, trial: &Trial) {
        let Some(rank) = Rank::of(mode, trial) else { return };
        let sample = self.samples.get_mut(trial.index).and_then(Option::take);
        match (sample, &mut self.run) {
            (Some(sample), Some(run)) if sample.restarts == run.restarts => {
                let late = sample.generation != run.generation;
                let place = if late { run.distribution.pulled(&sample.place) } else { sample.place };
                run.batch.push((rank, place));
                if run.batch.len() >= run.distribution.population() {
                    self.turn();
                }
            }
            (None, None) if rank.is_whole() => {
                let place = self.place_of(&trial.point);
                let at = self.elders.partition_point(|(other, _)| other.cmp(&rank).is_lt());
                self.elders.insert(at, (rank, place));
            }
            _ => {}
        }
    }

    fn population(&self) -> usize {
        4 + (3.0 * (self.coordinates.len() as f64).ln()) as usize
    }

    /// The first run: around the best of what is known, else around the centre.
    fn begin(&self) -> Option<Run> {
        let dims = self.coordinates.len();
        let known = self.elders.len();
        let best = ((KNOWN_SHARE * known as f64).ceil() as usize).max(2).min(known);
        let warm = if known >= KNOWN_PER_DIM * dims { self.shaped(best) } else { None };
        let centre = || self.start(DVector::repeat(dims, 0.5), self.population(), 0);
        warm.or_else(centre)
    }

    fn shaped(&self, best: usize) -> Option<Run> {
        let dims = self.coordinates.len();
        let places: Vec<&DVector<f64>> = self.elders[..best].iter().map(|(_, place)| place).collect();
        let mean = places.iter().fold(DVector::zeros(dims), |sum, place| sum + *place) / best as f64;
        let mut covariance = DMatrix::identity(dims, dims) * (KNOWN_WIDTH * KNOWN_WIDTH);
        for place in &places {
            let step = *place - &mean;
            covariance.ger(1.0 / best as f64, &step, &step, 1.0);
        }
        // The width is taken out of the shape, so that the shape's volume is 1.
        let log_volume = covariance.clone().cholesky()?.l().diagonal().map(f64::ln).sum();
        let sigma = (log_volume / dims as f64).exp();
        let distribution = Distribution::new(mean, sigma, covariance / (sigma * sigma), self.population())?;
        Some(self.run_of(distribution, 0))
    }

    fn start(&self, mean: DVector<f64>, population: usize, restarts: u64) -> Option<Run> {
        let dims = self.coordinates.len();
        let distribution = Distribution::new(mean, SIGMA, DMatrix::identity(dims, dims), population)?;
        Some(self.run_of(distribution, restarts))
    }

    fn run_of(&self, distribution: Distribution, restarts: u64) -> Run {
        let stretch = vec![1.0; self.coordinates.len()];
        Run { distribution, stretch, restarts, generation: 0, batch: Vec::new(), bests: Vec::new() }
    }

    /// The place of a trial under a run's distribution: the first draw that lies in the box.
    fn sample(&self, run: &Run, number: u64) -> DVector<f64> {
        let mut stream = Stream::new(self.seed, number, "cmaes", "");
        let dims = self.coordinates.len();
        let inside = |place: &DVector<f64>| {
            let holds =
                |(dim, c): (usize, &Coordinate)| c.steps.is_some() || (0.0..=1.0).contains(&place[dim]);
            self.coordinates.iter().enumerate().all(holds)
        };
        let mut place = run.distribution.mean.clone();
        for _ in 0..DRAWS {
            let normal = DVector::from_fn(dims, |_, _| quantile(stream.unit().max(f64::EPSILON)));
            place = run.distribution.place(&normal);
            if inside(&place) {
                return place;
            }
        }
        for (dim, coordinate) in self.coordinates.iter().enumerate() {
            if coordinate.steps.is_none() {
                place[dim] = place[dim].clamp(0.0, 1.0);
            }
        }
        place
    }

    /// The next generation, or where the run has come to its end a new one with twice the population.
    fn turn(&mut self) {
        let Some(mut run) = self.run.take() else { return };
        run.batch.sort_by_key(|(rank, _)| *rank);
        let best = run.batch[0].0.loss().unwrap_or(f64::INFINITY);
        let population = run.distribution.population();
        let places: Vec<DVector<f64>> =
            run.batch.drain(..).take(population).map(|(_, place)| place).collect();
        let sound = run.distribution.update(&places);
        run.generation += 1;
        run.bests.push(best);
        self.correct(&mut run);
        if sound && !self.has_converged(&run) {
            self.run = Some(run);
            return;
        }
        let restarts = run.restarts + 1;
        let mut stream = Stream::new(self.seed, restarts, "cmaes", "restart");
        let mean = DVector::from_fn(self.coordinates.len(), |_, _| stream.unit());
        self.run = self.start(mean, (2 * population).min(LARGEST_POPULATION), restarts);
    }

    /// Keeps the mean in the box, and every integer's neighbours likely.
    fn correct(&self, run: &mut Run) {
        let margin = 1.0 / (self.coordinates.len() * run.distribution.population()) as f64;
        for (dim, coordinate) in self.coordinates.iter().enumerate() {
            let mean = run.distribution.mean[dim].clamp(0.0, 1.0);
            run.distribution.mean[dim] = mean;
            let Some(steps) = &coordinate.steps else { continue };
            let deviation = run.distribution.deviation(dim);
            let wide = (run.stretch[dim] * deviation).max(f64::MIN_POSITIVE);
            let (mean, wide) = steps.corrected(mean, wide, margin);
            run.distribution.mean[dim] = mean;
            run.stretch[dim] = wide / deviation;
        }
    }

    fn has_converged(&self, run: &Run) -> bool {
        let dims = self.coordinates.len();
        let narrow = |dim: usize| {
            self.coordinates[dim].steps.is_some() || run.distribution.deviation(dim) < SMALLEST_WIDTH
        };
        let continuous = self.coordinates.iter().any(|coordinate| coordinate.steps.is_none());
        let window = 10 + 30 * dims / run.distribution.population();
        let latest = &run.bests[run.bests.len().saturating_sub(window)..];
        let (least, most) = latest.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), loss| {
            (least.min(*loss), most.max(*loss))
        });
        let flat = latest.len() == window && most - least <= SMALLEST_GAIN * least.abs().max(SMALLEST_GAIN);
        flat || (continuous && (0..dims).all(narrow))
    }
}

#[cfg(test)]
#[path = "../cmaes_tests.rs"]
mod tests;
