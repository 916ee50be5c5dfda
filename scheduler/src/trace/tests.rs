//! Small traces of our own in the formats of others.

use super::*;
use phalanx_core::Placement;

const PHILLY: &str = include_str!("../../../examples/what-if/philly.csv");
const OPENB: &str = include_str!("../../../examples/what-if/openb_pods.csv");
const OPENB_NODES: &str = include_str!("../../../examples/what-if/openb_nodes.csv");
const PAI: &str = include_str!("../../../examples/what-if/pai_tasks.csv");
const SACCT: &str = include_str!("../../../examples/what-if/sacct.txt");

fn job<'a>(trace: &'a Trace, name: &str) -> &'a ScenarioJob {
    trace.jobs.iter().find(|job| job.name == name).unwrap()
}

fn seconds(text: &str) -> Duration {
    Duration::from_secs_f64(text.parse().unwrap())
}

#[test]
fn philly_has_a_worker_a_gpu() {
    let trace = read(Format::Philly, PHILLY).unwrap();
    assert_eq!((trace.jobs.len(), trace.left_out["that never ran"]), (59, 1));
    assert_eq!(trace.jobs[0].at, Time::ZERO);
    assert!(trace.jobs.iter().all(|job| job.queue == "vision" || job.queue == "speech"));
    let text = "num_gpu,job_id,submit_time,duration,num_cpu\n8,a,100,60.5,32\n0,b,160,5,3\n1,a,170,1,\n";
    let trace = read(Format::Philly, text).unwrap();
    let a = job(&trace, "a");
    assert_eq!(
        (a.gang.workers.max, a.gang.each.gpus, a.gang.each.cpus),
        (8, GpuRequest::Whole(1), Cpus::from_cores(4))
    );
    assert_eq!((a.work, a.at), (seconds("60.5"), Time::ZERO));
    let b = job(&trace, "b");
    assert_eq!(
        (b.gang.each.gpus, b.gang.each.cpus, b.at),
        (GpuRequest::None, Cpus::from_cores(3), Time::from_micros(60_000_000))
    );
    assert_eq!(job(&trace, "a#2").gang.each.cpus, Cpus::from_cores(1), "names are made unique");
}

#[test]
fn openb_has_shares_and_models() {
    let trace = read(Format::Openb, OPENB).unwrap();
    assert_eq!((trace.jobs.len(), trace.left_out["that never ran"]), (29, 1));
    let text = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,pod_phase,creation_time,deletion_time,scheduled_time\n\
                p0,6000,12288,1,460,,LS,Succeeded,50,150,60\np1,88000,327680,8,1000,V100M16|V100M32,LS,Running,51,,51\n\
                p2,1000,0,2,1000,G2,BE,Failed,52,53,52\n";
    let trace = read(Format::Openb, text).unwrap();
    let shared = job(&trace, "p0");
    assert_eq!((shared.gang.each.gpus, shared.gang.each.memory_bytes), (GpuRequest::Share(460), 12 << 30));
    assert_eq!(shared.work, seconds("90"));
    assert_eq!(trace.left_out["without an end"], 1);
    let whole = job(&trace, "p2");
    assert_eq!(whole.gang.each.gpus, GpuRequest::Whole(2));
    assert!(whole.gang.labels["gpu"].matches(Some("G2")) && !whole.gang.labels["gpu"].matches(Some("T4")));
    let nodes = openb_nodes(OPENB_NODES).unwrap();
    assert_eq!((nodes.len(), nodes[0].capacity.devices.len(), nodes[2].capacity.devices.len()), (3, 2, 0));
    assert_eq!(nodes[1].capacity.labels["gpu"], "V100M16");
}

#[test]
fn pai_has_instances_with_or_without_a_head() {
    let trace = read(Format::Pai, PAI).unwrap();
    assert_eq!((trace.jobs.len(), trace.left_out["that never ran"]), (19, 1));
    let row = "j,worker,4.0,Terminated,100.0,160.5,600.0,29.5,50.0,MISC\nk,ps,1.0,Terminated,100.0,101.0,50.0,1,,\n";
    let head = "job_name,task_name,inst_num,status,start_time,end_time,plan_cpu,plan_mem,plan_gpu,gpu_type\n";
    let bare = read(Format::Pai, row).unwrap();
    assert_eq!(read(Format::Pai, &format!("{head}{row}")).as_ref(), Ok(&bare));
    let gang = &job(&bare, "j/worker").gang;
    assert_eq!(
        (gang.workers.max, gang.each.gpus, gang.each.cpus),
        (4, GpuRequest::Share(500), Cpus::from_cores(6))
    );
    assert_eq!(gang.each.memory_bytes, 59 << 29);
    assert_eq!(job(&bare, "k/ps").gang.each.gpus, GpuRequest::None);
}

#[test]
fn sacct_reads_in_both_its_shapes() {
    let trace = read(Format::Sacct, SACCT).unwrap();
    assert_eq!((trace.jobs.len(), trace.left_out["that never ran"]), (23, 1));
    let text = "JobID|JobName|Partition|Submit|Start|End|Elapsed|Timelimit|State|NNodes|ReqTRES\n\
                7|big one|gpu|2026-03-02T08:00:00|2026-03-02T08:00:10|2026-03-02T09:00:10|1-01:00:00|2-00:00:00|COMPLETED|2|cpu=16,gres/gpu:a100=8,gres/gpu=8,mem=1.5T,node=2\n\
                7.0|step|gpu|2026-03-02T08:00:00|2026-03-02T08:00:10||01:00:00||COMPLETED|2|cpu=16\n\
                8|cpu|cpu|2026-03-02T08:01:00|2026-03-02T08:01:00|2026-03-02T08:01:30|00:30|UNLIMITED|FAILED|1|cpu=2,mem=500M,node=1\n";
    let trace = read(Format::Sacct, text).unwrap();
    assert_eq!(trace.jobs.len(), 2);
    let big = job(&trace, "7 big one");
    assert_eq!((big.gang.workers.max, big.gang.placement), (2, Placement::StrictSpread));
    assert_eq!((big.gang.each.gpus, big.gang.each.cpus), (GpuRequest::Whole(4), Cpus::from_cores(8)));
    assert_eq!((big.gang.each.memory_bytes, big.work), (3 << 38, seconds("90000")));
    assert_eq!((big.time_limit, big.queue.as_str()), (Some(seconds("172800")), "gpu"));
    let cpu = job(&trace, "8 cpu");
    assert_eq!((cpu.work, cpu.time_limit, cpu.at.as_micros()), (seconds("30"), None, 60_000_000));
    let wide = "JobID           JobName  Submit              Elapsed    NCPUS\n\
                ------------ ---------- ------------------- ---------- --------\n\
                9                  bert 2026-03-02T08:00:00   00:01:00        4\n\
                9.batch           batch 2026-03-02T08:00:00   00:01:00        4\n";
    let trace = read(Format::Sacct, wide).unwrap();
    assert_eq!((trace.jobs.len(), trace.jobs[0].name.as_str()), (1, "9 bert"));
    assert_eq!((trace.jobs[0].work, trace.jobs[0].gang.each.cpus), (seconds("60"), Cpus::from_cores(4)));
}

#[test]
fn a_trace_runs_on_a_cluster_with_its_queues() {
    let cluster = Scenario::parse(include_str!("../../../examples/what-if/cluster.toml")).unwrap();
    let scenario = read(Format::Philly, PHILLY).unwrap().into_scenario(cluster.clone());
    assert_eq!(scenario.queues.len(), 2, "queues of the cluster stay as they are");
    let outcome = crate::simulate::simulate(&scenario, None);
    assert!(outcome.jobs.iter().all(|job| job.state == "finished"));
    let scenario = read(Format::Sacct, SACCT).unwrap().into_scenario(cluster);
    assert_eq!(scenario.queues.len(), 4, "those it does not know are plain");
    assert_eq!(Scenario::parse(&scenario.to_toml()), Ok(scenario));
}

#[test]
fn what_is_no_trace_says_so() {
    for (format, text, says) in [
        (Format::Philly, "", "the trace is empty"),
        (Format::Philly, "a,b\n1,2\n", "no column `job_id` or `jobid` or `id`; its head says a, b"),
        (Format::Philly, "job_id,submit_time,num_gpu\n1,yesterday,1\n", "line 2: `yesterday` is not a time"),
        (Format::Philly, "job_id,submit_time,num_gpu,duration\n1,5,-1,3\n", "line 2: `-1` is not a number"),
        (Format::Philly, "job_id,submit_time,num_gpu,duration\n1,5,1,\n", "1 that never ran"),
        (Format::Philly, "job_id,submit_time,num_gpu,duration\n1,5,99999999,3\n", "too many"),
        (Format::Openb, "name\nx\n", "no column `cpu_milli`"),
        (Format::Pai, "x\n", "1 without workers"),
        (
            Format::Sacct,
            "JobID|Submit|Elapsed\n1|2026-03-02T08:00:00|soon\n",
            "line 2: `soon` is not a time such as",
        ),
        (Format::Sacct, "JobID|Submit\n", "no column `elapsedraw`"),
        (
            Format::Sacct,
            "JobID|Submit|Elapsed|ReqTRES\n1|2026-03-02T08:00:00|00:01:00|cpu=x\n",
            "`cpu=x` is not what a job has",
        ),
    ] {
        let told = read(format, text).map(|trace| trace.jobs.len()).unwrap_err().to_string();
        assert!(told.contains(says), "`{says}` is not in: {told}");
    }
}
