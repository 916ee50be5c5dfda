// The keyboard: every view and every row without a mouse.
import { signal } from "@preact/signals";
import { go } from "../state/route";

export const help = signal(false);

/** What keys do, for the help. */
export const KEYS: [string, string][] = [
  ["g then j", "jobs"],
  ["g then s", "sweeps"],
  ["g then n", "cluster"],
  ["g then c", "compare curves"],
  ["/", "filter"],
  ["j k or ↓ ↑", "next and previous row"],
  ["Enter", "open the row"],
  ["x", "pick the row to compare"],
  ["c", "compare what is picked"],
  ["?", "this help"],
  ["Esc", "close, or leave the filter"],
];

const PLACES: Record<string, string> = { j: "/jobs", s: "/sweeps", n: "/nodes", c: "/curves" };
const ROW = "tr[data-row]";
/** A second key counts when it comes within so many milliseconds. */
const PREFIX_MS = 1000;

let prefix = -Infinity;

function focusRow(step: number): void {
  const rows = [...document.querySelectorAll<HTMLElement>(ROW)];
  const at = rows.indexOf(document.activeElement?.closest<HTMLElement>(ROW) as HTMLElement);
  const next = rows[at < 0 ? (step > 0 ? 0 : rows.length - 1) : at + step];
  next?.focus();
  next?.scrollIntoView({ block: "nearest" });
}

function onKey(event: KeyboardEvent): void {
  const target = event.target as HTMLElement;
  if (event.key === "Escape") {
    help.value = false;
    target.blur();
    return;
  }
  if (event.metaKey || event.ctrlKey || event.altKey || target.closest("input, select, textarea")) return;
  const after = performance.now() - prefix < PREFIX_MS;
  prefix = -Infinity;
  if (after && PLACES[event.key]) go(PLACES[event.key]!);
  else if (event.key === "g") prefix = performance.now();
  else if (event.key === "?") help.value = !help.value;
  else if (event.key === "/") document.querySelector<HTMLInputElement>("input[type=search]")?.focus();
  else if (event.key === "j" || (event.key === "ArrowDown" && target.closest(ROW))) focusRow(1);
  else if (event.key === "k" || (event.key === "ArrowUp" && target.closest(ROW))) focusRow(-1);
  else if (event.key === "Enter" && target.matches(ROW)) target.querySelector("a")?.click();
  else if (event.key === "x") target.closest(ROW)?.querySelector<HTMLInputElement>("input[type=checkbox]")?.click();
  else if (event.key === "c") document.querySelector<HTMLAnchorElement>("a[data-compare]")?.click();
  else return;
  event.preventDefault();
}

export function startKeys(): void {
  addEventListener("keydown", onKey);
}

export function Help() {
  if (!help.value) return null;
  return (
    <div class="veil" onClick={() => (help.value = false)}>
      <div class="card help" role="dialog" aria-label="Keys">
        <h2>Keys</h2>
        <dl>
          {KEYS.map(([key, what]) => (
            <>
              <dt>{key}</dt>
              <dd>{what}</dd>
            </>
          ))}
        </dl>
      </div>
    </div>
  );
}
