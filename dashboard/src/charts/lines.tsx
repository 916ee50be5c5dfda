// Lines over steps or time, by uPlot: zoom by dragging, all of it again by a double click, values beside the pointer.
import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import { align } from "../math/smooth";
import { duration, moment, num } from "../state/format";
import { lowerBound } from "../state/series";
import { dark, ink } from "../state/theme";

/** Distances of the marks of steps and trials: there is nothing between two of them. */
const WHOLE = Array.from({ length: 45 }, (_, at) => [1, 2, 5][at % 3]! * 10 ** Math.floor(at / 3));

export interface Line {
  label: string;
  colour: string;
  x: ArrayLike<number>;
  y: ArrayLike<number>;
  /** Drawn thin and pale, and not named beside the pointer. */
  faint?: boolean;
  /** Points alone. */
  dots?: boolean;
  /** A step up or down instead of a slope. */
  stairs?: boolean;
  width?: number;
}

/** What the axis counts: steps, seconds from a start, or seconds since the Unix epoch. */
export type Axis = "step" | "relative" | "time";

interface Props {
  lines: Line[];
  axis: Axis;
  log?: boolean;
  height?: number;
  label: string;
  /** Charts of one name show the pointer together. */
  sync?: string;
  onPick?: (label: string, x: number) => void;
}

/** Lines named beside the pointer. */
const NAMED = 12;

export function Lines({ lines, axis, log = false, height = 220, label, sync, onPick }: Props) {
  const box = useRef<HTMLDivElement>(null);
  const chart = useRef<Chart | undefined>(undefined);
  const shape = `${axis} ${log} ${height} ${dark.value} ${lines.map((l) => `${l.label}${l.colour}${l.faint}${l.dots}`).join()}`;
  useEffect(() => {
    chart.current = new Chart(box.current!, lines, { axis, log, height, sync });
    return () => chart.current?.destroy();
  }, [shape]);
  useEffect(() => chart.current?.update(lines, onPick));
  return <div class="chart" role="img" aria-label={label} ref={box} style={{ height: `${height}px` }} />;
}

interface Options {
  axis: Axis;
  log: boolean;
  height: number;
  sync: string | undefined;
}

/** One uPlot with its note beside the pointer. */
class Chart {
  private readonly plot: uPlot;
  private readonly note = document.createElement("div");
  private readonly observer: ResizeObserver;
  private zoomed = false;
  private onPick: ((label: string, x: number) => void) | undefined;

  constructor(
    private readonly box: HTMLElement,
    private lines: Line[],
    private readonly options: Options,
  ) {
    this.note.className = "pointer-note";
    this.note.hidden = true;
    this.plot = new uPlot(this.setup(), this.data(), box);
    this.plot.over.append(this.note);
    this.plot.over.addEventListener("dblclick", () => (this.zoomed = false));
    this.plot.over.addEventListener("click", () => {
      const near = this.nearest();
      if (near && !this.zoomed) this.onPick?.(near.label, near.x);
    });
    this.observer = new ResizeObserver(() => {
      if (box.clientWidth > 0) this.plot.setSize({ width: box.clientWidth, height: options.height });
    });
    this.observer.observe(box);
  }

  update(lines: Line[], onPick: ((label: string, x: number) => void) | undefined): void {
    this.onPick = onPick;
    if (lines === this.lines) return;
    this.lines = lines;
    const { min, max } = this.plot.scales.x!;
    this.plot.setData(this.data(), !this.zoomed);
    if (this.zoomed) this.plot.setScale("x", { min: min!, max: max! });
  }

  destroy(): void {
    this.observer.disconnect();
    this.plot.destroy();
  }

  private data(): uPlot.AlignedData {
    const usable = this.options.log
      ? this.lines.map((line) => ({ x: line.x, y: Array.from(line.y, (y) => (y > 0 ? y : NaN)) }))
      : this.lines;
    return align(usable) as uPlot.AlignedData;
  }

  private setup(): uPlot.Options {
    const { axis, log, height, sync } = this.options;
    const { muted, line } = ink.value;
    const style = {
      stroke: muted,
      font: "11px system-ui, sans-serif",
      grid: { stroke: line, width: 1 },
      ticks: { show: false },
    };
    return {
      width: Math.max(200, this.box.clientWidth),
      height,
      padding: [8, 22, 0, 0],
      legend: { show: false },
      cursor: {
        y: false,
        points: { size: 6 },
        drag: { x: true, y: false },
        ...(sync ? { sync: { key: sync, scales: ["x", null] as [string, null] } } : {}),
      },
      scales: { x: { time: axis === "time" }, y: { distr: log ? 3 : 1 } },
      axes: [
        { ...style, size: 28, space: 70, ...(axis === "step" ? { incrs: WHOLE } : {}), ...(axis === "time" ? {} : { values: (_: uPlot, ticks: number[]) => ticks.map((t) => (axis === "relative" ? duration(t * 1000) : num(t, 6))) }) },
        { ...style, size: 52, space: 34, values: (_: uPlot, ticks: number[]) => ticks.map((t) => (t == null ? "" : num(t, 4))) },
      ],
      series: [{}, ...this.lines.map((each) => this.series(each))],
      hooks: {
        setSelect: [(plot) => (this.zoomed = plot.select.width > 0)],
        setCursor: [() => this.say()],
      },
    };
  }

  private series(line: Line): uPlot.Series {
    const dots = { size: 5, fill: line.colour, stroke: line.colour };
    return {
      label: line.label,
      stroke: line.colour,
      width: line.dots ? 0 : (line.width ?? (line.faint ? 1 : 1.5)),
      alpha: line.faint ? 0.22 : 1,
      spanGaps: true,
      // One point alone has no line; there may be more of them later.
      points: { show: line.dots ? true : (_: uPlot, at: number) => this.lines[at - 1]?.x.length === 1, ...dots },
      ...(line.dots ? { paths: () => null } : {}),
      ...(line.stairs ? { paths: uPlot.paths.stepped!({ align: 1 }) } : {}),
    };
  }

  /** The values of the lines where the pointer is, the nearest first. */
  private values(): { label: string; colour: string; x: number; value: number; distance: number }[] {
    const { left, top } = this.plot.cursor;
    if (left == null || left < 0) return [];
    const x = this.plot.posToVal(left, "x");
    const found = [];
    for (const line of this.lines) {
      if (line.faint || line.x.length === 0) continue;
      let at = lowerBound(line.x, x);
      if (at === line.x.length || (at > 0 && x - line.x[at - 1]! < line.x[at]! - x)) at--;
      const value = line.y[at]!;
      if (!Number.isFinite(value)) continue;
      const distance = Math.abs(this.plot.valToPos(value, "y") - (top ?? 0));
      const aside = Math.abs(this.plot.valToPos(line.x[at]!, "x") - left);
      if (aside < 40 || !line.dots) found.push({ label: line.label, colour: line.colour, x: line.x[at]!, value, distance });
    }
    return found.sort((a, b) => a.distance - b.distance);
  }

  private nearest(): { label: string; x: number } | undefined {
    return this.values()[0];
  }

  private say(): void {
    const { left } = this.plot.cursor;
    const values = this.values().slice(0, NAMED);
    this.note.hidden = values.length === 0 || left == null;
    if (this.note.hidden) return;
    const x = this.plot.posToVal(left!, "x");
    const head = { step: () => `step ${num(Math.round(x), 9)}`, relative: () => duration(x * 1000), time: () => moment(x * 1000) }[this.options.axis]();
    const rows = values.sort((a, b) => b.value - a.value).map(({ label, colour, value }) => {
      const row = document.createElement("div");
      const dot = document.createElement("i");
      dot.style.background = colour;
      const name = document.createElement("span");
      name.textContent = label;
      const figure = document.createElement("b");
      figure.textContent = num(value);
      row.append(dot, name, figure);
      return row;
    });
    const title = document.createElement("div");
    title.textContent = head;
    this.note.replaceChildren(title, ...rows);
    const width = this.plot.over.clientWidth;
    const flip = left! > width / 2;
    this.note.style.left = flip ? "" : `${left! + 14}px`;
    this.note.style.right = flip ? `${width - left! + 14}px` : "";
  }
}
