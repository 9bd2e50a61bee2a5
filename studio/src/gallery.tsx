import { useEffect, useRef, useState } from "preact/hooks";
import { get, type Job, type JobFile } from "./api";
import { Orbit } from "./result";
import { attempt, useStore } from "./store";
import { ago, Look, NAMES, Segmented, titleOf } from "./ui";
import type { Viewer } from "./viewer";

type Kind = "" | "text-to-3d" | "images" | "batch-images";

export function Gallery() {
  const { jobs } = useStore();
  const [words, setWords] = useState("");
  const [kind, setKind] = useState<Kind>("");
  const [found, setFound] = useState<Job[]>([]);
  const [cursor, setCursor] = useState<number | null>(null);
  const [chosen, setChosen] = useState<number[]>([]);
  const numEnded = [...jobs.values()].filter((job) => job.state === "succeeded").length;
  const load = async (before?: number) => {
    const query = new URLSearchParams({ state: "succeeded", limit: "48" });
    if (words.trim()) query.set("q", words.trim());
    if (kind) query.set("kind", kind);
    if (before) query.set("before", String(before));
    const page = await attempt(() => get<{ jobs: Job[]; cursor: number | null }>(`/v1/jobs?${query}`));
    if (!page) return;
    setFound((old) => (before ? [...old, ...page.jobs] : page.jobs));
    setCursor(page.cursor);
  };
  useEffect(() => {
    const timer = setTimeout(load, words ? 250 : 0);
    return () => clearTimeout(timer);
  }, [words, kind, numEnded]);
  const toggle = (id: number) => setChosen((ids) => (ids.includes(id) ? ids.filter((one) => one !== id) : [...ids.slice(-3), id]));
  return (
    <section aria-labelledby="gallery-title">
      <div class="bar">
        <h1 id="gallery-title">Gallery</h1>
        <div class="field search">
          <label for="search">Search</label>
          <input id="search" type="search" value={words} placeholder="words of the prompt" onInput={(event) => setWords(event.currentTarget.value)} />
        </div>
        <Segmented
          legend="Kind"
          name="kind"
          value={kind}
          onChange={setKind}
          options={[
            ["", "All"],
            ["text-to-3d", "3D"],
            ["images", "Pictures"],
            ["batch-images", "Tables"],
          ]}
        />
        <a class={`button ${chosen.length < 2 ? "off" : "primary"}`} href={chosen.length < 2 ? "#/gallery" : `#/compare/${chosen.join(",")}`} aria-disabled={chosen.length < 2}>
          Compare {chosen.length || ""}
        </a>
      </div>
      <p class={found.length ? "" : "nothing"} role="status">
        {found.length === 0 && (cursor == null ? "Nothing finished is found here." : `Nothing is found among the jobs from ${cursor} on. There are older ones: More goes on with them.`)}
      </p>
      <ul class="gallery">
        {found.map((job) => (
          <li key={job.id} class={chosen.includes(job.id) ? "chosen" : ""}>
            <a href={`#/job/${job.id}`}>
              <Look job={job} alt="" />
              <span class="title">{titleOf(job)}</span>
              <span class="quiet">
                {NAMES[job.kind]}, {ago(job.ended_at ?? job.created_at)}
              </span>
            </a>
            {job.kind === "text-to-3d" && (
              <label class="check pick">
                <input type="checkbox" checked={chosen.includes(job.id)} onChange={() => toggle(job.id)} aria-label={`Compare ${titleOf(job)}, job ${job.id}`} />
                compare
              </label>
            )}
          </li>
        ))}
      </ul>
      {cursor != null && (
        <button type="button" onClick={() => load(cursor)}>
          More
        </button>
      )}
    </section>
  );
}

export function Compare({ ids }: { ids: number[] }) {
  const [found, setFound] = useState<{ job: Job; file: JobFile }[]>([]);
  const [turns, setTurns] = useState(false);
  const viewers = useRef<Viewer[]>([]);
  useEffect(() => {
    void attempt(async () => {
      const all = await Promise.all(
        ids.slice(0, 4).map(async (id) => {
          const { job } = await get<{ job: Job }>(`/v1/jobs/${id}`);
          const { files } = await get<{ files: JobFile[] }>(`/v1/jobs/${id}/files`);
          const file = files.find((one) => one.name === "mesh.glb");
          return file ? [{ job, file }] : [];
        }),
      );
      setFound(all.flat());
    });
  }, [ids.join()]);
  const meet = (viewer: Viewer) => {
    viewers.current.push(viewer);
    for (const one of viewers.current) one.followers = viewers.current.filter((other) => other !== one);
  };
  return (
    <section aria-labelledby="compare-title">
      <div class="bar">
        <h1 id="compare-title">Side by side</h1>
        <button type="button" aria-pressed={turns} onClick={() => setTurns(!turns)}>
          {turns ? "Stop turning" : "Turn together"}
        </button>
        <a href="#/gallery">Back to the gallery</a>
      </div>
      <ul class="compare">
        {found.map(({ job, file }, index) => (
          <li key={job.id}>
            <Orbit job={job} file={file} look="material" turns={turns && index === 0} onViewer={meet} />
            <a href={`#/job/${job.id}`}>{titleOf(job)}</a>
            <span class="quiet">
              seed {job.spec.seed}, {job.spec.fit.num_steps} steps
            </span>
          </li>
        ))}
      </ul>
    </section>
  );
}
