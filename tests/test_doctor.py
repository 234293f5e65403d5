import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from alexprep import doctor
from alexprep.cli import cli
from alexprep.doctor import examine, format_findings


def test_this_machine_runs_what_the_tests_run(tmp_path):
    found = {finding.name: finding for finding in examine(tmp_path)}
    assert [finding for finding in found.values() if finding.state == "fault"] == []
    assert found["DALI"].text.endswith("its CPU backend decodes")
    assert "pillow-simd" in found["PIL"].text
    assert str(tmp_path) in found["disk"].text
    assert format_findings(list(found.values())).endswith("\n0 faults")


@pytest.mark.parametrize(
    ("finding", "state", "text", "fix"),
    [
        (doctor.check_python((3, 10)), "fault", "at", "3.11, 3.12 or 3.13"),
        (doctor.check_python((3, 13)), "ok", "at", ""),
        (
            doctor.check_pillow({"pillow": "12.1", "pillow-simd": "12.1.post0"}, "3.0"),
            "fault",
            "both installed, in the same folder",
            "pip uninstall -y pillow && pip install --force-reinstall --no-deps pillow-simd",
        ),
        (doctor.check_pillow({"pillow": "12.1"}, "3.0"), "note", "slower", "pip uninstall -y"),
        (doctor.check_pillow({}, "no"), "fault", "not installed", "pip install"),
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
        (doctor.no_dali(), "fault", "uses torch", "pip install nvidia-dali"),
        (
            doctor.check_bfloat16("AVX2"),
            "note",
            "no instructions for it (AVX2)",
            "train.precision=float32",
        ),
        (doctor.check_bfloat16("AVX2, AVX-512, AVX-512 BF16"), "ok", "computes in it", ""),
        (
            *doctor.check_dalis(["nvidia-dali-cuda130"], 12),
            "fault",
            "is for CUDA 13, the driver supports 12 at most",
            "pip install nvidia-dali-cuda120",
        ),
        (
            *doctor.check_dalis(["nvidia-dali-cuda120", "nvidia-dali-cuda130"], 13),
            "fault",
            "both installed",
            "pip uninstall -y nvidia-dali-cuda120 nvidia-dali-cuda130",
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


def test_a_dali_that_does_not_run_is_a_fault():
    def broken():
        raise OSError("libdali.so: cannot open shared object file\nmore")

    found = doctor.check_dali(broken)
    assert found.state == "fault"
    assert found.text == "does not run (libdali.so: cannot open shared object file)"


def test_faults_are_counted_below_the_list():
    found = [doctor.check_pillow({}, "no"), doctor.check_torch("", 0, [])]
    assert format_findings(found).splitlines()[-1] == "1 fault"
