//! Gradients of libtorch's that stay where they are, reduced by a shim of NCCL that takes the host's memory for a device's.

#[path = "../../../../collective/tests/shim/mod.rs"]
mod nccl_shim;

use super::{Tch, values};
use crate::{Activation, Dataset, Environment, Mlp, Model, Outcome, Sample, Targets, WorkerSpec, run_on};
use ::tch::{Device, Kind, Tensor as Values};

/// Set in the process that finds the shim.
const WITHIN: &str = "TCH_SHIM";

/// Two ranks of a net with a variable that nothing depends on.
fn train(more: &str, stays: bool) -> [Outcome; 2] {
    let text = format!(
        "[train]\nsteps = 6\nbatch_size = 16\nthreads = 1\noptimizer = {{ kind = \"adamw\", lr = 0.01 }}\n{more}"
    );
    let spec = WorkerSpec::parse_custom(&text, "").unwrap();
    let master_port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let rank = |rank: u32| {
        let spec = spec.clone();
        std::thread::spawn(move || {
            let master_addr = "127.0.0.1".to_owned();
            let environment =
                Environment { rank, world: 2, master_addr, master_port, ..Environment::default() };
            let features = (0..60 * 6).map(|at| ((at * at) as f32 * 0.37).sin()).collect();
            let targets = Targets::Classes((0..60).map(|row| row % 3).collect());
            let data = Dataset::of_values(Sample::Features(6), features, targets).unwrap();
            run_on(&spec, &environment, data, |data, seed| {
                let first = Mlp::new(&[6, 16, 3], Activation::Tanh, 0.0, data.loss, seed)?;
                let mut named = vec![("idle".to_owned(), Values::ones([5], (Kind::Float, Device::Cpu)))];
                for tensor in first.tensors() {
                    let shape: Vec<i64> = tensor.shape.iter().map(|&size| size as i64).collect();
                    let values =
                        Values::from_slice(&first.parameters()[tensor.range.clone()]).view(&shape[..]);
                    named.push((tensor.name.clone(), values));
                }
                let named = named.into_iter().map(|(name, values)| (name, values.set_requires_grad(true)));
                let named: Vec<(String, Values)> = named.collect();
                let own: Vec<Values> =
                    named[1..].iter().map(|(_, variable)| variable.shallow_clone()).collect();
                let mut model = Tch::new(named, data, move |batch| {
                    let hidden = values(batch, Device::Cpu)?.f_linear(&own[0], Some(&own[1]))?.f_tanh()?;
                    hidden.f_linear(&own[2], Some(&own[3]))
                })?;
                if stays {
                    model.keep_gradients().unwrap();
                }
                Ok(Box::new(model))
            })
            .unwrap()
        })
    };
    [rank(0), rank(1)].map(|rank| rank.join().unwrap())
}

/// Not a test of its own: the process that finds the shim.
#[test]
fn within() {
    if std::env::var_os(WITHIN).is_none() {
        return;
    }
    for more in ["", "accumulate = 3\nclip = 0.5\n", "shard_optimizer = true\n"] {
        assert_eq!(train(more, true), train(more, false), "{more}");
    }
}

#[test]
fn the_libtorch_in_use_is_known() {
    let file = phalanx_gpu::libtorch().unwrap();
    assert!(file.is_absolute() && file.ends_with("libtorch_cpu.so"), "{}", file.display());
}

#[test]
fn shim_gradients_of_libtorch_are_reduced_where_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let Some(path) = nccl_shim::build(folder.path(), &[]) else { return };
    let command = || nccl_shim::again("adapter::tch::tests::within", &path);
    let output = command().env(WITHIN, "1").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    // That way alone leads through NCCL.
    let output = command().env(WITHIN, "1").env("SHIM_FAULT", "enqueue").output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && said.contains("ncclAllReduce"), "{said}");
}
