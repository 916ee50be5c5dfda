//! Specifications of jobs: parsed from TOML and validated as a whole, without touching the system.

mod gang;
mod job;
pub(crate) mod reader;
mod train;

pub use gang::{BundleSpec, GangSpec, LabelRule, Placement, Workers};
pub use job::{CheckpointPolicy, JobSpec, MetricMode, ProgramSpec, Work};
pub use train::{
    Activation, AdamFields, Backend, DataSpec, Duration as TrainDuration, LOGICAL_SHARDS, Loss, ModelSpec,
    Optimizer, Schedule, TrainSpec, Validation, WorkerSpec,
};
