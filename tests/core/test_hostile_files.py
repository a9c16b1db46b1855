"""Small files that claim to be large are refused in less than a second and 300 MB, loaded or only looked into."""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SECONDS = 1.0  # of CPU time: what else runs on the machine does not count


def test_small_files_cost_little(tmp_path):
    done = subprocess.run(
        [sys.executable, str(HERE / "hostile_files.py"), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": f"{HERE.parent.parent}{os.pathsep}{HERE}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert len(found) > 40
    assert {name: raised for name, (_, raised) in found.items() if raised.startswith(("RAW", "nothing"))} == {}
    assert {name: seconds for name, (seconds, _) in found.items() if seconds > SECONDS} == {}
    assert max(len(raised) for _, raised in found.values()) < 2100
