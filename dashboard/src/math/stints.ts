// The times during which a trial ran, as bars over time.
import { type Trial, when } from "../api/types";
import type { Span } from "../charts/gantt";

/** One bar for each; those before the last ended in a pause. */
export function stints(trial: Trial, now: number): Span[] {
  const all = trial.stints ?? [];
  return all.map((stint, i) => ({
    row: "",
    start: when(stint.start_time),
    end: stint.end_time ? when(stint.end_time) : now,
    label: `${trial.number}`,
    state: i < all.length - 1 ? "PAUSED" : trial.state,
    ...(trial.job ? { href: `/jobs/${trial.job}` } : {}),
  }));
}
