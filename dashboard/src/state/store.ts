// What the service has said, and how it gets here: lists are asked for once, and kept current by the one stream.
import { signal } from "@preact/signals";
import { get } from "../api/client";
import { Stream } from "../api/stream";
import { type Job, type Node, type Queue, type Sweep, type Trial, int, real, when } from "../api/types";
import { Collection } from "./collection";
import { SeriesSet } from "./series";
import { LogTail } from "./tail";

export const jobs = new Collection<string, Job>((job) => job.id);
export const sweeps = new Collection<string, Sweep>((sweep) => sweep.id);
export const nodes = new Collection<string, Node>((node) => node.name);
export const queues = new Collection<string, Queue>((queue) => queue.name);
/** Of the sweep that is open. */
export const trials = new Collection<number, Trial>((trial) => int(trial.number));
/** Of the jobs that are open. */
export const series = new SeriesSet();
/** Of the job that is open. */
export const tail = new LogTail();
/** What went wrong last, for a line at the top. */
export const trouble = signal("");

/** Rows of a page, and pages that are asked for at most. */
const PAGE = 1000;
const PAGES = 10;
/** Between two pages of a long history, so that it does not crowd out what is live. */
const PAGE_WAIT_MS = 1200;

let stream: Stream | undefined;
let load: () => void = () => {};
/** The sweep whose trials are shown. */
let openSweep = "";
/** The next stream goes on with what there is. */
let goesOn = false;

/**
 * Turns the page to a view: what was kept of another is forgotten, the stream brings `topics` from their start, and
 * `lists` are asked for as soon as it runs, and again when it had to start afresh.
 */
export function open(topics: string[], lists: () => void, sweep = ""): void {
  series.clear();
  tail.clear();
  if (sweep !== openSweep) trials.clear();
  openSweep = sweep;
  load = lists;
  goesOn = false;
  if (stream) stream.watch(topics, true);
  else stream = new Stream(receive, topics);
}

/** More, or other, topics of the same view. */
export function alsoWatch(topics: string[]): void {
  goesOn = stream?.watch(topics, false) ?? false;
}

function receive(kind: string, data: any): void {
  switch (kind) {
    case "hello":
      // What happens from now on is told; what was before is in the lists.
      if (!goesOn) load();
      goesOn = false;
      break;
    case "job":
      jobs.put(data as Job);
      break;
    case "sweep":
      takeSweep(data.sweep);
      if (data.sweep.id === openSweep) for (const trial of data.trials as Trial[]) takeTrial(trial);
      break;
    case "sweeps":
      for (const sweep of data.sweeps as Sweep[]) takeSweep(sweep);
      break;
    case "metrics":
      series.add(data);
      break;
    case "log":
      tail.add(data.lines);
      break;
    case "nodes":
      nodes.replace(data.nodes as Node[]);
      break;
    case "queues":
      queues.replace(data.queues as Queue[]);
      break;
  }
}

/** Its file is only told where the sweep is asked for. */
function takeSweep(sweep: Sweep): void {
  sweeps.put({ ...sweep, toml: sweep.toml || sweeps.get(sweep.id)?.toml || "" });
}

/** A trial's value is the last report of its job: one after another they are its curve. */
function takeTrial(trial: Trial): void {
  trials.put(trial);
  const metric = sweeps.get(openSweep)?.objectives?.[0]?.metric;
  if (metric && trial.job && trial.step != null && trial.value != null) {
    series.extend(trial.job, metric, int(trial.step), Date.now() / 1000, real(trial.value));
  }
}

/** Runs a request; what goes wrong is shown, until one goes well. */
export async function attempt<T>(work: () => Promise<T>): Promise<T | undefined> {
  try {
    const result = await work();
    trouble.value = "";
    return result;
  } catch (error) {
    // A service that is away is said by the mark of the stream.
    if (!(error instanceof TypeError)) trouble.value = error instanceof Error ? error.message : String(error);
    return undefined;
  }
}

const enc = encodeURIComponent;

/** Jobs, the newest first, page by page. */
export async function loadJobs(pages = PAGES): Promise<void> {
  let token = "";
  for (let page = 0; page < pages; page++) {
    const asked = performance.now();
    const answer = await attempt(() =>
      get<{ jobs?: Job[]; next_page_token?: string }>(`/jobs?page_size=${PAGE}${token && `&page_token=${enc(token)}`}`),
    );
    if (!answer) return;
    jobs.fill(answer.jobs ?? [], asked);
    token = answer.next_page_token ?? "";
    if (token === "") return;
    await new Promise((done) => setTimeout(done, PAGE_WAIT_MS));
  }
}

/** Fails where it is not there. */
export async function loadSweep(id: string): Promise<void> {
  const asked = performance.now();
  const sweep = await get<Sweep>(`/sweeps/${enc(id)}`);
  sweeps.fill([sweep], asked);
}

/** When a job has run, in milliseconds since the Unix epoch; up to `now` where it still does. */
export function span(job: Job, now: number): [number, number] {
  const end = when(job.end_time);
  return [when(job.start_time), Number.isFinite(end) ? end : now];
}
