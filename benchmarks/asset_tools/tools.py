"""The tools themselves, each as a function that takes files and says what it found."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import subprocess
import threading
import urllib.parse
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
VALIDATOR = HERE.parents[1] / "tests" / "gltf_validator"
FOV_DEGREES = 40.0


def missing_tools() -> list[str]:
    """Programs that are not installed, as Debian names them."""
    programs = {"blender": "blender", "prusa-slicer": "prusa-slicer", "chromium": "chromium", "node": "nodejs", "npm": "npm"}
    return [package for program, package in programs.items() if shutil.which(program) is None]


def install_node_packages(folder: Path) -> None:
    """The glTF validator and three.js into `folder`/node_modules."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(VALIDATOR / "validate.mjs", folder / "validate.mjs")
    shutil.copyfile(HERE / "three_view.html", folder / "three_view.html")
    (folder / "package.json").write_text('{"private": true, "type": "module"}\n')
    command = [
        "npm",
        "install",
        "--no-audit",
        "--no-fund",
        "--loglevel=error",
        "gltf-validator@2.0.0-dev.3.10",
        "three@0.170.0",
    ]
    subprocess.run(command, cwd=folder, check=True, timeout=300)


def khronos_issues(path: Path, node: Path) -> list[str]:
    """Errors and warnings of the Khronos glTF validator; its hints are not counted."""
    done = subprocess.run(
        ["node", "validate.mjs", str(path)], cwd=node, check=True, capture_output=True, text=True, timeout=120
    )
    return [issue["message"] for issue in json.loads(done.stdout)["issues"]["messages"] if issue["severity"] <= 1]


def usd_findings(path: Path) -> list[str]:
    """What UsdValidation's validators say, all of them."""
    from pxr import Usd, UsdValidation

    validators = UsdValidation.ValidationRegistry().GetOrLoadAllValidators()
    return [found.GetMessage() for found in UsdValidation.ValidationContext(validators).Validate(Usd.Stage.Open(str(path)))]


def slice_for_printing(path: Path, folder: Path) -> str:
    """What prusa-slicer says against a file that it cannot slice; empty where it made G-code."""
    made = folder / f"{path.name}.gcode"
    command = ["prusa-slicer", "--export-gcode", "--center", "100,100", "--support-material", "--output", str(made), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode == 0 and made.exists() and made.stat().st_size > 1000:
        return ""
    return (done.stderr or done.stdout).strip()[-300:] or "no G-code"


def blender_views(files: list[Path], poses: np.ndarray, folder: Path, *, size: int, lit: bool = False) -> dict[str, np.ndarray]:
    """File name -> (V, size, size, 3) uint8: each mesh in Blender from the cameras (V, 4, 4), unlit on white."""
    names = {path: [str(folder / f"blender-{path.name}-{view}.png") for view in range(len(poses))] for path in files}
    job = {
        "size": size,
        "fov_degrees": FOV_DEGREES,
        "lit": lit,
        "cameras": poses.tolist(),
        "files": [[str(path), pictures] for path, pictures in names.items()],
    }
    (folder / "blender.json").write_text(json.dumps(job))
    command = ["blender", "-b", "--python-exit-code", "1", "--python", str(HERE / "blender_views.py"), "--"]
    done = subprocess.run([*command, str(folder / "blender.json")], capture_output=True, text=True, timeout=1800, check=False)
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip()[-600:]
        raise RuntimeError(f"Blender drew nothing (Debian's also needs the package python3-numpy): {said}")
    return {path.name: np.stack([_read(Path(name)) for name in pictures]) for path, pictures in names.items()}


def three_views(files: list[Path], poses: np.ndarray, folder: Path, node: Path, *, size: int) -> dict[str, np.ndarray]:
    """The views that three.js draws in a headless Chromium; the files lie in one folder."""
    served = node / "served"
    shutil.rmtree(served, ignore_errors=True)
    shutil.copytree(files[0].parent, served)
    handler = functools.partial(_Quiet, directory=str(node))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        drawn = {}
        for path in files:
            pictures = []
            for view, pose in enumerate(poses):
                picture = folder / f"three-{path.name}-{view}.png"
                numbers = ",".join(f"{number:.7g}" for number in pose.reshape(-1))
                wanted = {"file": f"served/{path.name}", "pose": numbers, "fov": FOV_DEGREES, "size": size}
                query = urllib.parse.urlencode(wanted)
                pictures.append(_chromium(f"http://127.0.0.1:{server.server_port}/three_view.html?{query}", picture, size=size))
            drawn[path.name] = np.stack(pictures)
        server.shutdown()
    return drawn


def _chromium(url: str, picture: Path, *, size: int) -> np.ndarray:
    """The page's picture, tried again while it is empty: on a busy machine its clock runs out before it is drawn."""
    command = ["chromium", "--headless", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    command += ["--hide-scrollbars", "--force-device-scale-factor=1", f"--window-size={size},{size}"]
    command += ["--virtual-time-budget=30000", f"--screenshot={picture}", url]
    for _ in range(5):
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        drawn = _read(picture)
        if drawn.min() < drawn.max():
            return drawn
    raise RuntimeError(f"Chromium drew nothing of {url}, five times.")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


def _read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))
