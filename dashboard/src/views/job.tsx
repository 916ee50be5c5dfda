// One job: where it is in its life and why, its curves, its log, its attempts, ranks, checkpoints, events and file.
import { useEffect, useState } from "preact/hooks";
import { ApiError, get, post } from "../api/client";
import { type Attempt, type Checkpoint, type Job, type RankPlacement, int, isTerminal, isWaiting, real, when } from "../api/types";
import { Curves } from "../parts/curves";
import { Logs } from "../parts/logs";
import { Card, Fact, State } from "../parts/marks";
import { keys } from "../parts/spec";
import { type Column, Table } from "../parts/table";
import { ago, bytes, clock, duration, moment, now, num, plural } from "../state/format";
import { attempt, jobs, open, span } from "../state/store";
import { places } from "./jobs";

export function JobView({ id }: { id: string }) {
  const [missing, setMissing] = useState("");
  useEffect(() => {
    let left = false;
    // A stream about a job that is not there is refused; this says why.
    get<Job>(`/jobs/${encodeURIComponent(id)}`).then(
      (job) => {
        if (left) return;
        jobs.fill([job], 0);
        open([`job:${id}`, `logs:${id}`, `metrics:${id}`], () => {});
      },
      (error) => error instanceof ApiError && setMissing(error.message),
    );
    return () => {
      left = true;
    };
  }, [id]);
  const job = jobs.get(id);
  if (!job) return <div class="empty">{missing || "…"}</div>;
  document.title = `${job.name || id} · Phalanx`;
  return (
    <>
      <Head job={job} />
      {isWaiting(job.state) && job.reason?.text && <Why job={job} />}
      {job.state === "FAILED" && job.reason?.text && <p class="banner bad">{job.reason.text}</p>}
      <Facts job={job} />
      <Curves runs={[{ id, label: job.name || id }]} />
      <Logs ranks={Math.max(job.placement?.length ?? 0, 1)} />
      <div class="two loose">
        <div>
          <Attempts attempts={job.attempts ?? []} />
          <Events job={job} />
        </div>
        <div>
          <Ranks placement={job.placement ?? []} />
          <Checkpoints checkpoints={job.checkpoints ?? []} />
        </div>
      </div>
      <Spec id={id} />
    </>
  );
}

function Head({ job }: { job: Job }) {
  const [busy, setBusy] = useState("");
  const act = async (verb: string) => {
    if (verb === "cancel" && !confirm(`Cancel ${job.name || job.id} for good?`)) return;
    setBusy(verb);
    const changed = await attempt(() => post<Job>(`/jobs/${encodeURIComponent(job.id)}:${verb}`));
    if (changed) jobs.put(changed);
    setBusy("");
  };
  const verbs = isTerminal(job.state) ? [] : job.state === "PAUSED" ? ["resume", "cancel"] : ["pause", "cancel"];
  return (
    <div class="head">
      <h1>{job.name || job.id}</h1>
      <State state={job.state} />
      <code>{job.id}</code>
      {job.sweep && (
        <a href={`/sweeps/${job.sweep}`}>
          trial {job.trial} of {job.sweep}
        </a>
      )}
      <div class="tools">
        {verbs.map((verb) => (
          <button type="button" key={verb} disabled={busy !== ""} onClick={() => void act(verb)}>
            {verb[0]!.toUpperCase() + verb.slice(1)}
          </button>
        ))}
      </div>
    </div>
  );
}

function Why({ job }: { job: Job }) {
  return (
    <p class="banner wait">
      <b>Why it waits</b> {job.reason!.text} <code>{job.reason!.code}</code>
    </p>
  );
}

function Facts({ job }: { job: Job }) {
  const [start, end] = span(job, isTerminal(job.state) ? NaN : now.value);
  const gang = job.gang;
  const workers = gang && (gang.min_workers === gang.max_workers ? plural(gang.min_workers, "worker") : `${gang.min_workers} to ${gang.max_workers} workers`);
  const each = gang && [`${num(gang.cpus)} CPU`, gang.gpus > 0 && `${num(gang.gpus)} GPU`, int(gang.memory_bytes) > 0 && bytes(int(gang.memory_bytes))].filter(Boolean).join(", ");
  return (
    <dl class="facts">
      <Fact name="Gang">{workers ? `${workers}, each ${each}` : "–"}</Fact>
      <Fact name="Queue">
        {job.queue}
        {job.priority !== 0 && `, priority ${job.priority}`}
      </Fact>
      <Fact name="Submitted">{ago(when(job.submit_time))}</Fact>
      <Fact name="Waited">{duration((Number.isFinite(start) ? start : now.value) - when(job.submit_time))}</Fact>
      <Fact name="Ran">{duration(end - start)}</Fact>
      {places(job) && <Fact name="Where">{places(job)}</Fact>}
      {job.exit_code != null && <Fact name="Exit code">{job.exit_code}</Fact>}
    </dl>
  );
}

const ATTEMPTS: Column<Attempt>[] = [
  { key: "n", head: "Attempt", value: (a) => a.number, cell: (a) => a.number },
  { key: "state", head: "State", cell: (a) => <State state={a.state} /> },
  { key: "start", head: "Started", cell: (a) => clock(when(a.start_time)).slice(0, 8) },
  { key: "took", head: "Ran", right: true, cell: (a) => duration((a.end_time ? when(a.end_time) : now.value) - when(a.start_time)) },
  { key: "message", head: "What happened", cell: (a) => a.message || (a.exit_code != null ? `exit code ${a.exit_code}` : "") },
];

function Attempts({ attempts }: { attempts: Attempt[] }) {
  return (
    <Card title="Attempts">
      <Table rows={attempts} columns={ATTEMPTS} rowKey={(a) => a.number} label="Attempts" sort={{ key: "n", down: true }} empty="Not started yet." />
    </Card>
  );
}

const RANKS: Column<RankPlacement>[] = [
  { key: "rank", head: "Rank", value: (r) => r.rank, cell: (r) => r.rank },
  { key: "node", head: "Node", value: (r) => r.node, cell: (r) => r.node },
  { key: "gpus", head: "GPUs", cell: (r) => ((r.gpus ?? []).length > 0 ? r.gpus.join(", ") : "–") },
];

function Ranks({ placement }: { placement: RankPlacement[] }) {
  return (
    <Card title="Ranks" note={placement.length > 0 ? "of the latest attempt" : undefined}>
      <Table rows={placement} columns={RANKS} rowKey={(r) => r.rank} label="Ranks" sort={{ key: "rank", down: false }} empty="Placed nowhere." />
    </Card>
  );
}

const CHECKPOINTS: Column<Checkpoint>[] = [
  { key: "step", head: "Step", right: true, value: (c) => int(c.step), cell: (c) => int(c.step) },
  { key: "attempt", head: "Attempt", right: true, value: (c) => c.attempt, cell: (c) => c.attempt },
  { key: "metric", head: "Metric", right: true, value: (c) => real(c.metric), cell: (c) => num(real(c.metric)) },
  { key: "time", head: "Durable", right: true, value: (c) => when(c.time), cell: (c) => <span title={moment(when(c.time))}>{ago(when(c.time))}</span> },
];

function Checkpoints({ checkpoints }: { checkpoints: Checkpoint[] }) {
  return (
    <Card title="Checkpoints">
      <Table rows={checkpoints} columns={CHECKPOINTS} rowKey={(c) => `${c.attempt}.${c.step}`} label="Checkpoints" sort={{ key: "step", down: true }} empty="None kept." />
    </Card>
  );
}

interface Happening {
  time: number;
  what: string;
  more: string;
}

/** What has happened to a job, in order, from what it says of itself. */
function happenings(job: Job): Happening[] {
  const all: Happening[] = [{ time: when(job.submit_time), what: "submitted", more: `to queue ${job.queue}` }];
  for (const one of job.attempts ?? []) {
    all.push({ time: when(one.start_time), what: `attempt ${one.number} placed`, more: "" });
    if (one.end_time) all.push({ time: when(one.end_time), what: `attempt ${one.number} ${one.state.toLowerCase()}`, more: one.message });
  }
  for (const kept of job.checkpoints ?? []) all.push({ time: when(kept.time), what: "checkpoint", more: `at step ${int(kept.step)}` });
  if (job.end_time) all.push({ time: when(job.end_time), what: job.state.toLowerCase(), more: job.reason?.text ?? "" });
  return all.filter((one) => Number.isFinite(one.time)).sort((a, b) => b.time - a.time);
}

const HAPPENINGS: Column<Happening>[] = [
  { key: "time", head: "Time", cell: (e) => <span title={moment(e.time)}>{clock(e.time).slice(0, 8)}</span> },
  { key: "what", head: "Event", cell: (e) => e.what },
  { key: "more", head: "Details", cell: (e) => e.more },
];

function Events({ job }: { job: Job }) {
  return (
    <Card title="Events">
      <Table rows={happenings(job)} columns={HAPPENINGS} rowKey={(e) => `${e.time} ${e.what}`} label="Events" />
    </Card>
  );
}

function Spec({ id }: { id: string }) {
  const [said, setSaid] = useState<[string, string][]>();
  const load = (isOpen: boolean) => {
    if (!isOpen || said) return;
    void attempt(() => get<Parameters<typeof keys>[0]>(`/jobs/${encodeURIComponent(id)}/spec`)).then((spec) => setSaid(keys(spec ?? null)));
  };
  return (
    <details class="card spec" onToggle={(event) => load(event.currentTarget.open)}>
      <summary>
        <h2>Specification</h2>
      </summary>
      <dl>
        {said?.map(([key, value]) => (
          <div key={key}>
            <dt>{key}</dt>
            <dd>{value}</dd>
          </div>
        ))}
      </dl>
    </details>
  );
}
