// Bars over time in rows: who ran where, or when.
import { clock, duration, now } from "../state/format";
import { go } from "../state/route";
import { tone } from "../parts/marks";

export interface Span {
  row: string;
  /** Milliseconds since the Unix epoch. */
  start: number;
  end: number;
  label: string;
  state: string;
  href?: string;
}

const ROW = 22;
const TOP = 22;
/** Rows that are drawn. */
const ROWS = 200;
const TICKS = 5;
/** An axis longer than this needs no seconds. */
const MINUTES_MS = 15 * 60_000;

interface Props {
  spans: Span[];
  rows: string[];
  label: string;
  /** Left end of the axis; the first start where it is absent. */
  from?: number;
  /** The axis tells the time of day instead of how much has passed. */
  ofDay?: boolean;
  /** Rows have no names. */
  narrow?: boolean;
}

/** Rows in which no two spans overlap; those after the first of a row have a name that only tells them apart. */
export function lanes(spans: Span[], names: string[]): { rows: string[]; spans: Span[] } {
  const rows: string[] = [];
  const placed: Span[] = [];
  for (const name of names) {
    const lane = (n: number) => name + LANE.repeat(n);
    const ends: number[] = [];
    for (const span of spans.filter((span) => span.row === name).sort((a, b) => a.start - b.start)) {
      let n = ends.findIndex((end) => end <= span.start);
      if (n < 0) n = ends.length;
      ends[n] = span.end;
      placed.push({ ...span, row: lane(n) });
    }
    for (let n = 0; n < Math.max(1, ends.length); n++) rows.push(lane(n));
  }
  return { rows, spans: placed };
}

/** Marks a further lane of a row. */
const LANE = "\u200b";

export function Gantt({ spans, rows, label, from, ofDay, narrow }: Props) {
  if (spans.length === 0) return <div class="empty">Nothing has run yet.</div>;
  const running = spans.some((span) => span.end >= now.peek() - 2000);
  const start = from ?? Math.min(...spans.map((span) => span.start));
  const end = Math.max(running ? now.value : 0, ...spans.map((span) => span.end), start + 1000);
  const drawn = rows.slice(0, ROWS);
  const index = new Map(drawn.map((row, i) => [row, i]));
  const tick = (zero: number, passed: number) => (ofDay ? clock(zero + passed).slice(0, end - start > MINUTES_MS ? 5 : 8) : duration(passed));
  const percent = (time: number) => (100 * (Math.max(time, start) - start)) / (end - start);
  return (
    <div class="gantt" role="img" aria-label={label} style={{ height: `${TOP + drawn.length * ROW}px`, ...(narrow ? { "--left": "0px" } : {}) }}>
      {Array.from({ length: TICKS + 1 }, (_, i) => (
        <span class="tick" key={`t${i}`} style={{ left: `calc(var(--left) + (100% - var(--left)) * ${i / TICKS})` }}>
          {i < TICKS && tick(start, ((end - start) * i) / TICKS)}
        </span>
      ))}
      {drawn.map((row, i) => (
        <span class="row" key={row} style={{ top: `${TOP + i * ROW}px` }} title={row}>
          {row.endsWith(LANE) ? "" : row}
        </span>
      ))}
      <div class="spans">
        {spans.map((span, i) => {
          const at = index.get(span.row);
          if (at === undefined || span.end < start) return null;
          const left = percent(span.start);
          return (
            <button
              type="button"
              key={i}
              class={`span ${tone(span.state)}`}
              title={`${span.label} · ${duration(span.end - span.start)}`}
              style={{ left: `${left}%`, width: `max(3px, ${percent(span.end) - left}%)`, top: `${TOP + at * ROW}px` }}
              onClick={() => span.href && go(span.href)}
            >
              {span.label}
            </button>
          );
        })}
      </div>
      {rows.length > ROWS && <p class="note">{rows.length - ROWS} more rows are not drawn.</p>}
    </div>
  );
}
