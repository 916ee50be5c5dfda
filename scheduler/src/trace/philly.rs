//! Microsoft's Philly trace (Jeon et al., "Analysis of Large-Scale Multi-Tenant GPU Clusters for DNN Training Workloads",
//! ATC'19). It is published as JSON; simulators pass it on as CSV with one row a job, under a few names for each column.

use super::table::csv;
use super::{LeftOut, Row, TraceError, gang};
use phalanx_core::resources::WHOLE;

const NAME: [&str; 3] = ["job_id", "jobid", "id"];
const SUBMITTED: [&str; 4] = ["submit_time", "submitted_time", "timestamp", "submit"];
const DURATION: [&str; 4] = ["duration", "run_time", "runtime", "seconds"];
const START: [&str; 2] = ["start_time", "start"];
const END: [&str; 4] = ["end_time", "finished_time", "finish_time", "end"];
const GPUS: [&str; 4] = ["gpu_num", "num_gpu", "num_gpus", "gpus"];
const CPUS: [&str; 4] = ["cpu_num", "num_cpu", "num_cpus", "cpus"];
const QUEUE: [&str; 3] = ["vc", "virtual_cluster", "queue"];

pub(super) fn read(text: &str, mut take: impl FnMut(Result<Row, LeftOut>)) -> Result<(), TraceError> {
    csv(text, None, &[&NAME, &SUBMITTED, &GPUS], |fields| {
        let Some(submitted) = fields.moment(&SUBMITTED)? else {
            take(Err("without a submission"));
            return Ok(());
        };
        let ran = match (fields.number(&DURATION)?, fields.moment(&START)?, fields.moment(&END)?) {
            (Some(seconds), _, _) => Some(seconds),
            (None, Some(start), Some(end)) => Some(end - start),
            _ => None,
        };
        let gpus = fields.count(&GPUS, 1.0)?.unwrap_or(0);
        let cpus = fields.count(&CPUS, WHOLE as f64)?;
        let workers = gpus.max(1);
        let gang = gang(workers, cpus.map_or(WHOLE, |cpus| cpus / workers), (gpus / workers) * WHOLE, 0);
        let row = gang.and_then(|gang| {
            let seconds = ran.filter(|&seconds| seconds >= 0.0).ok_or("that never ran")?;
            let (name, queue) = (fields.text(&NAME).unwrap_or_default(), fields.text(&QUEUE));
            let (name, queue) = (name.to_owned(), queue.map(str::to_owned));
            Ok(Row { name, submitted, seconds, queue, time_limit: None, gang })
        });
        take(row);
        Ok(())
    })
}
