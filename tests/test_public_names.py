"""`import ssept_ext` takes no time; its names are imported when they are first used."""

import subprocess
import sys

import pytest

import ssept_ext


def run(*command):
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=True
    ).stdout


def test_a_script_that_is_called_ssept_finds_the_names(tmp_path):
    script = tmp_path / "ssept"
    script.write_text("from ssept_ext import *\nprint(SSEPT.__name__, build_info.__name__)")

    assert run(str(script)) == "SSEPT build_info\n"


def test_importing_the_package_imports_no_torch():
    assert run("-c", "import sys, ssept_ext; print('torch' in sys.modules)") == "False\n"


def test_packages_are_attributes():
    assert run("-c", "import ssept_ext; print(ssept_ext.ops.__name__)") == "ssept_ext.ops\n"


def test_dir_lists_every_public_name():
    assert set(ssept_ext.__all__) <= set(dir(ssept_ext))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'ssept_ext' has no attribute 'SSEPTT'"):
        ssept_ext.SSEPTT  # noqa: B018
