//! A Latin hypercube (McKay, Beckman & Conover 1979): of so many random points in a row, one is in each slice of every
//! axis, so that few of them leave no large part of a parameter unseen.

use super::View;
use crate::random::Stream;
use crate::space::Point;

/// The point of the trial that is being proposed, in a hypercube of so many.
pub(super) fn suggest(view: &View<'_>, given: &[Option<f64>], points: u64) -> Point {
    let (cube, at) = (view.number() / points, (view.number() % points) as usize);
    view.space.complete(given, |index| {
        let param = &view.space.params()[index];
        let mut stream = Stream::new(view.seed, cube, "latin slices", &param.name);
        let mut slices: Vec<u64> = (0..points).collect();
        for last in (1..slices.len()).rev() {
            slices.swap(last, (stream.unit() * (last + 1) as f64) as usize);
        }
        let within = Stream::new(view.seed, view.number(), "latin", &param.name).unit();
        param.axis.at((slices[at] as f64 + within) / points as f64)
    })
}

#[cfg(test)]
mod tests {
    use crate::space::tests::sweep;
    use crate::{Ask, Origin, Study};

    #[test]
    fn a_start_has_one_point_in_every_slice_and_no_two_alike() {
        let start = |seed: u64| -> Vec<Vec<f64>> {
            let lines = format!(
                "seed = {seed}\n[search]\nkind = \"tpe\"\n[params]\nx = {{ kind = \"float\", low = 0, high = 10 }}\n\
                 y = {{ kind = \"float\", low = 0, high = 10 }}\n"
            );
            let mut study = Study::new(&sweep(&lines));
            let mut next = || {
                let Ask::Trial(trial) = study.ask() else { panic!("over") };
                trial.params.values().filter_map(|value| value.as_f64()).collect()
            };
            let points = (0..10).map(|_| next()).collect();
            assert!(study.trials().iter().all(|trial| trial.origin == Origin::Random));
            points
        };
        for dim in 0..2 {
            let mut slices: Vec<u64> = start(3).iter().map(|point| point[dim] as u64).collect();
            slices.sort_unstable();
            assert_eq!(slices, (0..10).collect::<Vec<u64>>());
        }
        assert_ne!(start(3)[0], start(4)[0]);
        let order = |dim: usize| start(3).iter().map(|point| point[dim] as u64).collect::<Vec<u64>>();
        assert_ne!(order(0), order(1));
    }
}
