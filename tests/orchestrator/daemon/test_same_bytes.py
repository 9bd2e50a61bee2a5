"""One spec and seed by every door of a real orchestrator: OpenAI's client, curl, `dreamkiln --url` and the page end alike."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

from benchmarks import studio
from orchestrator.daemon.http.tokens import TokenBook
from orchestrator.host.state_folder import StateFolder
from tests.orchestrator.conftest import COMMAND, command_environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("chromedriver") and shutil.which("curl")), reason="needs chromium and curl"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # selenium leaves its sockets to the collector
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
PROMPT = "a cyan rocket with a red nose"
BYTES = """
const [path, done] = arguments;
fetch(path).then(r => r.arrayBuffer()).then(a => {
  let text = ''; for (const byte of new Uint8Array(a)) text += String.fromCharCode(byte); done(btoa(text));
});
"""


class Kiln:
    """A real orchestrator, and its doors: each with a user of its own, because one user's equal jobs would share a folder."""

    def __init__(self, folder: Path, up: dict[str, Any]) -> None:
        self.folder, self.url = folder, up["url"]
        book = TokenBook(StateFolder(folder / "state"))
        self.tokens = {door: book.create(door, scope="submit") for door in ("openai", "curl", "command", "page")}

    def curl(self, path: str, *arguments: str) -> bytes:
        """The body of an answer of 2xx."""
        command = ["curl", "-sS", "--fail-with-body", f"{self.url}{path}", "-H", f"Authorization: Bearer {self.tokens['curl']}"]
        return subprocess.run([*command, *arguments], check=True, capture_output=True, timeout=60).stdout

    def by_curl(self, path: str, form: dict[str, Any], names: list[str]) -> tuple[dict[str, Any], list[bytes]]:
        """The job and its files."""
        made = json.loads(self.curl(path, "--json", json.dumps(form)))
        self.curl(f"/v1/jobs/{made['id']}/events", "-N", "--max-time", "1000")  # the stream ends with the job
        return made["job"], [self.curl(f"/v1/jobs/{made['id']}/files/{name}") for name in names]

    def by_command(self, *arguments: str, names: list[str]) -> list[bytes]:
        """The command line on another machine: another folder, another state, the address and the token alone."""
        out = self.folder / f"elsewhere-{len(list(self.folder.glob('elsewhere-*')))}"
        there = {
            "DREAMKILN_URL": self.url,
            "DREAMKILN_TOKEN": self.tokens["command"],
            "DREAMKILN_STATE": str(self.folder / "none"),
        }
        done = subprocess.run(
            [*COMMAND, *arguments, "--out", str(out)],
            env=command_environment() | there,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=1000,
        )
        assert done.returncode == 0, done.stderr
        return [(out / name).read_bytes() for name in names]

    def by_page(self, driver: Any, kind: str, fields: dict[str, str], names: list[str]) -> tuple[dict[str, Any], list[bytes]]:
        """Fill in the form, send it, see what comes, download it as the page's links do."""
        from selenium.webdriver.common.by import By
        from selenium.webdriver.common.keys import Keys

        driver.execute_script("location.hash = '#/make'")
        studio.wait(driver, "document.querySelector('.segmented input[name=mode]')")
        labels = {"images": "Pictures", "text-to-3d": "3D object"}
        driver.find_element(By.XPATH, f"//label[normalize-space()='{labels[kind]}']").click()
        driver.execute_script("document.querySelector('.advanced').open = true")
        for name, value in fields.items():
            studio.wait(driver, f'document.getElementById("{name}")')
            field = driver.find_element(By.ID, name)
            field.send_keys(Keys.CONTROL, "a")
            field.send_keys(value, Keys.TAB)
        driver.find_element(By.CSS_SELECTOR, "form.hero button[type=submit]").click()
        number = int(studio.wait(driver, "location.hash.startsWith('#/job/') && location.hash.split('/')[2]"))
        if kind == "text-to-3d":
            self._watch_the_fit(driver)
        shown = {"images": ".pictures li:nth-child(2) img", "text-to-3d": ".orbit[data-status=ready]"}
        studio.wait(driver, f"document.querySelector('{shown[kind]}') && document.querySelector('.badge.succeeded')", 1000)
        links = [driver.find_element(By.CSS_SELECTOR, f".files a[href$='/{name}']").get_attribute("href") for name in names]
        files = [base64.b64decode(driver.execute_async_script(BYTES, link)) for link in links]
        return json.loads(self.curl(f"/v1/jobs/{number}"))["job"], files

    def _watch_the_fit(self, driver: Any) -> None:
        """Views, step and curve of the object while it is made."""
        look = "document.querySelector('.waiting img.look')"
        studio.wait(driver, f"{look}?.complete && {look}.naturalWidth > 0 && document.querySelector('.waiting .curve')", 600)
        seen = driver.execute_script("return document.querySelector('.waiting .progress').innerText")
        assert "fit" in seen and "of 60" in seen, seen
        driver.save_screenshot(str(self.folder / "fit.png"))


@pytest.fixture(scope="module")
def kiln(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kiln]:
    folder = tmp_path_factory.mktemp("kiln")

    def call(*arguments: str) -> dict[str, Any]:
        command = [*COMMAND, *arguments, "--state", str(folder / "state"), "--json"]
        done = subprocess.run(command, env=command_environment(), cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.strip().splitlines()[-1])

    try:
        yield Kiln(folder, call("up", "--num-workers", "2"))
    finally:
        with contextlib.suppress(AssertionError):
            call("down")


@pytest.fixture(scope="module")
def page(kiln: Kiln) -> Iterator[Any]:
    with studio.browser(kiln.folder / "profile") as driver:
        studio.enter(driver, kiln.url, kiln.tokens["page"])
        yield driver
        assert studio.complaints(driver) == [] and studio.hosts(driver) == {kiln.url.partition("//")[2]}


def test_two_pictures_by_four_doors_are_the_same_files(kiln: Kiln, page: Any):
    names = ["000000000.png", "000000001.png"]
    extra = {"seed": 11, "steps": 6, "guidance_scale": 3.0, "negative_prompt": "a red house"}
    with openai.OpenAI(base_url=f"{kiln.url}/v1", api_key=kiln.tokens["openai"], timeout=600) as client:
        answer = client.images.generate(model="toybox", prompt=PROMPT, n=2, size="64x64", extra_body=extra)  # type: ignore[call-overload]
    by_openai = [base64.b64decode(one.b64_json) for one in answer.data]
    form = {"prompt": PROMPT, "num_images": 2, "seed": 11, "num_steps": 6, "guidance_scale": 3.0}
    form["negative_prompt"] = "a red house"
    job, by_curl = kiln.by_curl("/v1/images", form, names)
    options = ["--num-images", "2", "--seed", "11", "--steps", "6", "--guidance-scale", "3", "--negative-prompt", "a red house"]
    by_command = kiln.by_command("images", PROMPT, *options, names=names)
    fields = {"prompt": PROMPT, "seed": "11", "count": "2", "negative": "a red house"}
    fields |= {"set-images.num_steps": "6", "set-images.guidance_scale": "3"}
    shown, by_page = kiln.by_page(page, "images", fields, names)
    assert shown["id"] != job["id"] and shown["fingerprint"] == job["fingerprint"]
    pixels = [np.asarray(Image.open(io.BytesIO(data))) for data in by_curl]
    assert pixels[0].shape == (64, 64, 3) and pixels[0].std() > 10 and not np.array_equal(*pixels)
    for other in (by_openai, by_command, by_page):
        assert other == by_curl
    jobs = [job for job in json.loads(kiln.curl("/v1/jobs?kind=images"))["jobs"] if job["fingerprint"] == shown["fingerprint"]]
    assert len(jobs) == len({job["out"] for job in jobs}) == 4 and {job["metrics"]["did"] for job in jobs} == {"start"}


def test_a_mesh_by_three_doors_is_the_same_file_and_is_seen_while_it_is_made(kiln: Kiln, page: Any):
    names = ["mesh.glb"]
    few = {
        "fit.num_steps": 60,
        "mesh.resolution": 48,
        "mesh.max_faces": 5000,
        "mesh.texture_size": 0,
        "export.turntable_frames": 0,
    }
    form = {"prompt": PROMPT, "preset": "default", "seed": 5, "settings": few}
    _, by_curl = kiln.by_curl("/v1/text-to-3d", form, names)
    given = [f"{name}={value}" for name, value in few.items()]
    by_command = kiln.by_command("text-to-3d", PROMPT, *given, "--seed", "5", names=names)
    fields = {"prompt": PROMPT, "seed": "5"} | {f"set-{name}": str(value) for name, value in few.items()}
    _, by_page = kiln.by_page(page, "text-to-3d", fields, names)
    assert by_curl[0].startswith(b"glTF") and len(by_curl[0]) > 10_000
    assert len({hashlib.sha256(data[0]).hexdigest() for data in (by_curl, by_command, by_page)}) == 1
    if shown := os.environ.get("DREAMKILN_SHOWN"):
        shutil.copy(kiln.folder / "fit.png", shown)
