use super::*;
use crate::space::tests::{EVERY_KIND, sweep};
use phalanx_core::spec::ParamValue;

/// What a driver does next, decided by nothing but the step: a crash does not change it.
#[derive(Clone, Debug)]
enum Act {
    Ask,
    Report(u64, u64, f64),
    Tell(u64, Outcome),
}

/// Three trials in flight, reports with ties and worst values, failures, trials told early.
fn acts(count: usize) -> Vec<Act> {
    let mut acts = Vec::new();
    for round in 0..count as u64 {
        acts.push(Act::Ask);
        let open = [round, round.saturating_sub(1), round.saturating_sub(2)];
        for (depth, number) in open.into_iter().enumerate() {
            let step = (depth as u64 + 1) * 2;
            let value = if number % 11 == 10 { f64::NAN } else { ((number * 37 + step) % 17) as f64 / 4.0 };
            acts.push(Act::Report(number, step, value));
        }
        let last = round.saturating_sub(2);
        acts.push(Act::Tell(
            last,
            match last % 9 {
                4 => Outcome::Failed,
                5 => Outcome::Cancelled,
                6 => Outcome::Values(vec![0.5]),
                _ => Outcome::LastReport,
            },
        ));
    }
    acts
}

fn act(study: &mut Study, act: &Act) -> String {
    match act.clone() {
        Act::Ask => format!("{:?}", study.ask()),
        Act::Report(number, step, value) => format!("{:?}", study.report(number, step, value)),
        Act::Tell(number, outcome) => format!("{:?}", study.tell(number, outcome)),
    }
}

/// The answers of a run without a crash.
fn straight(spec: &SweepSpec, acts: &[Act]) -> (Vec<String>, Study) {
    let mut study = Study::new(spec);
    let answers = acts.iter().map(|next| act(&mut study, next)).collect();
    (answers, study)
}

#[test]
fn the_log_rebuilds_the_study_at_every_prefix() {
    for head in [
        "[search]\nkind = \"tpe\"\n[stopping]\nkind = \"asha\"\nmin = 2\nmax = 20\neta = 2\nmode = \"promote\"\n",
        "[search]\nkind = \"auto\"\n[stopping]\nkind = \"hyperband\"\nmax = 6\neta = 2\n",
        "[search]\nkind = \"sobol\"\n[stopping]\nkind = \"median\"\nstartup = 2\n",
        "[search]\nkind = \"random\"\n[stopping]\nkind = \"wilcoxon\"\n",
        "[stopping]\nkind = \"plateau\"\ntrials = 9\n",
    ] {
        let spec =
            sweep(&format!("seed = 3\n{head}{EVERY_KIND}[[enqueue]]\nplain = 1.0\n[[enqueue]]\ndeep = 2\n"));
        let acts = acts(40);
        let (expected, whole) = straight(&spec, &acts);
        for crash in (0..acts.len()).step_by(7) {
            let mut study = Study::new(&spec);
            acts[..crash].iter().for_each(|next| drop(act(&mut study, next)));
            // Through JSON, as a journal has it.
            let lines: Vec<String> =
                study.take_records().iter().map(|r| serde_json::to_string(r).unwrap()).collect();
            let records = lines.iter().map(|line| serde_json::from_str(line).unwrap());
            let mut study = Study::rebuild(&spec, records).unwrap();
            for (next, expected) in acts[crash..].iter().zip(&expected[crash..]) {
                assert_eq!(&act(&mut study, next), expected, "after a crash at {crash}: {next:?}");
            }
            assert_eq!(format!("{:?}", study.trials()), format!("{:?}", whole.trials()));
            assert_eq!((study.counts(), study.best().cloned()), (whole.counts(), whole.best().cloned()));
        }
    }
}

#[test]
fn a_grid_goes_on_after_a_rebuild() {
    let spec = sweep(
        "[search]\nkind = \"grid\"\n[params]\na = { kind = \"int\", low = 1, high = 4 }\nb = { kind = \"choice\", values = [true, false] }\n[[enqueue]]\nb = false\n",
    );
    let mut seen = Vec::new();
    let mut log = Vec::new();
    loop {
        let mut study = Study::rebuild(&spec, log.clone()).unwrap();
        let Ask::Trial(trial) = study.ask() else { break };
        study.tell(trial.number, Outcome::Failed).unwrap();
        seen.push(format!("{:?}", trial.params));
        log.extend(study.take_records());
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 8);
}

#[test]
fn refusals_change_nothing() {
    let mut study = Study::new(&sweep("[params]\nx = { kind = \"float\", low = 0, high = 1 }\n"));
    let Ask::Trial(Handed { number: 0, resumed: false, .. }) = study.ask() else { panic!("no trial") };
    assert_eq!(study.report(0, 5, 0.5), Ok(Decision::Continue));
    study.take_records();
    assert_eq!(study.report(1, 1, 0.5), Err(Error::UnknownTrial(1)));
    assert_eq!(study.report(0, 4, 0.5), Err(Error::Backwards { number: 0, last: 5, step: 4 }));
    assert_eq!(study.report(0, 5, 0.1), Ok(Decision::Continue));
    assert_eq!(
        study.tell(0, Outcome::Values(vec![1.0, 2.0])),
        Err(Error::ValueCount { number: 0, wanted: 1, found: 2 })
    );
    assert_eq!(study.tell(7, Outcome::Failed), Err(Error::UnknownTrial(7)));
    assert!(study.take_records().is_empty());
    assert_eq!(study.tell(0, Outcome::Values(vec![0.25])), Ok(()));
    assert_eq!(study.take_records().len(), 1);
    // Told twice is told once.
    assert_eq!(study.tell(0, Outcome::Values(vec![0.0])), Ok(()));
    assert_eq!(study.report(0, 6, 0.0), Err(Error::Told(0)));
    assert!(study.take_records().is_empty());
    assert_eq!(study.best().map(|trial| trial.values[0]), Some(0.25));
    let Ask::Trial(_) = study.ask() else { panic!("no trial") };
    assert_eq!(study.tell(1, Outcome::LastReport), Err(Error::NoValue(1)));
}

#[test]
fn trials_bound_new_ones_and_failures_end_the_sweep() {
    let run = |lines: &str, outcome: Outcome| {
        let mut study = Study::new(&sweep(lines));
        let mut count = 0;
        while let Ask::Trial(trial) = study.ask() {
            study.tell(trial.number, outcome.clone()).unwrap();
            count += 1;
        }
        count
    };
    assert_eq!(run("trials = 7\nmax_failed_trials = 2\n", Outcome::Values(vec![1.0])), 7);
    assert_eq!(run("trials = 7\nmax_failed_trials = 2\n", Outcome::Failed), 3);
}

#[test]
fn the_best_is_complete_and_a_number() {
    let mut study = Study::new(&sweep("mode = \"max\"\n"));
    let tell = |study: &mut Study, outcome: Outcome| {
        let Ask::Trial(trial) = study.ask() else { panic!("no trial") };
        study.tell(trial.number, outcome).unwrap();
        study.best().map(|trial| trial.number)
    };
    assert_eq!(tell(&mut study, Outcome::Values(vec![f64::NAN])), None);
    assert_eq!(tell(&mut study, Outcome::Failed), None);
    assert_eq!(tell(&mut study, Outcome::Values(vec![1.0])), Some(2));
    assert_eq!(tell(&mut study, Outcome::Values(vec![1.0])), Some(2));
    assert_eq!(tell(&mut study, Outcome::Stopped), Some(2));
    assert_eq!(tell(&mut study, Outcome::Values(vec![2.0])), Some(5));
}

#[test]
fn a_front_and_targets_over_several_objectives() {
    let lines = "trials = 9\n[params]\nx = 1\n[[objective]]\nmetric = \"a\"\nmode = \"min\"\ntarget = 1.0\n\
                 [[objective]]\nmetric = \"b\"\nmode = \"max\"\ntarget = 5.0\n";
    let text = format!("version = 1\n[sweep]\n{lines}");
    let mut study = Study::new(&SweepSpec::parse(&text, "x").unwrap());
    let mut tell = |values: [f64; 2]| {
        let Ask::Trial(trial) = study.ask() else { panic!("over") };
        study.tell(trial.number, Outcome::Values(values.to_vec())).unwrap();
        study.front().map(|trial| trial.number).collect::<Vec<u64>>()
    };
    assert_eq!(tell([3.0, 3.0]), [0]);
    assert_eq!(tell([2.0, 1.0]), [0, 1]);
    assert_eq!(tell([4.0, 2.0]), [0, 1]);
    assert_eq!(tell([3.0, f64::NAN]), [0, 1]);
    assert_eq!(tell([2.0, 3.0]), [4]);
    assert_eq!(tell([1.0, 5.0]), [5]);
    assert_eq!(study.ask(), Ask::Done);
}

#[test]
fn a_log_of_another_study_or_out_of_order_is_refused() {
    let spec = sweep("seed = 1\n[params]\nx = { kind = \"int\", low = 0, high = 9 }\n");
    let mut study = Study::new(&spec);
    study.ask();
    let records = study.take_records();
    let other = sweep("seed = 2\n[params]\nx = { kind = \"int\", low = 0, high = 9 }\n");
    assert_eq!(Study::rebuild(&other, records.clone()).err(), Some(Error::OtherStudy("sweep.seed")));
    let told = |number| Record::Told {
        number,
        state: TrialState::Complete,
        values: vec![Metric(1.0)],
        measured: Vec::new(),
    };
    let asked = |number, x| Record::Asked {
        number,
        sampler: Origin::Random,
        enqueued: None,
        lineage: None,
        params: Params::from([("x".to_owned(), ParamValue::Int(x))]),
    };
    for wrong in [
        vec![told(1)],
        vec![told(0), told(0)],
        vec![asked(2, 1)],
        vec![asked(1, 11)],
        vec![Record::Resumed { number: 0 }],
        vec![Record::Told {
            number: 0,
            state: TrialState::Running,
            values: Vec::new(),
            measured: Vec::new(),
        }],
        vec![Record::Told {
            number: 0,
            state: TrialState::Complete,
            values: Vec::new(),
            measured: Vec::new(),
        }],
        vec![records[0].clone()],
    ] {
        let log = records.iter().cloned().chain(wrong.clone());
        assert!(matches!(Study::rebuild(&spec, log), Err(Error::BadLog(_))), "{wrong:?}");
    }
    assert!(Study::rebuild(&spec, records[1..].to_vec()).is_err());
}

#[test]
fn what_a_trial_heard_stands_even_if_the_rule_would_say_otherwise_now() {
    let spec = sweep("[stopping]\nkind = \"none\"\n");
    let mut study = Study::new(&spec);
    study.ask();
    study.report(0, 1, 1.0).unwrap();
    let mut records = study.take_records();
    if let Some(Record::Reported { decision, .. }) = records.last_mut() {
        *decision = Decision::Stop;
    }
    let mut study = Study::rebuild(&spec, records).unwrap();
    assert_eq!(study.report(0, 2, 0.5), Ok(Decision::Stop));
}

#[test]
fn a_trial_promoted_without_a_checkpoint_may_repeat_its_steps() {
    let mut study = Study::new(&sweep("[stopping]\nkind = \"asha\"\nmode = \"promote\"\nmax = 4\neta = 2\n"));
    for _ in 0..2 {
        let Ask::Trial(trial) = study.ask() else { panic!("no trial") };
        assert_eq!(study.report(trial.number, 1, 1.0), Ok(Decision::Pause));
        assert_eq!(study.report(trial.number, 2, 0.0), Ok(Decision::Pause));
    }
    let Ask::Trial(Handed { number: 0, resumed: true, .. }) = study.ask() else { panic!("not promoted") };
    assert_eq!(study.report(0, 1, 9.0), Ok(Decision::Continue));
    assert_eq!(study.report(0, 0, 9.0), Err(Error::Backwards { number: 0, last: 1, step: 0 }));
    assert_eq!(study.report(0, 2, 0.5), Ok(Decision::Pause));
    assert_eq!(study.trials()[0].reports, [(1, 1.0), (2, 0.5)]);
}

#[test]
fn what_older_studies_found_is_known_from_the_start() {
    let params = |high: u32| format!("[params]\nx = {{ kind = \"float\", low = 0, high = {high} }}\n");
    let loss = |trial: &Handed| Outcome::Values(vec![(trial.params["x"].as_f64().unwrap() - 0.8).abs()]);
    let mut older = Study::new(&sweep(&params(2)));
    for _ in 0..40 {
        let Ask::Trial(trial) = older.ask() else { panic!("over") };
        let outcome = if trial.number % 8 == 7 { Outcome::Failed } else { loss(&trial) };
        older.tell(trial.number, outcome).unwrap();
    }
    let log = older.take_records();
    let inside = older
        .trials()
        .iter()
        .filter(|trial| trial.state == TrialState::Complete && trial.params["x"].as_f64().unwrap() <= 1.0);
    let mut study = Study::new(&sweep(&params(1)));
    assert_eq!(study.learn_from(&log), Ok(inside.count()));
    // No start-up, no trial of its own, and nothing that is best before its own first.
    assert_eq!((study.trials().len(), study.best(), study.counts().complete), (0, None, 0));
    let Ask::Trial(trial) = study.ask() else { panic!("over") };
    assert_eq!((trial.number, study.trials()[0].origin), (0, Origin::Gp));
    assert!((trial.params["x"].as_f64().unwrap() - 0.8).abs() < 0.1);
    study.tell(0, loss(&trial)).unwrap();
    assert_eq!(study.best().map(|trial| trial.number), Some(0));
    assert_eq!(study.learn_from(&log), Err(Error::Begun));
    // The log of the new study has what it learnt: it goes on alike, and a third one learns from both.
    let log = study.take_records();
    let mut again = Study::rebuild(&sweep(&params(1)), log.clone()).unwrap();
    assert_eq!(again.ask(), study.ask());
    let mut third = Study::new(&sweep(&params(1)));
    assert_eq!(third.learn_from(&log), Ok(log.len() - 2));
    let mut other = Study::new(&sweep(&format!("mode = \"max\"\n{}", params(1))));
    assert_eq!(other.learn_from(&log), Err(Error::OtherGoal));
    let other = sweep("[params]\ny = { kind = \"float\", low = 0, high = 1 }\n");
    assert_eq!(Study::new(&other).learn_from(&log), Ok(0));
}
