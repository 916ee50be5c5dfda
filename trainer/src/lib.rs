//! Data-parallel training in a rank: data, models, optimizers, checkpoints, metrics
