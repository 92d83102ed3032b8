"""Install ssept_ext in a folder of its own: from the prepared wheel or, if that does not load, by a build."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# In a process of its own, as an extension for another machine may end it. Where there is a GPU, a kernel has to run.
CHECK = """
import sys, torch, ssept_ext
device, info = sys.argv[1], ssept_ext.build_info()
print(info)
missing = [op for op, backends in info.ops.items() if backends[device] != "native"]
sys.exit(f"no kernels for {device}: {', '.join(missing)}") if missing else None
x = torch.ones(4, 4, device=device)
assert ssept_ext.ops.feed_forward(x, x, x[0], x, x[0]).sum().item() == 352
"""


def loads(site: Path, device: str) -> bool:
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-c", CHECK, device]
    return subprocess.run(command, cwd=site, env=environment, check=False).returncode == 0


def take_wheel(site: Path, device: str) -> bool:
    """Unpack the wheel of a prepared folder; whether there is one and it loads."""
    wheels = sorted((ROOT / "wheel").glob("*.whl"))
    if not wheels:
        print(f"no wheel in {ROOT / 'wheel'}")
        return False
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(site)
    return loads(site, device)


def build(site: Path, device: str) -> bool:
    """Build the sources for this machine's Python and GPU."""
    environment = dict(os.environ, SSEPT_CUDA="ON" if device == "cuda" else "OFF")
    if device == "cuda":
        environment.setdefault("CUDAARCHS", "native")
    brought = ROOT / "include" / f"python3.{sys.version_info.minor}"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists() and brought.is_dir():
        environment["SKBUILD_CMAKE_ARGS"] = f"-DPython_INCLUDE_DIR={brought}"
    options = ("--quiet", "--no-build-isolation", "--no-deps", "--no-compile")
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(site), str(ROOT)]
    subprocess.run(command, env=environment, check=True)
    return loads(site, device)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("site", type=Path)
    parsed = parser.parse_args(argv)
    if take_wheel(parsed.site, parsed.device):
        print("the wheel loads")
        return
    shutil.rmtree(parsed.site, ignore_errors=True)
    if not build(parsed.site, parsed.device):
        sys.exit("what was built here does not load")
    print("built here, as no wheel loads")


if __name__ == "__main__":
    main()
