/** The orchestrator's API, as the page uses it. */

export type State = "queued" | "running" | "paused" | "succeeded" | "failed" | "cancelled" | "lost";

export interface Job {
  id: number;
  kind: "text-to-3d" | "images" | "batch-images" | "export" | "texture";
  name: string;
  user: string;
  // eslint-disable-next-line @typescript-eslint/no-explicit-any
  spec: any;
  settings: any;
  prior: string;
  out: string;
  priority: number;
  state: State;
  reason: string;
  stage: string;
  step: number;
  total: number;
  seconds_left: number | null;
  metrics: any;
  created_at: number;
  started_at: number | null;
  ended_at: number | null;
  seconds_run: number;
  waits: string;
}

export interface JobFile {
  name: string;
  num_bytes: number;
  media_type: string;
  sha256: string;
}

export interface Me {
  name: string;
  user: string;
  scope: "read" | "submit" | "operate" | "admin";
  is_owner: boolean;
}

export interface Setting {
  name: string;
  value: unknown;
  about: string;
  origin: string | null;
}

export interface Prior {
  source: string;
  name: string;
  image_size: number | null;
  vocabulary: string[];
  defaults: Record<string, unknown>;
}

/** What the orchestrator says went wrong, in one sentence. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    sentence: string,
  ) {
    super(sentence);
  }
}

export async function call<T>(method: string, path: string, body?: unknown): Promise<T> {
  let response: Response;
  try {
    response = await fetch(path, {
      method,
      credentials: "same-origin",
      headers: body === undefined ? {} : { "Content-Type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch {
    throw new ApiError(0, "The orchestrator does not answer; nothing is lost, and the page goes on when it is back.");
  }
  const content = await response.json().catch(() => ({}));
  if (!response.ok) throw new ApiError(response.status, content.error ?? `The orchestrator answered with status ${response.status}.`);
  return content as T;
}

export const get = <T>(path: string) => call<T>("GET", path);
export const post = <T>(path: string, body: unknown = {}) => call<T>("POST", path, body);

const TYPES: Record<string, string> = {
  csv: "text/csv",
  txt: "text/plain",
  jsonl: "application/x-ndjson",
  parquet: "application/vnd.apache.parquet",
  png: "image/png",
  jpg: "image/jpeg",
  jpeg: "image/jpeg",
  webp: "image/webp",
};

/** Keep a file on the orchestrator; returns its id. */
export async function upload(file: Blob, name: string): Promise<string> {
  const type = TYPES[name.split(".").pop()!.toLowerCase()] ?? "application/octet-stream";
  const response = await fetch(`/v1/uploads?name=${encodeURIComponent(name)}`, {
    method: "POST",
    credentials: "same-origin",
    headers: { "Content-Type": type },
    body: file,
  });
  const content = await response.json().catch(() => ({}));
  if (!response.ok) throw new ApiError(response.status, content.error ?? "The file was not taken.");
  return content.id;
}

export const fileUrl = (job: number, name: string) => `/v1/jobs/${job}/files/${name.split("/").map(encodeURIComponent).join("/")}`;
