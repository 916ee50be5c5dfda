// All sweeps, with how far each is and the best it has found.
import { useEffect } from "preact/hooks";
import { type Sweep, int, real, when } from "../api/types";
import { State } from "../parts/marks";
import { type Column, Table } from "../parts/table";
import { ago, num, param } from "../state/format";
import { open, sweeps } from "../state/store";

const ORDER = ["complete", "stopped", "failed", "running", "paused", "queued"];

/** Trials by state as one bar. */
export function Progress({ sweep }: { sweep: Sweep }) {
  const counts = ORDER.map((state) => [state, int(sweep.counts?.[state])] as const).filter(([, count]) => count > 0);
  const handed = counts.reduce((sum, [, count]) => sum + count, 0);
  const rest = Math.max(0, int(sweep.trials) - handed);
  const words = counts.map(([state, count]) => `${count} ${state}`).join(", ");
  return (
    <span class="stack" role="img" aria-label={words} title={words}>
      {counts.map(([state, count]) => (
        <span key={state} class={state} style={{ flexGrow: count }} />
      ))}
      {rest > 0 && <span style={{ flexGrow: rest }} />}
    </span>
  );
}

const COLUMNS: Column<Sweep>[] = [
  { key: "name", head: "Name", value: (s) => s.name, cell: (s) => <a href={`/sweeps/${s.id}`}>{s.name || s.id}</a> },
  { key: "id", head: "Id", wide: true, value: (s) => s.id, cell: (s) => <code>{s.id}</code> },
  { key: "state", head: "State", value: (s) => s.state, cell: (s) => <State state={s.state} /> },
  { key: "trials", head: "Trials", cell: (s) => <Progress sweep={s} /> },
  { key: "best", head: "Best", right: true, value: (s) => real(s.best?.value), cell: (s) => num(real(s.best?.value)) },
  { key: "with", head: "With", wide: true, cell: (s) => <span class="muted">{s.best ? Object.entries(s.best.params).map(([k, v]) => `${k} ${param(v)}`).join(" · ") : ""}</span> },
  { key: "submitted", head: "Submitted", right: true, down: true, value: (s) => when(s.submit_time ?? s.start_time), cell: (s) => ago(when(s.submit_time ?? s.start_time)) },
];

export function SweepsView() {
  useEffect(() => {
    document.title = "Sweeps · Phalanx";
    open(["sweeps"], () => {});
  }, []);
  return (
    <>
      <div class="head">
        <h1>Sweeps</h1>
      </div>
      <Table
        rows={sweeps.rows()}
        columns={COLUMNS}
        rowKey={(sweep) => sweep.id}
        label="Sweeps"
        sort={{ key: "submitted", down: true }}
        empty={
          <>
            <p>No sweeps yet. A job file with a [sweep] table is one:</p>
            <pre>phalanx submit sweep.toml</pre>
          </>
        }
      />
    </>
  );
}
