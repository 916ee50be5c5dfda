// A stand-in for the service, to work on the page with: invented jobs, nodes and sweeps in the shapes of docs/http.md.
//   node test/mock.mjs [--port 7499] [--trials 60] [--points 400] [--runs 10]
import { createReadStream, existsSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join } from "node:path";
import { fileURLToPath } from "node:url";

const option = (name, fallback) => {
  const at = process.argv.indexOf(`--${name}`);
  return at < 0 ? fallback : Number(process.argv[at + 1]);
};
const PORT = option("port", 7499);
const TRIALS = option("trials", 60);
const POINTS = option("points", 400);
const RUNS = option("runs", 10);
const DIST = fileURLToPath(new URL("../dist", import.meta.url));
const TYPES = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml" };

let seed = 7;
const random = () => ((seed = (seed * 1103515245 + 12345) & 0x7fffffff) / 0x7fffffff);
const started = Date.now() - 15 * 60_000;
const iso = (ms) => new Date(ms).toISOString();

const nodes = Array.from({ length: 6 }, (_, n) => ({
  name: `gpu-${String.fromCharCode(97 + n)}`,
  state: n === 5 ? "DRAINING" : "READY",
  cpus: { total: 64, free: 64 },
  memory: { total: 512 * 2 ** 30, free: 400 * 2 ** 30 },
  gpus: Array.from({ length: 8 }, (_, index) => ({ index, uuid: `GPU-${n}${index}`, name: "H100", memory_total: 80 * 2 ** 30, memory_used: 0, utilization: 0, free: 1 })),
  labels: { node: `gpu-${n}`, rack: `r${n >> 1}`, accelerator: "H100" },
  resources: {},
}));

const jobs = [];
const curves = new Map();
const NAMES = ["llama-pretrain", "digits", "resnet50", "vit-b16", "whisper-ft", "gpt2-small", "diffusion", "clip-b32", "bert-mlm", "unet3d", "rlhf-ppo", "moe-8x1b"];

function curve(length, floor, noise) {
  const step = [], value = [], time = [];
  for (let i = 1; i <= length; i++) extend({ step, value, time }, floor, noise);
  return { step, value, time };
}
function extend({ step, value, time }, floor, noise) {
  const i = step.length + 1;
  step.push(i * 10);
  value.push(floor + 2.2 / (1 + i / 30) + noise * (random() - 0.5));
  time.push(started / 1000 + i * 0.9);
}

function job(name, state, more = {}) {
  const id = `j${jobs.length + 1}`;
  const submit = started + jobs.length * 17_000;
  const runs = !["QUEUED"].includes(state);
  const ended = ["SUCCEEDED", "FAILED", "CANCELLED"].includes(state);
  const placement = runs ? [0, 1, 2, 3].map((rank) => ({ rank, node: nodes[(jobs.length + (rank >> 1)) % 5].name, gpus: [(jobs.length * 2 + rank) % 8] })) : [];
  const times = { start_time: runs ? iso(submit + 2100) : null, end_time: ended ? iso(submit + 240_000 + random() * 400_000) : null };
  jobs.push({
    id, name, state, reason: { code: "", text: "" }, queue: "default", priority: 0, attempt: runs ? 1 : 0, exit_code: null,
    submit_time: iso(submit), ...times, sweep: null, trial: null, placement,
    gang: { min_workers: 4, max_workers: 4, cpus: 8, gpus: 1, memory_bytes: 32 * 2 ** 30, resources: {}, placement: "pack", group: null },
    attempts: runs ? [{ number: 1, state: ended ? state : "RUNNING", ...times, exit_code: ended ? 0 : null, failed_rank: null, message: "" }] : [],
    checkpoints: runs ? [100, 200].map((step) => ({ attempt: 1, step, time: iso(submit + step * 900), metric: 0.3 + random() / 10, path: "" })) : [],
    ...more,
  });
  if (runs) {
    const floor = 0.2 + random() * 0.5;
    curves.set(id, { floor, loss: curve(POINTS, floor, 0.12), "val/accuracy": curve(POINTS / 20, 0.1, 0.02), samples_per_s: curve(POINTS, 900, 30) });
  }
  return jobs.at(-1);
}

for (let i = 0; i < RUNS; i++) job(NAMES[i % NAMES.length], i % 3 === 0 ? "RUNNING" : "SUCCEEDED");
job("segformer", "FAILED", { exit_code: 1, reason: { code: "rank_failed", text: "rank 2 was killed by signal 9 (SIGKILL) and no restarts are left (max_failures = 0)" } });
const why = { code: "waiting_resources", text: "asks for 8 workers with 8 GPUs each (64 in all); 31 GPUs are free on 5 nodes, the fullest fit is 3 workers; third in queue `default`" };
job("llama-70b", "QUEUED", { reason: why });
job("eval-suite", "PAUSED", { reason: { code: "paused", text: "paused at a person's wish; `phalanx resume` lets it go on" } });

const queues = [
  { name: "default", weight: 1, discipline: "fifo", share: 0.62, guaranteed: {}, quota: { gpus: 40 }, held: { gpus: 25, cpus: 128 }, running: 5, length: 2, waiting: jobs.filter((one) => one.state === "QUEUED").map(({ id, name, reason }) => ({ id, name, reason })), from_api: false },
  { name: "research", weight: 2, discipline: "las", share: 0.2, guaranteed: { gpus: 8 }, quota: {}, held: { gpus: 4 }, running: 1, length: 0, waiting: [], from_api: true },
];

const trials = [];
function outcome({ lr, dropout, layers, opt }) {
  return 0.95 - 0.06 * Math.abs(Math.log10(lr) + 2.6) - 0.12 * (dropout - 0.2) ** 2 - 0.006 * Math.abs(layers - 5) - (opt === "sgd" ? 0.03 : 0) + 0.02 * (random() - 0.5);
}
function trial(state) {
  const n = trials.length;
  const pull = Math.min(0.8, n / TRIALS);
  const lr = 10 ** (-5 + 4 * (random() * (1 - pull) + 0.6 * pull));
  const params = { lr, dropout: Math.round(random() * 10) / 20, layers: 1 + Math.floor(random() * 8), opt: ["sgd", "adamw", "lion"][Math.floor(random() * 3)] };
  const at = started + (n * 12 * 60_000) / TRIALS;
  trials.push({ number: n, state, params, value: outcome(params), values: [], step: state === "STOPPED" ? 9 : 81, job: `t${n}`, sampler: n < 10 ? "random" : "tpe", message: "", start_time: iso(at), end_time: state === "RUNNING" ? null : iso(at + 20_000 + random() * 60_000) });
  const last = trials.at(-1);
  // Some were paused for a while.
  const end = last.end_time && Date.parse(last.end_time);
  const pause = end && n % 5 === 0 ? [{ start_time: iso(at), end_time: iso(at + (end - at) / 4) }] : [];
  last.stints = [...pause, { start_time: pause.length ? iso(at + (end - at) / 2) : iso(at), end_time: last.end_time }];
  last.values = [last.value];
  const c = { step: [], value: [], time: [] };
  for (let s = 1; s <= last.step; s++) { c.step.push(s); c.value.push(last.value * (1 - Math.exp(-s / 12)) + 0.01 * (random() - 0.5)); c.time.push(at / 1000 + s); }
  curves.set(last.job, { "val/accuracy": c });
  return last;
}
while (trials.length < TRIALS) trial(random() < 0.55 ? "STOPPED" : "COMPLETE");
const sweep = { id: "s1", name: "digits-search", state: "RUNNING", reason: null, queue: "default", best: null, counts: {}, steps_run: 0, objectives: [{ metric: "val/accuracy", mode: "max" }], search: "tpe", stopping: "asha", trials: TRIALS + 200, concurrency: 8, submit_time: iso(started), start_time: iso(started), end_time: null };
function count() {
  const counts = {};
  for (const { state } of trials) counts[state.toLowerCase()] = (counts[state.toLowerCase()] ?? 0) + 1;
  const best = trials.filter((t) => t.state === "COMPLETE").reduce((a, b) => (a && a.value >= b.value ? a : b), undefined);
  Object.assign(sweep, { counts, steps_run: trials.reduce((sum, t) => sum + t.step, 0), best: best && { number: best.number, params: best.params, value: best.value, job: best.job } });
}
count();

function use() {
  for (const node of nodes) {
    const held = jobs.filter((one) => one.state === "RUNNING").flatMap((one) => one.placement.filter((rank) => rank.node === node.name));
    node.cpus.free = 64 - held.length * 8;
    for (const gpu of node.gpus) {
      const busy = held.some((rank) => rank.gpus.includes(gpu.index));
      Object.assign(gpu, { free: busy ? 0 : 1, utilization: busy ? 40 + 60 * random() : 0, memory_used: busy ? 60 * 2 ** 30 : 0 });
    }
  }
}
use();

const watchers = new Set();
const tell = (topic, event, data) => { for (const watcher of watchers) watcher(topic, event, data); };
const series = (metric, c, from = 0) => ({ attempt: 1, rank: 0, metric, step: c.step.slice(from), value: c.value.slice(from), time: c.time.slice(from), points: c.step.length });
let seq = 0;
const log = new Map();
const line = (id) => {
  const lines = log.get(id) ?? log.set(id, []).get(id);
  lines.push({ job: id, attempt: 1, rank: lines.length % 4, stream: lines.length % 17 === 3 ? "stderr" : "stdout", seq: lines.length + 1, time: iso(Date.now()), line: lines.length % 17 === 3 ? "warning: gradient norm 12.4 clipped to 1.0" : `step ${lines.length * 10} loss ${(0.3 + random() / 10).toFixed(4)} ${(900 + 30 * random()).toFixed(0)} samples/s`, partial: false });
  return lines.at(-1);
};
for (const { id } of jobs) for (let i = 0; i < 60; i++) line(id);

setInterval(() => {
  for (const one of jobs.filter((one) => one.state === "RUNNING")) {
    const c = curves.get(one.id);
    for (const [name, noise] of [["loss", 0.12], ["samples_per_s", 30]]) extend(c[name], name === "loss" ? c.floor : 900, noise);
    tell(`metrics:${one.id}`, "metrics", { job: one.id, seq: ++seq, reset: false, left_out: 0, series: ["loss", "samples_per_s"].map((name) => series(name, c[name], c[name].step.length - 1)) });
    tell(`logs:${one.id}`, "log", { job: one.id, lines: [line(one.id)] });
  }
}, 500);
setInterval(() => {
  use();
  tell("nodes", "nodes", { nodes });
  const fresh = trial(random() < 0.5 ? "STOPPED" : "COMPLETE");
  fresh.start_time = iso(Date.now() - 20_000);
  fresh.end_time = iso(Date.now());
  fresh.stints = [{ start_time: fresh.start_time, end_time: fresh.end_time }];
  count();
  tell("sweep:s1", "sweep", { seq: ++seq, sweep, trials: [fresh] });
}, 1000);

function events(url, response) {
  const topics = new Set((url.searchParams.get("watch") ?? "jobs,nodes,queues").split(","));
  response.writeHead(200, { "Content-Type": "text/event-stream" });
  const send = (topic, event, data) => topics.has(topic) && response.write(`event: ${event}\nid: ${++seq}\ndata: ${JSON.stringify(data)}\n\n`);
  topics.add("");
  send("", "hello", { version: "mock", watch: [...topics] });
  send("nodes", "nodes", { nodes });
  send("queues", "queues", { queues });
  for (const topic of topics) {
    const [kind, id] = topic.split(":");
    if (kind === "sweeps") send(topic, "sweeps", { sweeps: [sweep] });
    if (kind === "sweep") for (let from = 0; from < trials.length; from += 500) send(topic, "sweep", { seq: ++seq, sweep, trials: trials.slice(from, from + 500) });
    if (kind === "job") send(topic, "job", jobs.find((one) => one.id === id));
    if (kind === "logs") send(topic, "log", { job: id, lines: log.get(id) });
    if (kind === "metrics" && curves.has(id)) send(topic, "metrics", { job: id, seq: 0, reset: true, left_out: 0, series: Object.entries(curves.get(id)).filter(([name]) => name !== "floor").map(([name, c]) => series(name, c)) });
  }
  watchers.add(send);
  response.on("close", () => watchers.delete(send));
}

createServer((request, response) => {
  const url = new URL(request.url, "http://mock");
  const json = (data, status = 200) => response.writeHead(status, { "Content-Type": "application/json" }).end(JSON.stringify(data));
  const missing = (what) => json({ error: { code: 404, status: "NOT_FOUND", message: `there is no ${what}` } }, 404);
  const page = (all, name) => {
    const size = Number(url.searchParams.get("page_size") ?? 100);
    const from = Number(url.searchParams.get("page_token") || 0);
    json({ [name]: all.slice(from, from + size), next_page_token: from + size < all.length ? String(from + size) : "" });
  };
  const [, kind, id] = url.pathname.match(/^\/api\/v1\/([a-z]+)(?:\/([^/:]+))?/) ?? [];
  if (kind === "events") return events(url, response);
  if (kind === "jobs") return id ? (jobs.some((one) => one.id === id) ? json(jobs.find((one) => one.id === id)) : missing(`job ${id}`)) : page([...jobs].reverse(), "jobs");
  if (kind === "sweeps") return id ? (id === "s1" ? json(sweep) : missing(`sweep ${id}`)) : page([sweep], "sweeps");
  const file = join(DIST, extname(url.pathname) ? url.pathname : "index.html");
  if (!file.startsWith(DIST) || !existsSync(file)) return missing(url.pathname);
  response.writeHead(200, { "Content-Type": TYPES[extname(file)] ?? "text/plain", "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'" });
  createReadStream(file).pipe(response);
}).listen(PORT, "127.0.0.1", () => console.log(`http://127.0.0.1:${PORT}/`));
