//! The gradient of one global batch, as far as this rank computes it.

use crate::Error;
use crate::data::{Batch, Dataset};
use crate::gang::TAIL_LEN;
use crate::model::{Model, Write};
use crate::sampler::{Position, Sampler, part_of};
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
    /// One buffer for every level of the tree but the root.
    levels: Vec<Vec<f32>>,
}

/// What computing a gradient takes from the run.
pub(crate) struct Task<'a> {
    pub(crate) model: &'a mut dyn Model,
    pub(crate) sampler: &'a mut Sampler,
    pub(crate) data: &'a Dataset,
    pub(crate) position: Position,
}

impl Worker {
    /// Rank `rank` of `world`; with shards, `world` must divide their number.
    pub(crate) fn new(rank: u64, world: u64, cut: Cut, parameters: usize, seed: u64) -> Worker {
        let levels = match cut {
            Cut::Rounds(_) => 0,
            Cut::Shards => (u64::from(LOGICAL_SHARDS) / world).ilog2() as usize,
        };
        let levels = vec![vec![0.0; parameters + TAIL_LEN]; levels];
        Worker { rank, world, cut, seed, rows: Vec::new(), batch: Batch::default(), levels }
    }

    /// Writes this rank's part of the mean gradient of the global batch to `out`, and after it its part of the mean loss
    /// and 0 for the stop flag.
    pub(crate) fn compute(&mut self, mut task: Task<'_>, out: &mut [f32]) -> Result<(), Error> {
        let places = task.sampler.batch(task.position);
        let targets = (places.end - places.start) as usize * task.data.targets_per_sample();
        let scale = 1.0 / targets as f32;
        match self.cut {
            Cut::Rounds(rounds) => {
                let own = part_of(&places, self.rank, self.world);
                let mut loss = 0.0;
                for round in 0..rounds {
                    let write = if round == 0 { Write::Set } else { Write::Add };
                    loss += self.pass(&mut task, part_of(&own, round, rounds), scale, out, write)?;
                }
                end(out, (loss * f64::from(scale)) as f32);
            }
            Cut::Shards => {
                let share = u64::from(LOGICAL_SHARDS) / self.world;
                let mut levels = std::mem::take(&mut self.levels);
                let shards = self.rank * share..(self.rank + 1) * share;
                self.fold(&mut task, shards, &places, scale, out, &mut levels)?;
                self.levels = levels;
            }
        }
        Ok(())
    }

    /// Folds the gradients of `shards`, a power of two of them, into `out`.
    fn fold(
        &mut self,
        task: &mut Task<'_>,
        shards: Range<u64>,
        places: &Range<u64>,
        scale: f32,
        out: &mut [f32],
        levels: &mut [Vec<f32>],
    ) -> Result<(), Error> {
        let Some((right, below)) = levels.split_first_mut() else {
            let part = part_of(places, shards.start, u64::from(LOGICAL_SHARDS));
            let loss = self.pass(task, part, scale, out, Write::Set)?;
            end(out, (loss * f64::from(scale)) as f32);
            return Ok(());
        };
        let middle = shards.start.midpoint(shards.end);
        self.fold(task, shards.start..middle, places, scale, out, below)?;
        self.fold(task, middle..shards.end, places, scale, right, below)?;
        out.iter_mut().zip(&*right).for_each(|(left, right)| *left += right);
        Ok(())
    }

    /// The gradient of the samples at `places`; no samples have loss 0 and gradient 0.
    fn pass(
        &mut self,
        task: &mut Task<'_>,
        places: Range<u64>,
        scale: f32,
        out: &mut [f32],
        write: Write,
    ) -> Result<f64, Error> {
        let epoch = task.position.epoch;
        task.sampler.fill(epoch, places, &mut self.rows);
        for row in &mut self.rows {
            *row = task.data.training[*row as usize];
        }
        let parameters = out.len() - TAIL_LEN;
        let gradient = &mut out[..parameters];
        if self.rows.is_empty() {
            if write == Write::Set {
                gradient.fill(0.0);
            }
            return Ok(0.0);
        }
        task.data.fill(&self.rows, Some((self.seed, epoch)), &mut self.batch)?;
        task.model.forward_backward(&self.batch, scale, gradient, write)
    }
}

fn end(out: &mut [f32], loss: f32) {
    let at = out.len() - TAIL_LEN;
    out[at..].copy_from_slice(&[loss, 0.0]);
}
