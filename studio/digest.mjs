// Writes sha256 over the page's sources into the built page; tests/orchestrator/daemon/test_studio.py computes the same.
import { createHash } from "node:crypto";
import { readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const files = ["index.html", "package-lock.json", "package.json", "tsconfig.json", "vite.config.js"];
for (const folder of ["public", "src"]) for (const name of readdirSync(folder)) files.push(`${folder}/${name}`);
const hash = createHash("sha256");
for (const name of files.filter((name) => statSync(name).isFile()).sort()) hash.update(`${name}\0`).update(readFileSync(name)).update("\0");
writeFileSync(join("../orchestrator/daemon/http/studio", "sources.sha256"), `${hash.digest("hex")}\n`);
