import { useEffect, useMemo, useState } from "preact/hooks";
import { get, post, upload, type Job, type Prior, type Setting } from "./api";
import { attempt, may, put, say, store } from "./store";
import { Card, Drop, duration, Segmented } from "./ui";

type Mode = "text-to-3d" | "images" | "tables";
type Groups = Record<string, { about: string; settings: Setting[] }>;

const EXAMPLES = ["a red mushroom with a white stem", "a blue chair", "a green cactus in a brown pot", "a cyan rocket with a red nose", "a purple teapot", "a yellow duck"];
const SHOWN: Record<Mode, string[]> = {
  "text-to-3d": ["fit", "distillation", "field", "mesh", "export"],
  images: ["images"],
  tables: ["images"],
};
const SYNTAX = /[\s,.;:!?()]+/;

/** What a view may hand over to this one: "use as initial image", "make 3D of it". */
export const handed: { mode?: Mode; prompt?: string; seed?: number; init?: File } = {};

export function Make() {
  const [mode, setMode] = useState<Mode>(handed.mode ?? "text-to-3d");
  const [prompt, setPrompt] = useState(handed.prompt ?? "");
  const [preset, setPreset] = useState<"draft" | "default" | "fine">("default");
  const [seed, setSeed] = useState(String(handed.seed ?? 0));
  const [count, setCount] = useState("4");
  const [negative, setNegative] = useState("");
  const [prior, setPrior] = useState("toybox");
  const [priors, setPriors] = useState<Prior[]>([]);
  const [groups, setGroups] = useState<Groups>({});
  const [changes, setChanges] = useState<Record<string, unknown>>({});
  const [init, setInit] = useState<File | null>(handed.init ?? null);
  const [mask, setMask] = useState<File | null>(null);
  const [strength, setStrength] = useState("0.6");
  const [table, setTable] = useState<File | null>(null);
  const [size, setSize] = useState("1");
  const [isSending, setSending] = useState(false);
  const [past, setPast] = useState<Job[]>([]);

  useEffect(() => {
    for (const key of Object.keys(handed)) delete handed[key as keyof typeof handed];
    void attempt(async () => setPriors((await get<{ priors: Prior[] }>("/v1/priors")).priors));
  }, []);
  useEffect(() => {
    const query = new URLSearchParams(mode === "text-to-3d" ? { preset } : {});
    if (prior !== "toybox") query.set("prior", prior);
    void attempt(async () => setGroups((await get<{ groups: Groups }>(`/v1/settings?${query}`)).groups));
  }, [mode, preset, prior]);
  useEffect(() => {
    if (mode === "tables") return setPast([]);
    void attempt(async () => setPast((await get<{ jobs: Job[] }>(`/v1/jobs?state=succeeded&kind=${mode}&limit=50`)).jobs));
  }, [mode]);

  const card = priors.find((one) => one.source === prior);
  const words = useMemo(() => new Set(card?.vocabulary ?? []), [card]);
  const unknown = words.size ? [...new Set(prompt.toLowerCase().split(SYNTAX).filter((word) => word && !words.has(word)))] : [];
  const valueOf = (name: string) => changes[name] ?? groups[name.split(".")[0]]?.settings.find((one) => one.name === name)?.value;
  const cost = estimate(mode, past, Number(valueOf(mode === "images" ? "images.num_steps" : "fit.num_steps")), Number(count));

  const submit = async (event: Event) => {
    event.preventDefault();
    if (isSending) return;
    setSending(true);
    const made = await attempt(async () => {
      const settings: Record<string, unknown> = { ...changes };
      if (mode === "text-to-3d") settings["runtime.preview_every"] ??= 20;
      if (mode === "images") settings["runtime.preview_every"] ??= 5;
      const form: Record<string, unknown> = { seed: Number(seed), settings };
      if (prior !== "toybox") form.prior = prior;
      if (negative.trim()) form.negative_prompt = negative.trim();
      if (mode === "tables") {
        if (!table) throw new Error("There is no table; drop a txt, csv, jsonl or parquet file with a column 'prompt'.");
        form.table = await upload(table, table.name);
      } else form.prompt = prompt;
      if (mode === "text-to-3d") {
        form.preset = preset;
        if (Number(size) !== 1) settings["export.size_metres"] = Number(size);
      }
      if (mode === "images") {
        form.num_images = Number(count);
        if (init) {
          form.init_image = await upload(init, init.name);
          form.strength = Number(strength);
          if (mask) form.mask = await upload(mask, mask.name);
        }
      }
      return post<{ id: number; is_new: boolean; job: Job }>(`/v1/${mode}`, form);
    });
    setSending(false);
    if (!made) return;
    put(made.job);
    say(made.is_new ? `Job ${made.id} is in the queue.` : `Job ${made.id} is the same, and was there.`);
    location.hash = `#/job/${made.id}`;
  };

  return (
    <div class="make">
      <form class="card hero" onSubmit={submit} aria-label="Make something">
        <h1>What shall it be?</h1>
        <Segmented
          legend="Kind"
          name="mode"
          value={mode}
          onChange={(value) => {
            setMode(value);
            setChanges({});
          }}
          options={[
            ["text-to-3d", "3D object"],
            ["images", "Pictures"],
            ["tables", "Table of prompts"],
          ]}
        />
        {mode === "tables" ? (
          <Drop label="Table of prompts" accept=".txt,.csv,.jsonl,.parquet" file={table} onFile={setTable} />
        ) : (
          <div class="field">
            <label for="prompt">Prompt</label>
            <textarea
              id="prompt"
              required
              rows={2}
              maxLength={2000}
              placeholder="a red mushroom with a white stem"
              value={prompt}
              aria-describedby="words"
              onInput={(event) => setPrompt(event.currentTarget.value)}
            />
            <p id="words" class="hint" aria-live="polite">
              {unknown.length > 0 ? (
                <span class="warn">The prior was never shown: {unknown.join(", ")}. It will guess.</span>
              ) : words.size ? (
                `Knows ${words.size} words.`
              ) : (
                "Free text."
              )}
            </p>
            <div class="chips" role="group" aria-label="Examples">
              {EXAMPLES.map((text) => (
                <button type="button" class="chip" key={text} onClick={() => setPrompt(text)}>
                  {text}
                </button>
              ))}
            </div>
          </div>
        )}
        {mode === "text-to-3d" && (
          <Segmented
            legend="Quality"
            name="preset"
            value={preset}
            onChange={setPreset}
            options={[
              ["draft", "Draft"],
              ["default", "Default"],
              ["fine", "Fine"],
            ]}
          />
        )}
        <div class="row">
          <div class="field">
            <label for="seed">Seed</label>
            <div class="joined">
              <input id="seed" type="number" min="0" step="1" required value={seed} onInput={(event) => setSeed(event.currentTarget.value)} />
              <button type="button" aria-label="Roll the dice for a seed" onClick={() => setSeed(String(Math.floor(Math.random() * 1e6)))}>
                <svg viewBox="0 0 20 20" width="18" aria-hidden="true">
                  <rect x="2" y="2" width="16" height="16" rx="4" fill="none" stroke="currentColor" stroke-width="1.6" />
                  <circle cx="6.500" cy="6.500" r="1.500" />
                  <circle cx="13.500" cy="13.500" r="1.500" />
                  <circle cx="10" cy="10" r="1.500" />
                </svg>
              </button>
            </div>
          </div>
          {mode === "images" && (
            <div class="field">
              <label for="count">How many</label>
              <input id="count" type="number" min="1" max="10000" required value={count} onInput={(event) => setCount(event.currentTarget.value)} />
            </div>
          )}
          {mode === "text-to-3d" && (
            <div class="field">
              <label for="size">Longest side, metres</label>
              <input id="size" type="number" min="0.001" max="10000" step="any" value={size} onInput={(event) => setSize(event.currentTarget.value)} />
            </div>
          )}
          <div class="field">
            <label for="prior">Prior</label>
            <select id="prior" value={prior} onChange={(event) => setPrior(event.currentTarget.value)}>
              {priors.map((one) => (
                <option key={one.source} value={one.source}>
                  {one.name}
                </option>
              ))}
            </select>
          </div>
        </div>
        {mode !== "tables" && (
          <div class="field">
            <label for="negative">Keep away from (optional)</label>
            <input id="negative" value={negative} maxLength={2000} onInput={(event) => setNegative(event.currentTarget.value)} />
          </div>
        )}
        {mode === "images" && (
          <details open={!!init}>
            <summary>Start from a picture</summary>
            <div class="row">
              <Drop label="Initial image" accept="image/png,image/jpeg,image/webp" file={init} onFile={setInit} />
              <Drop label="Mask, white where it changes" accept="image/png,image/jpeg,image/webp" file={mask} onFile={setMask} />
            </div>
            <div class="field">
              <label for="strength">Strength: 0 returns it, 1 ignores it ({strength})</label>
              <input id="strength" type="range" min="0" max="1" step="0.05" value={strength} onInput={(event) => setStrength(event.currentTarget.value)} />
            </div>
          </details>
        )}
        <Advanced groups={groups} shown={SHOWN[mode]} changes={changes} onChange={setChanges} />
        <div class="send">
          <button type="submit" class="primary" disabled={isSending || !may("submit")}>
            {isSending ? "Sending…" : mode === "text-to-3d" ? "Make it" : mode === "images" ? "Draw them" : "Draw the table"}
          </button>
          <p class="quiet" aria-live="polite">
            {may("submit") ? cost : "Your token may look, but not submit."}
          </p>
        </div>
      </form>
      <aside>
        {card && (
          <Card title={`Prior: ${card.name}`}>
            <dl class="facts">
              {card.image_size && (
                <>
                  <dt>Pictures</dt>
                  <dd>
                    {card.image_size} × {card.image_size}
                  </dd>
                </>
              )}
              {Object.entries(card.defaults).map(([name, value]) => (
                <>
                  <dt>{name.replaceAll("_", " ")}</dt>
                  <dd>{String(value)}</dd>
                </>
              ))}
              <dt>Words</dt>
              <dd>{card.vocabulary.length ? `${card.vocabulary.length}` : "free text"}</dd>
            </dl>
            {card.vocabulary.length > 0 && (
              <details>
                <summary>Words it was shown</summary>
                <p class="words">{card.vocabulary.filter((word) => /\w/.test(word)).join(" · ")}</p>
              </details>
            )}
          </Card>
        )}
        <Card title="In the kiln">
          <p>
            {count_("running")} at work, {count_("queued")} waiting. <a href="#/queue">See the queue</a>
          </p>
        </Card>
      </aside>
    </div>
  );
}

const count_ = (state: string) => [...store.jobs.values()].filter((job) => job.state === state).length;

/** From the jobs like it that have run here: seconds a step, times the steps. */
function estimate(mode: Mode, past: Job[], steps: number, num: number): string {
  if (mode === "tables") return "A table's cost is shown once its first shard is done.";
  const costs = past
    .filter((job) => job.seconds_run > 1)
    .map((job) => job.seconds_run / (mode === "images" ? job.spec.num_steps * job.spec.num_images : job.spec.fit.num_steps))
    .sort((a, b) => a - b);
  if (!costs.length || !Number.isFinite(steps)) return "No job like it has run here yet, so its time is not known.";
  const seconds = costs[Math.floor(costs.length / 2)] * steps * (mode === "images" ? num : 1);
  return `About ${duration(seconds)} of work, going by ${costs.length} ${costs.length === 1 ? "job" : "jobs"} like it.`;
}

function Advanced(props: { groups: Groups; shown: string[]; changes: Record<string, unknown>; onChange: (changes: Record<string, unknown>) => void }) {
  const num = Object.keys(props.changes).length;
  const set = (name: string, value: unknown) => {
    const next = { ...props.changes };
    if (value === undefined) delete next[name];
    else next[name] = value;
    props.onChange(next);
  };
  return (
    <details class="advanced">
      <summary>Advanced settings{num > 0 && ` (${num} changed)`}</summary>
      {props.shown.map((group) => {
        const table = props.groups[group];
        if (!table) return null;
        return (
          <fieldset key={group}>
            <legend>{group}</legend>
            <p class="quiet">{table.about}</p>
            {table.settings
              .filter((one) => one.name !== "images.num_images" && one.name !== "distillation.negative_prompt")
              .map((one) => (
                <One key={one.name} setting={one} value={props.changes[one.name]} onChange={(value) => set(one.name, value)} />
              ))}
          </fieldset>
        );
      })}
    </details>
  );
}

function One({ setting, value, onChange }: { setting: Setting; value: unknown; onChange: (value: unknown) => void }) {
  const id = `set-${setting.name}`;
  const given = value === undefined ? setting.value : value;
  const isChanged = value !== undefined;
  const label = setting.name.split(".")[1].replaceAll("_", " ");
  const about = setting.about && (
    <p class="hint" id={`${id}-about`}>
      {setting.about}
    </p>
  );
  if (typeof setting.value === "boolean")
    return (
      <div class={`one ${isChanged ? "changed" : ""}`}>
        <label class="check">
          <input type="checkbox" checked={Boolean(given)} aria-describedby={about ? `${id}-about` : undefined} onChange={(event) => onChange(event.currentTarget.checked)} />
          {label}
        </label>
        {about}
      </div>
    );
  const isNumber = typeof setting.value === "number";
  return (
    <div class={`one ${isChanged ? "changed" : ""}`}>
      <label for={id}>{label}</label>
      <input
        id={id}
        inputMode={isNumber ? "decimal" : "text"}
        value={typeof given === "string" ? given : JSON.stringify(given)}
        aria-describedby={about ? `${id}-about` : undefined}
        onChange={(event) => {
          const text = event.currentTarget.value.trim();
          if (text === "") return onChange(undefined);
          if (typeof setting.value === "string") return onChange(text);
          try {
            onChange(JSON.parse(text));
          } catch {
            onChange(text);
          }
        }}
      />
      {about}
    </div>
  );
}
