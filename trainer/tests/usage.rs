//! Tensors that the loss does not depend on.
#![allow(clippy::unwrap_used)]

use phalanx_trainer::{
    Batch, Dataset, Environment, Error, Gradient, Model, Outcome, Sample, Targets, Tensor, WorkerSpec, Write,
    run_on,
};
use std::net::TcpListener;
use std::thread;

/// Two tensors, of which the second counts up to some step only.
struct Fading {
    tensors: [Tensor; 2],
    parameters: Vec<f32>,
    steps: u64,
    until: u64,
}

impl Model for Fading {
    fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    fn parameters(&self) -> &[f32] {
        &self.parameters
    }

    fn parameters_mut(&mut self) -> &mut [f32] {
        &mut self.parameters
    }

    fn forward_backward(
        &mut self,
        _: &Batch,
        _: f32,
        gradient: &mut dyn Gradient,
        _: Write,
    ) -> Result<f64, Error> {
        self.steps += 1;
        gradient.open().copy_from_slice(&[1.0, if self.steps <= self.until { 1.0 } else { 0.0 }]);
        Ok(1.0)
    }

    fn unused(&self) -> &[usize] {
        if self.steps <= self.until { &[] } else { &[1] }
    }

    fn evaluate(&mut self, _: &Batch, _: &mut Vec<f32>) -> Result<f64, Error> {
        Ok(1.0)
    }
}

/// Runs two ranks for eight steps; the second tensor counts until these on each.
fn train(until: [u64; 2]) -> [Result<Outcome, Error>; 2] {
    let text = "[train]\nsteps = 8\nbatch_size = 4\nthreads = 1\noptimizer = { kind = \"sgd\", lr = 0.01 }\n";
    let spec = WorkerSpec::parse_custom(text, "").unwrap();
    let master_port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let rank = |rank: u32| {
        let spec = spec.clone();
        thread::spawn(move || {
            let master_addr = "127.0.0.1".to_owned();
            let environment =
                Environment { rank, world: 2, master_addr, master_port, ..Environment::default() };
            let data = Dataset::of_values(Sample::Features(1), vec![0.5; 32], Targets::Values(vec![1.0; 32]))
                .unwrap();
            run_on(&spec, &environment, data, |_, _| {
                let tensor = |name: &str, at| Tensor { name: name.into(), shape: vec![1], range: at..at + 1 };
                Ok(Box::new(Fading {
                    tensors: [tensor("kept", 0), tensor("fading", 1)],
                    parameters: vec![0.0; 2],
                    steps: 0,
                    until: until[rank as usize],
                }))
            })
        })
    };
    [rank(0), rank(1)].map(|rank| rank.join().unwrap())
}

#[test]
fn a_model_without_parameters_has_nothing_to_learn() {
    let text = "[train]\nsteps = 8\nbatch_size = 4\n";
    let spec = WorkerSpec::parse_custom(text, "").unwrap();
    let data = Dataset::of_values(Sample::Features(1), vec![0.5; 8], Targets::Values(vec![1.0; 8])).unwrap();
    let environment = Environment { world: 1, ..Environment::default() };
    let none = |name: &str| Tensor { name: name.into(), shape: vec![0], range: 0..0 };
    let outcome = run_on(&spec, &environment, data, |_, _| {
        Ok(Box::new(Fading { tensors: [none("a"), none("b")], parameters: vec![], steps: 0, until: 0 }))
    });
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("it has no parameters; there is nothing to learn"), "{error}");
}

#[test]
fn ranks_may_leave_the_same_tensors_out() {
    for until in [0, 3, 8] {
        for outcome in train([until; 2]) {
            assert_eq!(outcome.unwrap().steps, 8);
        }
    }
}

#[test]
fn ranks_that_leave_others_out_are_told_which() {
    for until in [[0, 8], [3, 4], [8, 0]] {
        for outcome in train(until) {
            let error = outcome.unwrap_err().to_string();
            assert!(error.contains("depends on the tensor `fading` on 1 of 2 ranks"), "{error}");
        }
    }
}
