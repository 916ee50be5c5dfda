// The trials of a sweep as a table that sorts by every parameter and by the value.
import { useMemo } from "preact/hooks";
import { type Sweep, type Trial, int, real, when } from "../api/types";
import { duration, now, num, param } from "../state/format";
import { Card, State } from "./marks";
import { type Column, Table } from "./table";

/** Parameters with a column of their own. */
const SHOWN = 12;

export function Trials({ sweep, trials, max }: { sweep: Sweep; trials: Trial[]; max: boolean }) {
  const metric = sweep.objectives?.[0]?.metric ?? "value";
  const others = (sweep.objectives ?? []).slice(1).map((objective) => objective.metric);
  const names = useMemo(() => paramNames(trials), [trials]);
  const best = sweep.best ? int(sweep.best.number) : -1;
  const columns = useMemo(
    (): Column<Trial>[] => [
      { key: "number", head: "Trial", width: 8, value: (t) => int(t.number), cell: (t) => (t.job ? <a href={`/jobs/${t.job}`}>{t.number}</a> : t.number) },
      { key: "state", head: "State", width: 13, value: (t) => t.state, cell: (t) => <State state={t.state} /> },
      { key: "value", head: metric, width: Math.max(12, metric.length + 4), right: true, down: max, value: (t) => real(t.value), cell: (t) => num(real(t.value)) },
      ...others.map((name, i): Column<Trial> => ({ key: `value ${name}`, head: name, width: Math.max(12, name.length + 4), right: true, value: (t) => real(t.values?.[i + 1]), cell: (t) => num(real(t.values?.[i + 1])) })),
      { key: "step", head: "Step", width: 9, right: true, value: (t) => (t.step == null ? NaN : int(t.step)), cell: (t) => t.step ?? "–" },
      ...names.map((name): Column<Trial> => ({ key: `param ${name}`, head: name, width: Math.max(11, name.length + 4), right: true, value: (t) => sortable(t.params?.[name]), cell: (t) => param(t.params?.[name]) })),
      { key: "took", head: "Ran", width: 11, right: true, wide: true, value: took, cell: (t) => duration(took(t)) },
      { key: "sampler", head: "Sampler", width: 11, wide: true, value: (t) => t.sampler ?? "", cell: (t) => <span class="muted">{t.sampler}</span> },
    ],
    [metric, others.join(), names.join(), max],
  );
  return (
    <Card title="Trials" note={`${trials.length}`}>
      <Table
        rows={trials}
        columns={columns}
        rowKey={(trial) => trial.number}
        label={`Trials of ${sweep.name || sweep.id}`}
        sort={{ key: "value", down: max }}
        rowClass={(trial) => (int(trial.number) === best ? "best" : "")}
        empty="No trial has been handed out yet."
      />
    </Card>
  );
}

function paramNames(trials: Trial[]): string[] {
  const names = new Set<string>();
  for (const trial of trials) for (const name of Object.keys(trial.params ?? {})) names.add(name);
  return [...names].slice(0, SHOWN);
}

function sortable(value: unknown): number | string | null {
  return typeof value === "number" ? value : value == null ? null : String(value);
}

function took(trial: Trial): number {
  const open = trial.state === "RUNNING" ? now.value : NaN;
  return (trial.end_time ? when(trial.end_time) : open) - when(trial.start_time);
}
