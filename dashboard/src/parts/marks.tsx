// Small marks: a state, a bar, a figure with its name.
import type { ComponentChildren } from "preact";

const TONES: Record<string, string> = {
  RUNNING: "run",
  STARTING: "run",
  READY: "ok",
  SUCCEEDED: "ok",
  COMPLETE: "ok",
  COMPLETED: "ok",
  QUEUED: "wait",
  PENDING: "wait",
  RESTARTING: "wait",
  PREEMPTED: "wait",
  PAUSED: "wait",
  DRAINING: "wait",
  STOPPING: "wait",
  FAILED: "bad",
  LOST: "bad",
};

export function tone(state: string): string {
  return TONES[state] ?? "off";
}

export function State({ state }: { state: string }) {
  return <span class={`state ${tone(state)}`}>{state.toLowerCase().replaceAll("_", " ")}</span>;
}

/** A share from 0 to 1 with words beside it. */
export function Bar({ share, label }: { share: number; label?: string }) {
  const percent = Math.round(Math.min(1, Math.max(0, share || 0)) * 100);
  return (
    <span class="bar" role="meter" aria-valuenow={percent} aria-valuemin={0} aria-valuemax={100} aria-label={label}>
      <span style={{ width: `${percent}%` }} />
    </span>
  );
}

export function Fact({ name, children }: { name: string; children: ComponentChildren }) {
  return (
    <div class="fact">
      <dt>{name}</dt>
      <dd>{children}</dd>
    </div>
  );
}

/** A titled panel. */
export function Card({ title, note, tools, children, class: more }: {
  title?: string;
  note?: ComponentChildren;
  tools?: ComponentChildren;
  children: ComponentChildren;
  class?: string;
}) {
  return (
    <section class={`card ${more ?? ""}`}>
      {(title || tools) && (
        <header>
          {title && <h2>{title}</h2>}
          {note && <span class="note">{note}</span>}
          {tools && <div class="tools">{tools}</div>}
        </header>
      )}
      {children}
    </section>
  );
}

/** A choice of few. */
export function Segments<V extends string>({ label, value, options, onPick }: {
  label: string;
  value: V;
  options: [V, string][];
  onPick: (value: V) => void;
}) {
  return (
    <div class="segments" role="group" aria-label={label}>
      {options.map(([key, text]) => (
        <button type="button" key={key} aria-pressed={key === value} onClick={() => onPick(key)}>
          {text}
        </button>
      ))}
    </div>
  );
}
