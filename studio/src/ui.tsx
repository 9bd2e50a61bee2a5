import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { call, type Job } from "./api";
import { attempt, put, refreshJob, say, steers, store } from "./store";

export const NAMES: Record<Job["kind"], string> = {
  "text-to-3d": "3D object",
  images: "Pictures",
  "batch-images": "Table",
  export: "Export",
  texture: "Painted mesh",
};

export const titleOf = (job: Job): string =>
  job.spec.prompt ?? (job.kind === "batch-images" ? job.spec.table.files[0]?.name : job.kind === "export" ? `Files of ${job.spec.run.split("/").at(-1)}` : job.name);

export function duration(seconds: number): string {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  const m = Math.floor(s / 60);
  if (m < 60) return `${m} min ${s % 60} s`;
  return `${Math.floor(m / 60)} h ${m % 60} min`;
}

export function ago(at: number): string {
  const s = Math.max(0, Date.now() / 1000 + store.clock - at);
  if (s < 60) return "just now";
  if (s < 3600) return `${Math.floor(s / 60)} min ago`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ago`;
  return `${Math.floor(s / 86400)} d ago`;
}

export function bytes(n: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let i = 0;
  while (n >= 1000 && i < units.length - 1) {
    n /= 1000;
    i++;
  }
  return `${n < 10 && i ? n.toFixed(1) : Math.round(n)} ${units[i]}`;
}

export const number = (n: number): string => n.toLocaleString("en");

export function Badge({ job }: { job: Job }) {
  return <span class={`badge ${job.state}`}>{job.state}</span>;
}

/** The newest picture of a job; again whenever it moves. */
export function Look({ job, alt }: { job: Job; alt?: string }) {
  const [isMissing, setMissing] = useState(false);
  const version = job.state === "running" ? (store.looks.get(job.id) ?? 0) : (job.ended_at ?? 0);
  useEffect(() => setMissing(false), [job.id, version, job.state]);
  const hasNone = job.kind === "export" || job.state === "queued" || (job.state === "running" && !job.settings.runtime?.preview_every);
  if (isMissing || hasNone) return <div class={`look empty ${job.state}`} aria-hidden="true" />;
  return (
    <img
      class="look"
      loading="lazy"
      alt={alt ?? `${titleOf(job)}: ${job.state === "running" ? "unfinished look" : "preview"}`}
      src={`/v1/jobs/${job.id}/preview?v=${version}`}
      onError={() => setMissing(true)}
    />
  );
}

/** How far the prior sees the sentence in the mesh, or in the fit on its way; null where nobody asked it. */
export function score(job: Job): string | null {
  for (const [name, when] of [
    ["prior_score", ""],
    ["prior_score_50", " half way"],
    ["prior_score_25", " after a quarter"],
  ]) {
    const found = job.metrics[name];
    if (typeof found === "number") return `${found.toFixed(3)}${when}`;
  }
  return null;
}

export function Progress({ job }: { job: Job }) {
  if (job.state !== "running") return null;
  const share = job.total ? job.step / job.total : 0;
  const words = job.stage ? `${job.stage} ${number(job.step)} of ${number(job.total)}` : "starts";
  return (
    <div class="progress">
      <progress max={job.total || 1} value={job.total ? job.step : undefined} aria-label={`${titleOf(job)}: ${words}`} style={`--share:${share}`} />
      <span>{words}</span>
      {job.seconds_left != null && job.seconds_left > 0 && <span class="quiet">{duration(job.seconds_left)} left</span>}
    </div>
  );
}

export async function act(job: Job, action: "pause" | "resume" | "cancel" | "retry"): Promise<void> {
  const done = await attempt(() => call<{ state: Job["state"] }>("POST", `/v1/jobs/${job.id}/${action}`));
  if (!done) return;
  if (action === "cancel" || action === "pause") say(`Job ${job.id} is ${done.state === "running" ? "to stop at its next step" : done.state}.`);
  await refreshJob(job.id);
}

export async function remove(job: Job): Promise<void> {
  if (await attempt(() => call("DELETE", `/v1/jobs/${job.id}`))) {
    store.jobs.delete(job.id);
    say(`Job ${job.id} is forgotten; its files stay.`);
  }
}

export async function prioritise(job: Job, priority: number): Promise<void> {
  const done = await attempt(() => call<{ job: Job }>("PATCH", `/v1/jobs/${job.id}`, { priority }));
  if (done) put(done.job);
}

export function Steering({ job }: { job: Job }) {
  if (!steers(job)) return null;
  const title = titleOf(job);
  const button = (action: "pause" | "resume" | "cancel" | "retry", label: string) => (
    <button type="button" class="small" onClick={() => act(job, action)} aria-label={`${label} job ${job.id}, ${title}`}>
      {label}
    </button>
  );
  return (
    <div class="steering">
      {(job.state === "queued" || job.state === "running") && button("pause", "Pause")}
      {job.state === "paused" && button("resume", "Resume")}
      {(job.state === "queued" || job.state === "running" || job.state === "paused") && button("cancel", "Cancel")}
      {(job.state === "failed" || job.state === "cancelled") && button("retry", "Retry")}
      {(job.state === "failed" || job.state === "cancelled" || job.state === "succeeded") && (
        <button type="button" class="small ghost" onClick={() => remove(job)} aria-label={`Forget job ${job.id}, ${title}`}>
          Forget
        </button>
      )}
    </div>
  );
}

export function Segmented<T extends string>(props: { legend: string; name: string; value: T; options: [T, string][]; onChange: (value: T) => void }) {
  return (
    <fieldset class="segmented">
      <legend>{props.legend}</legend>
      <div>
        {props.options.map(([value, label]) => (
          <label key={value} class={props.value === value ? "on" : ""}>
            <input type="radio" name={props.name} value={value} checked={props.value === value} onChange={() => props.onChange(value)} />
            {label}
          </label>
        ))}
      </div>
    </fieldset>
  );
}

export function Drop(props: { label: string; accept: string; file: File | null; onFile: (file: File | null) => void }) {
  const [isOver, setOver] = useState(false);
  const input = useRef<HTMLInputElement>(null);
  return (
    <label
      class={`drop ${isOver ? "over" : ""} ${props.file ? "full" : ""}`}
      onDragOver={(event) => {
        event.preventDefault();
        setOver(true);
      }}
      onDragLeave={() => setOver(false)}
      onDrop={(event) => {
        event.preventDefault();
        setOver(false);
        props.onFile(event.dataTransfer?.files[0] ?? null);
      }}
    >
      <input ref={input} type="file" accept={props.accept} aria-label={props.label} onChange={(event) => props.onFile(event.currentTarget.files?.[0] ?? null)} />
      <strong>{props.file ? props.file.name : props.label}</strong>
      <span class="quiet">{props.file ? bytes(props.file.size) : "drop a file here, or choose one"}</span>
    </label>
  );
}

export function Card({ title, children, action }: { title: string; children: ComponentChildren; action?: ComponentChildren }) {
  return (
    <section class="card">
      <header>
        <h2>{title}</h2>
        {action}
      </header>
      {children}
    </section>
  );
}

export function Curve({ points }: { points: [number, number][] }) {
  if (points.length < 3) return null;
  const xs = points.map(([x]) => x);
  const ys = points.map(([, y]) => y);
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  const [y0, y1] = [Math.min(...ys), Math.max(...ys)];
  const path = points.map(([x, y]) => `${(((x - x0) / (x1 - x0 || 1)) * 296 + 2).toFixed(1)},${(58 - ((y - y0) / (y1 - y0 || 1)) * 56).toFixed(1)}`).join(" ");
  return (
    <svg class="curve" viewBox="0 0 300 60" role="img" aria-label={`Loss from ${ys[0].toPrecision(3)} to ${ys.at(-1)!.toPrecision(3)}`}>
      <polyline points={path} fill="none" stroke="currentColor" stroke-width="1.5" vector-effect="non-scaling-stroke" />
    </svg>
  );
}
