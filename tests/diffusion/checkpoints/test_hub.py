"""Names on the hub, through the hub's own client and a real server on this machine that speaks its protocol."""

import hashlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from diffusion.checkpoints import hub
from diffusion.checkpoints.hub import fetch, needed
from diffusion.checkpoints.source import HubName, Source
from diffusion.prior import Prior, PriorError
from tests.diffusion.checkpoints.published import Saved

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Enough of the hub to download from: repository information and files of one commit, also known as main."""

    repositories: ClassVar[dict[str, Path]] = {}
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def answer(self, *, with_body: bool) -> None:
        path = self.path.split("?")[0].lstrip("/")
        self.asked.append(path)
        for name, folder in self.repositories.items():
            if path.startswith(f"api/models/{name}"):
                files = [{"rfilename": file.relative_to(folder).as_posix()} for file in folder.rglob("*") if file.is_file()]
                return self.send(json.dumps({"id": name, "sha": COMMIT, "siblings": files}).encode(), {}, with_body)
            for revision in ("main", COMMIT):
                file = folder / path.removeprefix(f"{name}/resolve/{revision}/")
                if path.startswith(f"{name}/resolve/{revision}/") and file.is_file():
                    content = file.read_bytes()
                    tag = hashlib.sha256(content).hexdigest()
                    return self.send(content, {"X-Repo-Commit": COMMIT, "ETag": f'"{tag}"'}, with_body)
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, content: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Silent."""


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """An empty hub, an empty cache, and no other network."""
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    Hub.repositories, Hub.asked = {}, []
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(variable, "*")
    yield address
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_name_is_downloaded_once_and_then_found_without_the_network(endpoint: str, saved: Saved) -> None:
    folder = saved("sd15")[1]
    Hub.repositories = {"someone/sd": folder}
    prior = Prior.load("someone/sd@main")
    assert prior.name == f"someone/sd@{COMMIT[:12]}"
    assert prior.weights_hash == Prior.load(folder).weights_hash
    assert not any("tables" in path for path in Hub.asked)
    Hub.asked.clear()
    assert fetch(HubName("someone/sd", revision=COMMIT)).commit == COMMIT
    assert fetch(HubName("someone/sd"), offline=True).commit == COMMIT
    assert Hub.asked == []
    Hub.repositories = {}
    assert fetch(HubName("someone/sd")).commit == COMMIT


def test_a_commit_that_another_program_fetched_in_part_is_completed(endpoint: str, saved: Saved) -> None:
    Hub.repositories = {"someone/sdxl": saved("sdxl")[1]}
    path = fetch(HubName("someone/sdxl", revision=COMMIT)).path
    (tower,) = (path / "text_encoder_2").glob("*.safetensors")
    shutil.rmtree(path / "tokenizer_2")
    assert fetch(HubName("someone/sdxl", revision=COMMIT)).path == path and (path / "tokenizer_2/merges.txt").is_file()
    tower.unlink()
    assert fetch(HubName("someone/sdxl", revision=COMMIT)).path == path and tower.is_file()
    Hub.asked.clear()
    fetch(HubName("someone/sdxl", revision=COMMIT))
    assert Hub.asked == []


def test_one_file_of_a_repository(endpoint: str, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    (repository / "styles").mkdir(parents=True)
    (repository / "styles/ink.safetensors").write_bytes(b"weights")
    Hub.repositories = {"someone/loras": repository}
    name = HubName.parse(f"someone/loras/styles/ink.safetensors@{COMMIT}")
    assert name == HubName("someone/loras", "styles/ink.safetensors", COMMIT)
    fetched = fetch(name)
    assert fetched.path.read_bytes() == b"weights" and fetched.commit == COMMIT


def test_mirrors_are_asked_after_the_hub(endpoint: str, saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    Hub.repositories = {"stabilityai/stable-diffusion-2-1": saved("sd2-v")[1]}
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv(hub.MIRRORS_VARIABLE, f"http://127.0.0.1:9, {endpoint}")
    assert Prior.load("stabilityai/stable-diffusion-2-1").schedule.prediction_type == "v_prediction"


def test_a_name_that_left_the_hub_says_so_and_what_works(endpoint: str) -> None:
    with pytest.raises(
        PriorError,
        match=r"stable-diffusion-2-1-base is no path here and could not be had by name \(http.*RepositoryNotFoundError.*"
        r"Stability AI took Stable Diffusion 2.x off the Hugging Face hub in November 2025; give the path of a copy",
    ):
        Prior.load("stabilityai/stable-diffusion-2-1-base")
    with pytest.raises(PriorError, match="use stable-diffusion-v1-5/stable-diffusion-v1-5, which has the same files"):
        Prior.load("runwayml/stable-diffusion-v1-5")


def test_offline_says_what_is_missing(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with pytest.raises(PriorError, match=r"someone/sd is not in the cache .*, and the network is off; download it once"):
        Prior.load("someone/sd?offline=true")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PriorError, match="and the network is off"):
        Prior.load("someone/sd")
    assert Hub.asked == []


def test_only_what_is_read_is_downloaded() -> None:
    files = {"model_index.json", "README.md", "unet/config.json", "vae/config.json", "tokenizer/vocab.json"}
    files |= {"tokenizer/merges.txt", "scheduler/scheduler_config.json", "text_encoder/config.json"}
    heavy = {f"{part}/diffusion_pytorch_model{end}" for part in ("unet", "vae") for end in (".safetensors", ".bin")}
    heavy |= {"unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.non_ema.safetensors"}
    heavy |= {"text_encoder/model.safetensors", "text_encoder/pytorch_model.bin", "safety_checker/model.safetensors"}
    expected = (files - {"README.md"}) | {f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae")}
    assert set(needed(files | heavy)) == expected | {"text_encoder/model.safetensors"}
    shards = {f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    index = {"unet/diffusion_pytorch_model.safetensors.index.json", "unet/diffusion_pytorch_model.fp16.safetensors"}
    assert set(needed(shards | index)) == shards | {"unet/diffusion_pytorch_model.safetensors.index.json"}


def test_sources_are_read_from_one_line(tmp_path: Path) -> None:
    options = "prediction_type=v_prediction&dtype=float16&lora=x.safetensors:0.5&lora=C:/y%26z.safetensors&vae=t&offline=true"
    assert Source.parse(f"a/b@v1?{options}") == Source(
        "a/b@v1",
        prediction_type="v_prediction",
        dtype="float16",
        loras=(("x.safetensors", 0.5), ("C:/y&z.safetensors", 1.0)),
        vae="t",
        offline=True,
    )
    assert Source.parse("a?embedding=w.pt:<cat>&embedding=v.pt").embeddings == (("w.pt", "<cat>"), ("v.pt", None))
    odd_name = "my style (v1.2) & more+.safetensors"
    assert Source.parse(f"a?lora={odd_name}:0.5&vae=t").loras == ((odd_name, 0.5),)
    assert Source.parse("a?lora=b&c.safetensors&vae=t&u") == Source("a", loras=(("b&c.safetensors", 1.0),), vae="t&u")
    with pytest.raises(PriorError, match=r"the scale of the LoRA ink.safetensors is '0,8'; write it with a point, 0.8"):
        Source.parse("a?lora=ink.safetensors:0,8")
    odd = tmp_path / "what?really=yes"
    odd.mkdir()
    assert Source.parse(str(odd)) == Source(str(odd))
    with pytest.raises(PriorError, match=r"has the option 'scale'; expected one of prediction_type, dtype, averaged, lora"):
        Source.parse("a?scale=3")
    with pytest.raises(PriorError, match="the prior's prediction_type is 'v'; expected one of epsilon, v_prediction"):
        Source.parse("a?prediction_type=v")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("controlnet=canny.safetensors", "ControlNets are not here; give a picture"),
        ("ip_adapter=ip.bin", "IP-Adapters are not here; give a picture"),
        ("IP-Adapter=ip.bin", "IP-Adapters are not here"),
        ("refiner=sd_xl_refiner_1.0.safetensors", "SDXL's refiner is not here; take more --steps"),
        ("freeu=1.1", "FreeU is not here"),
        ("pag_scale=3", r"perturbed-attention guidance \(PAG\) is not here; use --guidance-scale"),
    ],
)
def test_what_is_not_here_is_refused_by_name(option: str, message: str) -> None:
    with pytest.raises(PriorError, match=message):
        Source.parse(f"a?{option}")


@pytest.mark.parametrize("location", ["./missing", "/no/such/folder", "one-word", "a/b/c/d"])
def test_paths_that_are_not_there_are_no_names(location: str) -> None:
    with pytest.raises(PriorError, match="is neither 'toybox' nor a folder, a file or a name on the hub"):
        Prior.load(location)


def test_a_line_is_checked_without_loading_torch(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    Source.parse(f"{tmp_path / 'model'}?lora=someone/loras/ink.safetensors").check()
    with pytest.raises(PriorError, match=r"gone.safetensors' is neither"):
        Source.parse(f"{tmp_path / 'model'}?lora={tmp_path / 'gone.safetensors'}").check()
    code = "import sys, diffusion.checkpoints.source; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
