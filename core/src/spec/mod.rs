//! Specifications of jobs: parsed from TOML and validated as a whole, without touching the system.

mod gang;
mod group;
mod job;
mod params;
mod queue;
pub(crate) mod reader;
mod scenario;
mod search;
mod service;
mod sweep;
mod template;
mod train;

pub use gang::{BundleSpec, GangSpec, LabelRule, Placement, Workers};
pub use group::{DEFAULT_NAMESPACE, GroupName, GroupSpec};
pub use job::{CheckpointPolicy, JobSpec, MetricMode, ProgramSpec, Work};
pub use params::{Condition, Domain, ParamSpec, ParamValue, Params};
pub use queue::{DEFAULT_QUEUE, Limits, QueueSpec, SchedulingSpec};
pub use scenario::{Happening, Scenario, ScenarioEvent, ScenarioJob, ScenarioNode};
pub use search::{Cutoff, Halving, HalvingMode, Pace, Population, Search, Stopping};
pub use service::{ServiceSpec, parse_queues};
pub use sweep::{Constraint, Objective, SweepSpec, is_sweep};
pub use train::{
    Activation, AdamFields, ArrayData, Backend, CnnSpec, DataSpec, Duration as TrainDuration, HeldOut,
    LOGICAL_SHARDS, Loss, ModelSpec, Norm, Optimizer, Precision, Schedule, TableData, TextColumn, TextData,
    Tokenizer, TrainSpec, TransformerSpec, WorkerSpec,
};
