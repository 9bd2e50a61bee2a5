/** What the whole page knows, kept up to date by one stream of events. */

import { useEffect, useState } from "preact/hooks";
import { ApiError, get, type Job, type Me } from "./api";

export interface Toast {
  id: number;
  text: string;
  kind: "info" | "error";
}

export const store = {
  me: null as Me | null,
  isKnown: false,
  jobs: new Map<number, Job>(),
  curves: new Map<number, { stage: string; points: [number, number][] }>(),
  looks: new Map<number, number>(),
  cursor: null as number | null,
  isLive: false,
  clock: 0,
  toasts: [] as Toast[],
};

const listeners = new Set<() => void>();
let isPlanned = false;

/** Draw again, once a frame at most. */
export function changed(): void {
  if (isPlanned) return;
  isPlanned = true;
  setTimeout(() => {
    isPlanned = false;
    for (const listener of listeners) listener();
  }, 30);
}

export function useStore(): typeof store {
  const [, again] = useState(0);
  useEffect(() => {
    const listener = () => again((n) => n + 1);
    listeners.add(listener);
    return () => void listeners.delete(listener);
  }, []);
  return store;
}

let numToasts = 0;
export function say(text: string, kind: Toast["kind"] = "info"): void {
  const id = ++numToasts;
  store.toasts = [...store.toasts.slice(-3), { id, text, kind }];
  changed();
  setTimeout(
    () => {
      store.toasts = store.toasts.filter((toast) => toast.id !== id);
      changed();
    },
    kind === "error" ? 12000 : 6000,
  );
}

/** Run something that may fail, and say so. */
export async function attempt<T>(action: () => Promise<T>): Promise<T | undefined> {
  try {
    return await action();
  } catch (error) {
    if (error instanceof ApiError && error.status === 401) {
      store.me = null;
      changed();
    }
    say(error instanceof Error ? error.message : String(error), "error");
    return undefined;
  }
}

export function put(job: Job): void {
  store.jobs.set(job.id, job);
  changed();
}

interface Page {
  now: number;
  jobs: Job[];
  cursor: number | null;
}

export async function refresh(): Promise<void> {
  const page = await get<Page>("/v1/jobs?limit=100");
  const open = await get<Page>("/v1/jobs?limit=200&state=queued&state=running&state=paused&state=lost");
  const oldest = page.jobs.at(-1)?.id ?? 0;
  for (const id of [...store.jobs.keys()]) if (id >= oldest) store.jobs.delete(id);
  for (const job of [...page.jobs, ...open.jobs]) store.jobs.set(job.id, job);
  store.cursor = page.cursor;
  store.clock = page.now - Date.now() / 1000;
  changed();
}

export async function more(): Promise<void> {
  const page = await get<Page>(`/v1/jobs?limit=100&before=${store.cursor}`);
  for (const job of page.jobs) store.jobs.set(job.id, job);
  store.cursor = page.cursor;
  changed();
}

export async function refreshJob(id: number): Promise<void> {
  try {
    put((await get<{ job: Job }>(`/v1/jobs/${id}`)).job);
  } catch (error) {
    if (error instanceof ApiError && error.status === 404) {
      store.jobs.delete(id);
      changed();
    }
  }
}

let source: EventSource | null = null;
const waiting = new Set<number>();

function soon(id: number): void {
  if (waiting.has(id)) return;
  waiting.add(id);
  setTimeout(() => {
    waiting.delete(id);
    void refreshJob(id);
  }, 150);
}

/** One stream for the whole page; it goes on where it was cut, also across a restart of the orchestrator. */
export function listen(): void {
  source?.close();
  const stream = new EventSource("/v1/events");
  source = stream;
  stream.onopen = () => {
    const wasDead = !store.isLive;
    store.isLive = true;
    if (wasDead) void attempt(refresh);
    changed();
  };
  stream.onerror = () => {
    store.isLive = false;
    changed();
    if (stream.readyState === EventSource.CLOSED) setTimeout(() => source === stream && store.me && listen(), 2000);
  };
  const onEvent = (event: MessageEvent) => soon(JSON.parse(event.data).job);
  stream.addEventListener("state", onEvent);
  stream.addEventListener("warning", onEvent);
  stream.addEventListener("info", (event) => JSON.parse((event as MessageEvent).data).job ?? void attempt(refresh));
  stream.addEventListener("progress", (event) => {
    const row = JSON.parse((event as MessageEvent).data);
    const job = store.jobs.get(row.id);
    if (!job) return soon(row.id);
    Object.assign(job, row, { state: "running" });
    store.looks.set(row.id, (store.looks.get(row.id) ?? 0) + 1);
    const loss = row.metrics?.loss;
    if (typeof loss === "number") {
      const curve = store.curves.get(row.id);
      const points = curve?.stage === row.stage ? curve!.points : [];
      if (points.at(-1)?.[0] !== row.step) points.push([row.step, loss]);
      store.curves.set(row.id, { stage: row.stage, points: points.slice(-500) });
    }
    changed();
  });
}

export async function enter(): Promise<void> {
  try {
    store.me = (await get<{ me: Me | null }>("/v1/session")).me;
    if (store.me) {
      listen();
      await refresh();
    }
  } catch (error) {
    if (!(error instanceof ApiError && error.status === 401)) say((error as Error).message, "error");
    store.me = null;
  }
  store.isKnown = true;
  changed();
}

export const may = (scope: Me["scope"]): boolean => {
  const scopes = ["read", "submit", "operate", "admin"];
  return !!store.me && scopes.indexOf(store.me.scope) >= scopes.indexOf(scope);
};
export const steers = (job: Job): boolean => may("operate") || (may("submit") && job.user === store.me?.user);
