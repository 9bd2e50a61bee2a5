"""Every combination of settings as a job: the grammar, the folders, runs here and in the queue, the page at the end."""

from __future__ import annotations

import json

import pytest

from jobs.errors import InputError
from jobs.states import FailureKind
from orchestrator.cli.main import main
from orchestrator.client import sweep
from orchestrator.daemon.reports import Failed
from orchestrator.settings.sweep import members
from tests.fakes import FAST_OVERRIDES, load_fake_prior
from tests.orchestrator.client.test_waiting_client import DONE, rig  # noqa: F401 - a fixture

FAST = [*FAST_OVERRIDES, "runtime.num_threads=1", "export.turntable_frames=0", "export.preview_size=16"]


def test_the_last_setting_changes_fastest_and_names_say_what_differs():
    found = members(["distillation.guidance_scale=5,7.5", "seed=range(0,4,2)", "fit=draft"])
    assert [one.name for one in found] == [
        f"{n}-guidance_scale={s}-seed={k}" for n, (s, k) in enumerate([(5, 0), (5, 2), (7.5, 0), (7.5, 2)])
    ]
    assert found[3].overrides == ("distillation.guidance_scale=7.5", "fit=draft") and found[3].own == {"seed": 2}


def test_quoted_prompts_and_lists_are_single_values():
    found = members(["prompt='a red house, old',\"it's\"", "fit.render_sizes=[[0.0,32]],[[0.0,64]]"])
    assert [one.own["prompt"] for one in found] == ["a red house, old"] * 2 + ["it's"] * 2
    assert found[1].overrides == ("fit.render_sizes=[[0.0,64]]",)
    assert len({one.name for one in found}) == 4 and all(
        set(one.name) <= set("0123456789.=_-" + "abcdefghijklmnopqrstuvwxyz") for one in found
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["seed=0"], "Nothing varies in this sweep"),
        (["seed=interval(0,1)"], "names no single values, which a sweep needs; list them, such as seed=1,2,3"),
        (["fit=glob(*)"], "names no single values"),
        (["a=choice(1,2"], "could not be read"),
        (["seed=range(0,2000)"], "The sweep has 2,000 runs, but at most 1,000 are allowed"),
    ],
)
def test_what_is_no_sweep_is_said(words, sentence):
    with pytest.raises(InputError, match=sentence):
        members(words)


def test_every_run_is_checked_before_one_starts(tmp_path):
    with pytest.raises(InputError, match=r"In run 1-guidance=20: There is no setting 'fit\.guidance'|In run 0-guidance=10"):
        sweep.prepare_sweep("a ball", ["fit.guidance=10,20"], {}, seed=0, out=tmp_path)
    with pytest.raises(InputError, match=r"In run 1-seed=x: The seed is 'x'"):
        sweep.prepare_sweep("a ball", ["seed=1,x"], {}, seed=0, out=tmp_path)


def test_a_sweep_here_ends_in_a_page_and_goes_on_where_it_stopped(tmp_path, capsys, monkeypatch):
    loads = []
    monkeypatch.setattr(sweep, "load_prior", lambda *given: loads.append(given) or load_fake_prior(*given))
    words = ["sweep", "a red ball", "seed=0,1", *FAST, "fit.num_steps=3", "--out", str(tmp_path), "--local", "--json"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert [run["folder"] for run in told["runs"]] == [str(tmp_path / "0-seed=0"), str(tmp_path / "1-seed=1")]
    assert (tmp_path / "compare.html").exists() and len(loads) == 1
    before = (tmp_path / "0-seed=0/manifest.json").read_bytes()
    assert main(words) == 0
    assert (tmp_path / "0-seed=0/manifest.json").read_bytes() == before


def test_a_running_orchestrator_makes_them_all_and_joins_those_it_has(rig, tmp_path, capsys):  # noqa: F811
    words = ["sweep", "a red ball", "seed=3,4", "--out", str(tmp_path / "s"), "--state", str(rig.folder.path), "--json"]
    rig.workers.script = [DONE]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert "Jobs 1 to 2 of the orchestrator at http" in captured.err
    told = json.loads(captured.out)
    assert [run["folder"] for run in told["runs"]] == [str(tmp_path / "s/0-seed=3"), str(tmp_path / "s/1-seed=4")]
    assert [rig.ledger.jobs.get(number).out for number in (1, 2)] == [run["folder"] for run in told["runs"]]
    rig.workers.script = [Failed(FailureKind.COLLAPSED, "The fit ended empty.")]
    assert main(words) == 1
    assert "2 of 2 runs failed, the first because: The fit ended empty." in capsys.readouterr().err
