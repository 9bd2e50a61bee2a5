"""`dreamkiln images`: one sentence becomes many pictures, or changes a given one; a table of prompts becomes one each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from orchestrator.cli import common, image_options

if TYPE_CHECKING:
    from orchestrator.client.prepared_job import PreparedJob

NAME = "images"
HELP = "Draw images from a sentence, change a picture by one, or draw a whole table of prompts."


@common.with_options_of(image_options.prepare)
def command(
    prepare: Callable[[], PreparedJob],
    runtime: common.RuntimeName = None,
    local: common.Local = False,
    state: common.State = None,
    json: common.Json = False,
) -> int:
    """Prepare the job, then run it. The exit code is 3 if rows of a table failed."""
    return common.run_job(prepare(), runtime=runtime, is_local=local, state=state, as_json=json)
