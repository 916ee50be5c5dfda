// The frame around every view: where one is, whether it is live, light or dark.
import type { FunctionComponent } from "preact";
import { live } from "../api/stream";
import { Help, help } from "../parts/keys";
import { path } from "../state/route";
import { trouble } from "../state/store";
import { choice, dark, nextChoice } from "../state/theme";
import { ClusterView } from "./cluster";
import { CurvesView } from "./compare";
import { JobView } from "./job";
import { JobsView } from "./jobs";
import { SweepView } from "./sweep";
import { SweepsView } from "./sweeps";

interface Place {
  pattern: RegExp;
  view: FunctionComponent<{ id: string }>;
}

const PLACES: Place[] = [
  { pattern: /^\/(?:jobs\/?)?$/, view: JobsView },
  { pattern: /^\/jobs\/([^/]+)\/?$/, view: JobView },
  { pattern: /^\/sweeps\/?$/, view: SweepsView },
  { pattern: /^\/sweeps\/([^/]+)\/?$/, view: SweepView },
  { pattern: /^\/curves\/?$/, view: CurvesView },
  { pattern: /^\/nodes\/?$/, view: ClusterView },
];

const NAV: [string, string][] = [
  ["/jobs", "Jobs"],
  ["/sweeps", "Sweeps"],
  ["/curves", "Curves"],
  ["/nodes", "Cluster"],
];

export function Shell() {
  document.documentElement.dataset.theme = dark.value ? "dark" : "light";
  const at = path.value;
  const here = (href: string) => at === href || at.startsWith(`${href}/`) || (href === "/jobs" && at === "/");
  return (
    <>
      <a class="skip" href="#main">
        Skip to content
      </a>
      <header class="top">
        <a class="brand" href="/jobs" aria-label="Phalanx, jobs">
          <Mark />
          <span>Phalanx</span>
        </a>
        <nav aria-label="Views">
          {NAV.map(([href, name]) => (
            <a key={href} href={href} aria-current={here(href) ? "page" : undefined}>
              {name}
            </a>
          ))}
        </nav>
        <div class="right-side">
          <Live />
          <button type="button" class="quiet wide" aria-label="Keys" title="Keys (?)" onClick={() => (help.value = true)}>
            ?
          </button>
          <button type="button" class="quiet" aria-label={`Theme: ${choice.value}`} title={`Theme: ${choice.value}`} onClick={nextChoice}>
            {{ auto: "◐", light: "○", dark: "●" }[choice.value]}
          </button>
        </div>
      </header>
      {trouble.value && (
        <p class="trouble" role="alert">
          {trouble.value}
          <button type="button" class="quiet" aria-label="Dismiss" onClick={() => (trouble.value = "")}>
            ×
          </button>
        </p>
      )}
      <main id="main">
        <View at={at} />
      </main>
      <Help />
    </>
  );
}

function View({ at }: { at: string }) {
  for (const { pattern, view: Found } of PLACES) {
    const match = pattern.exec(at);
    if (match) return <Found key={at} id={decodeURIComponent(match[1] ?? "")} />;
  }
  return (
    <div class="empty">
      Nothing is at <code>{at}</code>. <a href="/jobs">All jobs</a>
    </div>
  );
}

function Live() {
  const words = { live: "Live", connecting: "Connecting", away: "Reconnecting" }[live.value];
  return (
    <span class={`live ${live.value}`} role="status">
      <i />
      <span>{words}</span>
    </span>
  );
}

function Mark() {
  return (
    <svg viewBox="0 0 32 32" width="24" height="24" aria-hidden="true">
      <rect width="32" height="32" rx="8" fill="#0f766e" />
      <g fill="none" stroke="#fff" stroke-width="2.6" stroke-linecap="round" stroke-linejoin="round">
        <path d="M8 13l8-5 8 5" />
        <path d="M8 19l8-5 8 5" opacity=".8" />
        <path d="M8 25l8-5 8 5" opacity=".55" />
      </g>
    </svg>
  );
}
