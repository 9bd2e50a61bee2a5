"""Sixty inputs as strangers bring them, each with the answer that is right and the one that was seen: docs/robustness.md.

    python -m benchmarks.robustness

Every case runs as a user's command or a client's request would, in this process; a case whose answer is another than expected
makes the exit code 1.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from orchestrator.cli.main import main as command

PAGE = Path(__file__).parents[1] / "docs" / "robustness.md"
DRAW = ("--runtime", "inline", "--steps", "2", "--sampler", "ddim", "--output-format", "webdataset")


@dataclass(frozen=True)
class Case:
    """One input. expected: an exit code or a status, and a pattern of what is said. run: gives (code, words) in a folder."""

    group: str
    name: str
    expected: tuple[int, str]
    run: Callable[[Path], tuple[int, str]]


CASES: list[Case] = []


def case(group: str, name: str, code: int, words: str) -> Callable[[Callable[[Path], Any]], None]:
    """Registers a function that makes an input in a folder and gives a command's arguments, or (code, words) itself."""

    def register(function: Callable[[Path], Any]) -> None:
        def run(folder: Path) -> tuple[int, str]:
            answer = function(folder)
            return answer if isinstance(answer, tuple) else _command(answer, folder)

        CASES.append(Case(group, name, (code, words), run))

    return register


def table(name: str, file: str, content: bytes | str, code: int, words: str, *options: str) -> None:
    """A table of prompts that is drawn, or refused."""

    @case("tables", name, code, words)
    def _(folder: Path) -> list[str]:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return ["images", "--prompts", str(path), "--out", str(folder / "out"), *DRAW, *options]


def parquet(name: str, columns: pyarrow.Table, code: int, words: str) -> None:
    """A parquet file of prompts."""
    sink = io.BytesIO()
    pyarrow.parquet.write_table(columns, sink)
    table(name, "t.parquet", sink.getvalue(), code, words)


def _command(arguments: list[str], folder: Path) -> tuple[int, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = command(arguments)
    failures = folder / "out" / "_failures.jsonl"
    said = [json.loads(line)["message"] for line in failures.read_text().splitlines()] if failures.exists() else []
    lines = [line for line in err.getvalue().splitlines() if line.startswith("dreamkiln")]
    return code, " ".join([*lines, *said, *out.getvalue().splitlines()[:2]]).replace(str(folder), "DIR")


# -- tables -----------------------------------------------------------------------------------------------------------

ROWS = "prompt,note\n" + "".join(f"a red house,{number}\n" for number in range(3))
table(
    "a csv, cut short while it was copied as gz", "t.csv.gz", gzip.compress(ROWS.encode() * 50)[:60], 2, "damaged or cut short"
)
table("a bz2 that is whole", "t.csv.bz2", bz2.compress(ROWS.encode()), 0, "3 of 3 rows have a picture")
table("an xz with a byte changed", "t.jsonl.xz", lzma.compress(b'{"prompt": "a"}\n' * 99)[:60] + b"\0" * 40, 2, "damaged")
table("a zst that is whole", "t.csv.zst", pyarrow.compress(ROWS.encode(), codec="zstd", asbytes=True), 0, "3 of 3 rows")
table("a csv called .gz", "t.csv.gz", ROWS, 2, "not compressed as its name says")
table(
    "an endless quote in the first row", "t.csv", 'prompt,note\n"a red house,1\na blue duck,2\n', 3, "row 1 .*1 of 2 rows have"
)
table("a quote that a later row closes", "t.csv", 'prompt\n"a red house\na blue duck"s\na cat\n', 3, "row 1 .*row 2 .*1 of 3")
table("inches", "t.csv", 'prompt\na 12" red table\n', 0, "1 of 1 rows")
table("a cell of two lines as Windows writes it", "t.csv", b'\xef\xbb\xbfprompt\r\n"a red\r\nhouse"\r\n', 0, "1 of 1 rows")
table("lines as an old Mac ends them", "t.csv", "prompt\ra red house\ra blue duck\r", 0, "2 of 2 rows")
table("semicolons and a comma in the prompt", "t.csv", "prompt;n\na red, tall house;1\n", 0, "1 of 1 rows")
table("a header of two lines", "t.csv", '"prompt","a\nb"\na red house,1\n', 0, "1 of 1 rows")
table("two columns of one name", "t.csv", "prompt,x,x\na,1,2\n", 2, "two columns 'x'; rename one")
table("steps beside num_steps", "t.csv", "prompt,steps,num_steps\na,1,2\n", 2, "which mean the same")
table("our own names for columns", "t.csv", "prompt,index,table_index\na red house,7,8\n", 0, "1 of 1 rows")
table("a JSON array", "t.jsonl", '[\n{"prompt": "a"}\n]', 2, "one JSON array, but a line for each row was expected")
table("a .json file", "t.json", "[]", 2, r"kind that is not read \(\.json\).*jsonl")
table(
    "a key that stands twice",
    "t.jsonl",
    '{"prompt": "a house", "x": 1, "x": 2}\n{"prompt": "a duck"}\n',
    3,
    "'x' twice.*1 of 2",
)
table("half a character", "t.jsonl", '{"prompt": "a \\ud83d house"}\n{"prompt": "a duck"}\n', 3, r"half a character.*1 of 2")
table(
    "an escape code in a prompt", "t.jsonl", '{"prompt": "a \\u001b[31m house"}\n{"prompt": "a duck"}\n', 3, r"U\+001B.*1 of 2"
)
table("NaN and infinity for numbers", "t.jsonl", '{"prompt": "a house", "seed": NaN, "guidance_scale": 1e999}\n', 0, "1 of 1")
table("a seed of 30 digits", "t.csv", f"prompt,seed\na house,{'9' * 30}\na duck,1\n", 3, "at most 64 bits was expected.*1 of 2")
table("a negative seed", "t.csv", "prompt,seed\na house,-1\n", 3, "The seed is -1")
table("UTF-16", "t.csv", ROWS.encode("utf-16"), 2, "UTF-16; save it as UTF-8")
table("Latin-1 in one row", "t.csv", b"prompt\na r\xe9d house\na blue duck\n", 3, "row 1 .*not UTF-8.*1 of 2")
table("nothing but a header", "t.csv", "prompt\n", 2, "holds no rows")
table("an empty file", "t.csv", "", 2, "is empty or begins with an empty line")
table("another name for the prompts", "t.csv", "caption\na house\n", 2, "no column 'prompt'.*--prompt-column")
table("a cell of a third of a megabyte", "t.csv", f"prompt,note\na house,{'x' * 300_000}\n", 0, "1 of 1 rows")
table("a folder with two colons", "a::b/t.csv", ROWS, 0, "3 of 3 rows")
table("a folder with a hash and a question mark", "a#1?/t.csv", ROWS, 0, "3 of 3 rows")
table("a shard size of nothing", "t.csv", ROWS, 2, "shard_size is 0, but 1 to 100,000", "--shard-size", "0")
parquet("prompts as bytes", pyarrow.table({"prompt": [b"a red house"]}), 0, "1 of 1 rows")
parquet("prompts as lists", pyarrow.table({"prompt": [["a red house"]]}), 2, "has list<.*text was expected")
parquet("prompts as numbers", pyarrow.table({"prompt": [5]}), 2, "has int64 in its column 'prompt'")
parquet("prompts in a dictionary", pyarrow.table({"prompt": pyarrow.array(["a house"]).dictionary_encode()}), 0, "1 of 1")
parquet("no rows", pyarrow.table({"prompt": pyarrow.array([], pyarrow.string())}), 2, "holds no rows")

# -- places and options -----------------------------------------------------------------------------------------------


def refused(name: str, words: str, *arguments: str) -> None:
    """A command that ends with 2 and a sentence, whatever is in the folder."""

    @case("commands", name, 2, words)
    def _(folder: Path) -> list[str]:
        return [argument.replace("DIR", str(folder)) for argument in arguments]


refused("a table that is not there", "There is no prompt table", "images", "--prompts", "DIR/no.csv")
refused("a slash too few in a URL", r"did you mean s3://bucket/t\.csv\?", "images", "--prompts", "s3:/bucket/t.csv")
refused("a kind of URL that nobody knows", "Protocol not known: nope", "images", "--prompts", "nope://x/t.csv")
refused("a server that refuses", "Connect call failed", "images", "--prompts", "http://127.0.0.1:9/t.csv")
refused("an output that is a URL, without a table", "which only --prompts writes to", "images", "a house", "--out", "s3://b/o")
refused("a setting for an option", "seed is no setting but an option: --seed 4", "text-to-3d", "a house", "seed=4")
refused("an option for a setting", r"a setting has that name: fit\.guide_parts", "text-to-3d", "a house", "--guide-parts", "2")
refused("a prompt with a dash in front", "stands behind '--'", "text-to-3d", "-a house")
refused("a million million steps", "give 1 to 1,000,000", "text-to-3d", "a house", "--steps", str(10**12))
refused("a prompt of nothing but signs", "holds no letter or digit", "images", "!!!")
refused("an option from an unset variable", "--prior is empty", "images", "a house", "--prior", "")
refused("a prior that is a folder of something else", r"without a model_index\.json", "images", "a house", "--prior", "DIR")
refused(
    "a device of Apple's", "give runtime.device=cpu, which works on every machine", "images", "a house", "runtime.device=mps"
)
refused("an age without a unit", "give a number and a unit, such as 30d", "jobs", "prune", "--older-than", "soon")
refused("verify without a table", "look at the shards of a table", "images", "a house", "--verify")

# -- a finished table -------------------------------------------------------------------------------------------------


def damaged(name: str, words: str, harm: Callable[[Path], None]) -> None:
    """A finished table that something has happened to, verified."""

    @case("finished tables", name, 1, words)
    def _(folder: Path) -> tuple[int, str]:
        (folder / "t.csv").write_text(ROWS)
        arguments = ["images", "--prompts", str(folder / "t.csv"), "--out", str(folder / "out"), "--shard-size", "2", *DRAW]
        assert _command(arguments, folder)[0] == 0
        harm(folder / "out")
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = command([*arguments, "--verify"])
            assert command([*arguments, "--repair"]) == 0 and command([*arguments, "--verify"]) == 0
        return code, err.getvalue().splitlines()[0]


damaged("a shard was deleted", r"shard 1: 00001\.tar is missing", lambda out: (out / "00001.tar").unlink())
damaged("a shard was cut short", r"shard 0: 00000\.tar has 10 bytes", lambda out: (out / "00000.tar").write_bytes(bytes(10)))
damaged("a marker is no JSON", "shard 0: its commit marker cannot", lambda out: (out / "_shards/00000.json").write_text("{"))
damaged("a byte turned over", r"shard 0: 00000\.tar has other bytes", lambda out: _turn_a_byte(out / "00000.tar"))


def _turn_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[700] ^= 0xFF
    path.write_bytes(data)


# -- the HTTP API ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[str, int, str]]:
    """(host, port, token) of an API whose jobs nobody runs."""
    from jobs.ledger import Ledger
    from orchestrator.daemon.controller import Controller
    from orchestrator.daemon.http.routes import make_app
    from orchestrator.daemon.http.server import ApiServer
    from orchestrator.host.state_folder import StateFolder
    from orchestrator.scheduling import Capacity

    state = StateFolder(folder / "state")
    state.create()
    with Ledger.own(state.default_ledger, name="robustness") as ledger:
        nobody: Any = None
        controller = Controller(ledger, nobody, Capacity(num_workers=0, memory_bytes=0), state)
        server = ApiServer(make_app(ledger, controller, state, lambda: None), host="127.0.0.1", port=0)
        server.start()
        try:
            host, _, port = server.url.rpartition("//")[2].rpartition(":")
            yield host, int(port), state.token()
        finally:
            server.stop()


def request(name: str, method: str, path: str, status: int, words: str, body: Any = None, token: str | None = None) -> None:
    """A request, answered with a status and one shape of error."""
    import http.client

    @case("requests", name, status, words)
    def _(folder: Path) -> tuple[int, str]:
        with served(folder) as (host, port, ours):
            connection = http.client.HTTPConnection(host, port, timeout=60)
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            headers = {"Authorization": f"Bearer {ours if token is None else token}", "Content-Type": "application/json"}
            connection.request(method, path, data, headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
            connection.close()
        assert set(answer) == {"error", "kind", "exit_code"}, answer
        return response.status, answer["error"].replace(str(folder), "DIR")


request("a job's number beyond 64 bits", "GET", f"/v1/jobs/{'9' * 25}", 404, "There is no job 9")
request("a page's number beyond 64 bits", "GET", f"/v1/jobs?before={'9' * 25}", 422, "before is '9.*less than or equal")
request("NUL for a user", "GET", "/v1/jobs?user=%00", 422, r"U\+0000")
request("an escape code for a user", "PUT", "/v1/users/%1b%5b31m?weight=1", 422, "printable characters were expected")
request("a weight that is no number", "PUT", "/v1/users/ada?weight=nan", 422, "weight of ada is nan")
request("a body that is no JSON", "POST", "/v1/jobs", 422, "The request is not JSON", b"{")
request("a body of nothing but brackets", "POST", "/v1/jobs", 400, "error parsing the body", b"[" * 100_000)
request("no token, and two megabytes", "POST", "/v1/jobs", 401, "needs a token", b"[" * 2**21, token="wrong")
request("an address that there is not", "GET", "/v1/nothing", 404, "Not Found")

request("jobs of the future to be forgotten", "POST", "/v1/prune?older_than_seconds=-1", 422, "greater than or equal to 0")


@case("requests", "a prior whose last number a failed merge left not finite", 422, "numbers that are not finite, first in ")
def _(folder: Path) -> tuple[int, str]:
    import http.client
    import shutil
    import struct

    from diffusion.checkpoints.source import TOYBOX
    from jobs.specs import ImagesSpec

    prior = shutil.copytree(TOYBOX, folder / "prior", ignore=shutil.ignore_patterns("judge", "clip"))
    file = max((prior / "unet").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-4] + struct.pack("<f", float("nan")))
    job = {"spec": ImagesSpec(prompt="a red house", prior=str(prior)).to_json(), "out": str(folder / "out")}
    with served(folder) as (host, port, token):
        connection = http.client.HTTPConnection(host, port, timeout=280)
        connection.request(
            "POST",
            "/v1/jobs",
            json.dumps({"jobs": [job]}),
            {"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        response = connection.getresponse()
        return response.status, str(json.loads(response.read())["error"]).replace(str(folder), "DIR")


@case("requests", "half a header, and then nothing", 0, "^ended by the orchestrator after 10 s, without an answer$")
def _(folder: Path) -> tuple[int, str]:
    import socket

    with served(folder) as (host, port, _), socket.create_connection((host, port), timeout=60) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
        begin, answer = time.monotonic(), b""
        with contextlib.suppress(ConnectionResetError):
            answer = connection.recv(1000)
        return len(answer), f"ended by the orchestrator after {time.monotonic() - begin:.0f} s, without an answer"


# -- what the orchestrator keeps ---------------------------------------------------------------------------------------


def kept(name: str, words: str, harm: Callable[[Path], None]) -> None:
    """A state folder that something has happened to, and an orchestrator that is to start there."""

    @case("state", name, 2, words)
    def _(folder: Path) -> tuple[int, str]:
        from orchestrator.host.state_folder import StateFolder

        StateFolder(folder / "state").create()
        harm(folder / "state")
        return _command(["up", "--foreground", "--state", str(folder / "state")], folder)


kept(
    "a ledger that is a text",
    "put a backup in its place",
    lambda state: (state / "ledger.db").write_text("hello " * 99) and None,
)
kept(
    "a token that is a folder",
    "state/token could not be written",
    lambda state: (state / "token").unlink() or (state / "token").mkdir(),
)

# -- meshes ------------------------------------------------------------------------------------------------------------


def cut(name: str, words: str, distance: Callable[[Any], Any], colour: Callable[[Any], Any] | None = None) -> None:
    """A density that is cut into a mesh, within a minute; what its notes say."""

    @case("meshes", name, 0, words)
    def _(folder: Path) -> tuple[int, str]:
        import torch

        from nerf3d.mesh import extract_mesh

        class Field:
            def density(self, points: Any) -> Any:
                return 30 * torch.sigmoid(-100 * distance(points))

            def colour(self, points: Any) -> Any:
                return colour(points) if colour else points * 0.5 + 0.5

        begin = time.process_time()
        mesh = extract_mesh(Field())
        is_sound = mesh.is_watertight and bool(np.isfinite(mesh.colours).all()) and time.process_time() - begin < 60
        return int(not is_sound), f"{mesh.num_components} pieces. " + " ".join(note.text for note in mesh.notes)


def _ball(points: Any, centre: tuple[float, float, float], radius: float) -> Any:
    import torch

    return (points - torch.tensor(centre)).norm(dim=-1) - radius


def _floor_and_ball(points: Any) -> Any:
    import torch

    return torch.minimum((points[:, 1] + 0.93).abs() - 0.06, _ball(points, (0, -0.4, 0), 0.22))


def _many_balls(points: Any) -> Any:
    return (points - ((points + 0.9) / 1.8 * 7).round().clamp(0, 7) / 7 * 1.8 + 0.9).norm(dim=-1) - 0.08


cut("512 balls", "^512 pieces", _many_balls)
cut("a floor and a small ball", "^1 pieces.*A floor under the object, .*was left out", _floor_and_ball)
cut("colours that are no number", "no colour .not a number", lambda p: _ball(p, (0, 0, 0), 0.5), lambda p: p * float("nan"))


def main() -> int:
    """Run every case and write the page."""
    rows, num_wrong = [], 0
    for one in CASES:
        with tempfile.TemporaryDirectory(prefix="robustness-") as folder:
            try:
                code, words = one.run(Path(folder))
            except Exception as error:
                code, words = -1, f"{type(error).__name__}: {error}"
        expected_code, pattern = one.expected
        is_right = code == expected_code and re.search(pattern, words, re.DOTALL) is not None
        num_wrong += not is_right
        print(f"{'ok   ' if is_right else 'WRONG'} {one.group}: {one.name}: {code} {words[:160]}", file=sys.stderr, flush=True)
        rows.append((one, code, words, is_right))
    PAGE.write_text(_page(rows), encoding="utf-8")
    print(f"{len(rows) - num_wrong} of {len(rows)} are answered as expected", file=sys.stderr)
    return int(num_wrong > 0)


def _page(rows: list[tuple[Case, int, str, bool]]) -> str:
    right = sum(is_right for *_, is_right in rows)
    lines = [
        "# Inputs as strangers bring them",
        "",
        f"{len(rows)} inputs, the answer that is right, and the one that was seen: {right} are answered as expected. Made by",
        "`python -m benchmarks.robustness`, which makes each input anew and fails where an answer is another. A number is an",
        "exit code of a command (0 done, 1 broken, 2 refused before anything is drawn, 3 some rows without a picture) or the",
        "status of a request; expected words are a pattern.",
    ]
    group = ""
    for one, code, words, is_right in rows:
        if one.group != group:
            group = one.group
            lines += ["", f"## {group.capitalize()}", "", "| input | expected | seen |", "|---|---|---|"]
        seen = _cell(words if len(words) <= 90 else words[:90] + "…")
        mark = "" if is_right else "**differs** "
        lines.append(f"| {_cell(one.name)} | {one.expected[0]}: {_cell(one.expected[1])} | {mark}{code}: {seen} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
