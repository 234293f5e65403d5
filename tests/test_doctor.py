import json
import os
import subprocess
import sys
from pathlib import Path

import PIL
import pytest
from click.testing import CliRunner
from PIL import Image, features

from alexprep import doctor
from alexprep.cli import cli
from alexprep.doctor import examine, format_findings

BOTH = {"pillow": "12.1", "pillow-simd": "12.1.post0"}


def mixed():
    raise ImportError("The _imaging extension was built for another version of Pillow or PIL:\n")


def test_this_machine_runs_what_the_tests_run(tmp_path):
    found = {finding.name: finding for finding in examine(tmp_path)}
    assert [finding for finding in found.values() if finding.state == "fault"] == []
    assert found["DALI"].text.endswith("its CPU backend decodes")
    assert PIL.__version__ in found["PIL"].text
    lacking = [name for name in ("webp", "libtiff") if not features.check(name)]
    assert ("imagecodecs reads these" in found["PIL"].text) == bool(lacking)
    assert all(name in found["PIL"].text for name in lacking)
    assert str(tmp_path) in found["disk"].text
    assert format_findings(list(found.values())).endswith("\n0 faults")


@pytest.mark.parametrize(
    ("finding", "state", "text", "fix"),
    [
        (doctor.check_python((3, 10)), "fault", "at", "3.11, 3.12 or 3.13"),
        (doctor.check_python((3, 13)), "ok", "at", ""),
        (
            doctor.check_pillow(BOTH, lambda: ("12.1", ["webp"])),
            "ok",
            "pillow 12.1, which has overwritten pillow-simd; compiled without webp: imagecodecs",
            "",
        ),
        (doctor.check_pillow(BOTH, lambda: ("12.1.post0", [])), "ok", "overwritten pillow", ""),
        (
            doctor.check_pillow(BOTH, mixed),
            "fault",
            "does not run (The _imaging extension was built for another version of Pillow",
            "pip uninstall -y pillow pillow-simd && pip install pillow",
        ),
        (doctor.check_pillow({}, mixed), "fault", "not installed", "pip install pillow"),
        (doctor.check_torch("", 0, []), "note", "everything runs on the CPU", ""),
        (doctor.check_torch("13.0", 2, ["H100", "H100"]), "ok", "H100; H100", ""),
        (doctor.check_torch("", 0, ["H100"]), "fault", "built for the CPU", "--index-url"),
        (doctor.check_torch("13.0", 0, ["H100"]), "fault", "can use 0", "Update the driver"),
        (doctor.check_peers([(0, 1, True)]), "ok", "between all GPUs", ""),
        (doctor.check_peers([(0, 1, False)]), "note", "none between 0-1", ""),
        (doctor.check_disk(Path("/x"), 500.0), "ok", "500 GB free", ""),
        (doctor.check_disk(Path("/x"), 5.0), "note", "ILSVRC at 256 pixels takes", ""),
        (doctor.check_disk(Path("/x"), 5.0, 2_000_000), "fault", "2,000,000 images at", "--out"),
        (doctor.check_disk(Path("/x"), 5.0, 100_000), "ok", "5 GB free", ""),
        (
            doctor.check_torch("13.0", 0, ["T4"], 12),
            "fault",
            "torch is for CUDA 13.0, the driver supports 12 at most",
            "whl/cu126",
        ),
        (doctor.no_dali(0), "note", "half the speed", "pip install 'alexprep[cuda13]'"),
        (doctor.no_dali(12), "note", "half the speed", "pip install 'alexprep[cuda12]'"),
        (
            doctor.check_bfloat16("AVX2", fast=False),
            "note",
            "no instructions for it (AVX2): `train` takes float32",
            "",
        ),
        (doctor.check_bfloat16("AVX2, AVX-512 BF16", fast=True), "ok", "computes in it", ""),
        (
            *doctor.check_dalis(["nvidia-dali-cuda130"], 12),
            "fault",
            "is for CUDA 13, the driver supports 12 at most",
            "pip uninstall -y nvidia-dali-cuda130 && pip install 'alexprep[cuda12]'",
        ),
        (
            *doctor.check_dalis(["nvidia-dali-cuda120", "nvidia-dali-cuda130"], 13),
            "fault",
            "both installed",
            "nvidia-dali-cuda120 nvidia-dali-cuda130 && pip install 'alexprep[cuda13]'",
        ),
        (
            *doctor.check_threads({"OMP_NUM_THREADS": "64"}, 2),
            "note",
            "OMP_NUM_THREADS=64 on 2 cores",
            "unset OMP_NUM_THREADS",
        ),
    ],
)
def test_each_fault_comes_with_its_fix(finding, state, text, fix):
    assert finding.state == state
    assert text in finding.text
    assert fix in finding.fix
    assert bool(finding.fix) or state != "fault"


def test_a_package_that_is_missing_is_a_fault():
    checked = doctor.check_packages({"torch": "2.13.0"}, gpu=False)
    found = {finding.name: finding for finding in checked}
    assert found["torch"].state == "ok"
    assert (found["numpy"].state, found["numpy"].fix) == ("fault", "pip install numpy")


def test_triton_is_missed_only_where_there_is_a_gpu():
    for gpu in (False, True):
        faults = {finding.name for finding in doctor.check_packages({}, gpu=gpu)}
        assert ("triton" in faults) == gpu


@pytest.mark.parametrize("names", [["nvidia-dali-cuda120"], ["nvidia-dali-cuda130"], []])
def test_a_dali_that_the_driver_supports_is_no_fault(names):
    assert doctor.check_dalis(names, 13) == doctor.check_dalis(names, 0) == []


@pytest.mark.parametrize("value", ["", "2", "1,2", "2,2", "dynamic"])
def test_threads_that_fit_the_cores_are_not_mentioned(value):
    assert doctor.check_threads({"OMP_NUM_THREADS": value}, 2) == []


def test_room_is_checked_for_the_images_of_a_source(tmp_path):
    for label in ("a", "b"):
        (tmp_path / "source" / label).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (9, 9)).save(tmp_path / "source" / label / f"{label}{number}.jpg")
    command = ["doctor", str(tmp_path / "source"), "--out", str(tmp_path / "new"), "--json"]
    run = CliRunner().invoke(cli, command, catch_exceptions=False)
    (disk,) = (row for row in json.loads(run.stdout) if row["name"] == "disk")
    assert disk["state"] == "ok"
    assert str(tmp_path / "new") in disk["text"]
    assert not (tmp_path / "new").exists()


def doctor_in(tmp_path, variables, *arguments):
    """What `alexprep doctor` lists in an environment with tmp_path/site and tmp_path/bin in it."""
    paths = {"PYTHONPATH": tmp_path / "site", "PATH": tmp_path / "bin"}
    run = subprocess.run(
        [sys.executable, "-m", "alexprep", "doctor", *arguments, "--json"],
        env=os.environ
        | {
            name: os.pathsep.join([str(path), os.environ.get(name, "")])
            for name, path in paths.items()
        }
        | variables,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        check=False,
    )
    assert run.returncode == 1
    # The first of a name: DALI has several checks.
    return {(row["name"], row["state"]): row for row in reversed(json.loads(run.stdout))}


def test_each_fault_of_a_real_environment_is_listed(tmp_path):
    """A second DALI, an older processor, too many threads, and a disk with no room."""
    distribution = tmp_path / "site" / "nvidia_dali_cuda120-2.4.0.dist-info"
    distribution.mkdir(parents=True)
    (distribution / "METADATA").write_text("Name: nvidia-dali-cuda120\nVersion: 2.4.0\n")
    for label in ("a", "b"):
        (tmp_path / "source" / label).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / "source" / label / f"{label}.jpg")
    variables = {"ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "999"}
    # /proc is a file system without any room.
    found = doctor_in(tmp_path, variables, str(tmp_path / "source"), "--out", "/proc/shards")
    listed = {key: row["text"] for key, row in found.items()}
    assert "are both installed" in listed["DALI", "fault"]
    assert "ONEDNN_MAX_CPU_ISA=AVX2" in listed["bfloat16", "note"]
    assert "OMP_NUM_THREADS=999" in listed["threads", "note"]
    assert listed["disk", "fault"].startswith("0 GB free at /proc/shards; 2 images")


NVIDIA_SMI = """#!/bin/sh
case "$*" in
*--query-gpu*) echo "Tesla T4, 525.147.05, 15360 MiB" ;;
*) echo "| NVIDIA-SMI 525.147.05   Driver Version: 525.147.05   CUDA Version: 12.0     |" ;;
esac
"""


def test_a_pillow_over_another_and_a_driver_for_cuda_12_are_faults_with_their_fixes(tmp_path):
    """The Python files of one release of PIL, with the compiled ones of another."""
    installed = Path(PIL.__file__).parent
    mixture = tmp_path / "site" / "PIL"
    mixture.mkdir(parents=True)
    for path in installed.iterdir():
        (mixture / path.name).symlink_to(path)
    (mixture / "_version.py").unlink()
    (mixture / "_version.py").write_text('__version__ = "11.0.0"\n')
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvidia-smi").write_text(NVIDIA_SMI)
    (tmp_path / "bin" / "nvidia-smi").chmod(0o755)
    found = doctor_in(tmp_path, {})
    assert "The _imaging extension was built for another version" in found["PIL", "fault"]["text"]
    assert found["PIL", "fault"]["fix"].startswith("pip uninstall -y pillow pillow-simd && ")
    driver = found["GPUs", "fault"]
    assert driver["text"].startswith("Tesla T4, 525.147.05, 15360 MiB, but torch is ")
    assert driver["fix"].endswith("https://download.pytorch.org/whl/cu126")
    dali = found["DALI", "fault"]
    assert dali["text"] == "nvidia-dali-cuda130 is for CUDA 13, the driver supports 12 at most"
    assert dali["fix"].endswith("pip install 'alexprep[cuda12]'")


def test_a_dali_that_does_not_run_is_a_fault():
    def broken():
        raise OSError("libdali.so: cannot open shared object file\nmore")

    found = doctor.check_dali(broken)
    assert found.state == "fault"
    assert found.text == "does not run (libdali.so: cannot open shared object file)"


def test_faults_are_counted_below_the_list():
    found = [doctor.check_pillow({}, mixed), doctor.check_torch("", 0, [])]
    assert format_findings(found).splitlines()[-1] == "1 fault"
