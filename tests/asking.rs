//! Sweeps whose trials others run: ask, report, tell and watch over gRPC, also across a killed service.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;
#[path = "support/sweeper.rs"]
mod sweeper;

use phalanx_api::v1 as pb;
use phalanx_api::v1::report_response::Decision::{self, Continue, Pause, Stop};
use phalanx_api::v1::trial::State;
use serde_json::Value;
use std::collections::BTreeMap;
use support::{Home, Service};
use sweeper::Sweeper;
use tonic::{Code, Status};
use tonic_types::StatusExt;

const PARAMS: &str = "[params]\nx = { kind = \"float\", low = 0.0, high = 1.0 }\n\
    opt = { kind = \"choice\", values = [\"sgd\", \"adamw\"] }\n";

fn file(sweep: &str, tables: &str) -> String {
    format!("version = 1\n[sweep]\nmetric = \"loss\"\nseed = 5\n{sweep}\n{tables}\n{PARAMS}")
}

fn rungs(mode: &str) -> String {
    let tables = format!(
        "[search]\nkind = \"random\"\n[stopping]\nkind = \"asha\"\nmode = \"{mode}\"\nmin = 1\nmax = 9\neta = 3"
    );
    file("trials = 9", &tables)
}

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap().block_on(test)
}

/// An error's code, the reason in its details, and what of: a resource, a field, or the subject of a condition.
fn kind(status: &Status) -> (Code, String, String) {
    let details = status.get_error_details();
    let reason = details.error_info().map(|info| info.reason.clone()).unwrap_or_default();
    let resource = details.resource_info().map(|info| info.resource_name.clone());
    let field = details.bad_request().map(|bad| bad.field_violations[0].field.clone());
    let subject = details.precondition_failure().map(|failure| failure.violations[0].subject.clone());
    (status.code(), reason, resource.or(field).or(subject).unwrap_or_default())
}

#[track_caller]
fn fails<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, reason: &str, of: &str) {
    assert_eq!(kind(&answer.unwrap_err()), (code, reason.to_owned(), of.to_owned()));
}

#[test]
fn reports_are_judged_and_what_is_wrong_with_them_is_said() {
    let home = Home::new();
    let service = Service::start(&home);
    run(async {
        let mut client = Sweeper::to(&service).await;
        let id = client.create(&rungs("stop")).await;
        for number in 0..4 {
            assert_eq!(client.trial(&id).await.number, number);
        }
        // What the bad sign makes of a value; nothing finite is worse than that.
        let decisions: [(u64, u64, f64, Decision); 8] = [
            (0, 1, 0.5, Continue),
            // Repeated, whatever it says now.
            (0, 1, 9.0, Continue),
            (0, 3, f64::NEG_INFINITY, Continue),
            (1, 1, f64::NAN, Stop),
            (2, 1, f64::INFINITY, Stop),
            // The end stays the end.
            (2, 2, 0.1, Stop),
            (3, 1, 0.75, Continue),
            (0, 9, 0.4, Stop),
        ];
        for (number, step, value, decision) in decisions {
            let answer = client.report(&id, number, step, value).await.unwrap();
            // At the last rung a trial is complete; what it is told then is the rule's own affair.
            if step < 9 {
                assert_eq!(answer, decision, "trial {number} at {step}: {value}");
            }
        }
        fails(client.report(&id, 0, 3, 0.1).await, Code::InvalidArgument, "INVALID_FIELD", "trial");
        fails(client.report(&id, 99, 1, 0.1).await, Code::NotFound, "UNKNOWN_TRIAL", "99");
        fails(client.report("s77", 0, 1, 0.1).await, Code::NotFound, "UNKNOWN_SWEEP", "s77");
        fails(client.report("x", 0, 1, 0.1).await, Code::NotFound, "UNKNOWN_SWEEP", "x");
        // Told once; again nothing changes, whatever is told.
        let told = client.tell(&id, 0, &[], State::Unspecified).await.unwrap();
        let trial = told.trial.unwrap();
        assert_eq!((trial.state(), trial.value, trial.step), (State::Complete, Some(0.4), Some(9)));
        assert_eq!(told.best.clone().unwrap().number, 0);
        for (values, state) in [(&[0.0][..], State::Complete), (&[], State::Failed)] {
            let again = client.tell(&id, 0, values, state).await.unwrap();
            let trial = again.trial.unwrap();
            assert_eq!((trial.state(), trial.value), (State::Complete, Some(0.4)));
            assert_eq!(again.best, told.best);
        }
        fails(client.report(&id, 0, 10, 0.1).await, Code::FailedPrecondition, "TOLD", "0");
        let bad = client.tell(&id, 1, &[0.1, 0.2], State::Complete).await;
        fails(bad, Code::InvalidArgument, "INVALID_FIELD", "trial");
        fails(
            client.tell(&id, 1, &[], State::Running).await,
            Code::InvalidArgument,
            "INVALID_FIELD",
            "state",
        );
        fails(client.tell(&id, 99, &[0.1], State::Complete).await, Code::NotFound, "UNKNOWN_TRIAL", "99");
        let unreported = client.trial(&id).await.number;
        let bad = client.tell(&id, unreported, &[], State::Complete).await;
        fails(bad, Code::InvalidArgument, "INVALID_FIELD", "trial");
        client.tell(&id, unreported, &[], State::Failed).await.unwrap();
        // What others run is not asked for here, and several objectives have no report.
        let own = file("trials = 1", "[gang]\ncpus = 0.1\n[program]\ncommand = [\"sleep\", \"9\"]\n");
        let own = home.file("own.toml", &own);
        let own = home.run(["submit", own.to_str().unwrap()]).expect(0).out().trim().to_owned();
        fails(client.ask(&own, "").await, Code::FailedPrecondition, "NOT_EXTERNAL", &own);
        let two = "version = 1\n[[objective]]\nmetric = \"a\"\nmode = \"max\"\n[[objective]]\nmetric = \"b\"\nmode = \"min\"\n\
                   [sweep]\ntrials = 3\n[search]\nkind = \"random\"\n";
        let two = client.create(&format!("{two}{PARAMS}")).await;
        let number = client.trial(&two).await.number;
        let refused = client.report(&two, number, 1, 0.1).await;
        fails(refused, Code::FailedPrecondition, "SEVERAL_OBJECTIVES", &two);
        client.tell(&two, number, &[0.1, 0.2], State::Complete).await.unwrap();
        // Of a sweep that is over nothing follows, and what was told stays so.
        home.run(["cancel", &id]).expect(0);
        support::eventually("it is over", std::time::Duration::from_secs(20), || {
            home.run(["describe", &id, "--json"]).expect(0).json()["state"] == "CANCELLED"
        });
        assert!(client.ask(&id, "").await.unwrap().done);
        fails(client.report(&id, 3, 9, 0.1).await, Code::FailedPrecondition, "TOLD", "3");
        let again = client.tell(&id, 0, &[9.0], State::Complete).await.unwrap();
        assert_eq!((again.trial.unwrap().value, again.best), (Some(0.4), told.best));
        let cancelled = client.tell(&id, 3, &[0.1], State::Complete).await.unwrap();
        assert_eq!(cancelled.trial.unwrap().state(), State::Cancelled);
        fails(
            client.tell(&id, 99, &[0.1], State::Complete).await,
            Code::NotFound,
            "UNKNOWN_TRIAL",
            &format!("{id}/99"),
        );
        home.run(["cancel", &own]).expect(0);
        support::eventually("it is over too", std::time::Duration::from_secs(20), || {
            home.run(["describe", &own, "--json"]).expect(0).json()["state"] == "CANCELLED"
        });
        fails(client.ask(&own, "").await, Code::FailedPrecondition, "NOT_EXTERNAL", &own);
    });
}

#[test]
fn constraints_are_told_by_name() {
    let home = Home::new();
    let service = Service::start(&home);
    run(async {
        let mut client = Sweeper::to(&service).await;
        let kept = "[[constraint]]\nmetric = \"gib\"\nmax = 10\n[[constraint]]\nmetric = \"ms\"\nmax = 5\n";
        let id = client.create(&file("trials = 9", &format!("[search]\nkind = \"random\"\n{kept}"))).await;
        for number in 0..5 {
            assert_eq!(client.trial(&id).await.number, number);
        }
        let tell = |number: u64, values: &[f64], constraints: &[(&str, f64)]| pb::TellRequest {
            id: id.clone(),
            number,
            values: values.to_vec(),
            constraints: constraints.iter().map(|&(name, value)| (name.to_owned(), value)).collect(),
            ..pb::TellRequest::default()
        };
        for bad in [
            tell(0, &[0.1], &[]),
            tell(0, &[0.1], &[("gib", 1.0)]),
            tell(0, &[0.1], &[("gib", 1.0), ("ms", 1.0), ("watt", 1.0)]),
            // It has reported nothing that could be its value.
            tell(0, &[], &[("gib", 1.0), ("ms", 1.0)]),
        ] {
            fails(client.tell_all(bad).await, Code::InvalidArgument, "INVALID_FIELD", "trial");
        }
        let mut best_after = async |told| {
            let told = client.tell_all(told).await.unwrap();
            assert_eq!(told.trial.unwrap().state(), State::Complete);
            told.best.map(|best| best.number)
        };
        assert_eq!(best_after(tell(0, &[0.1], &[("gib", 11.0), ("ms", 1.0)])).await, None, "beyond a bound");
        assert_eq!(best_after(tell(1, &[0.2], &[("gib", 1.0), ("ms", f64::NAN)])).await, None, "not known");
        assert_eq!(
            best_after(tell(2, &[0.9], &[("gib", 10.0), ("ms", 5.0)])).await,
            Some(2),
            "at the bounds"
        );
        assert_eq!(best_after(tell(3, &[0.5], &[("gib", 1.0), ("ms", f64::INFINITY)])).await, Some(2));
        client.report(&id, 4, 1, 0.3).await.unwrap();
        let told = client.tell_all(tell(4, &[], &[("gib", 1.0), ("ms", 1.0)])).await.unwrap();
        assert_eq!((told.trial.unwrap().value, told.best.unwrap().number), (Some(0.3), 4));
        // Where there is no constraint there is nothing to tell of one.
        let free = client.create(&file("trials = 2", "[search]\nkind = \"random\"")).await;
        let number = client.trial(&free).await.number;
        let told = pb::TellRequest { id: free, ..tell(number, &[0.1], &[("gib", 1.0)]) };
        fails(client.tell_all(told).await, Code::InvalidArgument, "INVALID_FIELD", "trial");
    });
}

#[test]
fn a_named_question_has_one_answer_also_after_a_kill() {
    let home = Home::new();
    let service = Service::start(&home);
    let (first, other, id) = run(async {
        let mut client = Sweeper::to(&service).await;
        let id = client.create(&file("trials = 9", "[search]\nkind = \"random\"")).await;
        let first = client.ask(&id, "a").await.unwrap();
        assert_eq!(client.ask(&id, "a").await.unwrap(), first);
        let other = client.ask(&id, "b").await.unwrap();
        assert_ne!(other.trial, first.trial);
        let second = client.create(&file("trials = 9", "[search]\nkind = \"random\"")).await;
        fails(client.ask(&second, "a").await, Code::AlreadyExists, "REQUEST_ID_REUSED", "a");
        let long = "x".repeat(10_000);
        fails(client.ask(&id, &long).await, Code::InvalidArgument, "INVALID_FIELD", "request_id");
        (first, other, id)
    });
    service.kill();
    let service = Service::start(&home);
    run(async {
        let mut client = Sweeper::to(&service).await;
        for (name, answer) in [("a", &first), ("b", &other)] {
            let again = client.ask(&id, name).await.unwrap();
            let (again, answer) = (again.trial.unwrap(), answer.trial.clone().unwrap());
            assert_eq!(
                (again.number, &again.params, again.state()),
                (answer.number, &answer.params, State::Running)
            );
        }
        assert_eq!(client.trial(&id).await.number, 2, "what was asked again is no new trial");
    });
}

/// Runs the trials of a study one after another, two at a time; every few answers the service is killed.
fn search(tables: &str, kill_every: Option<usize>) -> Vec<Value> {
    let home = Home::new();
    let mut service = Some(Service::start(&home));
    let mut answers = 0;
    let mut kill = |service: &mut Option<Service>| {
        answers += 1;
        if kill_every.is_some_and(|every| answers % every == 0) {
            service.take().unwrap().kill();
            *service = Some(Service::start(&home));
        }
    };
    let id = run(async { Sweeper::to(service.as_ref().unwrap()).await.create(tables).await });
    let mut open: Vec<(pb::Trial, u64)> = Vec::new();
    loop {
        while open.len() < 2 {
            let asked =
                run(async { Sweeper::to(service.as_ref().unwrap()).await.ask(&id, "").await.unwrap() });
            kill(&mut service);
            let Some(trial) = asked.trial else { break };
            let step = trial.step.unwrap_or(0);
            open.push((trial, step));
        }
        if open.is_empty() {
            break;
        }
        let (trial, step) = open.remove(0);
        let x = phalanx_api::json::params(trial.params.as_ref())["x"].as_f64().unwrap();
        let (mut step, mut decision) = (step, Continue);
        while decision == Continue && step < 9 {
            step += 1;
            let value = (x - 0.3).powi(2) + 1.0 / step as f64;
            decision = run(async {
                let mut client = Sweeper::to(service.as_ref().unwrap()).await;
                client.report(&id, trial.number, step, value).await.unwrap()
            });
            kill(&mut service);
        }
        if decision != Pause {
            run(async {
                let mut client = Sweeper::to(service.as_ref().unwrap()).await;
                client.tell(&id, trial.number, &[], State::Unspecified).await.unwrap()
            });
            kill(&mut service);
        }
    }
    let rows = home.run(["trials", &id, "--json"]).expect(0).json();
    let keep = |row: &Value| {
        let fields =
            ["number", "state", "params", "value", "step", "sampler"].map(|field| row[field].clone());
        Value::from(fields.to_vec())
    };
    rows.as_array().unwrap().iter().map(keep).collect()
}

#[test]
fn a_killed_service_decides_as_if_it_had_not_been() {
    for (trials, kind, mode) in [(14, "tpe", "stop"), (9, "random", "promote")] {
        let tables = format!(
            "[search]\nkind = \"{kind}\"\n[stopping]\nkind = \"asha\"\nmode = \"{mode}\"\nmin = 1\nmax = 9\neta = 3"
        );
        let text = file(&format!("trials = {trials}"), &tables);
        let calm = search(&text, None);
        assert_eq!(calm.len(), trials);
        assert_eq!(search(&text, Some(11)), calm, "{kind}, {mode}");
    }
}

#[test]
fn a_watch_that_was_cut_goes_on_without_gap_or_repeat() {
    let home = Home::new();
    let mut service = Service::start(&home);
    let id = run(async {
        Sweeper::to(&service).await.create(&file("trials = 12", "[search]\nkind = \"random\"")).await
    });
    let (mut seen, mut after): (BTreeMap<u64, pb::Trial>, u64) = (BTreeMap::new(), 0);
    let take = |message: pb::WatchSweepResponse, seen: &mut BTreeMap<u64, pb::Trial>, after: &mut u64| {
        assert!(message.seq >= *after, "{} after {after}", message.seq);
        *after = message.seq;
        seen.extend(message.trials.into_iter().map(|trial| (trial.number, trial)));
        message.sweep.unwrap()
    };
    for part in 0..3 {
        run(async {
            let mut client = Sweeper::to(&service).await;
            let mut watch = client.watch(&id, after).await;
            for number in part * 4..part * 4 + 4 {
                let mut runner = Sweeper::to(&service).await;
                let trial = runner.trial(&id).await;
                assert_eq!(trial.number, number);
                runner.report(&id, number, 1, number as f64).await.unwrap();
                let state = if number % 4 == 3 { State::Failed } else { State::Complete };
                runner.tell(&id, number, &[], state).await.unwrap();
            }
            let last = part * 4 + 3;
            while seen.get(&last).is_none_or(|trial| trial.end_time.is_none()) {
                let message = watch.message().await.unwrap().expect("a watch ends with its sweep alone");
                let sweep = take(message, &mut seen, &mut after);
                assert_eq!(sweep.id, id);
            }
        });
        service.kill();
        service = Service::start(&home);
    }
    run(async {
        let mut client = Sweeper::to(&service).await;
        assert!(client.ask(&id, "").await.unwrap().done);
        let mut watch = client.watch(&id, after).await;
        let mut last = None;
        while let Some(message) = watch.message().await.unwrap() {
            assert!(message.trials.is_empty(), "a repeat: {:?}", message.trials);
            last = Some(take(message, &mut seen, &mut after));
        }
        let last = last.unwrap();
        assert_eq!(last.state(), pb::sweep::State::Succeeded);
        let counts = last.counts.unwrap();
        assert_eq!((counts.complete, counts.failed), (9, 3));
        // From the beginning it tells the same.
        let mut again: BTreeMap<u64, pb::Trial> = BTreeMap::new();
        let (mut watch, mut from) = (client.watch(&id, 0).await, 0);
        while let Some(message) = watch.message().await.unwrap() {
            take(message, &mut again, &mut from);
        }
        assert_eq!(again, seen);
        assert_eq!(from, after);
        let missing = pb::WatchSweepRequest { id: "s99".to_owned(), after_seq: 0 };
        let missing = client.request(missing);
        fails(client.sweeps.watch(missing).await.map(drop), Code::NotFound, "UNKNOWN_SWEEP", "s99");
    });
}

#[test]
fn what_is_asked_and_told_is_noted_once() {
    let home = Home::new();
    let service = Service::start(&home);
    let id = run(async {
        let mut client = Sweeper::to(&service).await;
        let id = client.create(&rungs("promote")).await;
        for number in 0..3 {
            client.trial(&id).await;
            assert_eq!(client.report(&id, number, 1, number as f64).await.unwrap(), Pause);
        }
        let resumed = client.ask(&id, "").await.unwrap();
        assert!(resumed.resumed && resumed.trial.unwrap().number == 0);
        for _ in 0..2 {
            client.tell(&id, 0, &[], State::Failed).await.unwrap();
        }
        id
    });
    let noted = |target: &str| -> Vec<(String, String)> {
        let events = home.run(["events", target, "--json"]).expect(0).json_lines();
        let text = |event: &Value, key: &str| event[key].as_str().unwrap().to_owned();
        events.iter().map(|event| (text(event, "action"), text(event, "text"))).collect()
    };
    let expected = [("trial.ask", ""), ("trial.ask", "goes on"), ("trial.tell", "FAILED")];
    assert_eq!(
        noted(&format!("{id}/0")),
        expected.map(|(action, text)| (action.to_owned(), text.to_owned()))
    );
    assert_eq!(noted(&format!("{id}/1")).len(), 1);
    assert_eq!(noted(&id)[0].0, "sweep.create");
}
