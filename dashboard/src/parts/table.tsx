// A table that sorts by a click on a head and draws only the rows in sight, so that 10,000 of them are no burden.
import type { ComponentChildren } from "preact";
import { useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { type Column, type Sort, sorted } from "./order";

export type { Column };

interface Props<T> {
  rows: T[];
  columns: Column<T>[];
  rowKey: (row: T) => string | number;
  label: string;
  sort?: Sort;
  empty?: ComponentChildren;
  rowClass?: (row: T) => string;
}

const ROW_PX = 36;
/** Tables up to here are drawn whole. */
const WHOLE = 250;
/** Rows drawn above and below what is in sight. */
const BEYOND = 12;

export function Table<T>({ rows, columns, rowKey, label, sort: initial, empty, rowClass }: Props<T>) {
  const [sort, setSort] = useState<Sort | undefined>(initial);
  const order = useMemo(() => sorted(rows, columns, sort), [rows, sort, columns]);
  const windowed = order.length > WHOLE;
  const [[from, to], setWindow] = useState<[number, number]>([0, 60]);
  const box = useRef<HTMLDivElement>(null);

  const look = () => {
    if (!windowed || !box.current) return;
    const top = Math.floor(box.current.scrollTop / ROW_PX);
    const sight = Math.ceil(box.current.clientHeight / ROW_PX);
    const next = Math.max(0, top - BEYOND) & ~3;
    if (next !== from || top + sight + BEYOND > to) setWindow([next, top + sight + 2 * BEYOND]);
  };
  useLayoutEffect(look, [windowed, order.length]);

  const click = (column: Column<T>) => {
    if (!column.value) return;
    setSort((was) => ({ key: column.key, down: was?.key === column.key ? !was.down : (column.down ?? false) }));
  };
  if (order.length === 0) return <div class="empty">{empty ?? "Nothing here yet."}</div>;
  const width = columns.reduce((sum, column) => sum + (column.width ?? 12), 0);
  const shown = windowed ? order.slice(from, to) : order;
  const table = (
    <table aria-label={label} aria-rowcount={order.length} class={windowed ? "fixed" : ""} style={windowed ? { top: `${from * ROW_PX}px`, minWidth: `${width}ch` } : {}}>
      <thead>
        <tr>
          {columns.map((column) => (
            <th
              key={column.key}
              scope="col"
              class={classes(column)}
              style={windowed && column.width ? { width: `${column.width}ch` } : {}}
              aria-sort={sort?.key === column.key ? (sort.down ? "descending" : "ascending") : undefined}
              onClick={() => click(column)}
            >
              {column.value ? <button type="button">{column.head}</button> : column.head}
            </th>
          ))}
        </tr>
      </thead>
      <tbody>
        {shown.map((row) => (
          <tr key={rowKey(row)} data-row tabIndex={-1} class={rowClass?.(row)}>
            {columns.map((column) => (
              <td key={column.key} class={classes(column)}>
                {column.cell(row)}
              </td>
            ))}
          </tr>
        ))}
      </tbody>
    </table>
  );
  return (
    <div class={windowed ? "scroll window" : "scroll"} ref={box} onScroll={look} tabIndex={windowed ? 0 : -1}>
      {windowed ? (
        <div class="sizer" style={{ height: `${(order.length + 1) * ROW_PX}px` }}>
          {table}
        </div>
      ) : (
        table
      )}
    </div>
  );
}

function classes<T>(column: Column<T>): string {
  return [column.right ? "right" : "", column.wide ? "wide" : ""].join(" ").trim();
}
