"""The studio's page in a browser without a screen: every view, desktop and phone, light and dark, with axe-core's findings.

    python -m benchmarks.studio --out outputs/studio

The queue is a scene: its finished jobs hold shapes made of solids and pictures of docs/gallery, because a page's pictures
should not need an hour of fits. Needs chromium and chromedriver (Debian's), and axe-core from studio/node_modules (npm ci).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import trimesh
from PIL import Image

from jobs.events import Progress
from jobs.ledger import Ledger, Submission
from jobs.specs import ImagesSpec, TextTo3DSpec
from nerf3d.mesh import Mesh
from nerf3d.mesh.mesh import vertex_normals
from orchestrator.daemon.controller import Controller
from orchestrator.daemon.http.routes import make_app
from orchestrator.daemon.http.server import ApiServer
from orchestrator.exports import MESH_WRITERS, Placement
from orchestrator.host.state_folder import StateFolder
from orchestrator.scheduling import Capacity

ROOT = Path(__file__).parents[1]
AXE = ROOT / "studio" / "node_modules" / "axe-core" / "axe.min.js"
SIZES = {"desktop": (1360, 900), "phone": (390, 844)}
SECONDS = 300.0

Part = tuple[trimesh.Trimesh, tuple[float, float, float]]


def solid(kind: str, size: Sequence[float], at: Sequence[float]) -> trimesh.Trimesh:
    """A ball (radius), box (sides) or upright can (radius, height) with its middle at `at`; Y is up."""
    if kind == "ball":
        made = trimesh.creation.icosphere(4, 1.0).apply_scale(size)
    elif kind == "box":
        made = trimesh.creation.box(size)
    else:
        made = trimesh.creation.cylinder(size[0], size[1], sections=48)
        made.apply_transform(trimesh.transformations.rotation_matrix(np.pi / 2, [1, 0, 0]))
    return made.apply_translation(at)


RED, WHITE, BLUE, BROWN, GREEN = (0.75, 0.08, 0.06), (0.93, 0.9, 0.85), (0.1, 0.25, 0.75), (0.4, 0.22, 0.1), (0.15, 0.5, 0.2)
SHAPES: dict[str, list[Part]] = {
    "a red mushroom with a white stem": [
        (solid("can", (0.16, 0.7), (0, -0.25, 0)), WHITE),
        (solid("ball", (0.55, 0.32, 0.55), (0, 0.2, 0)), RED),
    ],
    "a blue chair": [
        (solid("box", (0.7, 0.08, 0.7), (0, 0, 0)), BLUE),
        (solid("box", (0.7, 0.7, 0.08), (0, 0.38, -0.31)), BLUE),
        *((solid("box", (0.08, 0.5, 0.08), (x, -0.28, z)), BLUE) for x in (-0.31, 0.31) for z in (-0.31, 0.31)),
    ],
    "a green cactus in a brown pot": [
        (solid("can", (0.3, 0.3), (0, -0.5, 0)), BROWN),
        (solid("ball", (0.2, 0.6, 0.2), (0, 0.05, 0)), GREEN),
        (solid("ball", (0.1, 0.25, 0.1), (0.28, 0.15, 0)), GREEN),
    ],
}


def mesh_of(parts: Sequence[Part]) -> Mesh:
    """The parts as one mesh with colours at its corners."""
    vertices = np.concatenate([shape.vertices for shape, _ in parts])
    starts = np.cumsum([0, *(len(shape.vertices) for shape, _ in parts)])
    faces = np.concatenate([shape.faces + start for (shape, _), start in zip(parts, starts, strict=False)])
    colours = np.concatenate([np.tile(colour, (len(shape.vertices), 1)) for shape, colour in parts])
    return Mesh(vertices, faces, vertex_normals(vertices, faces), colours)


class Scene:
    """An orchestrator whose jobs are what the page shows; nothing runs."""

    def __init__(self, state: Path, *, port: int = 0, workers: Any = None) -> None:
        self.folder = StateFolder(state)
        self.folder.create()
        self.ledger = Ledger.own(self.folder.default_ledger)
        nobody: Any = SimpleNamespace(priors=list, start=None, evict=None)
        self.controller = Controller(
            self.ledger, workers or nobody, Capacity(num_workers=2, memory_bytes=8 * 10**9), self.folder
        )
        app = make_app(self.ledger, self.controller, self.folder, lambda: None)
        self.server = ApiServer(app, host="127.0.0.1", port=port)
        self.server.start()
        self.token = self.folder.token()

    def fill(self) -> None:
        """Three meshes, sixteen pictures, one that runs, one that waits, one that failed."""
        for prompt, parts in SHAPES.items():
            self._finish_mesh(prompt, mesh_of(parts))
        self._finish_pictures("a cyan rocket with a red nose")
        self.running = self._submit(TextTo3DSpec(prompt="a purple teapot", seed=4), settings={"runtime": {"preview_every": 20}})
        self.lease = self.ledger.attempts.start(self.running, "the scene", seconds=3600)
        self.advance(148)
        self._submit(TextTo3DSpec(prompt="a yellow duck"), priority=2)
        failed = self._submit(TextTo3DSpec(prompt="a glass dragon"))
        lease = self.ledger.attempts.start(failed, "the scene", seconds=3600)
        self.ledger.attempts.fail(lease, "collapsed", "The fit ended empty; try another --seed.", retry_at=None)  # type: ignore[arg-type]

    def advance(self, step: int) -> None:
        """The running job's fit, at a step."""
        progress = Progress(
            stage="fit", step=step, total=400, metrics={"loss": 1.0 / (1 + step / 40)}, seconds_left=400.0 - step
        )
        self.lease, _ = self.ledger.attempts.renew(self.lease, seconds=3600, progress=progress)

    def _submit(self, spec: TextTo3DSpec | ImagesSpec, **others: Any) -> int:
        out = self.folder.path / "outputs" / spec.name
        out.mkdir(parents=True, exist_ok=True)
        (answer,) = self.ledger.jobs.submit([Submission.of(spec, out=str(out), user="ada", **others)])
        return answer.id

    def _end(self, job: int, metrics: dict[str, Any]) -> None:
        out = Path(self.ledger.jobs.get(job).out)
        files = {path.name: path.read_bytes() for path in sorted(out.iterdir())}
        found = {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()}
        entries = {name: {"bytes": num, "sha256": digest} for name, (num, digest) in found.items()}
        (out / "manifest.json").write_text(json.dumps({"artefacts": entries}))
        lease = self.ledger.attempts.start(job, "the scene", seconds=60)
        self.ledger.attempts.succeed(lease, metrics=metrics, artefacts=found)

    def _finish_mesh(self, prompt: str, mesh: Mesh) -> None:
        job = self._submit(TextTo3DSpec(prompt=prompt, seed=7))
        out = Path(self.ledger.jobs.get(job).out)
        MESH_WRITERS["glb"](mesh, out / "mesh.glb", Placement(), prompt=prompt)
        for path in (ROOT / "docs" / "gallery").glob("*.webp"):
            if path.stem[3:] in (prompt.replace(" ", "-"), {"a blue chair": "a-purple-chair"}.get(prompt, "")):
                Image.open(path).convert("RGB").save(out / "preview.png")
        if not (out / "preview.png").exists():
            Image.open(ROOT / "docs" / "gallery" / "17-a-pink-cactus-with-a-white-pot.webp").convert("RGB").save(
                out / "preview.png"
            )
        faces = {"num_faces": len(mesh.faces), "num_vertices": len(mesh.vertices)}
        self._end(job, {**faces, "is_watertight": True, "num_components": 1, "prior_score": 0.312, "quality_flags": []})

    def _finish_pictures(self, prompt: str) -> None:
        job = self._submit(ImagesSpec(prompt=prompt, num_images=16, seed=100))
        out = Path(self.ledger.jobs.get(job).out)
        sheet = Image.open(ROOT / "docs" / "pictures" / "rocket_images.webp").convert("RGB")
        side = min(sheet.size) // 4
        for index in range(16):
            left, top = (index % 4) * side, (index // 4) * side
            sheet.crop((left, top, left + side, top + side)).resize((128, 128)).save(out / f"{index:09d}.png")
        sheet.save(out / "grid.png")
        self._end(job, {})

    def close(self) -> None:
        """End the server and give the ledger free."""
        self.server.stop()
        self.ledger.close()


@contextlib.contextmanager
def browser(profile: Path, *, size: tuple[int, int] = SIZES["desktop"]) -> Iterator[Any]:
    """A Chromium without a screen that speaks to nobody but the page's host."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-unsafe-swiftshader",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        f"--user-data-dir={profile}",
        f"--window-size={size[0]},{size[1]}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    driver.set_script_timeout(SECONDS)
    driver.command_executor.client_config.timeout = 600  # software rendering beside other work
    try:
        yield driver
    finally:
        driver.quit()


def wait(driver: Any, script: str, seconds: float = SECONDS) -> Any:
    """What a JavaScript expression is once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := driver.execute_script(f"return ({script})")):
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"{script} was not true within {seconds:.0f} s; the page says: {driver.execute_script(SAID)[:400]}"
            )
        time.sleep(0.1)
    return found


SAID = "return document.body.innerText"


def enter(driver: Any, url: str, token: str) -> None:
    """Log in as a person does."""
    from selenium.webdriver.common.by import By

    driver.get(url)
    wait(driver, "document.querySelector('#token')")
    driver.find_element(By.ID, "token").send_keys(token)
    driver.find_element(By.CSS_SELECTOR, "form button[type=submit]").click()
    wait(driver, "document.querySelector('.live.on')")


def hosts(driver: Any) -> set[str]:
    """Hosts that anything was asked of."""
    from urllib.parse import urlsplit

    found = set()
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            url = message["params"]["request"]["url"]
            if url.startswith(("http:", "https:", "ws:")):
                found.add(str(urlsplit(url).netloc))
    return found


def complaints(driver: Any) -> list[str]:
    """What the console says beyond its notes on software rendering."""
    said = [
        f"{entry['level']}: {entry['message']}"
        for entry in driver.get_log("browser")
        if entry["level"] in ("SEVERE", "WARNING")
    ]
    return [line for line in said if "GPU stall" not in line and "swiftshader" not in line.lower()]


def violations(driver: Any) -> list[str]:
    """axe-core's findings on the page as it stands."""
    driver.execute_script(AXE.read_text(encoding="utf-8"))
    found = driver.execute_async_script(
        "const done = arguments[0]; axe.run(document, {resultTypes: ['violations']}).then(r => done(r.violations))"
    )
    return [f"{one['id']}: {one['help']} ({one['nodes'][0]['target']})" for one in found]


VIEWS = {
    "make": ("#/make", "document.querySelector('.advanced fieldset') && document.querySelector('aside .facts')"),
    "queue": ("#/queue", "document.querySelectorAll('.job').length >= 6"),
    "mesh": ("#/job/1", "document.querySelector('.orbit[data-status=ready]')"),
    "pictures": ("#/job/4", "document.querySelectorAll('.pictures img').length == 16"),
    "gallery": ("#/gallery", "document.querySelectorAll('.gallery li').length >= 4"),
    "compare": ("#/compare/1,2,3", "document.querySelectorAll('.orbit[data-status=ready]').length == 3"),
    "system": ("#/system", "document.querySelector('.cards')"),
}


def main(arguments: list[str] | None = None) -> int:
    """Take every picture, print what axe and the console say; 1 where they say anything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/studio"))
    parser.add_argument("--views", nargs="*", default=list(VIEWS), choices=list(VIEWS))
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        scene = Scene(Path(temporary) / "state")
        scene.fill()
        host = scene.server.url.partition("//")[2]
        try:
            with browser(Path(temporary) / "profile") as driver:
                enter(driver, scene.server.url, scene.token)
                for device, theme in (("desktop", "light"), ("phone", "dark")):
                    width, height = SIZES[device]
                    mobile = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": device == "phone"}
                    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", mobile)
                    driver.execute_script(f"localStorage.theme = document.documentElement.dataset.theme = '{theme}'")
                    for name in given.views:
                        path, ready = VIEWS[name]
                        driver.execute_script(f"location.hash = '{path}'")
                        wait(driver, ready)
                        time.sleep(1.0)
                        driver.save_screenshot(str(given.out / f"{name}-{device}.png"))
                        found = [f"{name} on {device}: {one}" for one in violations(driver)]
                        print("\n".join(found) or f"{name} on {device}: nothing found", flush=True)
                        problems += found
                problems += complaints(driver)
                problems += [f"a request went to {other}" for other in hosts(driver) - {host}]
        finally:
            scene.close()
    print(f"In all: {len(problems)} findings.", *problems, sep="\n")
    return int(bool(problems))


if __name__ == "__main__":
    raise SystemExit(main())
