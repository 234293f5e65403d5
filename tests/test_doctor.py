from pathlib import Path

import pytest

from alexprep import doctor
from alexprep.doctor import examine, format_findings


def test_this_machine_runs_what_the_tests_run(tmp_path):
    found = {one.name: one for one in examine(tmp_path)}
    assert [one for one in found.values() if one.state == "fault"] == []
    assert found["DALI"].text.endswith("its CPU backend decodes")
    assert "pillow-simd" in found["PIL"].text
    assert str(tmp_path) in found["disk"].text
    assert format_findings(list(found.values())).endswith("Nothing is missing.")


@pytest.mark.parametrize(
    ("finding", "state", "text", "mend"),
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
        (doctor.no_dali(), "fault", "falls back to torch", "pip install nvidia-dali"),
    ],
)
def test_each_fault_comes_with_the_line_that_mends_it(finding, state, text, mend):
    assert finding.state == state
    assert text in finding.text
    assert mend in finding.mend
    assert bool(finding.mend) or state != "fault"


def test_a_package_that_is_missing_is_a_fault():
    found = {one.name: one for one in doctor.check_packages({"torch": "2.13.0"})}
    assert found["torch"].state == "ok"
    assert (found["numpy"].state, found["numpy"].mend) == ("fault", "pip install numpy")


def test_a_dali_that_does_not_run_is_a_fault():
    def broken():
        raise OSError("libdali.so: cannot open shared object file\nmore")

    found = doctor.check_dali(broken)
    assert found.state == "fault"
    assert found.text == "does not run (libdali.so: cannot open shared object file)"


def test_faults_are_counted_below_the_list():
    found = [doctor.check_pillow({}, "no"), doctor.check_torch("", 0, [])]
    assert format_findings(found).splitlines()[-1] == "1 fault"
