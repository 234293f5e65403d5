#!/bin/sh
# Makes the peers' virtual environments in the folder given: benchmarks/peers/make_venvs.sh VENVS
# A peer that does not install is left out, and named at the end. uv is used where it is installed,
# which stores torch once for all. FFCV is compiled; on Debian it needs:
# apt-get install libopencv-dev libturbojpeg0-dev pkg-config; SPDL needs: libavdevice59 (FFmpeg)
set -u
mkdir -p "$1"
cd "$1" || exit
python=${PYTHON:-python3.11}
torch=${TORCH:-torch==2.13.0}
failed=

venv() {
    name=$1
    shift
    [ -e "$name/made" ] && return
    if command -v uv >/dev/null; then
        uv venv --quiet --clear --seed --python "$python" "$name" &&
            uv pip install --quiet --python "$name/bin/python" "$@"
    else
        "$python" -m venv --clear "$name" && "$name/bin/pip" install --quiet "$@"
    fi && touch "$name/made" || failed="$failed $name"
}

venv webdataset webdataset==1.0.2 pillow==13.0.0 numpy==2.4.6 "$torch"
venv turboloader turboloader==2.39.0 numpy==2.4.6 "$torch"
venv spdl spdl==0.8.0 numpy==2.4.6 "$torch"
# Its wheel needs the libraries that come with PyTorch for CUDA, on a CPU too.
venv torchcodec torchcodec==0.17.0 numpy==2.4.6 torch==2.15.0
venv datago datago==2026.10.1 numpy==2.4.6 "$torch"
venv litdata litdata==0.2.76 pillow==13.0.0 numpy==2.4.6 "$torch"
venv streaming mosaicml-streaming==0.13.0 pillow==13.0.0 numpy==2.1.3 "$torch"
venv img2dataset img2dataset==1.47.0 opencv-python-headless==4.14.0.94
venv pyvips 'pyvips[binary]==3.2.0' webdataset==1.0.2 numpy==2.4.6
venv ffcv setuptools wheel numpy==2.2.6 numba==0.61.2 pillow==13.0.0 opencv-python==5.0.0.93 "$torch"
if [ -e ffcv/made ] && ! (cd / && "$1/ffcv/bin/python" -c 'import ffcv' 2>/dev/null); then
    ffcv/bin/python -m pip install --quiet --no-build-isolation ffcv==1.0.2 || failed="$failed ffcv"
fi
[ -z "$failed" ] || echo "not installed:$failed"
