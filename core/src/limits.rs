//! Every bound of the model, by name.

/// Longest job name, in bytes.
pub const JOB_NAME_BYTES: usize = 256;
/// Largest job or sweep file, in bytes.
pub const SPEC_FILE_BYTES: usize = 1 << 20;
/// Largest scenario, in bytes: about 300,000 jobs.
pub const SCENARIO_FILE_BYTES: usize = 64 << 20;
/// Largest trace of another scheduler, in bytes.
pub const TRACE_FILE_BYTES: usize = 512 << 20;
/// Most GPUs of a scenario, over all nodes.
pub const SCENARIO_GPUS: usize = 1 << 20;
/// Most workers of a scenario, over all jobs.
pub const SCENARIO_RANKS: u64 = 8 << 20;
/// Most GPUs of one node.
pub const NODE_GPUS: u32 = 1_024;
/// Problems of one file that are told; of more, how many there are.
pub const PROBLEMS_TOLD: usize = 100;
/// Most ranks in one gang.
pub const GANG_WORKERS: u32 = 65_536;
/// Longest line on the report socket, in bytes.
pub const SOCKET_LINE_BYTES: usize = 1 << 20;
/// Longest name of a metric, in bytes.
pub const METRIC_NAME_BYTES: usize = 256;
/// Most metrics in one report.
pub const METRICS_PER_REPORT: usize = 10_000;
/// A log line longer than this is kept in consecutive pieces.
pub const LOG_LINE_BYTES: usize = 1 << 20;
/// Longest accepted message on the wire, in bytes.
pub const WIRE_MESSAGE_BYTES: usize = 4 << 20;
/// Longest `request_id`, in bytes.
pub const REQUEST_ID_BYTES: usize = 256;
/// Longest id, label key, resource name or queue name, in bytes.
pub const NAME_BYTES: usize = 256;
/// Most parameters in one sweep.
pub const SWEEP_PARAMS: usize = 1_000;
/// Most values of one choice.
pub const SWEEP_CHOICES: usize = 10_000;
/// Times during which a trial ran that are told; of more the latest.
pub const TRIAL_STINTS: usize = 64;
/// Most trials in one sweep.
pub const SWEEP_TRIALS: i64 = 10_000_000;
/// Most objectives in one sweep.
pub const SWEEP_OBJECTIVES: usize = 16;
/// Most constraints in one sweep.
pub const SWEEP_CONSTRAINTS: usize = 16;
/// Most older sweeps that one learns from.
pub const SWEEP_LEARNS_FROM: usize = 16;
/// Most members of a population.
pub const SWEEP_POPULATION: i64 = 10_000;
/// Longest value of a secret, in bytes.
pub const SECRET_BYTES: usize = 64 << 10;
/// Most secrets of a service.
pub const SECRETS: usize = 10_000;
/// Most secrets of one job.
pub const SECRETS_PER_JOB: usize = 100;
