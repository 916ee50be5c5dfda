// The columns of a table, and the order of its rows.
import type { ComponentChildren } from "preact";

export interface Column<T> {
  key: string;
  head: string;
  /** What it sorts by; nothing (null or NaN) goes last either way. Absent: it does not sort. */
  value?: (row: T) => number | string | null | undefined;
  cell: (row: T) => ComponentChildren;
  /** Figures stand right. */
  right?: boolean;
  /** The first click sorts the greatest first. */
  down?: boolean;
  /** In `ch`; needed where only some rows are drawn. */
  width?: number;
  /** Hidden on a narrow screen. */
  wide?: boolean;
}

export interface Sort {
  key: string;
  down: boolean;
}

export function compare(a: number | string | null | undefined, b: number | string | null | undefined, down: boolean): number {
  const missing = (x: typeof a) => x == null || x === "" || (typeof x === "number" && Number.isNaN(x));
  if (missing(a) || missing(b)) return Number(missing(a)) - Number(missing(b));
  const order = typeof a === "number" && typeof b === "number" ? a - b : collator.compare(String(a), String(b));
  return down ? -order : order;
}

const collator = new Intl.Collator(undefined, { numeric: true });

export function sorted<T>(rows: T[], columns: Column<T>[], sort: Sort | undefined): T[] {
  const value = columns.find((column) => column.key === sort?.key)?.value;
  if (!sort || !value) return rows;
  const keyed = rows.map((row) => [value(row), row] as const);
  keyed.sort((a, b) => compare(a[0], b[0], sort.down));
  return keyed.map((pair) => pair[1]);
}
