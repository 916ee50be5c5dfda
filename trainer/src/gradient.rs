//! The gradient of one global batch, as far as this rank computes it.

use crate::Error;
use crate::data::{Batch, Dataset};
use crate::model::{Gradient, Model, Write};
use crate::sampler::{Position, Sampler, part_of};
use crate::usage::Usage;
use phalanx_core::spec::LOGICAL_SHARDS;
use std::ops::Range;

/// How a rank's part of a batch is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Into rounds that are added up as they come, so that fewer activations are held at a time.
    Rounds(u64),
    /// Into its share of the batch's logical shards, folded by a balanced tree. With the collective's tree over ranks on
    /// top it is one and the same tree for 1, 2, 4 and 8 workers.
    Shards,
}

/// Which part of each batch is this rank's, and the buffers to compute it.
pub(crate) struct Worker {
    pub(crate) rank: u64,
    pub(crate) world: u64,
    cut: Cut,
    seed: u64,
    rows: Vec<u32>,
    batch: Batch,
    /// Which tensors the last step's loss depended on.
    pub(crate) usage: Usage,
    /// One buffer for every level of the tree but the root.
    levels: Vec<Vec<f32>>,
}

/// How many ranks share the logical shards out: those before the largest power of two, where a gang is odd because one of
/// it was killed. What the others add is zero, which changes no bit of the sum.
fn sharing(world: u64) -> u64 {
    1 << world.min(u64::from(LOGICAL_SHARDS)).ilog2()
}

/// What computing a gradient takes from the run.
pub(crate) struct Task<'a> {
    pub(crate) model: &'a mut dyn Model,
    pub(crate) sampler: &'a mut Sampler,
    pub(crate) data: &'a Dataset,
    pub(crate) position: Position,
}

/// A gradient of which nothing is finished before the last round.
struct Unfinished<'a>(&'a mut dyn Gradient);

impl Gradient for Unfinished<'_> {
    fn open(&mut self) -> &mut [f32] {
        self.0.open()
    }

    fn stays(&self) -> bool {
        self.0.stays()
    }
}

impl Worker {
    /// Rank `rank` of `world`. Shards are shared by the first ranks, as many as the largest power of two that there are.
    pub(crate) fn new(rank: u64, world: u64, cut: Cut, parameters: usize, seed: u64) -> Worker {
        let levels = match cut {
            Cut::Rounds(_) => 0,
            Cut::Shards => (u64::from(LOGICAL_SHARDS) / sharing(world)).ilog2() as usize,
        };
        let levels = vec![vec![0.0; parameters]; levels];
        Worker {
            rank,
            world,
            cut,
            seed,
            rows: Vec::new(),
            batch: Batch::default(),
            usage: Usage::default(),
            levels,
        }
    }

    /// Writes this rank's part of the mean gradient of the global batch to `out` and returns its part of the mean loss.
    pub(crate) fn compute(&mut self, mut task: Task<'_>, out: &mut dyn Gradient) -> Result<f32, Error> {
        let places = task.sampler.batch(task.position);
        let targets = (places.end - places.start) as usize * task.data.targets_per_sample();
        let scale = 1.0 / targets as f32;
        self.usage.begin();
        match self.cut {
            Cut::Rounds(rounds) => {
                let own = part_of(&places, self.rank, self.world);
                let mut loss = 0.0;
                for round in 0..rounds {
                    let write = if round == 0 { Write::Set } else { Write::Add };
                    let part = part_of(&own, round, rounds);
                    loss += match round + 1 == rounds {
                        true => self.pass(&mut task, part, scale, out, write)?,
                        false => self.pass(&mut task, part, scale, &mut Unfinished(out), write)?,
                    };
                }
                Ok((loss * f64::from(scale)) as f32)
            }
            Cut::Shards => {
                let sharing = sharing(self.world);
                if self.rank >= sharing {
                    out.open().fill(0.0);
                    return Ok(0.0);
                }
                let share = u64::from(LOGICAL_SHARDS) / sharing;
                let mut levels = std::mem::take(&mut self.levels);
                let shards = self.rank * share..(self.rank + 1) * share;
                let loss = self.fold(&mut task, shards, &places, scale, out.open(), &mut levels)?;
                self.levels = levels;
                Ok(loss)
            }
        }
    }

    /// Folds the gradients of `shards`, a power of two of them, into `out`, and their losses into what it returns.
    fn fold(
        &mut self,
        task: &mut Task<'_>,
        shards: Range<u64>,
        places: &Range<u64>,
        scale: f32,
        mut out: &mut [f32],
        levels: &mut [Vec<f32>],
    ) -> Result<f32, Error> {
        let Some((right, below)) = levels.split_first_mut() else {
            let part = part_of(places, shards.start, u64::from(LOGICAL_SHARDS));
            let loss = self.pass(task, part, scale, &mut out, Write::Set)?;
            return Ok((loss * f64::from(scale)) as f32);
        };
        let middle = shards.start.midpoint(shards.end);
        let loss = self.fold(task, shards.start..middle, places, scale, out, below)?
            + self.fold(task, middle..shards.end, places, scale, right, below)?;
        out.iter_mut().zip(&*right).for_each(|(left, right)| *left += right);
        Ok(loss)
    }

    /// The gradient of the samples at `places`; no samples have loss 0 and gradient 0.
    fn pass(
        &mut self,
        task: &mut Task<'_>,
        places: Range<u64>,
        scale: f32,
        out: &mut dyn Gradient,
        write: Write,
    ) -> Result<f64, Error> {
        let epoch = task.position.epoch;
        task.sampler.fill(epoch, places, &mut self.rows);
        for row in &mut self.rows {
            *row = task.data.training[*row as usize];
        }
        if self.rows.is_empty() {
            match task.model.device_gradient() {
                _ if write == Write::Add => {}
                Some(device) if out.stays() => device.clear()?,
                _ => out.open().fill(0.0),
            }
            return Ok(0.0);
        }
        task.data.fill(&self.rows, Some((self.seed, epoch)), &mut self.batch)?;
        let loss = task.model.forward_backward(&self.batch, scale, out, write)?;
        self.usage.note(task.model.unused());
        Ok(loss)
    }
}
