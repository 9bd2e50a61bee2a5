import { useState } from "preact/hooks";
import type { Job } from "./api";
import { attempt, more, steers, useStore } from "./store";
import { ago, Badge, Curve, duration, Look, NAMES, prioritise, Progress, remove, score, Segmented, Steering, titleOf } from "./ui";

type Filter = "open" | "ended" | "all";
const OPEN = ["queued", "running", "paused", "lost"];

export function Queue() {
  const { jobs, me, cursor } = useStore();
  const [filter, setFilter] = useState<Filter>("all");
  const [mine, setMine] = useState(false);
  const all = [...jobs.values()].filter((job) => !mine || job.user === me?.user);
  const rank = (job: Job) => (job.state === "running" ? 0 : OPEN.includes(job.state) ? 1 : 2);
  const shown = all
    .filter((job) => filter === "all" || OPEN.includes(job.state) === (filter === "open"))
    .sort((a, b) => rank(a) - rank(b) || (rank(a) === 1 ? b.priority - a.priority || a.id - b.id : b.id - a.id));
  const waiting = all.filter((job) => job.state === "queued").sort((a, b) => b.priority - a.priority || a.id - b.id);
  const ended = all.filter((job) => !OPEN.includes(job.state) && steers(job));
  return (
    <section aria-labelledby="queue-title">
      <div class="bar">
        <h1 id="queue-title">Queue</h1>
        <Segmented
          legend="Show"
          name="filter"
          value={filter}
          onChange={setFilter}
          options={[
            ["all", "All"],
            ["open", "Open"],
            ["ended", "Ended"],
          ]}
        />
        <label class="check">
          <input type="checkbox" checked={mine} onChange={(event) => setMine(event.currentTarget.checked)} />
          mine
        </label>
        {ended.length > 0 && (
          <button
            type="button"
            class="small ghost"
            onClick={async () => {
              if (confirm(`Forget ${ended.length} jobs that have ended? Their files stay.`)) for (const job of ended) await remove(job);
            }}
          >
            Clear ended
          </button>
        )}
      </div>
      {shown.length === 0 && (
        <p class="nothing">
          {cursor != null ? "Nothing here among the newest jobs; there are older ones. " : "Nothing here. "}
          <a href="#/make">Make something</a>.
        </p>
      )}
      <ol class="jobs">
        {shown.map((job) => (
          <Row key={job.id} job={job} position={waiting.indexOf(job) + 1} />
        ))}
      </ol>
      {cursor != null && (
        <button type="button" onClick={() => attempt(more)}>
          Older jobs
        </button>
      )}
    </section>
  );
}

function Row({ job, position }: { job: Job; position: number }) {
  const { curves } = useStore();
  const curve = job.state === "running" ? curves.get(job.id) : undefined;
  return (
    <li class={`job ${job.state}`} data-job={job.id}>
      <Look job={job} />
      <div class="what">
        <a class="title" href={`#/job/${job.id}`}>
          {titleOf(job)}
        </a>
        <p class="meta">
          <Badge job={job} /> <span>{NAMES[job.kind]}</span> <span>#{job.id}</span> <span>{job.user}</span> <span>{ago(job.created_at)}</span>
          {job.state === "succeeded" && job.seconds_run > 0 && <span>took {duration(job.seconds_run)}</span>}
          {score(job) && <span title="How far the prior sees the sentence in it; 0 says nothing, more is better">score {score(job)}</span>}
        </p>
        <Progress job={job} />
        {curve && <Curve points={curve.points} />}
        {job.state === "queued" && (
          <p class="why">
            {position > 0 && <strong>{position === 1 ? "next" : `place ${position}`}</strong>} {job.waits}
          </p>
        )}
        {job.state === "failed" && <p class="why warn">{job.reason}</p>}
        {job.state === "succeeded" && job.metrics.quality_flags?.length > 0 && <p class="why warn">Look at it first: {job.metrics.quality_flags.join(", ")}</p>}
      </div>
      <div class="do">
        {OPEN.includes(job.state) && steers(job) && (
          <label class="priority">
            priority
            <input
              type="number"
              min="-1000"
              max="1000"
              value={job.priority}
              aria-label={`Priority of job ${job.id}`}
              onChange={(event) => prioritise(job, Number(event.currentTarget.value))}
            />
          </label>
        )}
        <Steering job={job} />
      </div>
    </li>
  );
}
