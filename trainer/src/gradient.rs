//! The gradient of one global batch, as far as this rank computes it.

use crate::data::Dataset;
use crate::gang::TAIL_LEN;
use crate::model::{Engine, Write};
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
    rows: Vec<u32>,
    /// One buffer for every level of the tree but the root.
    levels: Vec<Vec<f32>>,
}

/// What computing a gradient takes from the run.
pub(crate) struct Batch<'a> {
    pub(crate) engine: &'a mut dyn Engine,
    pub(crate) sampler: &'a mut Sampler,
    pub(crate) data: &'a Dataset,
    pub(crate) position: Position,
}

impl Worker {
    /// Rank `rank` of `world`; with shards, `world` must divide their number.
    pub(crate) fn new(rank: u64, world: u64, cut: Cut, parameters: usize) -> Worker {
        let levels = match cut {
            Cut::Rounds(_) => 0,
            Cut::Shards => (u64::from(LOGICAL_SHARDS) / world).ilog2() as usize,
        };
        let levels = vec![vec![0.0; parameters + TAIL_LEN]; levels];
        Worker { rank, world, cut, rows: Vec::new(), levels }
    }

    /// Writes this rank's part of the mean gradient of the global batch to `out`, and after it its part of the mean loss
    /// and 0 for the stop flag.
    pub(crate) fn compute(&mut self, mut batch: Batch<'_>, out: &mut [f32]) {
        let places = batch.sampler.batch(batch.position);
        let scale = 1.0 / (places.end - places.start) as f32;
        match self.cut {
            Cut::Rounds(rounds) => {
                let own = part_of(&places, self.rank, self.world);
                let mut loss = 0.0;
                for round in 0..rounds {
                    let write = if round == 0 { Write::Set } else { Write::Add };
                    loss += self.pass(&mut batch, part_of(&own, round, rounds), scale, out, write);
                }
                end(out, (loss * f64::from(scale)) as f32);
            }
            Cut::Shards => {
                let share = u64::from(LOGICAL_SHARDS) / self.world;
                let mut levels = std::mem::take(&mut self.levels);
                let shards = self.rank * share..(self.rank + 1) * share;
                self.fold(&mut batch, shards, &places, scale, out, &mut levels);
                self.levels = levels;
            }
        }
    }

    /// Folds the gradients of `shards`, a power of two of them, into `out`.
    fn fold(
        &mut self,
        batch: &mut Batch<'_>,
        shards: Range<u64>,
        places: &Range<u64>,
        scale: f32,
        out: &mut [f32],
        levels: &mut [Vec<f32>],
    ) {
        let Some((right, below)) = levels.split_first_mut() else {
            let part = part_of(places, shards.start, u64::from(LOGICAL_SHARDS));
            let loss = self.pass(batch, part, scale, out, Write::Set);
            end(out, (loss * f64::from(scale)) as f32);
            return;
        };
        let middle = shards.start.midpoint(shards.end);
        self.fold(batch, shards.start..middle, places, scale, out, below);
        self.fold(batch, middle..shards.end, places, scale, right, below);
        out.iter_mut().zip(&*right).for_each(|(left, right)| *left += right);
    }

    fn pass(
        &mut self,
        batch: &mut Batch<'_>,
        places: Range<u64>,
        scale: f32,
        out: &mut [f32],
        write: Write,
    ) -> f64 {
        batch.sampler.fill(batch.position.epoch, places, &mut self.rows);
        for row in &mut self.rows {
            *row = batch.data.training[*row as usize];
        }
        let parameters = out.len() - TAIL_LEN;
        batch.engine.forward_backward(batch.data, &self.rows, scale, &mut out[..parameters], write)
    }
}

fn end(out: &mut [f32], loss: f32) {
    let at = out.len() - TAIL_LEN;
    out[at..].copy_from_slice(&[loss, 0.0]);
}
