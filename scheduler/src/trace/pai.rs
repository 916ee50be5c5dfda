//! Alibaba's cluster-trace-gpu-v2020 (Weng et al., "MLaaS in the Wild", NSDI'22): the table of tasks. It says when a task
//! started, not when it was submitted; the start is taken for both.

use super::table::csv;
use super::{LeftOut, Row, TraceError, gang};
use phalanx_core::resources::WHOLE;

/// The columns, which the published file has without a head.
const COLUMNS: [&str; 10] = [
    "job_name",
    "task_name",
    "inst_num",
    "status",
    "start_time",
    "end_time",
    "plan_cpu",
    "plan_mem",
    "plan_gpu",
    "gpu_type",
];
/// CPUs and GPUs are planned in hundredths, memory in GB.
const HUNDREDTHS: f64 = WHOLE as f64 / 100.0;
const GIB: f64 = (1u64 << 30) as f64;

pub(super) fn read(text: &str, mut take: impl FnMut(Result<Row, LeftOut>)) -> Result<(), TraceError> {
    let required: [&[&str]; 4] = [&["job_name"], &["inst_num"], &["start_time"], &["end_time"]];
    csv(text, Some(&COLUMNS), &required, |fields| {
        let (start, end) = (fields.moment(&["start_time"])?, fields.moment(&["end_time"])?);
        let gang = gang(
            fields.count(&["inst_num"], 1.0)?.unwrap_or(0),
            fields.count(&["plan_cpu"], HUNDREDTHS)?.unwrap_or(0),
            fields.count(&["plan_gpu"], HUNDREDTHS)?.unwrap_or(0),
            fields.count(&["plan_mem"], GIB)?.unwrap_or(0),
        );
        let row = gang.and_then(|gang| {
            let submitted = start.ok_or("that never ran")?;
            let seconds =
                end.map(|end| end - submitted).filter(|&seconds| seconds >= 0.0).ok_or("without an end")?;
            let (job, task) = (fields.text(&["job_name"]), fields.text(&["task_name"]));
            let name = [job, task].into_iter().flatten().collect::<Vec<_>>().join("/");
            Ok(Row { name, submitted, seconds, queue: None, time_limit: None, gang })
        });
        take(row);
        Ok(())
    })
}
