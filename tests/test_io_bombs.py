"""Small files that declare or unpack to gigabytes, at the doors beside the service: Python, `check`
and `predict`. Each is refused in under a second of work, and all in under 200 MB more than a sound one takes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.service_parts import png
from tests.test_service_bombs import BOMBS

MEMORY = 200 << 20

PROGRAM = """
import json, sys, time
from pathlib import Path
from medae.batch.item import Item
from medae.batch.predict import predict_items
from medae.errors import InputError
from medae.inspection import check_item
from medae.io import read_image
from medae.memory import peak
from medae.predictor import Predictor
from tests.service_parts import denoiser

predictor = Predictor(denoiser())

def python(path):
    try:
        read_image(path)
    except InputError as error:
        return error.code

def check(path):
    return check_item(Item(path.name, (path,)), predictor.package).code

def predict(path):
    (outcome,) = predict_items(predictor, [Item(path.name, (path,))], Path(sys.argv[2]) / path.name)
    return outcome.code

sound, *bombs = sorted(Path(sys.argv[1]).iterdir())
for door in (python, check, predict):
    assert not door(sound)
before, results = peak(), []
for path in bombs:
    for door in (python, check, predict):
        begin = time.process_time()
        code = door(path)
        results.append((path.name, door.__name__, code, time.process_time() - begin))
print(json.dumps([peak() - before, results]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read the Linux way")
def test_a_bomb_costs_nothing_at_any_door(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "0").write_bytes(png())
    for number, make in enumerate(BOMBS.values(), 1):
        (files / f"{number}").write_bytes(make())
    command = [sys.executable, "-c", PROGRAM, str(files), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    growth, results = json.loads(done.stdout)
    assert len(results) == 3 * len(BOMBS)
    for name, door, code, seconds in results:
        print(f"{list(BOMBS)[int(name) - 1]} at {door}: {code}, {seconds:.2f} s")
        assert code in ("limit-exceeded", "unreadable-image", "unsupported-image"), (name, door, code)
        assert seconds < 1, (name, door)
    print(f"{growth >> 20} MB more")
    assert growth < MEMORY
