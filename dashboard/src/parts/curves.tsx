// Training curves of some jobs, one chart a metric: on a log scale, smoothed, over steps or time.
import { signal } from "@preact/signals";
import { type Axis, type Line, Lines } from "../charts/lines";
import { smooth } from "../math/smooth";
import { num } from "../state/format";
import { query, setQuery } from "../state/route";
import type { Series } from "../state/series";
import { series } from "../state/store";
import { colour } from "../state/theme";
import { Card, Segments } from "./marks";

/** Lines of one chart: more are not told apart. */
const LINES = 40;

export interface Run {
  id: string;
  label: string;
}

/** Runs that are not drawn. */
const hidden = signal<ReadonlySet<string>>(new Set());

function toggle(id: string): void {
  const next = new Set(hidden.value);
  if (!next.delete(id)) next.add(id);
  hidden.value = next;
}

/** Metrics in the order people read them: losses, then what is measured on held-out data, clocks last. */
function rank(name: string): string {
  const clock = /(_s|_ms|_per_s)$/.test(name);
  return `${clock ? 2 : /loss/i.test(name) ? 0 : 1}${name}`;
}

function times(one: Series, axis: Axis, start: number): ArrayLike<number> {
  if (axis === "step") return one.steps;
  return axis === "time" ? one.times : one.times.map((time) => time - start);
}

export function Curves({ runs, onDrop }: { runs: Run[]; onDrop?: (id: string) => void }) {
  const log = query.value.get("log") === "1";
  const weight = Number(query.value.get("smooth") ?? 0);
  const axis = (query.value.get("axis") ?? "step") as Axis;
  const byMetric = group(series.all());
  const names = [...byMetric.keys()].sort((a, b) => rank(a).localeCompare(rank(b)));
  if (names.length === 0) {
    return (
      <Card title="Curves">
        <div class="empty">
          No metrics reported yet. From inside a job: <code>phalanx report --step 1 loss=0.3</code>
        </div>
      </Card>
    );
  }
  return (
    <Card {...(onDrop ? {} : { title: "Curves" })} tools={<Controls log={log} weight={weight} axis={axis} />}>
      {onDrop && <Legend runs={runs} onDrop={onDrop} />}
      <div class={names.length > 1 ? "charts" : "charts one"}>
        {names.map((name) => (
          <figure key={name}>
            <figcaption>
              <span>{name}</span>
              {runs.length === 1 && <b>{num(byMetric.get(name)![0]!.last)}</b>}
            </figcaption>
            <Lines lines={draw(byMetric.get(name)!, runs, weight, axis)} axis={axis} log={log} label={`${name} of ${runs.length} jobs`} sync="curves" />
          </figure>
        ))}
      </div>
    </Card>
  );
}

function group(all: Series[]): Map<string, Series[]> {
  const groups = new Map<string, Series[]>();
  for (const one of all) {
    const group = groups.get(one.name);
    if (group) group.push(one);
    else groups.set(one.name, [one]);
  }
  return groups;
}

function draw(group: Series[], runs: Run[], weight: number, axis: Axis): Line[] {
  const ranks = new Set(group.map((one) => one.rank)).size > 1;
  const lines: Line[] = [];
  for (const one of group.slice(0, LINES)) {
    const at = runs.findIndex((run) => run.id === one.job);
    if (at < 0 || hidden.value.has(one.job)) continue;
    const tint = runs.length === 1 ? one.rank : at;
    const label = (runs.length > 1 ? runs[at]!.label : ranks ? "" : one.name) + (ranks ? ` rank ${one.rank}` : "");
    const x = times(one, axis, one.times[0] ?? 0);
    if (weight > 0) lines.push({ label: `${label} as reported`, colour: colour(tint), x, y: one.values, faint: true });
    lines.push({ label: label.trim(), colour: colour(tint), x, y: weight > 0 ? smooth(one.values, weight) : one.values });
  }
  return lines;
}

function Legend({ runs, onDrop }: { runs: Run[]; onDrop: (id: string) => void }) {
  return (
    <div class="legend">
      {runs.map((run, i) => (
        <span key={run.id}>
          <button type="button" aria-pressed={!hidden.value.has(run.id)} onClick={() => toggle(run.id)}>
            <i style={{ background: colour(i) }} />
            {run.label}
          </button>
          <a href={`/jobs/${run.id}`} aria-label={`Open ${run.label}`}>
            ↗
          </a>
          <button type="button" class="quiet" aria-label={`Leave ${run.label} out`} onClick={() => onDrop(run.id)}>
            ×
          </button>
        </span>
      ))}
    </div>
  );
}

function Controls({ log, weight, axis }: { log: boolean; weight: number; axis: Axis }) {
  return (
    <>
      <label class="slider">
        Smoothing
        <input type="range" min="0" max="0.99" step="0.01" value={weight} onInput={(event) => setQuery({ smooth: event.currentTarget.value === "0" ? "" : event.currentTarget.value })} />
        <output>{weight.toFixed(2)}</output>
      </label>
      <Segments<Axis>
        label="Horizontal axis"
        value={axis}
        options={[["step", "Step"], ["relative", "Duration"], ["time", "Time"]]}
        onPick={(next) => setQuery({ axis: next === "step" ? "" : next })}
      />
      <Segments
        label="Vertical axis"
        value={log ? "log" : "linear"}
        options={[["linear", "Linear"], ["log", "Log"]]}
        onPick={(next) => setQuery({ log: next === "log" ? "1" : "" })}
      />
    </>
  );
}
