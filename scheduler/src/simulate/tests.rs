//! The rules over time, one scenario each.

use super::*;
use phalanx_core::spec::Scenario;

fn run(text: &str) -> Outcome {
    match Scenario::parse(text) {
        Ok(scenario) => simulate(&scenario, None),
        Err(problems) => panic!("{}", problems.render("scenario.toml", text)),
    }
}

impl Outcome {
    fn job(&self, name: &str) -> &JobOutcome {
        self.jobs.iter().find(|job| job.name == name).unwrap()
    }

    /// The attempts of a job: start, end and outcome.
    fn attempts(&self, name: &str) -> Vec<(f64, f64, &str)> {
        let second = |time: phalanx_core::Time| time.as_micros() as f64 / 1e6;
        let attempts = self.job(name).attempts.iter();
        attempts.map(|a| (second(a.start), a.end.map_or(-1.0, second), a.outcome)).collect()
    }

    fn codes(&self, name: &str) -> Vec<&str> {
        self.job(name).reasons.iter().map(|told| told.code).collect()
    }
}

fn node(gpus: u32) -> String {
    format!("[[node]]\nname = \"a\"\ncpus = 64\ngpus = {gpus}\n")
}

/// `job NAME at=0 seconds=10 gpus=1 more`
fn job(name: &str, at: f64, seconds: f64, gpus: u32, more: &str) -> String {
    format!(
        "[[job]]\nname = \"{name}\"\nat = {at}\nseconds = {seconds}\ngang = {{ gpus = {gpus} }}\n{more}\n"
    )
}

fn elastic(name: &str, at: f64, seconds: f64, min: u32, max: u32, more: &str) -> String {
    let gang = format!("gang = {{ workers = {{ min = {min}, max = {max} }}, gpus = 1 }}");
    format!("[[job]]\nname = \"{name}\"\nat = {at}\nseconds = {seconds}\n{gang}\n{more}\n")
}

#[test]
fn jobs_run_one_after_the_other_and_the_figures_add_up() {
    let outcome = run(&[node(1), job("x", 0.0, 10.0, 1, ""), job("y", 2.0, 5.5, 1, "")].concat());
    assert_eq!(outcome.attempts("x"), [(0.0, 10.0, "finished")]);
    assert_eq!(outcome.attempts("y"), [(10.0, 15.5, "finished")]);
    assert_eq!(outcome.codes("y"), ["waiting_resources"]);
    let text = &outcome.job("y").reasons[0].text;
    assert!(text.contains("1 GPU asked, 0 GPU free") && text.contains("held by x"), "{text}");
    let summary = &outcome.summary;
    assert_eq!((summary.makespan, summary.mean_jct, summary.p95_jct), (Some(15.5), Some(11.75), Some(13.5)));
    assert_eq!((summary.gpu_utilization, summary.decisions >= 2), (Some(1.0), true));
    assert_eq!(
        outcome.job("y").attempts[0].bundles[0],
        PlacedRank { rank: 0, node: "a".into(), gpus: vec![0] }
    );
}

#[test]
fn the_first_that_does_not_fit_is_never_delayed_by_those_that_pass_it() {
    let jobs = [
        node(4),
        job("runs", 0.0, 100.0, 3, "time_limit = 100"),
        job("head", 1.0, 10.0, 4, "time_limit = 10"),
        job("fits-before", 2.0, 50.0, 1, "time_limit = 98"),
        job("too-long", 3.0, 50.0, 1, "time_limit = 98"),
    ];
    let outcome = run(&jobs.concat());
    assert_eq!(outcome.attempts("fits-before"), [(2.0, 52.0, "finished")]);
    assert_eq!(outcome.attempts("head"), [(100.0, 110.0, "finished")]);
    assert_eq!(outcome.attempts("too-long"), [(110.0, 160.0, "finished")]);
    let head = &outcome.job("head").reasons[0].text;
    assert!(head.contains("starts by 100 s"), "{head}");
    assert!(outcome.codes("too-long").contains(&"held_for_reservation"), "{:?}", outcome.codes("too-long"));
}

#[test]
fn what_a_reservation_does_not_need_is_free_for_any_length() {
    let jobs = [
        node(4),
        "[[node]]\nname = \"b\"\ncpus = 4\n".to_owned(),
        job("runs", 0.0, 100.0, 2, "time_limit = 100"),
        job("head", 1.0, 10.0, 3, ""),
        job("one", 2.0, 500.0, 1, ""),
        job("two", 3.0, 500.0, 1, ""),
        job("cpu", 4.0, 500.0, 0, ""),
    ];
    let outcome = run(&jobs.concat());
    assert_eq!(outcome.attempts("one")[0].0, 2.0, "one GPU is left over at the reservation");
    assert_eq!(outcome.attempts("head")[0].0, 100.0);
    assert_eq!(outcome.attempts("two")[0].0, 110.0);
    assert_eq!(outcome.attempts("cpu")[0].0, 4.0);
}

#[test]
fn without_time_limits_passing_is_bounded() {
    let mut text = [node(2), "[policy]\nmax_bypass = 5\n".to_owned()].concat();
    text += &job("long", 0.0, 1000.0, 1, "");
    text += &job("head", 1.0, 10.0, 2, "");
    for at in 0..200 {
        text += &job(&format!("s{at}"), 2.0 + at as f64, 10.0, 1, "");
    }
    let outcome = run(&text);
    let head = outcome.attempts("head")[0].0;
    assert_eq!(head, 1000.0);
    let second = |name: &str| outcome.attempts(name)[0].0;
    let passed = (0..200).filter(|at| second(&format!("s{at}")) < head).count();
    assert_eq!(passed, 5);
}

#[test]
fn higher_priority_preempts_those_that_lose_least() {
    let jobs = [
        node(4),
        job("old", 0.0, 100.0, 2, "checkpoint_every = 40"),
        job("new", 10.0, 100.0, 2, "restart_seconds = 5"),
        job("boss", 50.0, 10.0, 2, "priority = 1"),
    ];
    let outcome = run(&jobs.concat());
    // `old` loses 10 s since its checkpoint at 40 s, `new` all its 40 s.
    assert_eq!(outcome.attempts("old"), [(0.0, 50.0, "preempted"), (60.0, 120.0, "finished")]);
    assert_eq!(outcome.attempts("boss"), [(50.0, 60.0, "finished")]);
    assert_eq!(outcome.attempts("new"), [(10.0, 110.0, "finished")]);
    assert_eq!(outcome.summary.preemptions, 1);
}

#[test]
fn a_preempted_gang_without_checkpoints_starts_over_and_pays_its_restart() {
    let jobs =
        [node(1), job("low", 0.0, 20.0, 1, "restart_seconds = 3"), job("boss", 5.0, 10.0, 1, "priority = 1")];
    let outcome = run(&jobs.concat());
    assert_eq!(outcome.attempts("low"), [(0.0, 5.0, "preempted"), (15.0, 38.0, "finished")]);
}

#[test]
fn preemption_takes_several_small_losses_before_one_large_and_the_last_started_of_equals() {
    let jobs = [
        node(4),
        job("big", 0.0, 1000.0, 2, ""),
        job("s1", 80.0, 1000.0, 1, ""),
        job("s2", 80.0, 1000.0, 1, ""),
        job("boss", 100.0, 10.0, 2, "priority = 1"),
    ];
    let outcome = run(&jobs.concat());
    assert_eq!(outcome.attempts("big"), [(0.0, 1000.0, "finished")]);
    assert_eq!(outcome.attempts("s1")[0].2, "preempted");
    let equal = run(&[
        node(2),
        job("s1", 0.0, 1000.0, 1, "checkpoint_every = 10"),
        job("s2", 10.0, 1000.0, 1, "checkpoint_every = 10"),
        job("boss", 105.0, 10.0, 1, "priority = 1"),
    ]
    .concat());
    assert_eq!(equal.attempts("s1").len(), 1);
    assert_eq!(equal.attempts("s2")[0], (10.0, 105.0, "preempted"));
}

#[test]
fn nobody_is_preempted_in_vain_or_against_its_will_or_by_its_equal() {
    for (more, priority, gpus) in [("preemptible = false", 1, 2), ("", 0, 2), ("", 1, 3)] {
        let low = job("low", 0.0, 100.0, 2, more);
        let boss = job("boss", 5.0, 10.0, gpus, &format!("priority = {priority}"));
        let outcome = run(&[node(2), low, boss].concat());
        assert_eq!(outcome.attempts("low"), [(0.0, 100.0, "finished")], "{more} {priority} {gpus}");
        assert_eq!(outcome.summary.preemptions, 0);
    }
}

#[test]
fn a_grace_lets_the_preempted_run_on_and_keeps_what_it_frees_for_whom_it_ends() {
    let jobs = [
        node(2),
        job("low", 0.0, 100.0, 2, ""),
        job("boss", 10.0, 10.0, 2, "priority = 1"),
        job("thief", 11.0, 10.0, 1, "priority = 1"),
        "[policy]\ngrace_seconds = 30\n".to_owned(),
    ];
    let outcome = run(&jobs.concat());
    assert_eq!(outcome.attempts("low")[0], (0.0, 40.0, "preempted"));
    assert_eq!(outcome.attempts("boss"), [(40.0, 50.0, "finished")]);
    assert_eq!(outcome.attempts("thief"), [(50.0, 60.0, "finished")]);
    assert_eq!(outcome.summary.preemptions, 1);
}

const TWO_QUEUES: &str = r#"
[[queue]]
name = "a"
guaranteed = { gpus = 2 }
[[queue]]
name = "b"
guaranteed = { gpus = 2 }
"#;

#[test]
fn an_idle_guarantee_is_borrowed_and_reclaimed_whatever_the_priority() {
    let jobs = [
        node(4),
        TWO_QUEUES.to_owned(),
        job("b1", 0.0, 100.0, 2, "queue = \"b\"\npriority = 9"),
        job("b2", 1.0, 100.0, 2, "queue = \"b\"\npriority = 9"),
        job("a1", 10.0, 10.0, 2, "queue = \"a\""),
        job("a2", 11.0, 10.0, 2, "queue = \"a\""),
    ];
    let outcome = run(&jobs.concat());
    assert_eq!(
        outcome.attempts("b2")[0],
        (1.0, 10.0, "preempted"),
        "the last started of equal losses, or the least"
    );
    assert_eq!(outcome.attempts("a1"), [(10.0, 20.0, "finished")]);
    assert_eq!(
        outcome.attempts("b1"),
        [(0.0, 100.0, "finished")],
        "what is within its guarantee is not taken"
    );
    assert_eq!(outcome.attempts("a2")[0].0, 20.0, "the second waits: it does not stay within the guarantee");
}

#[test]
fn priority_does_not_preempt_work_within_another_queues_guarantee() {
    let jobs = [
        node(2),
        TWO_QUEUES.to_owned(),
        job("b1", 0.0, 100.0, 2, "queue = \"b\""),
        job("boss", 10.0, 10.0, 1, "queue = \"default\"\npriority = 99"),
    ];
    assert_eq!(run(&jobs.concat()).attempts("boss"), [(100.0, 110.0, "finished")]);
    let own = [
        node(2),
        TWO_QUEUES.to_owned(),
        job("b1", 0.0, 100.0, 2, "queue = \"b\""),
        job("boss", 10.0, 10.0, 1, "queue = \"b\"\npriority = 99"),
    ];
    assert_eq!(run(&own.concat()).attempts("boss")[0].0, 10.0, "within one queue priority is free to");
}

#[test]
fn a_quota_is_hard_and_what_can_never_fit_it_is_refused() {
    let queue = "[[queue]]\nname = \"q\"\nquota = { gpus = 2 }\n".to_owned();
    let jobs = [
        node(4),
        queue,
        job("one", 0.0, 10.0, 2, "queue = \"q\""),
        job("two", 0.0, 10.0, 1, "queue = \"q\""),
        job("huge", 0.0, 10.0, 3, "queue = \"q\""),
        job("other", 1.0, 10.0, 2, ""),
    ];
    let outcome = run(&jobs.concat());
    assert_eq!(outcome.attempts("two"), [(10.0, 20.0, "finished")]);
    assert_eq!(outcome.codes("two"), ["waiting_quota"]);
    assert!(outcome.job("two").reasons[0].text.contains("holds 2 GPU of its quota of 2 GPU"));
    assert_eq!((outcome.job("huge").state, outcome.codes("huge")), ("infeasible", vec!["infeasible"]));
    assert_eq!(outcome.attempts("other")[0].0, 1.0, "a gang at its quota holds nobody up");
}

#[test]
fn weights_share_what_is_free() {
    let mut text =
        [node(6), "[[queue]]\nname = \"a\"\nweight = 2\n[[queue]]\nname = \"b\"\n".to_owned()].concat();
    for at in 0..60 {
        text += &job(&format!("a{at}"), 0.0, 10.0, 1, "queue = \"a\"");
    }
    for at in 0..60 {
        text += &job(&format!("b{at}"), 0.0, 10.0, 1, "queue = \"b\"");
    }
    let outcome = run(&text);
    let started = |queue: &str| {
        let mine = outcome.jobs.iter().filter(|job| job.name.starts_with(queue));
        mine.filter(|job| job.start.is_some_and(|start| start.as_micros() < 60_000_000)).count()
    };
    assert_eq!((started("a"), started("b")), (24, 12));
}

#[test]
fn past_use_counts_and_fades() {
    let half_life = |seconds: u32| {
        let queues = format!(
            "[[queue]]\nname = \"a\"\n[[queue]]\nname = \"b\"\n[policy]\nshare_half_life = {seconds}\n"
        );
        let jobs = [
            node(1),
            queues,
            job("past", 0.0, 100.0, 1, "queue = \"a\""),
            job("a1", 50.0, 10.0, 1, "queue = \"a\""),
            job("b1", 60.0, 10.0, 1, "queue = \"b\""),
        ];
        run(&jobs.concat()).attempts("b1")[0].0
    };
    assert_eq!(half_life(1000), 100.0, "b goes first: a has had 100 s");
}

#[test]
fn an_elastic_gang_starts_small_and_grows_once_it_may() {
    let jobs = [node(4), job("x", 0.0, 10.0, 2, ""), elastic("e", 0.0, 100.0, 1, 4, "restart_seconds = 1")];
    let outcome = run(&jobs.concat());
    // Two of four workers for 60 s do 30 s of the work; the other 70 s follow at full speed.
    assert_eq!(outcome.attempts("e"), [(0.0, 60.0, "resized"), (60.0, 131.0, "finished")]);
    assert_eq!(outcome.job("e").attempts[1].bundles.len(), 4);
    assert_eq!(outcome.summary.preemptions, 0);
}

#[test]
fn growth_leaves_to_those_who_wait_what_they_could_use() {
    let jobs = [
        node(4),
        job("x", 0.0, 10.0, 2, ""),
        elastic("e", 0.0, 100.0, 1, 2, "[policy]\nresize_interval = 0\n"),
        job("y", 5.0, 500.0, 1, ""),
        job("waits", 6.0, 10.0, 4, ""),
    ];
    let outcome = run(&jobs.concat());
    assert_eq!(outcome.job("e").attempts.len(), 1);
    assert_eq!(outcome.attempts("e")[0], (0.0, 100.0, "finished"));
}

#[test]
fn an_elastic_gang_gives_a_higher_priority_exactly_what_it_lacks() {
    let jobs = [node(4), elastic("e", 0.0, 100.0, 1, 4, ""), job("boss", 20.0, 40.0, 2, "priority = 1")];
    let outcome = run(&jobs.concat());
    assert_eq!(outcome.attempts("boss"), [(20.0, 60.0, "finished")]);
    assert_eq!(outcome.job("e").attempts[1].bundles.len(), 2);
    // 20 s at 4, 60 s at 2 (growth waits for its interval), the rest at 4.
    assert_eq!(
        outcome.attempts("e"),
        [(0.0, 20.0, "resized"), (20.0, 80.0, "resized"), (80.0, 130.0, "finished")]
    );
    let equal = run(&[node(4), elastic("e", 0.0, 100.0, 1, 4, ""), job("peer", 20.0, 40.0, 2, "")].concat());
    assert_eq!(equal.attempts("e"), [(0.0, 100.0, "finished")]);
    let shrunk_only = run(&[
        node(4),
        elastic("e", 0.0, 100.0, 1, 2, ""),
        job("low", 0.0, 100.0, 2, ""),
        job("boss", 20.0, 10.0, 1, "priority = 1"),
    ]
    .concat());
    assert_eq!(shrunk_only.summary.preemptions, 0, "shrinking comes before preemption");
}

#[test]
fn a_lost_node_requeues_its_gangs_at_their_place_and_a_fixed_one_takes_them_back() {
    let jobs = [
        node(1),
        job("x", 0.0, 50.0, 1, "checkpoint_every = 10\nrestart_seconds = 2"),
        job("y", 1.0, 10.0, 1, ""),
        "[[event]]\nat = 25\nnode_lost = \"a\"\n[[event]]\nat = 26\nnode_lost = \"a\"\n".to_owned(),
        "[[event]]\nat = 30\nnode_joined = \"a\"\n[[event]]\nat = 31\nnode_joined = \"a\"\n".to_owned(),
    ];
    let outcome = run(&jobs.concat());
    assert_eq!(outcome.attempts("x"), [(0.0, 25.0, "node_lost"), (30.0, 62.0, "finished")]);
    assert_eq!(outcome.attempts("y"), [(62.0, 72.0, "finished")]);
    let gpus = outcome.summary.gpu_utilization.unwrap();
    assert!((gpus - 1.0).abs() < 1e-9, "{gpus}");
}

#[test]
fn what_outruns_its_limit_fails_there() {
    let outcome =
        run(&[node(1), job("x", 0.0, 50.0, 1, "time_limit = 20"), job("y", 0.0, 20.0, 1, "time_limit = 20")]
            .concat());
    assert_eq!((outcome.job("x").state, outcome.attempts("x")), ("failed", vec![(0.0, 20.0, "time_limit")]));
    assert_eq!((outcome.job("y").state, outcome.attempts("y")), ("finished", vec![(20.0, 40.0, "finished")]));
}

#[test]
fn cancels_end_what_waits_and_what_runs_and_nothing_else() {
    let events: String = [("x", 5), ("y", 5), ("z", 50)]
        .map(|(name, at)| format!("[[event]]\nat = {at}\ncancel = \"{name}\"\n"))
        .concat();
    let jobs =
        [node(1), job("x", 0.0, 10.0, 1, ""), job("y", 0.0, 10.0, 1, ""), job("z", 0.0, 10.0, 1, ""), events];
    let outcome = run(&jobs.concat());
    assert_eq!(outcome.attempts("x"), [(0.0, 5.0, "cancelled")]);
    assert_eq!((outcome.job("y").state, outcome.attempts("y").len()), ("cancelled", 0));
    assert_eq!(outcome.attempts("z"), [(5.0, 15.0, "finished")]);
}

#[test]
fn parked_gangs_start_when_a_node_makes_them_possible() {
    let late = "[[node]]\nname = \"late\"\ncpus = 8\ngpus = 8\nat = 40\n".to_owned();
    let jobs = [
        node(1),
        late,
        job("x", 0.0, 10.0, 4, ""),
        job("never", 0.0, 10.0, 16, ""),
        job("y", 1.0, 5.0, 1, ""),
    ];
    let outcome = run(&jobs.concat());
    assert_eq!(outcome.attempts("x"), [(40.0, 50.0, "finished")]);
    assert_eq!((outcome.codes("x")[0], outcome.job("never").state), ("infeasible", "infeasible"));
    assert_eq!(outcome.attempts("y")[0].0, 1.0);
}

/// Eight GPUs, of which a queue may have four.
fn capped(jobs: &[String]) -> Outcome {
    let head = "[[queue]]\nname = \"q\"\nquota = { gpus = 4 }\n[policy]\nmax_bypass = 2\n";
    run(&[node(8), head.to_owned(), jobs.concat()].concat())
}

#[test]
fn a_gang_does_not_starve_for_its_queues_quota() {
    let mut jobs = vec![job("a", 0.0, 10.0, 2, "queue = \"q\""), job("b", 0.0, 15.0, 2, "queue = \"q\"")];
    jobs.push(job("large", 1.0, 5.0, 3, "queue = \"q\""));
    for at in 0..6 {
        jobs.push(job(&format!("s{at}"), 2.0, 10.0, 2, "queue = \"q\""));
    }
    let outcome = capped(&jobs);
    // Two pass it; what the others could have is kept for it.
    assert_eq!([outcome.attempts("s0")[0].0, outcome.attempts("s1")[0].0], [10.0, 15.0]);
    assert_eq!(outcome.attempts("large"), [(25.0, 30.0, "finished")]);
    assert_eq!(outcome.codes("s2"), ["waiting_quota", "held_for_reservation", "waiting_quota"]);
    let text = &outcome.job("s2").reasons[1].text;
    assert!(text.contains("kept for large"), "{text}");
    assert_eq!(outcome.attempts("s2")[0].0, 30.0);
}

#[test]
fn quota_that_others_give_up_for_a_gang_is_its_own() {
    let low = |name: &str, at: f64, gpus| job(name, at, 100.0, gpus, "queue = \"q\"\ncheckpoint_every = 1");
    let jobs = [
        low("a", 0.0, 2),
        low("b", 0.0, 2),
        job("large", 10.0, 5.0, 3, "queue = \"q\"\npriority = 1"),
        low("c", 11.0, 1),
        low("d", 11.0, 2),
    ];
    let head = "[[queue]]\nname = \"q\"\nquota = { gpus = 4 }\n[policy]\ngrace_seconds = 5\n";
    let outcome = run(&[node(8), head.to_owned(), jobs.concat()].concat());
    // Both are asked at 10 s and gone at 15 s; "c" fits beside "large", "d" does not.
    assert_eq!(outcome.attempts("large"), [(15.0, 20.0, "finished")]);
    assert_eq!(outcome.summary.preemptions, 2);
    assert_eq!([outcome.attempts("c")[0].0, outcome.attempts("d")[0].0], [15.0, 115.0]);
}

#[test]
fn nobody_grows_into_the_quota_that_another_waits_for() {
    let jobs = [
        job("x1", 0.0, 10.0, 1, "queue = \"q\""),
        job("x2", 0.0, 20.0, 2, "queue = \"q\""),
        elastic("e", 0.0, 100.0, 1, 4, "queue = \"q\""),
        job("y", 1.0, 10.0, 3, "queue = \"q\""),
    ];
    let head = "[[queue]]\nname = \"q\"\nquota = { gpus = 4 }\n[policy]\nresize_interval = 5\n";
    let outcome = run(&[node(8), head.to_owned(), jobs.concat()].concat());
    assert_eq!(outcome.attempts("y")[0].0, 20.0, "{:?}", outcome.attempts("e"));
}

/// One GPU under least attained service, whose levels end at 100 and 400 GPU-seconds.
fn least_attained(jobs: &[String]) -> Outcome {
    let head = "[[queue]]\nname = \"q\"\ndiscipline = \"las\"\n[policy]\nlas_threshold_seconds = 100\n";
    run(&[node(1), head.to_owned(), jobs.concat()].concat())
}

fn saved(name: &str, at: f64, seconds: f64) -> String {
    job(name, at, seconds, 1, "queue = \"q\"\ncheckpoint_every = 1")
}

#[test]
fn las_lets_the_short_past_the_long_a_bounded_number_of_times() {
    let outcome =
        least_attained(&[saved("long", 0.0, 1000.0), saved("s0", 150.0, 10.0), saved("s1", 165.0, 10.0)]);
    assert_eq!(outcome.attempts("s0"), [(150.0, 160.0, "finished")]);
    // A second preemption takes 200 s of service, which it has had at 210 s.
    assert_eq!(outcome.attempts("s1"), [(210.0, 220.0, "finished")]);
    let long = [(0.0, 150.0, "preempted"), (160.0, 210.0, "preempted"), (220.0, 1020.0, "finished")];
    assert_eq!(outcome.attempts("long"), long);
}

#[test]
fn las_puts_who_has_had_more_behind_on_every_level() {
    let outcome =
        least_attained(&[saved("older", 0.0, 1000.0), saved("old", 450.0, 300.0), saved("s", 560.0, 10.0)]);
    assert_eq!(outcome.attempts("s"), [(560.0, 570.0, "finished")]);
    // Both have had more than 100 s, and "older", which came first, more than 400.
    assert_eq!(outcome.attempts("old"), [(450.0, 560.0, "preempted"), (570.0, 760.0, "finished")]);
    assert_eq!(outcome.attempts("older"), [(0.0, 450.0, "preempted"), (760.0, 1310.0, "finished")]);
}

#[test]
fn the_same_scenario_gives_the_same_bytes() {
    let jobs =
        [node(4), job("x", 0.0, 10.0, 3, ""), job("y", 0.5, 5.5, 2, ""), elastic("e", 1.0, 30.0, 1, 3, "")]
            .concat();
    let once = format!("{:?}", run(&jobs));
    assert_eq!(once, format!("{:?}", run(&jobs)));
}

#[test]
fn jobs_go_by_submission_not_by_their_place_in_the_file() {
    let jobs = [
        node(1),
        job("late", 2.0, 10.0, 1, ""),
        job("runs", 0.0, 10.0, 1, ""),
        job("early", 1.0, 10.0, 1, ""),
        job("same", 1.0, 10.0, 1, ""),
    ];
    let outcome = run(&jobs.concat());
    let starts = ["runs", "early", "same", "late"].map(|name| outcome.attempts(name)[0].0);
    assert_eq!(starts, [0.0, 10.0, 20.0, 30.0]);
}

#[test]
fn any_waiting_gang_may_preempt_not_only_the_first() {
    let jobs = [
        node(4),
        job("fixed", 0.0, 100.0, 2, "preemptible = false"),
        job("low", 0.0, 100.0, 2, ""),
        job("head", 1.0, 10.0, 4, "priority = 2"),
        job("boss", 2.0, 10.0, 2, "priority = 1"),
    ];
    let outcome = run(&jobs.concat());
    assert_eq!(outcome.attempts("boss")[0].0, 2.0, "the head, which cannot, does not keep it from it");
    assert_eq!(outcome.attempts("low")[0], (0.0, 2.0, "preempted"));
    assert_eq!(outcome.attempts("head")[0].0, 100.0);
}

#[test]
fn what_starts_in_a_plan_starts_smaller_for_a_higher_priority() {
    let queue = "[[queue]]\nname = \"q\"\nguaranteed = { gpus = 2 }\n".to_owned();
    let jobs = [
        node(4),
        queue,
        elastic("own", 0.0, 10.0, 2, 4, "queue = \"q\""),
        job("boss", 0.0, 10.0, 2, "priority = 1"),
    ];
    let outcome = run(&jobs.concat());
    assert_eq!(outcome.attempts("boss")[0].0, 0.0);
    let own = &outcome.job("own").attempts[0];
    assert_eq!(
        (own.bundles.len(), own.start),
        (2, phalanx_core::Time::ZERO),
        "within its guarantee it goes first"
    );
}

#[test]
fn what_was_kept_is_free_once_its_reservation_is_gone() {
    let jobs = [
        node(4),
        job("runs", 0.0, 100.0, 2, "time_limit = 100"),
        job("head", 1.0, 10.0, 4, ""),
        job("waits", 2.0, 50.0, 2, ""),
        job("boss", 3.0, 500.0, 1, "priority = 1"),
        job("small", 4.0, 5.0, 1, ""),
    ];
    let outcome = run(&jobs.concat());
    assert_eq!(outcome.attempts("boss")[0].0, 3.0);
    assert_eq!(
        outcome.attempts("small")[0].0,
        4.0,
        "with `boss` no end is in sight, and so nothing reserved"
    );
}

#[test]
fn a_share_that_moves_lets_another_queue_before_the_head() {
    let queues =
        "[[queue]]\nname = \"a\"\n[[queue]]\nname = \"b\"\n[policy]\nmax_bypass = 0\nshare_half_life = 10\n"
            .to_owned();
    let jobs = [
        node(4),
        queues,
        job("a1", 0.0, 20.0, 2, "queue = \"a\""),
        job("b1", 0.0, 200.0, 1, "queue = \"b\""),
        job("head", 1.0, 10.0, 4, "queue = \"b\""),
        job("a2", 2.0, 10.0, 1, "queue = \"a\""),
    ];
    let outcome = run(&jobs.concat());
    let start = outcome.attempts("a2")[0].0;
    assert!(
        start < outcome.attempts("head")[0].0 && start <= 20.0,
        "{start}: once its share is the smaller one"
    );
}
