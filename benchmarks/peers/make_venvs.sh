#!/bin/sh
# Makes the peers' virtual environments in the folder given: benchmarks/peers/make_venvs.sh VENVS
# FFCV is compiled; on Debian it wants: apt-get install libopencv-dev libturbojpeg0-dev pkg-config
set -eu
mkdir -p "$1"
cd "$1"

venv() {
    name=$1
    shift
    "${PYTHON:-python3.11}" -m venv "$name"
    "$name/bin/pip" install --quiet "$@"
}

venv webdataset webdataset==1.0.2 pillow==13.0.0 numpy==2.4.6 torch==2.13.0
venv ffcv setuptools wheel numpy==2.2.6 numba==0.61.2 torch==2.13.0 pillow==13.0.0 \
    opencv-python==5.0.0.93
ffcv/bin/pip install --quiet --no-build-isolation ffcv==1.0.2
venv streaming mosaicml-streaming==0.13.0 pillow==13.0.0 numpy==2.1.3 torch==2.13.0
venv litdata litdata==0.2.76 pillow==13.0.0 numpy==2.4.6 torch==2.13.0
venv img2dataset img2dataset==1.47.0 opencv-python-headless==4.14.0.94
