"""preview.png while images are drawn: what it shows, when it goes, and that it changes nothing else."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from jobs.errors import Interrupted
from jobs.events import ImageReady, ImagesPreview
from jobs.prior_client import GenerateRequest, PicturePreview
from jobs.specs import ImagesSpec
from orchestrator.host.progress_display import SilentDisplay
from orchestrator.prior.local import load_prior
from orchestrator.prior.resident import ResidentPrior
from orchestrator.run.perform import perform
from orchestrator.runtimes.base import Attempt
from orchestrator.runtimes.ray_runtime import RayRuntime
from orchestrator.settings.groups import RuntimeSettings
from tests.fakes import load_fake_prior

REQUEST = GenerateRequest(prompts=("a red table", "a blue table", "a red table"), seeds=(5, 6, 7), num_steps=6)
SPEC = ImagesSpec(prompt="a blue ball", num_images=3, num_steps=5, chunk_size=2)
INLINE = RuntimeSettings(kind="inline", num_threads=1, preview_every=2)


def watch(drawing):
    """(previews, pictures)"""
    previews = []
    while True:
        try:
            previews.append(next(drawing))
        except StopIteration as finished:
            return previews, finished.value


@pytest.mark.parametrize("strict", [False, True])
def test_previews_come_in_time_and_do_not_change_the_pictures(tiny_prior, strict):
    request = dataclasses.replace(REQUEST, strict=strict)
    alone = load_prior(str(tiny_prior))
    previews, pictures = watch(alone.generate_with_previews(request, every=2))
    assert (pictures == alone.generate(request)).all()
    shown = sorted((preview.steps, preview.first + n) for preview in previews for n in range(len(preview.images)))
    # At step 6 they are finished.
    assert shown == [(steps, n) for steps in (2, 4) for n in range(3)]
    last = {preview.first + n: image for preview in previews for n, image in enumerate(preview.images)}
    nearest = [np.abs(last[n].astype(int) - pictures).mean(axis=(1, 2, 3)).argmin() for n in range(3)]
    assert nearest == [0, 1, 2]
    resident = ResidentPrior(alone, num_threads=1)
    with ThreadPoolExecutor() as pool:
        beside = pool.submit(resident.generate, REQUEST, job="another")
        again, same = watch(resident.generate_with_previews(request, every=2, job="watched"))
        beside.result()
    resident.close()
    # Beside another job the parts of a request advance at their own pace, which a busy machine decides.
    assert sorted((preview.steps, preview.first) for preview in again) == sorted((p.steps, p.first) for p in previews)
    assert np.abs(same.astype(int) - pictures).max() <= (0 if strict else 1)


def test_who_stops_watching_stops_the_drawing(tiny_prior):
    resident = ResidentPrior(load_prior(str(tiny_prior)), num_threads=1, measure=False)
    drawing = resident.generate_with_previews(dataclasses.replace(REQUEST, num_steps=1000), every=1, job="watched")
    assert next(drawing).steps == 1
    drawing.close()
    # Whoever asks next is alone with the engine.
    resident.generate(dataclasses.replace(REQUEST, num_steps=2), job="next")
    assert resident.figures.forwards < 500
    resident.close()


class Watching(SilentDisplay):
    """Keeps what is in the folder at each event; presses Ctrl-C at the n-th version of the preview, if asked to."""

    def __init__(self, folder, stop_at: int = 0) -> None:
        self.folder, self.stop_at = folder, stop_at
        self.pages: list[tuple[int, int]] = []
        self.sentences: list[str] = []

    def event(self, progress) -> None:
        if "denoising_steps" in progress.metrics:
            with Image.open(self.folder / "preview.png") as page:
                self.pages.append(page.size)
            if len(self.pages) == self.stop_at:
                raise KeyboardInterrupt

    def message(self, text: str, level: str = "info") -> None:
        self.sentences.append(text)


def test_a_job_shows_its_unfinished_images_in_a_file_that_goes(tmp_path):
    display = Watching(tmp_path / "shown")
    perform(SPEC, out=tmp_path / "shown", runtime=INLINE, display=display, load_prior=load_fake_prior)
    # Two chunks, each at steps 2 and 4: two images side by side, then one.
    assert display.pages == [(2 * 16 + 12, 16 + 8)] * 2 + [(16 + 8, 16 + 8)] * 2
    (sentence,) = {text for text in display.sentences if "preview.png" in text}
    assert sentence.startswith(f"{tmp_path / 'shown' / 'preview.png'} shows the unfinished images")
    perform(SPEC, out=tmp_path / "plain", runtime=RuntimeSettings(kind="inline", num_threads=1), load_prior=load_fake_prior)
    names = [sorted(path.name for path in (tmp_path / folder).iterdir()) for folder in ("shown", "plain")]
    assert names[0] == names[1] and "preview.png" not in names[0]
    for name in (f"{index:09d}.png" for index in range(3)):
        assert (tmp_path / "shown" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_an_interrupted_job_leaves_no_unfinished_images(tmp_path):
    with pytest.raises(Interrupted, match="Stopped with 0 of 3 images"):
        perform(SPEC, out=tmp_path, runtime=INLINE, display=Watching(tmp_path, stop_at=2), load_prior=load_fake_prior)
    assert not (tmp_path / "preview.png").exists()
    outcome = perform(SPEC, out=tmp_path, runtime=INLINE, load_prior=load_fake_prior)
    assert "grid.png" in outcome.artefacts and not (tmp_path / "preview.png").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # ray opens files at interpreter exit and warns in its own modules
def test_previews_stream_out_of_the_priors_actor(tiny_prior):
    with RayRuntime(load_prior, str(tiny_prior), num_threads=1) as runtime:
        previews, pictures = watch(runtime.prior().generate_with_previews(REQUEST, every=3))
        assert all(isinstance(preview, PicturePreview) for preview in previews)
        assert [(preview.steps, len(preview.images)) for preview in previews] == [(3, 3)]
        assert (pictures == load_prior(str(tiny_prior)).generate(REQUEST)).all()
        spec = ImagesSpec(prompt="a red table", num_images=2, num_steps=4, prior=str(tiny_prior))
        events = list(runtime.run(Attempt(spec, preview_every=2)))
    kinds = [type(event) for event in events if isinstance(event, ImagesPreview | ImageReady)]
    assert kinds == [ImagesPreview, ImageReady, ImageReady]


def test_a_table_shows_its_unfinished_pictures_too(tmp_path, monkeypatch):
    from orchestrator.batch.storage.stores import LocalStore
    from tests.orchestrator.batch.batch_fakes import contents, run, write_table

    table, pages = write_table(tmp_path / "t.jsonl", 6, num_steps=dict.fromkeys(range(6), 5)), []
    put = LocalStore.put

    def noticing(store, files):
        put(store, files)
        if "preview.png" in files:
            with Image.open(tmp_path / "shown" / "preview.png") as page:
                pages.append(page.size)

    monkeypatch.setattr(LocalStore, "put", noticing)
    display = Watching(tmp_path / "shown")
    run(table, tmp_path / "shown", runtime=INLINE, display=display, load_prior=load_fake_prior)
    # Shards of five rows and one, chunks of four: each chunk at steps 2 and 4.
    assert pages == [(2 * 16 + 12, 2 * 16 + 12)] * 2 + [(16 + 8, 16 + 8)] * 4
    assert f"{tmp_path / 'shown'}/preview.png shows unfinished pictures; it goes when they are finished." in display.sentences
    run(table, tmp_path / "plain", load_prior=load_fake_prior)
    assert contents(tmp_path / "shown") == contents(tmp_path / "plain")
