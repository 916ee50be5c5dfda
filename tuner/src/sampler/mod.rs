//! What proposes parameters. Every sampler is a pure function of (seed, trial number, the log before it); what it keeps
//! between calls is a cache of the log.

mod cmaes;
mod duel;
mod fidelity;
mod gp;
mod grid;
mod latin;
mod leaders;
mod log_sum;
mod normal;
mod nsga2;
mod parzen;
mod pbt;
mod random;
mod rank;
mod sobol;
mod tpe;

pub(crate) use normal::log_mass;

use crate::space::{Axis, Param, Point, Space};
use crate::trial::{Lineage, Origin, Trial};
use phalanx_core::spec::{Constraint, Objective, Search, Stopping, SweepSpec};

/// Trials that `auto` and `gp` lay out evenly before they learn from them.
const STARTUP_TRIALS: usize = 10;
/// Trials that have to have ended before those in flight count as laid out: a model of fewer is none.
const LEAST_ENDED: usize = 5;
/// Ended trials up to which `auto` takes the Gaussian process: beyond it the model is dear, and others are as good.
const AUTO_GP_TRIALS: usize = 250;
/// Ended trials up to which `auto` estimates densities for several objectives where parameters are not all numbers; of
/// numbers, and beyond it, it breeds.
const AUTO_MOTPE_TRIALS: usize = 1000;

/// What a sampler may look at.
pub(crate) struct View<'a> {
    pub(crate) space: &'a Space,
    /// Those of older studies first.
    pub(crate) trials: &'a [Trial],
    /// How many are of older studies.
    pub(crate) known: usize,
    pub(crate) objectives: &'a [Objective],
    pub(crate) constraints: &'a [Constraint],
    pub(crate) stopping: &'a Stopping,
    pub(crate) seed: u64,
}

impl View<'_> {
    /// The number of the trial that is being proposed.
    fn number(&self) -> u64 {
        (self.trials.len() - self.known) as u64
    }
}

/// What a trial is to run with.
#[derive(Debug)]
pub(crate) struct Proposal {
    pub(crate) origin: Origin,
    pub(crate) point: Point,
    pub(crate) lineage: Option<Lineage>,
}

/// What a sampler answers.
#[derive(Debug)]
pub(crate) enum Suggestion {
    Proposal(Proposal),
    /// Nothing before a running trial ends.
    Wait,
    /// No point is left that agrees with what is given.
    Exhausted,
}

impl Suggestion {
    fn of(origin: Origin, point: Point) -> Suggestion {
        Suggestion::Proposal(Proposal { origin, point, lineage: None })
    }
}

/// The samplers of a study, and which of them is asked. Those that a search never asks are not there.
pub(crate) struct Samplers {
    search: Search,
    several: bool,
    /// Every parameter is a number that is always there.
    numeric: bool,
    grid: Option<grid::Grid>,
    tpe: Option<tpe::Tpe>,
    gp: Option<gp::Gp>,
    cmaes: Option<cmaes::Cmaes>,
    nsga2: Option<nsga2::Nsga2>,
    pbt: Option<pbt::Pbt>,
    duel: duel::Duel,
    /// How many trials came from the low-discrepancy sequence.
    sobol_trials: u64,
}

impl Samplers {
    pub(crate) fn new(spec: &SweepSpec, space: &Space) -> Samplers {
        let (search, several) = (spec.search, spec.objectives.len() > 1);
        let auto = search == Search::Auto;
        let learns = matches!(search, Search::Tpe | Search::Motpe | Search::Gp | Search::Cmaes) || auto;
        let models = search == Search::Gp || (auto && !several && suits_gp(space));
        let adapts = search == Search::Cmaes || (auto && !several && suits_gp(space));
        let breeds = search == Search::Nsga2 || (auto && several);
        Samplers {
            search,
            several,
            numeric: is_numeric(space),
            grid: (search == Search::Grid).then(|| grid::Grid::new(space)),
            tpe: learns.then(|| tpe::Tpe::new(space, several)),
            gp: models.then(|| gp::Gp::new(space)),
            cmaes: if adapts { cmaes::Cmaes::new(space, spec.seed) } else { None },
            nsga2: breeds.then(nsga2::Nsga2::default),
            pbt: if let Search::Pbt(population) = search { Some(pbt::Pbt::new(population)) } else { None },
            duel: duel::Duel::default(),
            sobol_trials: 0,
        }
    }

    /// The next point that agrees with what is given.
    pub(crate) fn suggest(&mut self, view: &View<'_>, given: &[Option<f64>]) -> Suggestion {
        if let Some(pbt) = &self.pbt {
            return pbt.suggest(view, given);
        }
        let origin = self.choose(view);
        let found = match origin {
            Origin::Grid => {
                let point = self.grid.as_mut().and_then(|grid| grid.next(view.space, given));
                return point.map_or(Suggestion::Exhausted, |point| Suggestion::of(Origin::Grid, point));
            }
            Origin::Random if self.tpe.is_some() => {
                Some(latin::suggest(view, given, tpe::STARTUP_TRIALS as u64))
            }
            Origin::Sobol => Some(sobol::suggest(view, given, self.sobol_trials)),
            Origin::Gp => self.gp.as_mut().and_then(|gp| gp.suggest(view, given)),
            Origin::Cmaes => self.adapt(view, given),
            Origin::Nsga2 => self.nsga2.as_ref().and_then(|nsga2| nsga2.suggest(view, given)),
            _ => None,
        };
        if let Some(point) = found {
            return Suggestion::of(origin, point);
        }
        // What a model cannot do the estimator does, and the trial says who made it.
        match &mut self.tpe {
            Some(tpe) if origin != Origin::Random => {
                let origin = if self.several { Origin::Motpe } else { Origin::Tpe };
                Suggestion::of(origin, tpe.suggest(view, given))
            }
            _ => Suggestion::of(Origin::Random, random::suggest(view, given)),
        }
    }

    /// Numbers by covariance matrix adaptation, and all else as the estimator likes it best.
    fn adapt(&mut self, view: &View<'_>, given: &[Option<f64>]) -> Option<Point> {
        let numbers = self.cmaes.as_ref()?.suggest(view)?;
        let both: Vec<Option<f64>> =
            given.iter().zip(numbers).map(|(given, number)| given.or(number)).collect();
        let params = view.space.params().iter().zip(&both);
        let is_open = params.into_iter().any(|(param, float)| float.is_none() && param.axis != Axis::Single);
        Some(match &mut self.tpe {
            Some(tpe) if is_open && tpe.learned() >= tpe::STARTUP_TRIALS => tpe.suggest(view, &both),
            _ => random::suggest(view, &both),
        })
    }

    fn choose(&self, view: &View<'_>) -> Origin {
        let learned = self.tpe.as_ref().map_or(0, tpe::Tpe::learned);
        // With trials in flight it is not waited for the last of the start: each would be one more blind trial.
        let running = self.tpe.as_ref().map_or(0, tpe::Tpe::running);
        let has_begun =
            |startup: usize| learned >= startup || (learned >= LEAST_ENDED && learned + running >= startup);
        match self.search {
            Search::Random | Search::Pbt(_) => Origin::Random,
            Search::Grid => Origin::Grid,
            Search::Sobol => Origin::Sobol,
            Search::Tpe | Search::Motpe if !has_begun(tpe::STARTUP_TRIALS) => Origin::Random,
            Search::Tpe => Origin::Tpe,
            Search::Motpe => Origin::Motpe,
            Search::Cmaes => Origin::Cmaes,
            Search::Nsga2 => self.breed(),
            Search::Auto | Search::Gp if !has_begun(STARTUP_TRIALS) => Origin::Sobol,
            Search::Gp => Origin::Gp,
            Search::Auto if self.several && (self.numeric || learned > AUTO_MOTPE_TRIALS) => self.breed(),
            Search::Auto if self.several => Origin::Motpe,
            Search::Auto if self.gp.is_some() && learned <= AUTO_GP_TRIALS => Origin::Gp,
            Search::Auto if self.cmaes.is_some() && learned > AUTO_GP_TRIALS => self.duel.next(view.number()),
            Search::Auto => Origin::Tpe,
        }
    }

    fn breed(&self) -> Origin {
        let breeds = self.nsga2.as_ref().is_some_and(nsga2::Nsga2::breeds);
        if breeds { Origin::Nsga2 } else { Origin::Sobol }
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
        if let Some(cmaes) = &mut self.cmaes {
            cmaes.asked(trial);
        }
        if let Some(nsga2) = &mut self.nsga2 {
            nsga2.asked(trial);
        }
        if let Some(pbt) = &mut self.pbt {
            pbt.asked(trial);
        }
    }

    /// A trial is in another state.
    pub(crate) fn moved(&mut self, objectives: &[Objective], trial: &Trial) {
        if let Some(tpe) = &mut self.tpe {
            tpe.moved(objectives, trial);
        }
        if let Some(gp) = &mut self.gp {
            gp.moved(trial);
        }
        if let Some(cmaes) = &mut self.cmaes {
            cmaes.moved(objectives[0].mode, trial);
        }
        if let Some(nsga2) = &mut self.nsga2 {
            nsga2.moved(objectives, trial);
        }
        if let Some(pbt) = &mut self.pbt {
            pbt.moved(trial);
        }
        self.duel.moved(objectives[0].mode, trial);
    }
}

fn is_numeric(space: &Space) -> bool {
    let plain = |param: &Param| param.when.is_empty() && !matches!(param.axis, Axis::Categories(_));
    space.params().iter().all(plain)
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
    use crate::{Ask, Known, Origin, Outcome, Study};
    use phalanx_core::report::Metric;
    use phalanx_core::spec::{ParamValue, SweepSpec};
    use proptest::prelude::*;

    /// Every sampler but the grid, whose spaces end.
    const KINDS: [&str; 9] = ["auto", "random", "sobol", "tpe", "gp", "cmaes", "nsga2", "motpe", "pbt"];

    fn search(kind: &str) -> String {
        let keys = if kind == "pbt" { "interval = 1\npopulation = 4\n" } else { "" };
        format!("[search]\nkind = \"{kind}\"\n{keys}")
    }

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
        #![proptest_config(ProptestConfig::with_cases(27))]
        #[test]
        fn every_sampler_keeps_to_the_space(seed in 0_u64..1000, kind in prop::sample::select(KINDS.to_vec())) {
            let lines = format!("seed = {seed}\n{}{EVERY_KIND}", search(kind));
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

        /// With three in flight, two objectives where the sampler takes them, a constraint, and trials of an older study.
        #[test]
        fn every_sampler_goes_on_alike_after_a_crash(
            kind in prop::sample::select(KINDS.to_vec()),
            several in any::<bool>(),
            crash in 20_usize..50,
        ) {
            let two = "[[objective]]\nmetric = \"a\"\n[[objective]]\nmetric = \"b\"\nmode = \"max\"\n";
            let several = several && !matches!(kind, "gp" | "cmaes" | "pbt");
            let head = if several { two } else { "[[objective]]\nmetric = \"a\"\n" };
            let text = format!(
                "version = 1\n[sweep]\n{head}{}[[constraint]]\nmetric = \"c\"\nmax = 4\n{EVERY_KIND}", search(kind)
            );
            let spec = SweepSpec::parse(&text, "x").unwrap();
            let mut study = Study::new(&spec);
            let older = Study::new(&sweep(EVERY_KIND)).ask();
            let Ask::Trial(older) = older else { panic!("over") };
            let known = Known { params: older.params, values: vec![Metric(1.0); 1 + usize::from(several)], measured: vec![Metric(1.0)] };
            prop_assert_eq!(study.learn([known.clone(), Known { measured: Vec::new(), ..known }]), Ok(1));
            let mut log = study.take_records();
            for round in 0..crash {
                drive(&mut study, round, several);
                log.extend(study.take_records());
            }
            let mut again = Study::rebuild(&spec, log).unwrap();
            for round in crash..crash + 12 {
                let (expected, found) = (drive(&mut study, round, several), drive(&mut again, round, several));
                prop_assert_eq!(found, expected, "{} in round {}", kind, round);
            }
        }
    }

    #[test]
    fn the_start_counts_trials_in_flight_once_half_of_it_has_ended() {
        let params = "[params]\nx = { kind = \"float\", low = 0, high = 1 }\n";
        for (kind, start, then) in [("auto", Origin::Sobol, Origin::Gp), ("tpe", Origin::Random, Origin::Tpe)]
        {
            let mut study = Study::new(&sweep(&format!("{}{params}", search(kind))));
            let next = |study: &mut Study| {
                let Ask::Trial(trial) = study.ask() else { panic!("over") };
                (trial.number, study.trials()[trial.number as usize].origin)
            };
            // Twelve at once are all blind, and so are those after them until five have ended.
            (0..12).for_each(|_| assert_eq!(next(&mut study).1, start, "{kind}"));
            for number in 0..5 {
                assert_eq!(next(&mut study).1, start, "{kind}");
                study.tell(number, Outcome::Values(vec![number as f64])).unwrap();
            }
            assert_eq!(next(&mut study).1, then, "{kind}");
        }
    }

    /// So many trials that what is kept of them has been thinned out.
    #[test]
    fn a_long_search_goes_on_alike_after_a_crash() {
        let (one, two) = ("[[objective]]\nmetric = \"a\"\n", "[[objective]]\nmetric = \"b\"\n");
        let params = "[params]\nx = { kind = \"float\", low = 0, high = 1 }\ny = { kind = \"int\", low = 0, high = 9 }\n";
        for (kind, several) in [("tpe", false), ("cmaes", false), ("motpe", true), ("nsga2", true)] {
            let head = if several { format!("{one}{two}") } else { one.to_owned() };
            let text = format!("version = 1\n[sweep]\n{head}{}{params}", search(kind));
            let spec = SweepSpec::parse(&text, "x").unwrap();
            let mut study = Study::new(&spec);
            let next = |study: &mut Study| {
                let Ask::Trial(trial) = study.ask() else { panic!("over") };
                let (x, y) = (trial.params["x"].as_f64().unwrap(), trial.params["y"].as_f64().unwrap());
                let both = [x * x + 0.1 * (y - 4.0).abs(), (1.0 - x).powi(2)];
                study.tell(trial.number, Outcome::Values(both[..1 + usize::from(several)].to_vec())).unwrap();
                trial
            };
            (0..900).for_each(|_| drop(next(&mut study)));
            let mut again = Study::rebuild(&spec, study.take_records()).unwrap();
            for _ in 0..10 {
                assert_eq!(next(&mut again), next(&mut study), "{kind}");
            }
        }
    }

    /// Asks for a trial, and ends the one before the last.
    fn drive(study: &mut Study, round: usize, several: bool) -> Ask {
        let asked = study.ask();
        let Some(number) = study.trials().len().checked_sub(3) else { return asked };
        let x = study.trials()[number].params["plain"].as_f64().unwrap();
        let outcome = match round % 9 {
            5 => Outcome::Failed,
            7 => Outcome::Cancelled,
            _ => Outcome::Measured {
                values: if several { vec![x * x, x] } else { vec![x * x] },
                measured: vec![(round % 6) as f64],
            },
        };
        study.tell(number as u64, outcome).unwrap();
        asked
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
