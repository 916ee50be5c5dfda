//! Population-based training (Jaderberg et al., arXiv 1711.09846), asynchronous: a trial is one member over one interval.
//! A member whose loss is among the worst quarter goes on from the checkpoint of one of the best quarter, with that one's
//! parameters changed a little (exploit, then explore); any other goes on from its own, as it was.

use super::{Proposal, Suggestion, View, random, sobol};
use crate::random::Stream;
use crate::space::{Axis, Point, Scale};
use crate::trial::{Lineage, Origin, Trial, TrialState};
use phalanx_core::spec::Population;

/// One in so many members is poor, and as many are good.
const QUANTILES: usize = 4;
/// How likely a parameter is drawn anew instead of moved.
const RESAMPLED: f64 = 0.25;
/// A number on a logarithmic scale is multiplied or divided by this …
const FACTOR: f64 = 1.25;
/// … and one on a linear scale moved by this share of its range.
const SHARE: f64 = 0.1;

/// What is known of one member, by its trials' places among all that are known.
#[derive(Clone, Default)]
struct Member {
    /// Its complete trials, ascending. A member runs one trial at a time, so that they are in the order of its ages.
    complete: Vec<usize>,
    /// Its last trial.
    last: Option<usize>,
}

impl Member {
    fn last<'a>(&self, view: &View<'a>) -> Option<&'a Trial> {
        self.last.map(|at| &view.trials[at])
    }

    fn is_open(&self, view: &View<'_>) -> bool {
        self.last(view).is_some_and(|trial| !trial.state.is_told())
    }

    /// Intervals it has behind it, those that failed too.
    fn age(&self, view: &View<'_>) -> u64 {
        self.last(view).and_then(|trial| trial.lineage).map_or(0, |lineage| lineage.generation + 1)
    }
}

/// The sampler: which trials were whose.
pub(super) struct Pbt(Vec<Member>);

impl Pbt {
    pub(super) fn new(population: Population) -> Pbt {
        Pbt(vec![Member::default(); population.members as usize])
    }

    fn member_of(&mut self, trial: &Trial) -> Option<&mut Member> {
        self.0.get_mut(trial.lineage?.member as usize)
    }

    pub(super) fn asked(&mut self, trial: &Trial) {
        if let Some(member) = self.member_of(trial) {
            member.last = Some(trial.index);
        }
    }

    pub(super) fn moved(&mut self, trial: &Trial) {
        if trial.state == TrialState::Complete
            && let Some(member) = self.member_of(trial)
        {
            member.complete.push(trial.index);
        }
    }

    pub(super) fn suggest(&self, view: &View<'_>, given: &[Option<f64>]) -> Suggestion {
        let members = &self.0;
        let free = (0..members.len()).filter(|at| !members[*at].is_open(view));
        match free.min_by_key(|at| (members[*at].age(view), *at)) {
            Some(member) => Suggestion::Proposal(next(view, members, member, given)),
            None => Suggestion::Wait,
        }
    }
}

/// How a member goes on.
fn next(view: &View<'_>, members: &[Member], member: usize, given: &[Option<f64>]) -> Proposal {
    let last = members[member].last(view);
    let whole = last.filter(|trial| trial.state == TrialState::Complete && trial.is_feasible());
    let better = last.and_then(|_| better(view, members, member, whole));
    let (source, point) = match (whole, better) {
        (_, Some(better)) => (Some(better), explore(view, better, given)),
        (Some(own), None) => (Some(own), keep(view, own, given)),
        (None, None) => (None, sobol::suggest(view, given, view.number())),
    };
    let generation = source.and_then(|trial| trial.lineage).map_or(0, |lineage| lineage.generation + 1);
    let lineage = Lineage { member: member as u64, generation, from: source.map(|trial| trial.number) };
    Proposal { origin: Origin::Pbt, point, lineage: Some(lineage) }
}

/// The trial to exploit, if the member is among the poor: the youngest of one of the good members. All are compared at the
/// member's own age, or where they are younger at theirs.
fn better<'a>(
    view: &View<'a>,
    members: &[Member],
    member: usize,
    whole: Option<&Trial>,
) -> Option<&'a Trial> {
    let age = whole.map_or(u64::MAX, |_| members[member].age(view));
    let loss = |trial: &Trial| trial.losses(view.objectives).first().copied().unwrap_or(f64::INFINITY);
    let mut ranked: Vec<(f64, f64, usize)> = Vec::new();
    for (at, other) in members.iter().enumerate() {
        let seen = |trial: &&Trial| trial.lineage.is_some_and(|lineage| lineage.generation < age);
        if let Some(trial) = other.complete.iter().rev().map(|at| &view.trials[*at]).find(seen) {
            ranked.push((trial.violation, loss(trial), at));
        }
    }
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2)));
    let quarter = ranked.len() / QUANTILES;
    let place = ranked.iter().position(|(_, _, at)| *at == member);
    // Without a result of its own a member follows a good one as soon as there is one.
    let (is_poor, good) = match (whole, place) {
        (Some(_), Some(place)) => (place + quarter >= ranked.len(), quarter),
        _ => (true, quarter.max(1).min(ranked.len())),
    };
    if !is_poor || good == 0 {
        return None;
    }
    let chosen = Stream::new(view.seed, view.number(), "pbt", "exploit").unit() * good as f64;
    let (_, _, at) = ranked[chosen as usize];
    members[at].complete.last().map(|last| &view.trials[*last]).filter(|_| at != member)
}

fn keep(view: &View<'_>, own: &Trial, given: &[Option<f64>]) -> Point {
    let wanted: Point = own.point.iter().zip(given).map(|(own, given)| given.or(*own)).collect();
    view.space.complete(&wanted, |param| random::draw(view, param))
}

fn explore(view: &View<'_>, better: &Trial, given: &[Option<f64>]) -> Point {
    let mut wanted: Point = given.to_vec();
    for (at, param) in view.space.params().iter().enumerate() {
        let Some(float) = better.point[at].filter(|_| wanted[at].is_none()) else { continue };
        let mut stream = Stream::new(view.seed, view.number(), "pbt explore", &param.name);
        let (fresh, up) = (stream.unit() < RESAMPLED, stream.unit() < 0.5);
        wanted[at] = match param.axis {
            _ if fresh => Some(random::draw(view, at)),
            Axis::Numeric(scale) => Some(moved(&scale, float, up)),
            Axis::Categories(_) | Axis::Single => Some(float),
        };
    }
    view.space.complete(&wanted, |param| random::draw(view, param))
}

/// A little more or less, and never less than one step; what would leave the range goes the other way.
fn moved(scale: &Scale, float: f64, up: bool) -> f64 {
    let at = |up: bool| {
        let sign = if up { 1.0 } else { -1.0 };
        let (low, high) = scale.ends();
        let by = if scale.log { FACTOR.ln() } else { SHARE * (high - low) };
        let there = scale.unbend(scale.bend(float) + sign * by);
        if there == float { (float + sign * scale.step).clamp(scale.low, scale.high) } else { there }
    };
    let there = at(up);
    if there == float { at(!up) } else { there }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::tests::{EVERY_KIND, sweep};
    use crate::{Ask, Decision, Handed, Outcome, Study};

    const LINES: &str = "[search]\nkind = \"pbt\"\npopulation = 8\ninterval = 3\n[params]\n\
                         x = { kind = \"float\", low = 0, high = 1 }\n";

    fn ask(study: &mut Study) -> Handed {
        match study.ask() {
            Ask::Trial(trial) => trial,
            other => panic!("{other:?}"),
        }
    }

    /// Runs a trial to the end of its interval: every step takes its checkpoint's score a little further from 0.
    fn run(study: &mut Study, scores: &mut Vec<f64>) {
        let trial = ask(study);
        let lineage = study.trials()[trial.number as usize].lineage.unwrap();
        assert_eq!(lineage.from, trial.from);
        let mut score = trial.from.map_or(0.0, |from| scores[from as usize]);
        let start = trial.from.map_or(0, |from| study.trials()[from as usize].last_report().unwrap().0);
        assert_eq!(start, 3 * lineage.generation);
        let gain = 1.0 - (trial.params["x"].as_f64().unwrap() - 0.7).abs();
        for step in start + 1..=start + 3 {
            score += gain;
            let expected = if step == start + 3 { Decision::Stop } else { Decision::Continue };
            assert_eq!(study.report(trial.number, step, -score), Ok(expected));
        }
        // Stopped at the end of its interval, it has done all that was asked.
        study.tell(trial.number, Outcome::Stopped).unwrap();
        assert_eq!(study.trials()[trial.number as usize].state, TrialState::Complete);
        scores.push(score);
    }

    #[test]
    fn members_go_on_from_checkpoints_and_the_poor_from_better_ones() {
        let mut study = Study::new(&sweep(&format!("trials = 80\n{LINES}")));
        let mut scores = Vec::new();
        for _ in 0..80 {
            run(&mut study, &mut scores);
        }
        assert_eq!(study.ask(), Ask::Done);
        let lineages: Vec<Lineage> = study.trials().iter().map(|trial| trial.lineage.unwrap()).collect();
        assert!(lineages[..8].iter().all(|lineage| lineage.from.is_none() && lineage.generation == 0));
        let member_of = |number: u64| lineages[number as usize].member;
        let later = lineages[8..].iter().map(|lineage| member_of(lineage.from.unwrap()) != lineage.member);
        let exploited = later.filter(|other| *other).count();
        // Two of eight in every later generation.
        assert!((12..=18).contains(&exploited), "{exploited}");
        // What it finds is better than any member that had stayed as it was.
        let alone = scores[..8].iter().map(|score| 10.0 * score).fold(0.0, f64::max);
        assert!(-study.best().unwrap().values[0] > 0.98 * alone);
        let unchanged = |number: u64| {
            let trial = &study.trials()[number as usize];
            let from = trial.lineage.and_then(|lineage| lineage.from).unwrap();
            member_of(from) != member_of(number) || study.trials()[from as usize].params == trial.params
        };
        assert!((8..80).all(unchanged));
    }

    #[test]
    fn nobody_is_asked_twice_and_the_failed_follow_the_good() {
        let mut study = Study::new(&sweep(LINES));
        let open: Vec<Handed> = (0..8).map(|_| ask(&mut study)).collect();
        assert_eq!(study.ask(), Ask::Wait);
        study.tell(open[3].number, Outcome::Failed).unwrap();
        // Nobody has a result: a failed member begins anew.
        let again = ask(&mut study);
        assert_eq!((again.from, study.ask()), (None, Ask::Wait));
        study.report(open[0].number, 3, 1.0).unwrap();
        study.tell(open[0].number, Outcome::LastReport).unwrap();
        study.tell(again.number, Outcome::Failed).unwrap();
        // Both are of one age: member 0 has a result of its own, member 3 follows it.
        let own = ask(&mut study);
        assert_eq!((own.from, &own.params), (Some(0), &open[0].params));
        assert_eq!(ask(&mut study).from, Some(0));
    }

    #[test]
    fn a_value_that_is_no_number_is_no_end_of_an_interval() {
        let mut study = Study::new(&sweep(LINES));
        let trial = ask(&mut study);
        assert_eq!(study.report(trial.number, 3, f64::NAN), Ok(Decision::Stop));
        study.tell(trial.number, Outcome::Stopped).unwrap();
        assert_eq!(study.trials()[0].state, TrialState::Stopped);
        assert!(study.best().is_none());
    }

    #[test]
    fn exploring_moves_every_number_and_stays_in_the_space() {
        let scale = |low, high, log, step| Scale { low, high, log, step };
        for (scale, float, expected) in [
            (scale(0.0, 1.0, false, 0.0), 0.5, [0.4, 0.6]),
            (scale(1e-4, 1.0, true, 0.0), 0.01, [0.008, 0.0125]),
            (scale(1.0, 3.0, false, 1.0), 2.0, [1.0, 3.0]),
            (scale(1.0, 3.0, false, 1.0), 3.0, [2.0, 2.0]),
            (scale(0.0, 1.0, false, 0.0), 0.0, [0.1, 0.1]),
        ] {
            for (up, expected) in [false, true].into_iter().zip(expected) {
                assert!((moved(&scale, float, up) - expected).abs() < 1e-12, "{scale:?} {up}");
            }
        }
        let lines = format!("[search]\nkind = \"pbt\"\npopulation = 4\ninterval = 1\n{EVERY_KIND}");
        let mut study = Study::new(&sweep(&lines));
        for _ in 0..40 {
            let trial = ask(&mut study);
            let value = trial.params["plain"].as_f64().unwrap();
            study.tell(trial.number, Outcome::Values(vec![value])).unwrap();
        }
    }
}
