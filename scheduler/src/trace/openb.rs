//! Alibaba's cluster-trace-gpu-v2023 (Weng et al., "Beware of Fragmentation", ATC'23): pods that may share a GPU, and the
//! nodes they ran on.

use super::table::csv;
use super::{LeftOut, Row, TraceError, gang};
use phalanx_core::limits::NODE_GPUS;
use phalanx_core::resources::{Capacity, Device, WHOLE};
use phalanx_core::spec::ScenarioNode;
use phalanx_core::{Cpus, LabelRule, Time};

/// The label that a GPU's model is, of nodes and for pods that ask for one.
const MODEL_LABEL: &str = "gpu";
const MIB: u64 = 1 << 20;

pub(super) fn read(text: &str, mut take: impl FnMut(Result<Row, LeftOut>)) -> Result<(), TraceError> {
    let required: [&[&str]; 5] =
        [&["name"], &["cpu_milli"], &["num_gpu"], &["creation_time"], &["deletion_time"]];
    csv(text, None, &required, |fields| {
        let created = fields.moment(&["creation_time"])?;
        let start = fields.moment(&["scheduled_time"])?;
        let end = fields.moment(&["deletion_time"])?;
        let gpus = fields.count(&["num_gpu"], 1.0)?.unwrap_or(0);
        let share = fields.count(&["gpu_milli"], 1.0)?.unwrap_or(WHOLE).min(WHOLE);
        let milli_gpus = if gpus == 1 { share } else { gpus.saturating_mul(WHOLE) };
        let memory = fields.count(&["memory_mib"], 1.0)?.unwrap_or(0).saturating_mul(MIB);
        let gang = gang(1, fields.count(&["cpu_milli"], 1.0)?.unwrap_or(0), milli_gpus, memory);
        let row = gang.and_then(|mut gang| {
            let submitted = created.ok_or("without a submission")?;
            let start = start.ok_or("that never ran")?;
            let seconds =
                end.map(|end| end - start).filter(|&seconds| seconds >= 0.0).ok_or("without an end")?;
            if let Some(models) = fields.text(&["gpu_spec"]).filter(|_| gpus > 0) {
                let models = models.split('|').map(str::to_owned).collect();
                gang.labels.insert(MODEL_LABEL.to_owned(), LabelRule::In(models));
            }
            let name = fields.text(&["name"]).unwrap_or_default().to_owned();
            Ok(Row { name, submitted, seconds, queue: None, time_limit: None, gang })
        });
        take(row);
        Ok(())
    })
}

/// Reads `openb_node_list`: `sn,cpu_milli,memory_mib,gpu,model`. The model is the label `gpu`.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn nodes(text: &str) -> Result<Vec<ScenarioNode>, TraceError> {
    let mut nodes = Vec::new();
    csv(text, None, &[&["sn"], &["cpu_milli"], &["memory_mib"], &["gpu"]], |fields| {
        let name = fields.text(&["sn"]).unwrap_or_default();
        let gpus = fields.count(&["gpu"], 1.0)?.unwrap_or(0).min(u64::from(NODE_GPUS)) as u32;
        let model = fields.text(&["model"]);
        let device = |index: u32| Device {
            index,
            uuid: index.to_string(),
            name: model.unwrap_or("GPU").to_owned(),
            memory_bytes: 0,
        };
        let capacity = Capacity {
            cpus: Cpus::from_milli(fields.count(&["cpu_milli"], 1.0)?.unwrap_or(0)),
            memory_bytes: fields.count(&["memory_mib"], 1.0)?.unwrap_or(0).saturating_mul(MIB),
            devices: (0..gpus).map(device).collect(),
            labels: model.map(|model| (MODEL_LABEL.to_owned(), model.to_owned())).into_iter().collect(),
            ..Capacity::default()
        };
        let name = name.parse().map_err(|_| fields.wrong(name, "a node's name"))?;
        nodes.push(ScenarioNode { name, capacity, at: Time::ZERO });
        Ok(())
    })?;
    Ok(nodes)
}
