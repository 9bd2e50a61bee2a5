import { render } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { post } from "./api";
import { Compare, Gallery } from "./gallery";
import { Make } from "./make";
import { Queue } from "./queue";
import { Result } from "./result";
import { attempt, enter, store, useStore } from "./store";
import "./style.css";
import { SystemView } from "./system";

const PAGES: [string, string, string][] = [
  ["make", "Make", "M12 5v14M5 12h14"],
  ["queue", "Queue", "M5 7h14M5 12h14M5 17h9"],
  ["gallery", "Gallery", "M5 5h6v6H5zM13 5h6v6h-6zM5 13h6v6H5zM13 13h6v6h-6z"],
  ["system", "System", "M4 18l4-7 4 4 4-9 4 6"],
];

type Theme = "auto" | "light" | "dark";

function App() {
  const { me, isKnown, isLive, toasts, jobs } = useStore();
  const [hash, setHash] = useState(location.hash);
  const main = useRef<HTMLElement>(null);
  const isFirst = useRef(true);
  useEffect(() => {
    const listener = () => setHash(location.hash);
    addEventListener("hashchange", listener);
    void enter();
    return () => removeEventListener("hashchange", listener);
  }, []);
  const [, page = "make", rest = ""] = hash.split("/");
  const name = page || "make";
  useEffect(() => {
    document.title = `${name === "job" ? `Job ${rest}` : name[0].toUpperCase() + name.slice(1)} · DreamKiln studio`;
    if (!isFirst.current) main.current?.focus();
    isFirst.current = false;
    scrollTo(0, 0);
  }, [hash]);
  const numOpen = [...jobs.values()].filter((job) => job.state === "queued" || job.state === "running").length;
  const said = (
    <div class="toasts" role="status" aria-live="polite">
      {toasts.map((toast) => (
        <p key={toast.id} class={toast.kind}>
          {toast.text}
        </p>
      ))}
    </div>
  );
  if (!isKnown) return <main class="login" aria-busy="true" />;
  if (!me)
    return (
      <>
        <Login />
        {said}
      </>
    );
  return (
    <>
      <a class="skip" href="#main" onClick={(event) => (event.preventDefault(), main.current?.focus())}>
        To the content
      </a>
      <header class="top">
        <a class="brand" href="#/make" aria-label="DreamKiln, make something">
          <img src="/favicon.svg" alt="" width="28" height="28" />
          <span>DreamKiln</span>
        </a>
        <nav aria-label="Views">
          {PAGES.map(([id, label, path]) => (
            <a key={id} href={`#/${id}`} aria-current={name === id ? "page" : undefined}>
              <svg viewBox="0 0 24 24" aria-hidden="true">
                <path d={path} fill="none" stroke="currentColor" stroke-width="2" stroke-linecap="round" stroke-linejoin="round" />
              </svg>
              <span>{label}</span>
              {id === "queue" && numOpen > 0 && <b aria-label={`${numOpen} open jobs`}>{numOpen}</b>}
            </a>
          ))}
        </nav>
        <div class="who">
          <span class={`live ${isLive ? "on" : ""}`} role="status">
            <i aria-hidden="true" />
            {isLive ? "live" : "reconnecting"}
          </span>
          <ThemeButton />
          <button
            type="button"
            class="small ghost"
            onClick={async () => {
              await attempt(() => post("/v1/logout"));
              location.reload();
            }}
          >
            <span>
              Leave<span class="wide"> ({me.user})</span>
            </span>
          </button>
        </div>
      </header>
      <main id="main" ref={main} tabIndex={-1}>
        {name === "make" && <Make />}
        {name === "queue" && <Queue />}
        {name === "gallery" && <Gallery />}
        {name === "system" && <SystemView />}
        {name === "job" && <Result key={rest} id={Number(rest)} />}
        {name === "compare" && <Compare ids={rest.split(",").map(Number)} />}
      </main>
      {said}
    </>
  );
}

function ThemeButton() {
  const [theme, setTheme] = useState<Theme>((localStorage.getItem("theme") as Theme) ?? "auto");
  useEffect(() => {
    document.documentElement.dataset.theme = theme;
    localStorage.setItem("theme", theme);
  }, [theme]);
  const next: Record<Theme, Theme> = { auto: "light", light: "dark", dark: "auto" };
  return (
    <button type="button" class="small ghost" aria-label={`Colours: ${theme}; change`} onClick={() => setTheme(next[theme])}>
      {theme === "auto" ? "◐" : theme === "light" ? "☀" : "☾"}
    </button>
  );
}

function Login() {
  const [token, setToken] = useState("");
  const [isBusy, setBusy] = useState(false);
  return (
    <main class="login">
      <form
        class="card"
        onSubmit={async (event) => {
          event.preventDefault();
          setBusy(true);
          if (await attempt(() => post("/v1/login", { token: token.trim() }))) {
            store.isKnown = false;
            await enter();
          }
          setBusy(false);
        }}
      >
        <img src="/favicon.svg" alt="" width="56" height="56" />
        <h1>DreamKiln studio</h1>
        <p class="quiet">
          Your token is in the orchestrator's folder, in the file <code>token</code>; or somebody made one for you with <code>dreamkiln token create</code>.
        </p>
        <div class="field">
          <label for="token">Token</label>
          <input id="token" type="password" autocomplete="current-password" required value={token} onInput={(event) => setToken(event.currentTarget.value)} />
        </div>
        <button type="submit" class="primary" disabled={isBusy}>
          Enter
        </button>
      </form>
    </main>
  );
}

render(<App />, document.getElementById("app")!);
