// All jobs: what runs, what waits and why, what has ended; picked ones are compared.
import { signal } from "@preact/signals";
import { useEffect, useMemo } from "preact/hooks";
import { type Job, isTerminal, isWaiting, when } from "../api/types";
import { State } from "../parts/marks";
import { type Column, Table } from "../parts/table";
import { ago, duration, now, plural } from "../state/format";
import { query, setQuery } from "../state/route";
import { jobs, loadJobs, open, span } from "../state/store";

/** Jobs to compare. */
export const picked = signal<string[]>([]);

function toggle(id: string): void {
  const was = picked.value;
  picked.value = was.includes(id) ? was.filter((other) => other !== id) : [...was, id];
}

type Show = "all" | "running" | "waiting" | "ended" | "failed";

const SHOWS: [Show, string, (job: Job) => boolean][] = [
  ["all", "All", () => true],
  ["running", "Running", (job) => job.state === "RUNNING" || job.state === "STARTING"],
  ["waiting", "Waiting", (job) => isWaiting(job.state)],
  ["ended", "Succeeded", (job) => job.state === "SUCCEEDED"],
  ["failed", "Failed", (job) => job.state === "FAILED"],
];

const COLUMNS: Column<Job>[] = [
  {
    key: "pick",
    head: "",
    width: 5,
    cell: (job) => (
      <input type="checkbox" aria-label={`Compare ${job.name || job.id}`} checked={picked.value.includes(job.id)} onChange={() => toggle(job.id)} />
    ),
  },
  { key: "name", head: "Name", width: 26, value: (job) => job.name, cell: (job) => <a href={`/jobs/${job.id}`}>{job.name || job.id}</a> },
  { key: "id", head: "Id", width: 9, wide: true, value: (job) => job.id, cell: (job) => <code>{job.id}</code> },
  { key: "state", head: "State", width: 13, value: (job) => job.state, cell: (job) => <State state={job.state} /> },
  { key: "queue", head: "Queue", width: 13, wide: true, value: (job) => job.queue, cell: (job) => job.queue },
  { key: "where", head: "Where, or why not", width: 44, wide: true, cell: (job) => <Where job={job} /> },
  { key: "took", head: "Ran", width: 10, right: true, down: true, value: ran, cell: (job) => duration(ran(job)) },
  { key: "submitted", head: "Submitted", width: 13, right: true, wide: true, down: true, value: (job) => when(job.submit_time), cell: (job) => ago(when(job.submit_time)) },
];

function ran(job: Job): number {
  const [start, end] = span(job, isTerminal(job.state) ? NaN : now.value);
  return end - start;
}

function Where({ job }: { job: Job }) {
  if (isWaiting(job.state) && job.reason?.text) return <span class="why">{job.reason.text}</span>;
  if (job.state === "FAILED") return <span class="why bad">{job.reason?.text || `exit code ${job.exit_code ?? "?"}`}</span>;
  return <span class="muted">{places(job)}</span>;
}

/** `4 ranks on a, b · GPU 0–3`. */
export function places(job: Job): string {
  const ranks = job.placement ?? [];
  if (ranks.length === 0) return "";
  const names = [...new Set(ranks.map((rank) => rank.node))];
  const gpus = ranks.reduce((sum, rank) => sum + (rank.gpus?.length ?? 0), 0);
  const shown = names.slice(0, 3).join(", ") + (names.length > 3 ? ` and ${names.length - 3} more` : "");
  return `${plural(ranks.length, "rank")} on ${shown}${gpus ? ` · ${plural(gpus, "GPU")}` : ""}`;
}

export function JobsView() {
  useEffect(() => {
    document.title = "Jobs · Phalanx";
    open(["jobs"], () => void loadJobs());
  }, []);
  const all = jobs.rows();
  const withTrials = query.value.get("trials") === "1";
  const show = (query.value.get("show") ?? "all") as Show;
  const words = (query.value.get("q") ?? "").toLowerCase().split(/\s+/).filter(Boolean);
  const listed = useMemo(() => (withTrials ? all : all.filter((job) => !job.sweep)), [all, withTrials]);
  const counts = useMemo(() => SHOWS.map(([, , fits]) => listed.filter(fits).length), [listed]);
  const rows = useMemo(() => {
    const fits = SHOWS.find(([key]) => key === show)?.[2] ?? (() => true);
    return listed.filter((job) => fits(job) && matches(job, words));
  }, [listed, show, words.join(" ")]);
  const hidden = all.length - listed.length;
  return (
    <>
      <div class="head">
        <h1>Jobs</h1>
        <div class="chips" role="group" aria-label="Show">
          {SHOWS.map(([key, name], i) => (
            <button type="button" key={key} aria-pressed={show === key} onClick={() => setQuery({ show: key === "all" ? "" : key })}>
              {name} <b>{counts[i]}</b>
            </button>
          ))}
        </div>
        <div class="tools">
          {(hidden > 0 || withTrials) && (
            <label class="check">
              <input type="checkbox" checked={withTrials} onChange={() => setQuery({ trials: withTrials ? "" : "1" })} /> trials of sweeps
            </label>
          )}
          <input type="search" placeholder="Filter" aria-label="Filter jobs" value={query.value.get("q") ?? ""} onInput={(event) => setQuery({ q: event.currentTarget.value })} />
        </div>
      </div>
      {picked.value.length > 0 && <Picked />}
      <Table
        rows={rows}
        columns={COLUMNS}
        rowKey={(job) => job.id}
        label="Jobs"
        sort={{ key: "submitted", down: true }}
        empty={all.length === 0 ? <Welcome /> : "No job is like this."}
      />
    </>
  );
}

function matches(job: Job, words: string[]): boolean {
  const text = `${job.id} ${job.name} ${job.queue} ${job.state} ${places(job)}`.toLowerCase();
  return words.every((word) => text.includes(word));
}

function Picked() {
  return (
    <p class="picked">
      {plural(picked.value.length, "job")} picked
      <a class="button" data-compare href={`/curves?jobs=${picked.value.join(",")}`}>
        Compare curves
      </a>
      <button type="button" class="quiet" onClick={() => (picked.value = [])}>
        Clear
      </button>
    </p>
  );
}

function Welcome() {
  return (
    <>
      <p>No jobs yet. Submit one, and it appears here by itself:</p>
      <pre>phalanx submit job.toml</pre>
    </>
  );
}
