// What is shown is asked for again and again: every path once, however many components show it; not while the tab is
// hidden; less and less often while the controller does not answer.
import { type Signal, effect, signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { ApiFailure, type Page, request, serverNow } from "./api";
import type { Vgpu, Gpu } from "./models";
import { me, sessionEnded } from "./session";

const TICK_MS = 2000;
const MAX_BACKOFF_MS = 30_000;

export interface Answer<T> {
  data: T | null;
  failure: ApiFailure | null;
}

class Watch {
  readonly answer: Signal<Answer<unknown>> = signal({ data: null, failure: null });
  users = 0;
  everyMs = TICK_MS;
  dueMs = 0;
  private text = "";
  private asking: Promise<void> | null = null;

  constructor(readonly path: string) {}

  refresh(): Promise<void> {
    this.asking ??= this.ask().finally(() => (this.asking = null));
    return this.asking;
  }

  private async ask(): Promise<void> {
    this.dueMs = performance.now() + this.everyMs;
    try {
      const text = await request("GET", this.path);
      connected();
      if (text === this.text && !this.answer.value.failure) return;
      this.text = text;
      this.answer.value = { data: JSON.parse(text), failure: null };
    } catch (error) {
      const failure = error instanceof ApiFailure ? error : new ApiFailure(0, "", String(error));
      if (failure.status === 401) sessionEnded();
      else if (failure.isOutage) disconnected();
      else {
        connected();
        this.answer.value = { data: null, failure };
        this.text = "";
      }
      // While the connection is lost, the last known stays on the screen; the banner says how old it is.
      if (failure.isOutage && this.answer.value.data === null) this.answer.value = { data: null, failure };
    }
  }
}

/** `sinceS`: when the controller last answered, by the clock of this machine. */
export interface Outage {
  sinceS: number;
  nextTryMs: number; // on performance.now()'s clock
}

export const outage: Signal<Outage | null> = signal(null);
/** Counts seconds while the tab is visible: what shows ages reads it. */
export const clock = signal(serverNow());

const watches = new Map<string, Watch>();
let lastAnswerS = Date.now() / 1000;
let failures = 0;
let timer = 0;

function connected(): void {
  lastAnswerS = Date.now() / 1000;
  failures = 0;
  if (outage.value) {
    outage.value = null;
    // What waited for its turn has waited long enough.
    for (const watch of watches.values()) watch.dueMs = 0;
    schedule(0);
  }
}

function disconnected(): void {
  outage.value ??= { sinceS: lastAnswerS, nextTryMs: performance.now() + TICK_MS };
}

function schedule(delayMs: number): void {
  clearTimeout(timer);
  timer = window.setTimeout(tick, delayMs);
}

async function tick(): Promise<void> {
  if (document.hidden || !me.value) return;
  const now = performance.now();
  const used = [...watches.values()].filter((watch) => watch.users > 0);
  if (outage.value) {
    // One question is enough to see whether somebody is there again.
    failures++;
    const delay = Math.min(MAX_BACKOFF_MS, TICK_MS * 2 ** failures);
    if (used.length > 0) await used[0].refresh();
    if (outage.value) {
      outage.value = { ...outage.value, nextTryMs: performance.now() + delay };
      return schedule(delay);
    }
    return schedule(0);
  }
  await Promise.all(used.filter((watch) => watch.dueMs <= now + TICK_MS / 4).map((watch) => watch.refresh()));
  schedule(TICK_MS);
}

/** Asks for everything that is shown now: after a change, or when somebody will not wait. */
export function refreshAll(): void {
  for (const watch of watches.values()) watch.dueMs = 0;
  schedule(0);
}

export function startLive(): void {
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) clearTimeout(timer);
    else refreshAll();
  });
  window.addEventListener("online", refreshAll);
  effect(() => {
    if (me.value) schedule(0);
    else {
      clearTimeout(timer);
      watches.clear();
      outage.value = null;
    }
  });
  window.setInterval(() => {
    if (!document.hidden) clock.value = serverNow();
  }, 1000);
}

function watchOf(path: string): Watch {
  let watch = watches.get(path);
  if (!watch) {
    watch = new Watch(path);
    watches.set(path, watch);
  }
  return watch;
}

function use(path: string, everyMs: number): () => void {
  const watch = watchOf(path);
  watch.users++;
  watch.everyMs = everyMs;
  if (!outage.value && me.value) void watch.refresh();
  return () => {
    watch.users--;
    // Kept for a moment: going back shows what was there at once.
    window.setTimeout(() => {
      if (watch.users === 0 && watches.get(path) === watch) watches.delete(path);
    }, 60_000);
  };
}

const NOTHING: Answer<never> = { data: null, failure: null };

/** The answer to GET `path`, kept fresh. Null asks nothing. While another path's first answer is on its way, the last
 * one's stays (`stale`), so that paging does not flicker. */
export function useLive<T>(path: string | null, everyMs = TICK_MS): Answer<T> & { stale: boolean } {
  const last = useRef<T | null>(null);
  useEffect(() => (path === null ? undefined : use(path, everyMs)), [path, everyMs, me.value]);
  const answer = path === null ? NOTHING : (watchOf(path).answer.value as Answer<T>);
  if (answer.data !== null) last.current = answer.data;
  if (answer.failure) last.current = null;
  return { data: answer.data ?? last.current, failure: answer.failure, stale: answer.data === null && last.current !== null };
}

/** Lists of several nodes at once, by node: for what belongs to the rows of a table's page. */
export function useByNode<T extends Gpu | Vgpu>(list: "gpus" | "vgpus", nodes: string[], everyMs: number): Map<string, T[]> {
  const paths = nodes.map((node) => `/${list}?node=${encodeURIComponent(node)}&limit=1000`);
  useEffect(() => {
    const ends = paths.map((path) => use(path, everyMs));
    return () => ends.forEach((end) => end());
  }, [paths.join("\n"), everyMs]);
  const found = new Map<string, T[]>();
  nodes.forEach((node, i) => {
    const page = watchOf(paths[i]).answer.value.data as Page<T> | null;
    if (page) found.set(node, page.items);
  });
  return found;
}
