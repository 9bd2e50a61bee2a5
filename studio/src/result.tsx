import { useEffect, useRef, useState } from "preact/hooks";
import { fileUrl, get, post, type Job, type JobFile } from "./api";
import { handed } from "./make";
import { attempt, may, put, say, useStore } from "./store";
import { Badge, bytes, Card, Curve, duration, Look, NAMES, number, Progress, score, Segmented, Steering, titleOf } from "./ui";
import type { Facts, Look as Surface, Viewer } from "./viewer";

interface Shown {
  job: Job;
  attempts: { outcome: string; reason: string; started_at: number; ended_at: number | null }[];
  events: { id: number; at: number; kind: string; text: string }[];
  shards: { num_shards: number; num_committed: number; num_rows: number; num_failed: number } | null;
}

export function Result({ id }: { id: number }) {
  const { jobs, curves } = useStore();
  const [shown, setShown] = useState<Shown | null>(null);
  const [files, setFiles] = useState<JobFile[]>([]);
  const [isGone, setGone] = useState(false);
  const live = jobs.get(id);
  const state = live?.state;
  useEffect(() => {
    let isOver = false;
    const load = async () => {
      const found = await attempt(() => get<Shown>(`/v1/jobs/${id}`));
      if (isOver) return;
      if (!found) return setGone(true);
      put(found.job);
      setShown(found);
      const listed = await get<{ files: JobFile[] }>(`/v1/jobs/${id}/files`).catch(() => ({ files: [] }));
      if (!isOver) setFiles(listed.files);
    };
    void load();
    const timer = state === "running" ? setInterval(load, 4000) : undefined;
    return () => {
      isOver = true;
      clearInterval(timer);
    };
  }, [id, state]);
  const job = live ?? shown?.job;
  if (!job) return <p class="nothing">{isGone ? `There is no job ${id} (any more).` : "Loading…"}</p>;
  const mesh = files.find((file) => file.name === "mesh.glb");
  const pictures = files.filter((file) => /^\d{9}\.png$/.test(file.name));
  const curve = curves.get(id);
  return (
    <article class="result" aria-labelledby="result-title">
      <header class="bar">
        <div>
          <p class="meta">
            <Badge job={job} /> <span>{NAMES[job.kind]}</span> <span>#{job.id}</span> <span>{job.user}</span>
            {job.seconds_run > 0 && <span>{duration(job.seconds_run)} of work</span>}
          </p>
          <h1 id="result-title">{titleOf(job)}</h1>
        </div>
        <Steering job={job} />
      </header>
      <div class="columns">
        <div class="stage">
          {mesh ? (
            <Mesh key={mesh.sha256} job={job} file={mesh} />
          ) : pictures.length > 0 ? (
            <Pictures job={job} pictures={pictures} />
          ) : (
            <div class="waiting">
              <Look job={job} />
              <Progress job={job} />
              {job.state === "queued" && <p class="why">{job.waits || "It is next."}</p>}
              {job.state === "failed" && <p class="why warn">{job.reason}</p>}
              {curve && <Curve points={curve.points} />}
              {shown?.shards && (
                <p class="why">
                  {number(shown.shards.num_committed)} of {number(shown.shards.num_shards)} shards, {number(shown.shards.num_rows)} rows
                  {shown.shards.num_failed > 0 && <span class="warn">, {number(shown.shards.num_failed)} failed</span>}
                </p>
              )}
            </div>
          )}
          {job.state === "running" && (mesh || pictures.length > 0) && <Progress job={job} />}
        </div>
        <aside>
          <Facts3D job={job} />
          <Files job={job} files={files} />
          {job.kind === "text-to-3d" && job.state === "succeeded" && may("submit") && <Export job={job} />}
          {mesh && job.state === "succeeded" && job.spec.prompt && may("submit") && <Paint job={job} />}
          {job.kind !== "export" && <Parameters job={job} />}
          <Card title="What happened">
            <ol class="events">
              {shown?.events.slice(-30).map((event) => (
                <li key={event.id} class={event.kind}>
                  <time>{new Date(event.at * 1000).toLocaleTimeString()}</time> {event.text}
                </li>
              ))}
            </ol>
            <p>
              <a href={`/v1/jobs/${id}/log`}>Log</a>
            </p>
          </Card>
        </aside>
      </div>
    </article>
  );
}

const LOOKS: [Surface, string][] = [
  ["material", "Material"],
  ["clay", "Clay"],
  ["normals", "Normals"],
  ["wireframe", "Wireframe"],
];

export function Orbit(props: { job: Job; file: JobFile; look: Surface; turns: boolean; onFacts?: (facts: Facts) => void; onViewer?: (viewer: Viewer) => void }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const viewer = useRef<Viewer | null>(null);
  const [status, setStatus] = useState("loading");
  useEffect(() => {
    let isOver = false;
    void (async () => {
      try {
        const { Viewer } = await import("./viewer");
        if (isOver || !canvas.current) return;
        viewer.current = new Viewer(canvas.current);
        props.onViewer?.(viewer.current);
        const facts = await viewer.current.load(fileUrl(props.job.id, props.file.name));
        viewer.current.show(props.look);
        viewer.current.turns = props.turns;
        props.onFacts?.(facts);
        setStatus("ready");
      } catch (error) {
        setStatus("failed");
        say(`The mesh cannot be shown here (${(error as Error).message}); download it instead.`, "error");
      }
    })();
    return () => {
      isOver = true;
      viewer.current?.end();
      viewer.current = null;
    };
  }, [props.job.id, props.file.sha256]);
  useEffect(() => viewer.current?.show(props.look), [props.look]);
  useEffect(() => {
    if (viewer.current) viewer.current.turns = props.turns;
  }, [props.turns]);
  return (
    <div class="orbit" data-status={status}>
      <canvas ref={canvas} tabIndex={0} role="img" aria-label={`${titleOf(props.job)}, a mesh to turn: arrow keys turn it, plus and minus zoom, 0 is the first view`} />
      {status === "loading" && <p class="over">Loading the mesh…</p>}
    </div>
  );
}

function Mesh({ job, file }: { job: Job; file: JobFile }) {
  const [look, setLook] = useState<Surface>("material");
  const [turns, setTurns] = useState(false);
  const [facts, setFacts] = useState<Facts | null>(null);
  const viewer = useRef<Viewer | null>(null);
  return (
    <>
      <Orbit job={job} file={file} look={look} turns={turns} onFacts={setFacts} onViewer={(one) => (viewer.current = one)} />
      <div class="tools" role="group" aria-label="View">
        <Segmented legend="Surface" name="look" value={look} onChange={setLook} options={LOOKS} />
        <button type="button" class="small" aria-pressed={turns} onClick={() => setTurns(!turns)}>
          {turns ? "Stop turning" : "Turntable"}
        </button>
        <button type="button" class="small" onClick={() => viewer.current?.home()}>
          First view
        </button>
        <a class="button small" href={fileUrl(job.id, file.name)} download={`${job.name}.glb`}>
          Download GLB
        </a>
        {facts && (
          <p class="quiet">
            {number(facts.faces)} faces, {number(facts.vertices)} vertices, {facts.size.map((side) => side.toFixed(2)).join(" × ")} m
          </p>
        )}
      </div>
    </>
  );
}

function Facts3D({ job }: { job: Job }) {
  const found = job.metrics;
  if (job.kind !== "text-to-3d" || found.num_faces === undefined) return null;
  const flags: string[] = found.quality_flags ?? [];
  return (
    <Card title="The mesh">
      <dl class="facts">
        <dt>Faces</dt>
        <dd>{number(found.num_faces)}</dd>
        <dt>Vertices</dt>
        <dd>{number(found.num_vertices)}</dd>
        <dt>Closed</dt>
        <dd>{found.is_watertight ? "yes" : "no"}</dd>
        <dt>Parts</dt>
        <dd>{found.num_components}</dd>
        {score(job) && (
          <>
            <dt title="How far the prior sees the sentence in it; 0 says nothing, more is better">Prior's score</dt>
            <dd>{score(job)}</dd>
          </>
        )}
        {[25, 50].map(
          (share) =>
            found[`prior_score_${share}`] !== undefined && (
              <>
                <dt>… at {share} % of the fit</dt>
                <dd>{Number(found[`prior_score_${share}`]).toFixed(3)}</dd>
              </>
            ),
        )}
        {found.clip_score !== undefined && (
          <>
            <dt>CLIP's score</dt>
            <dd>{Number(found.clip_score).toFixed(3)}</dd>
          </>
        )}
      </dl>
      {flags.length > 0 ? <p class="warn">Look at it first: {flags.join(", ")}</p> : <p class="good">No quality flags.</p>}
    </Card>
  );
}

function Files({ job, files }: { job: Job; files: JobFile[] }) {
  if (!files.length) return null;
  const main = files.filter((file) => !file.name.startsWith("_"));
  return (
    <Card title="Files" action={<a href={`/v1/jobs/${job.id}/files.zip`}>All as zip</a>}>
      <ul class="files">
        {main.slice(0, 40).map((file) => (
          <li key={file.name}>
            <a href={fileUrl(job.id, file.name)} download>
              {file.name}
            </a>
            <span class="quiet">{bytes(file.num_bytes)}</span>
          </li>
        ))}
      </ul>
      {main.length > 40 && <p class="quiet">… and {main.length - 40} more</p>}
    </Card>
  );
}

const FORMATS = ["glb", "gltf", "obj", "ply", "stl", "3mf", "usdz"];

function Paint({ job }: { job: Job }) {
  const [prompt, setPrompt] = useState("");
  const submit = async (event: Event) => {
    event.preventDefault();
    const made = await attempt(() => post<{ id: number; job: Job }>("/v1/textures", { mesh: job.id, prompt, prior: job.spec.prior }));
    if (made) {
      put(made.job);
      location.hash = `#/job/${made.id}`;
    }
  };
  return (
    <Card title="Paint it anew">
      <form onSubmit={submit}>
        <div class="field">
          <label for="paint">As what</label>
          <input id="paint" required maxLength={2000} placeholder={job.spec.prompt} value={prompt} onInput={(event) => setPrompt(event.currentTarget.value)} />
        </div>
        <button type="submit" disabled={!prompt.trim()}>
          Paint
        </button>
      </form>
    </Card>
  );
}

function Export({ job }: { job: Job }) {
  const [formats, setFormats] = useState<string[]>(["glb"]);
  const [faces, setFaces] = useState("");
  const [texture, setTexture] = useState("");
  const submit = async (event: Event) => {
    event.preventDefault();
    const settings: Record<string, unknown> = {};
    if (faces) settings["mesh.max_faces"] = Number(faces);
    if (texture) settings["mesh.texture_size"] = Number(texture);
    const made = await attempt(() => post<{ id: number; job: Job }>("/v1/exports", { job: job.id, formats, settings }));
    if (made) {
      put(made.job);
      location.hash = `#/job/${made.id}`;
    }
  };
  return (
    <Card title="Cut it again">
      <form onSubmit={submit}>
        <fieldset class="ticks">
          <legend>Formats</legend>
          {FORMATS.map((name) => (
            <label class="check" key={name}>
              <input
                type="checkbox"
                checked={formats.includes(name)}
                onChange={(event) => setFormats(event.currentTarget.checked ? [...formats, name] : formats.filter((one) => one !== name))}
              />
              {name}
            </label>
          ))}
        </fieldset>
        <div class="row">
          <div class="field">
            <label for="faces">Faces at most</label>
            <input id="faces" type="number" min="4" placeholder={String(job.spec.mesh.max_faces)} value={faces} onInput={(event) => setFaces(event.currentTarget.value)} />
          </div>
          <div class="field">
            <label for="texture">Texture, pixels</label>
            <input id="texture" type="number" min="0" placeholder={String(job.spec.mesh.texture_size)} value={texture} onInput={(event) => setTexture(event.currentTarget.value)} />
          </div>
        </div>
        <button type="submit" disabled={!formats.length}>
          Export
        </button>
      </form>
    </Card>
  );
}

function Parameters({ job }: { job: Job }) {
  const spec = job.spec;
  const again = async (seed: number) => {
    const made = await attempt(() => post<{ id: number; job: Job }>(`/v1/jobs/${job.id}/again`, { seed }));
    if (made) {
      put(made.job);
      location.hash = `#/job/${made.id}`;
    }
  };
  const rows: [string, unknown][] =
    job.kind === "texture"
      ? [["Steps", spec.texture.num_steps], ["Guidance", spec.distillation.guidance_scale]]
      : job.kind === "text-to-3d"
      ? [["Steps", spec.fit.num_steps], ["Guidance", spec.distillation.guidance_scale], ["Field", spec.fit.field.kind]]
      : [["Steps", spec.num_steps], ["Guidance", spec.guidance_scale], ["Sampler", spec.sampler]];
  return (
    <Card title="How">
      <dl class="facts">
        <dt>Seed</dt>
        <dd>{spec.seed}</dd>
        <dt>Prior</dt>
        <dd>{spec.prior}</dd>
        {rows.map(([name, value]) => (
          <>
            <dt>{name}</dt>
            <dd>{String(value)}</dd>
          </>
        ))}
      </dl>
      {may("submit") && job.kind !== "batch-images" && (
        <div class="steering">
          <button type="button" class="small" onClick={() => again(Math.floor(Math.random() * 1e6))}>
            Again with another seed
          </button>
        </div>
      )}
    </Card>
  );
}

function Pictures({ job, pictures }: { job: Job; pictures: JobFile[] }) {
  const [open, setOpen] = useState<number | null>(null);
  const dialog = useRef<HTMLDialogElement>(null);
  const seedOf = (index: number) => job.spec.seed + Number(pictures[index].name.slice(0, 9));
  const show = (index: number) => {
    setOpen(index);
    if (!dialog.current?.open) dialog.current?.showModal();
  };
  const close = () => dialog.current?.close();
  const start = async (index: number) => {
    const response = await fetch(fileUrl(job.id, pictures[index].name), { credentials: "same-origin" });
    Object.assign(handed, { mode: "images", prompt: job.spec.prompt, init: new File([await response.blob()], `job-${job.id}-${index}.png`, { type: "image/png" }) });
    close();
    location.hash = "#/make";
  };
  const make3d = (index: number) => {
    Object.assign(handed, { mode: "text-to-3d", prompt: job.spec.prompt, seed: seedOf(index) });
    close();
    location.hash = "#/make";
  };
  return (
    <>
      <ul class="pictures">
        {pictures.slice(0, 256).map((file, index) => (
          <li key={file.name}>
            <button type="button" onClick={() => show(index)} aria-label={`Picture ${index + 1}, seed ${seedOf(index)}`}>
              <img loading="lazy" alt="" src={fileUrl(job.id, file.name)} />
            </button>
          </li>
        ))}
      </ul>
      <dialog
        ref={dialog}
        class="zoom"
        aria-label="Picture"
        onClose={() => setOpen(null)}
        onKeyDown={(event) => {
          if (open === null) return;
          if (event.key === "ArrowRight") setOpen((open + 1) % pictures.length);
          if (event.key === "ArrowLeft") setOpen((open + pictures.length - 1) % pictures.length);
        }}
      >
        {open !== null && (
          <>
            <img alt={`${job.spec.prompt}, seed ${seedOf(open)}`} src={fileUrl(job.id, pictures[open].name)} />
            <p>
              Picture {open + 1} of {pictures.length}, seed {seedOf(open)}
            </p>
            <div class="steering">
              <button
                type="button"
                class="small"
                onClick={() => {
                  Object.assign(handed, { mode: "images", prompt: job.spec.prompt, seed: seedOf(open) });
                  close();
                  location.hash = "#/make";
                }}
              >
                Again with this seed
              </button>
              <button type="button" class="small" onClick={() => start(open)}>
                Use as initial image
              </button>
              <button type="button" class="small" onClick={() => make3d(open)}>
                Make 3D of it
              </button>
              <a class="button small" href={fileUrl(job.id, pictures[open].name)} download>
                Download
              </a>
              <button type="button" class="small ghost" onClick={close}>
                Close
              </button>
            </div>
          </>
        )}
      </dialog>
    </>
  );
}
