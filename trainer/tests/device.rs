//! Gradients that stay where they were computed, reduced there by a shim of NCCL whose "devices" are the host's memory: what is
//! shown is the engine's way, and nothing about devices.
#![allow(clippy::unwrap_used)]
// A gradient on a device is known by its address.
#![allow(unsafe_code)]

#[path = "../../collective/tests/shim/mod.rs"]
mod nccl_shim;

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use phalanx_trainer::{
    Activation, Batch, Dataset, DeviceGradient, DeviceMemory, Environment, Error, Gradient, Mlp, Model,
    Outcome, Sample, Targets, Tensor, WorkerSpec, Write, run_on,
};

/// Set in the process that finds the shim.
const WITHIN: &str = "TRAINER_SHIM";
const STEPS: u64 = 12;

/// A net whose gradient stays on a "device" if it may.
struct Resident {
    net: Mlp,
    device: Vec<f32>,
    /// How often it was reduced there.
    reduced: Arc<AtomicU64>,
}

impl Model for Resident {
    fn tensors(&self) -> &[Tensor] {
        self.net.tensors()
    }

    fn parameters(&self) -> &[f32] {
        self.net.parameters()
    }

    fn parameters_mut(&mut self) -> &mut [f32] {
        self.net.parameters_mut()
    }

    fn forward_backward(
        &mut self,
        batch: &Batch,
        scale: f32,
        gradient: &mut dyn Gradient,
        write: Write,
    ) -> Result<f64, Error> {
        match gradient.stays() {
            true => self.net.forward_backward(batch, scale, &mut self.device, write),
            false => self.net.forward_backward(batch, scale, gradient, write),
        }
    }

    fn device_gradient(&mut self) -> Option<&mut dyn DeviceGradient> {
        Some(self)
    }

    fn evaluate(&mut self, batch: &Batch, outputs: &mut Vec<f32>) -> Result<f64, Error> {
        self.net.evaluate(batch, outputs)
    }
}

impl DeviceGradient for Resident {
    fn memory(&mut self) -> DeviceMemory<f32> {
        self.reduced.fetch_add(1, Ordering::Relaxed);
        let address = self.device.as_mut_ptr().expose_provenance() as u64;
        // SAFETY: it lives as long as the model, and nobody touches it while gradients are reduced.
        unsafe { DeviceMemory::new(address, self.device.len(), std::ptr::without_provenance_mut(1)) }
    }

    fn clear(&mut self) -> Result<(), Error> {
        self.device.fill(0.0);
        Ok(())
    }

    fn download(&mut self, start: usize, values: &mut [f32]) -> Result<(), Error> {
        values.copy_from_slice(&self.device[start..start + values.len()]);
        Ok(())
    }
}

/// Two ranks that train the net, on "devices" or plainly; how they ended, and how often each reduced on its device.
fn train(more: &str, on_device: bool) -> [(Result<Outcome, Error>, u64); 2] {
    let text = format!(
        "[train]\nsteps = {STEPS}\nthreads = 1\noptimizer = {{ kind = \"adamw\", lr = 0.01 }}\nclip = 0.5\n{more}"
    );
    let spec = WorkerSpec::parse_custom(&text, "").unwrap();
    let master_port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let rank = |rank: u32| {
        let spec = spec.clone();
        thread::spawn(move || {
            let master_addr = "127.0.0.1".to_owned();
            let environment =
                Environment { rank, world: 2, master_addr, master_port, ..Environment::default() };
            let values = (0..60 * 6).map(|at| ((at * at) as f32 * 0.37).sin()).collect();
            let targets = Targets::Classes((0..60).map(|row| row % 3).collect());
            let mut data = Dataset::of_values(Sample::Features(6), values, targets).unwrap();
            data.hold_out(0.2, 1).unwrap();
            let reduced = Arc::new(AtomicU64::new(0));
            let count = reduced.clone();
            // Enough parameters for two buckets.
            let outcome = run_on(&spec, &environment, data, |data, seed| {
                let net = Mlp::new(&[6, 700, 500, 3], Activation::Tanh, 0.0, data.loss, seed)?;
                let device = vec![f32::NAN; net.parameters().len()];
                Ok(match on_device {
                    true => Box::new(Resident { net, device, reduced }),
                    false => Box::new(net) as Box<dyn Model>,
                })
            });
            (outcome, count.load(Ordering::Relaxed))
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
    // The shim folds in the order of the other transports, so that even the bits are the same. With batches of one sample a
    // rank has none.
    for more in [
        "batch_size = 16\n",
        "batch_size = 16\naccumulate = 3\n",
        "batch_size = 1\n",
        "batch_size = 16\nshard_optimizer = true\n",
        "batch_size = 16\noverlap = true\nema = 0.9\n",
    ] {
        let (found, expected) = (train(more, true), train(more, false));
        for ((outcome, reduced), (plain, _)) in found.into_iter().zip(expected) {
            assert_eq!(outcome.unwrap(), plain.unwrap(), "{more}");
            assert_eq!(reduced, STEPS, "{more}: every step is reduced on the device");
        }
    }
    // Logical shards have an order that NCCL has not.
    let more = "batch_size = 16\ndeterministic = \"logical-shards\"\n";
    for ((outcome, reduced), (plain, _)) in train(more, true).into_iter().zip(train(more, false)) {
        assert_eq!((outcome.unwrap(), reduced), (plain.unwrap(), 0));
    }
}

#[test]
fn shim_gradients_are_reduced_where_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let Some(path) = nccl_shim::build(folder.path(), &[]) else { return };
    let output = nccl_shim::again("within", &path).env(WITHIN, "1").output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn without_nccl_a_rank_with_a_gpu_says_what_is_missing() {
    if phalanx_collective::nccl::device_count().is_ok() {
        return;
    }
    for (outcome, reduced) in train("batch_size = 16\n", true) {
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains("libcuda.so.1") && reduced == 0, "{error}");
    }
}
