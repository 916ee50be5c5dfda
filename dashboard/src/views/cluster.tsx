// The cluster: what every node and device does, who runs where, who waits in which queue and for what.
import { useEffect, useMemo } from "preact/hooks";
import { type Gpu, type Job, type Node, type Queue, int, isTerminal, when } from "../api/types";
import { Gantt, type Span, lanes } from "../charts/gantt";
import { Bar, Card, State } from "../parts/marks";
import { bytes, now, num, plural } from "../state/format";
import { jobs, loadJobs, nodes, open, queues } from "../state/store";
import { ramp } from "../state/theme";

/** How far back the placements are drawn. */
const WINDOW_MS = 30 * 60_000;
/** Nodes drawn one by one; of more, those with least free come first. */
const NODES = 300;

export function ClusterView() {
  useEffect(() => {
    document.title = "Cluster · Phalanx";
    open(["jobs", "nodes", "queues"], () => void loadJobs(1));
  }, []);
  const all = nodes.rows();
  return (
    <>
      <div class="head">
        <h1>Cluster</h1>
        <Totals all={all} />
      </div>
      <Devices all={all} />
      <Placements all={all} />
      <Queues all={queues.rows()} />
    </>
  );
}

function Totals({ all }: { all: Node[] }) {
  const ready = all.filter((node) => node.state !== "LOST");
  const sum = (of: (node: Node) => number) => ready.reduce((total, node) => total + (of(node) || 0), 0);
  const gpus = sum((node) => node.gpus?.length ?? 0);
  return (
    <span class="muted">
      {plural(all.length, "node")} · {num(sum((node) => node.cpus.free))} of {num(sum((node) => node.cpus.total))} CPUs free
      {gpus > 0 && ` · ${num(sum((node) => (node.gpus ?? []).reduce((free, gpu) => free + gpu.free, 0)))} of ${plural(gpus, "GPU")} free`}
    </span>
  );
}

function gib(amount: number): string {
  return num(amount / 2 ** 30, 3);
}

function used(amount: { total: number; free: number }): number {
  return amount.total > 0 ? 1 - amount.free / amount.total : 0;
}

function Devices({ all }: { all: Node[] }) {
  const holders = useMemo(() => whoHolds(jobs.rows()), [jobs.rows()]);
  return (
    <Card title="Devices by node" note={<Scale />}>
      {all.length === 0 && (
        <div class="empty">
          No node yet. <code>phalanx agent --server …</code> joins one.
        </div>
      )}
      <ul class="nodes">
        {all.slice(0, NODES).map((node) => (
          <li key={node.name} class={node.state === "LOST" ? "lost" : ""}>
            <div class="who">
              <b>{node.name}</b> <State state={node.state} />
              <div class="labels">
                {Object.entries(node.labels ?? {})
                  .filter(([key]) => key !== "node")
                  .map(([key, value]) => (
                    <span key={key}>
                      {key}={value}
                    </span>
                  ))}
              </div>
            </div>
            <div class="amounts">
              <span>
                CPU <Bar share={used(node.cpus)} label={`CPUs held on ${node.name}`} /> {num(node.cpus.total - node.cpus.free)}/{num(node.cpus.total)}
              </span>
              <span>
                Memory <Bar share={used(node.memory)} label={`Memory held on ${node.name}`} /> {gib(node.memory.total - node.memory.free)}/{gib(node.memory.total)} GiB
              </span>
            </div>
            <div class="cells">
              {(node.gpus ?? []).map((gpu) => (
                <Device key={gpu.index} gpu={gpu} holder={holders.get(`${node.name}/${gpu.index}`)} />
              ))}
            </div>
          </li>
        ))}
      </ul>
      {all.length > NODES && <p class="note">{all.length - NODES} more nodes: phalanx nodes</p>}
    </Card>
  );
}

function Scale() {
  return (
    <span class="scale">
      GPU: free <i class="free" /> held, by use 0 %{" "}
      {[0.1, 0.3, 0.5, 0.7, 0.9].map((t) => (
        <i key={t} style={{ background: ramp(t) }} />
      ))}{" "}
      100 %
    </span>
  );
}

/** Jobs by the devices they hold. */
function whoHolds(all: Job[]): Map<string, Job[]> {
  const holders = new Map<string, Job[]>();
  for (const job of all) {
    if (isTerminal(job.state) || job.state === "QUEUED" || job.state === "PAUSED") continue;
    for (const rank of job.placement ?? []) {
      for (const gpu of rank.gpus ?? []) {
        const key = `${rank.node}/${gpu}`;
        holders.set(key, [...(holders.get(key) ?? []), job]);
      }
    }
  }
  return holders;
}

function Device({ gpu, holder }: { gpu: Gpu; holder: Job[] | undefined }) {
  // A declared device has no driver to say how busy it is.
  const told = int(gpu.memory_total) > 0;
  const use = told ? `, ${num(gpu.utilization, 3)} % busy, ${bytes(int(gpu.memory_used))} of ${bytes(int(gpu.memory_total))}` : "";
  const who = holder?.map((job) => job.name || job.id).join(", ");
  const words = `GPU ${gpu.index} ${gpu.name}: ${gpu.free >= 1 ? "free" : gpu.free > 0 ? `${num(gpu.free)} free` : "held"}${who ? ` by ${who}` : ""}${use}`;
  const held = gpu.free < 1;
  const inside = (
    <>
      <b>{gpu.index}</b>
      <small>{!held ? "" : told ? `${Math.round(gpu.utilization)}%` : gpu.free > 0 ? num(1 - gpu.free, 2) : "held"}</small>
    </>
  );
  const style = held ? { background: ramp(told ? 0.1 + (0.9 * gpu.utilization) / 100 : 0.3) } : {};
  const kind = `cell ${held ? "held" : ""} ${gpu.utilization > 38 ? "busy" : ""}`;
  return holder?.[0] ? (
    <a class={kind} style={style} title={words} aria-label={words} href={`/jobs/${holder[0].id}`}>
      {inside}
    </a>
  ) : (
    <span class={kind} style={style} title={words} role="img" aria-label={words}>
      {inside}
    </span>
  );
}

function Placements({ all }: { all: Node[] }) {
  const from = now.value - WINDOW_MS;
  const spans: Span[] = [];
  for (const job of jobs.rows()) {
    const attempt = job.attempts?.[job.attempts.length - 1];
    const start = when(attempt?.start_time);
    const end = attempt?.end_time ? when(attempt.end_time) : now.value;
    if (!(end > from)) continue;
    for (const node of new Set((job.placement ?? []).map((rank) => rank.node))) {
      const ranks = job.placement!.filter((rank) => rank.node === node).length;
      spans.push({ row: node, start, end, state: job.state, label: `${job.name || job.id}${ranks > 1 ? ` ×${ranks}` : ""}`, href: `/jobs/${job.id}` });
    }
  }
  const laid = lanes(spans, all.map((node) => node.name));
  const first = Math.min(...spans.map((span) => span.start));
  return (
    <Card title="Placements" note="the last half hour">
      <Gantt {...laid} label="Who ran where" from={Math.max(from, first)} ofDay />
    </Card>
  );
}

function amounts(values: Record<string, number> | undefined): string {
  return Object.entries(values ?? {})
    .filter(([, value]) => value > 0)
    .map(([name, value]) => `${name === "memory" ? bytes(value) : num(value)} ${name}`)
    .join(", ");
}

function Queues({ all }: { all: Queue[] }) {
  return (
    <Card title="Queues">
      <ul class="queues">
        {all.map((queue) => (
          <li key={queue.name}>
            <div class="queue">
              <b>{queue.name}</b>
              <span class="muted">
                {int(queue.running)} running, {int(queue.length)} waiting
                {amounts(queue.held) && `, holds ${amounts(queue.held)}`}
                {amounts(queue.quota) && ` of at most ${amounts(queue.quota)}`}
                {amounts(queue.guaranteed) && `, ${amounts(queue.guaranteed)} its own`}
              </span>
              <Bar share={queue.share} label={`Share of ${queue.name}`} />
            </div>
            {(queue.waiting ?? []).length > 0 && (
              <ol class="waiting">
                {queue.waiting!.map((job) => (
                  <li key={job.id}>
                    <a href={`/jobs/${job.id}`}>{job.name || job.id}</a> <span class="why">{job.reason?.text}</span>
                  </li>
                ))}
              </ol>
            )}
          </li>
        ))}
      </ul>
    </Card>
  );
}
