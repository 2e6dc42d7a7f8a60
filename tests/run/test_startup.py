from __future__ import annotations

import subprocess
import sys

JUDGE = """
import sys
import flawmap
model = flawmap.load(sys.argv[1])
found = model.inspect(sys.argv[2])
slow = {"scipy", "torch", "jinja2", "rich", "matplotlib"} & {name.split(".")[0] for name in sys.modules}
print(found.verdict, len(found.regions[0]), sorted(slow))
"""


def test_judging_a_good_picture_imports_none_of_the_packages_that_take_long(crossed, world):
    command = [sys.executable, "-c", JUDGE, str(crossed.bundle.origin)]
    good = [subprocess.check_output([*command, str(path)], text=True) for path in (world / "test/good").glob("*.png")]
    assert "OK 0 []\n" in good
    flawed = subprocess.check_output([*command, str(next((world / "test/square").glob("*.png")))], text=True)
    assert flawed.startswith("NOK 1 ['scipy']")  # for its regions
