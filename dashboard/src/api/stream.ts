// The one event stream of the page. Browsers allow six connections to a host, so everything a view needs is asked for in
// one; it is opened anew, from where it was, when the view changes, the service comes back or the machine wakes up.
import { signal } from "@preact/signals";
import { get } from "./client";

/** What the page is told about the stream, for its mark in the header. */
export const live = signal<"connecting" | "live" | "away">("connecting");

export type Handler = (kind: string, data: any) => void;

/** First wait before the next try, in milliseconds; doubled up to the most. */
const RETRY_MS = 300;
const RETRY_MOST_MS = 5000;
/** A clock that ticks this late stood still: the machine slept, and its connections died without saying so. */
const SLEPT_MS = 20_000;
const TICK_MS = 5000;
/** Thinned points of a curve that are asked for: more than its place on any screen is wide. */
const POINTS = 2500;
/** The events that there are; `error` would be the browser's own. */
const KINDS = ["hello", "job", "sweep", "sweeps", "log", "metrics", "nodes", "queues"];

export class Stream {
  private source: EventSource | undefined;
  private cursor = "";
  private topics: string;
  private wait = RETRY_MS;
  private timer = 0;
  private ticked = Date.now();

  constructor(
    private readonly handle: Handler,
    topics: string[],
  ) {
    this.topics = topics.join();
    this.open();
    addEventListener("online", this.again);
    setInterval(this.tick, TICK_MS);
  }

  /**
   * Turns to other topics. Those that both have go on where they were; with `afresh` they begin again.
   * False where nothing had to change.
   */
  watch(topics: string[], afresh: boolean): boolean {
    const text = topics.join();
    if (text === this.topics && !afresh) return false;
    this.topics = text;
    if (afresh) this.cursor = "";
    this.again();
    return true;
  }

  private readonly again = (): void => {
    clearTimeout(this.timer);
    this.source?.close();
    this.open();
  };

  private readonly tick = (): void => {
    const late = Date.now() - this.ticked - TICK_MS;
    this.ticked = Date.now();
    if (late > SLEPT_MS && document.visibilityState === "visible") this.again();
  };

  private open(): void {
    const query = new URLSearchParams({ watch: this.topics, points: String(POINTS) });
    if (this.cursor) query.set("last_event_id", this.cursor);
    const source = new EventSource(`/api/v1/events?${query}`);
    this.source = source;
    source.onopen = () => {
      this.wait = RETRY_MS;
      live.value = "live";
    };
    for (const kind of KINDS) {
      source.addEventListener(kind, (event) => {
        const message = event as MessageEvent<string>;
        if (message.lastEventId) this.cursor = message.lastEventId;
        this.handle(kind, JSON.parse(message.data));
      });
    }
    source.onerror = () => {
      // The browser would try again by itself, but gives up where the answer is an error; this does not.
      const refused = source.readyState === EventSource.CLOSED;
      source.close();
      if (source !== this.source) return;
      // It does not say which error: where the session has ended, this leads to the login page.
      if (refused) void get("/status").catch(() => {});
      live.value = "away";
      this.timer = window.setTimeout(this.again, this.wait * (0.75 + Math.random() / 2));
      this.wait = Math.min(this.wait * 2, RETRY_MOST_MS);
    };
  }
}
