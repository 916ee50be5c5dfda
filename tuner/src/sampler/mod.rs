//! What proposes parameters. Every sampler is a pure function of (seed, trial number, the log before it); what it keeps
//! between calls is a cache of the log.

mod fidelity;
mod gp;
mod grid;
mod normal;
mod parzen;
mod random;
mod sobol;
mod tpe;

use crate::space::{Axis, Point, Space};
use crate::trial::{Origin, Trial};
use phalanx_core::spec::{MetricMode, Objective, Search, Stopping};

/// Trials that `auto` and `gp` lay out evenly before they learn from them.
const STARTUP_TRIALS: usize = 10;
/// Ended trials up to which `auto` takes the Gaussian process: beyond it the model is dear, and tpe is as good.
const AUTO_GP_TRIALS: usize = 250;

/// What a sampler may look at.
pub(crate) struct View<'a> {
    pub(crate) space: &'a Space,
    pub(crate) trials: &'a [Trial],
    pub(crate) objectives: &'a [Objective],
    pub(crate) stopping: &'a Stopping,
    pub(crate) seed: u64,
}

impl View<'_> {
    /// The number of the trial that is being proposed.
    fn number(&self) -> u64 {
        self.trials.len() as u64
    }
}

/// Whether losses `a` are nowhere worse than `b` and somewhere better.
pub(crate) fn dominates(a: &[f64], b: &[f64]) -> bool {
    a.iter().zip(b).all(|(a, b)| a <= b) && a.iter().zip(b).any(|(a, b)| a < b)
}

/// The samplers of a study, and which of them is asked.
pub(crate) struct Samplers {
    search: Search,
    grid: Option<grid::Grid>,
    tpe: Option<tpe::Tpe>,
    gp: Option<gp::Gp>,
    /// How many trials came from the low-discrepancy sequence.
    sobol_trials: u64,
}

impl Samplers {
    pub(crate) fn new(search: Search, space: &Space, objectives: usize) -> Samplers {
        let learns =
            matches!(search, Search::Tpe | Search::Gp) || (search == Search::Auto && objectives == 1);
        let models = search == Search::Gp || (learns && search == Search::Auto && suits_gp(space));
        Samplers {
            search,
            grid: (search == Search::Grid).then(|| grid::Grid::new(space)),
            tpe: learns.then(|| tpe::Tpe::new(space)),
            gp: models.then(|| gp::Gp::new(space)),
            sobol_trials: 0,
        }
    }

    /// The next point that agrees with what is given; `None` once a grid has no such point left.
    pub(crate) fn suggest(&mut self, view: &View<'_>, given: &[Option<f64>]) -> Option<(Origin, Point)> {
        match self.choose(view) {
            Origin::Grid => self.grid.as_mut()?.next(view.space, given).map(|point| (Origin::Grid, point)),
            Origin::Sobol => Some((Origin::Sobol, sobol::suggest(view, given, self.sobol_trials))),
            Origin::Gp if let Some(point) = self.gp.as_mut()?.suggest(view, given) => {
                Some((Origin::Gp, point))
            }
            // What the model cannot do the estimator does, and the trial says who made it.
            Origin::Gp | Origin::Tpe => self.tpe.as_mut().map(|tpe| (Origin::Tpe, tpe.suggest(view, given))),
            Origin::Random | Origin::Enqueued => Some((Origin::Random, random::suggest(view, given))),
        }
    }

    fn choose(&self, view: &View<'_>) -> Origin {
        let learned = self.tpe.as_ref().map_or(0, tpe::Tpe::learned);
        match self.search {
            Search::Random => Origin::Random,
            Search::Grid => Origin::Grid,
            Search::Sobol => Origin::Sobol,
            Search::Tpe if learned < tpe::STARTUP_TRIALS => Origin::Random,
            Search::Auto | Search::Gp if learned < STARTUP_TRIALS || view.objectives.len() > 1 => {
                Origin::Sobol
            }
            Search::Gp => Origin::Gp,
            Search::Auto if self.gp.is_some() && learned <= AUTO_GP_TRIALS => Origin::Gp,
            Search::Tpe | Search::Auto => Origin::Tpe,
        }
    }

    /// A trial was handed out.
    pub(crate) fn asked(&mut self, space: &Space, trial: &Trial) {
        self.sobol_trials += u64::from(trial.origin == Origin::Sobol);
        if let Some(grid) = &mut self.grid {
            grid.visited(space, &trial.point);
        }
        if let Some(tpe) = &mut self.tpe {
            tpe.asked(trial);
        }
        if let Some(gp) = &mut self.gp {
            gp.asked();
        }
    }

    /// A trial is in another state.
    pub(crate) fn moved(&mut self, mode: MetricMode, trial: &Trial) {
        if let Some(tpe) = &mut self.tpe {
            tpe.moved(mode, trial);
        }
        if let Some(gp) = &mut self.gp {
            gp.moved(trial);
        }
    }
}

/// Whether a Gaussian process is at home in a space: no conditions, and mostly numbers.
fn suits_gp(space: &Space) -> bool {
    let searched = || space.params().iter().filter(|param| param.axis != Axis::Single);
    let categories = searched().filter(|param| matches!(param.axis, Axis::Categories(_))).count();
    space.params().iter().all(|param| param.when.is_empty())
        && 2 * categories <= searched().count()
        && searched().count() > 0
}

#[cfg(test)]
mod tests {
    use crate::space::tests::{EVERY_KIND, sweep};
    use crate::{Ask, Origin, Outcome, Study};
    use phalanx_core::spec::ParamValue;
    use proptest::prelude::*;

    fn run(lines: &str, trials: usize) -> Study {
        let spec = sweep(lines);
        let mut study = Study::new(&spec);
        for index in 0..trials {
            let Ask::Trial(trial) = study.ask() else { break };
            let value = (1..)
                .zip(trial.params.values().filter_map(ParamValue::as_f64))
                .map(|(i, x)| (x - 0.3 * f64::from(i)).abs())
                .sum::<f64>();
            let outcome = if index % 7 == 6 { Outcome::Failed } else { Outcome::Values(vec![value]) };
            study.tell(trial.number, outcome).unwrap();
        }
        study
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn every_sampler_keeps_to_the_space(seed in 0_u64..1000, kind in prop::sample::select(vec!["auto", "random", "sobol", "tpe", "gp"])) {
            let lines = format!("seed = {seed}\n[search]\nkind = \"{kind}\"\n{EVERY_KIND}");
            let spec = sweep(&lines);
            let study = run(&lines, 60);
            prop_assert_eq!(study.trials().len(), 60);
            for trial in study.trials() {
                for param in &spec.params {
                    let active = param.is_active(&trial.params);
                    prop_assert_eq!(active, trial.params.contains_key(&param.name), "{}", param.name);
                    if let Some(value) = trial.params.get(&param.name) {
                        prop_assert_eq!(param.domain.canonical(value), Some(value.clone()), "{}", param.name);
                    }
                }
            }
        }
    }

    #[test]
    fn parameters_of_equal_bounds_are_drawn_apart_and_by_name() {
        let pair = |a: &str, b: &str, kind: &str| {
            let float = "{ kind = \"float\", low = 0, high = 1 }";
            let study =
                run(&format!("[search]\nkind = \"{kind}\"\n[params]\n{a} = {float}\n{b} = {float}\n"), 40);
            let column = |name: &str| {
                study.trials().iter().map(|t| t.params[name].as_f64().unwrap()).collect::<Vec<f64>>()
            };
            (column(a), column(b))
        };
        for kind in ["random", "sobol", "tpe", "gp", "auto"] {
            let (x, y) = pair("x", "y", kind);
            assert!(x.iter().zip(&y).skip(1).all(|(x, y)| x != y), "{kind}");
        }
        // A draw depends on the name and on nothing else of the space.
        assert_eq!(pair("x", "y", "random").0, pair("a", "x", "random").1);
    }

    #[test]
    fn auto_begins_at_the_centre_and_says_what_it_used() {
        let study = run(
            "[params]\nx = { kind = \"float\", low = 0, high = 1 }\nc = { kind = \"choice\", values = [1, 2] }",
            20,
        );
        assert_eq!(study.trials()[0].params["x"], ParamValue::Float(0.5));
        let origins: Vec<Origin> = study.trials().iter().map(|trial| trial.origin).collect();
        assert_eq!(origins[..10], [Origin::Sobol; 10]);
        assert_eq!(origins[19], Origin::Gp);
    }

    #[test]
    fn a_grid_is_exhaustive_and_stops() {
        let lines = r#"
[search]
kind = "grid"
[params]
a = { kind = "choice", values = ["x", "y"] }
b = { kind = "int", low = 1, high = 3, when = { a = "y" } }
c = { kind = "float", low = 0.0, high = 0.2, step = 0.1 }
[[enqueue]]
c = 0.2
b = 2
[[enqueue]]
c = 0.1
[[enqueue]]
a = "y"
b = 2
c = 0.2
"#;
        let study = run(lines, 100);
        let points: Vec<String> = study.trials().iter().map(|trial| format!("{:?}", trial.params)).collect();
        let mut unique = points.clone();
        unique.sort();
        unique.dedup();
        // Three points with x, and three times three with y; the third enqueued point was the first one filled in.
        assert_eq!((points.len(), unique.len()), (12, 12));
        assert!(points[0].contains("Int(2)") && points[0].contains("Float(0.2)"), "{}", points[0]);
        assert!(points[1].contains("\"x\"") && points[1].contains("Float(0.1)"), "{}", points[1]);
        assert_eq!(study.trials().iter().filter(|trial| trial.origin == Origin::Enqueued).count(), 2);
    }

    #[test]
    fn enqueued_points_come_first_and_are_filled_in() {
        let lines = "[params]\na = { kind = \"float\", low = 0, high = 1 }\nb = { kind = \"int\", low = 0, high = 9 }\n\
                     [[enqueue]]\na = 0.25\nb = 3\n[[enqueue]]\nb = 7\n";
        let study = run(lines, 5);
        assert_eq!(study.trials()[0].params["a"], ParamValue::Float(0.25));
        assert_eq!(study.trials()[1].params["b"], ParamValue::Int(7));
        let origins: Vec<Origin> = study.trials().iter().map(|trial| trial.origin).collect();
        assert_eq!(origins[..3], [Origin::Enqueued, Origin::Enqueued, Origin::Sobol]);
    }
}
