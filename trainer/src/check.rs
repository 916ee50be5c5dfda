//! Whether a run can be begun.

use crate::Error;
use crate::data::Dataset;
use crate::environment::Environment;
use crate::model::Model;
use phalanx_core::spec::{LOGICAL_SHARDS, TrainSpec};

/// What only the data, the model and the gang tell.
pub(crate) fn check(
    train: &TrainSpec,
    data: &Dataset,
    model: &dyn Model,
    environment: &Environment,
) -> Result<(), Error> {
    let rows = data.training.len();
    if train.batch_size as usize > rows {
        return Err(Error::Configuration(format!(
            "`train.batch_size` is {}, and the training part of {} has {rows} rows; make it at most {rows}",
            train.batch_size,
            data.path.display()
        )));
    }
    if train.logical_shards && !LOGICAL_SHARDS.is_multiple_of(environment.world) {
        return Err(Error::Configuration(format!(
            "`train.deterministic` cuts each batch into {LOGICAL_SHARDS} shards, which {} workers cannot share evenly; use 1, 2, 4 or 8",
            environment.world
        )));
    }
    let mut end = 0;
    for tensor in model.tensors() {
        if tensor.range.start != end || tensor.range.len() != tensor.shape.iter().product::<usize>() {
            let message = "its place and shape do not go together with those of the tensor before";
            return Err(Error::Model(format!("tensor `{}`: {message}", tensor.name)));
        }
        end = tensor.range.end;
    }
    if end == 0 || end != model.parameters().len() {
        let found = model.parameters().len();
        return Err(Error::Model(match found {
            0 => "it has no parameters; there is nothing to learn".to_owned(),
            _ => format!("its tensors take {end} of {found} parameters"),
        }));
    }
    Ok(())
}
