import { useEffect, useState } from "preact/hooks";
import { get } from "./api";
import { attempt } from "./store";
import { ago, bytes, Card, duration, number } from "./ui";

interface System {
  uptime_seconds: number;
  jobs: Record<string, number>;
  num_workers: number;
  num_running: number;
  memory_bytes: number;
  machine_bytes: number;
  free_bytes: number;
  num_cores: number;
  device: string;
  longest_wait_seconds: number;
  priors: { source: string; memory_bytes: number; last_used_at: number }[];
  mean_run_seconds: number | null;
  failures: Record<string, number>;
  users: { name: string; weight: number; seconds: number }[];
}

export function SystemView() {
  const [found, setFound] = useState<System | null>(null);
  useEffect(() => {
    const load = () => attempt(async () => setFound(await get<System>("/v1/system")));
    void load();
    const timer = setInterval(load, 5000);
    return () => clearInterval(timer);
  }, []);
  if (!found) return <p class="nothing">Loading…</p>;
  const used = found.machine_bytes - found.free_bytes;
  const worked = found.users.reduce((sum, user) => sum + user.seconds, 0) || 1;
  return (
    <section aria-labelledby="system-title">
      <div class="bar">
        <h1 id="system-title">System</h1>
        <p class="quiet">up for {duration(found.uptime_seconds)}</p>
      </div>
      <div class="cards">
        <Card title="Machine">
          <dl class="facts">
            <dt>Device</dt>
            <dd>{found.device}</dd>
            <dt>Cores</dt>
            <dd>{found.num_cores}</dd>
            <dt>Memory</dt>
            <dd>
              {bytes(used)} of {bytes(found.machine_bytes)}
            </dd>
            <dt>For jobs and priors</dt>
            <dd>{bytes(found.memory_bytes)}</dd>
            <dt>Workers</dt>
            <dd>
              {found.num_running} of {found.num_workers} busy
            </dd>
          </dl>
          <meter min="0" max={found.machine_bytes} high={found.machine_bytes * 0.85} value={used} aria-label="Memory in use" />
        </Card>
        <Card title="Jobs">
          <dl class="facts">
            {Object.entries(found.jobs).map(([state, num]) => (
              <>
                <dt>{state}</dt>
                <dd>{number(num)}</dd>
              </>
            ))}
          </dl>
          <p class="quiet">
            {found.mean_run_seconds != null && `A run took ${duration(found.mean_run_seconds)} on average today. `}
            {found.longest_wait_seconds > 1 && `The longest wait now is ${duration(found.longest_wait_seconds)}.`}
          </p>
        </Card>
        <Card title="Resident priors">
          {found.priors.length === 0 && <p class="quiet">None; the first job that needs one loads it.</p>}
          <ul class="files">
            {found.priors.map((prior) => (
              <li key={prior.source}>
                <span>{prior.source}</span>
                <span class="quiet">
                  {bytes(prior.memory_bytes)}, used {ago(prior.last_used_at)}
                </span>
              </li>
            ))}
          </ul>
        </Card>
        <Card title="Shares">
          <ul class="shares">
            {found.users.map((user) => (
              <li key={user.name}>
                <span>{user.name}</span>
                <meter min="0" max="1" value={user.seconds / worked} aria-label={`Share of ${user.name}`} />
                <span class="quiet">
                  weight {user.weight}, {duration(user.seconds)} today
                </span>
              </li>
            ))}
          </ul>
        </Card>
        <Card title="Failures today, by cause">
          {Object.keys(found.failures).length === 0 ? (
            <p class="good">None.</p>
          ) : (
            <dl class="facts">
              {Object.entries(found.failures).map(([kind, num]) => (
                <>
                  <dt>{kind}</dt>
                  <dd>{num}</dd>
                </>
              ))}
            </dl>
          )}
        </Card>
      </div>
    </section>
  );
}
