"""A table of sentences, submitted to the running orchestrator (`dreamkiln up`) and awaited.

python examples/table.py [GROUP.KEY=VALUE ...]
"""

import sys
from pathlib import Path

import dreamkiln

if __name__ == "__main__":
    table = Path("prompts.txt")
    table.write_text("a red house\na blue car\na yellow duck\n", encoding="utf-8")
    job = dreamkiln.table_job(table, overrides=sys.argv[1:], out="pictures", num_workers=1)
    submitted = dreamkiln.submit(job)
    print(f"job {submitted.number} is {submitted.status()['state']}")
    outcome = submitted.wait()
    assert isinstance(outcome, dreamkiln.BatchOutcome)
    print(f"{outcome.report['num_succeeded']} pictures in {outcome.location}")
