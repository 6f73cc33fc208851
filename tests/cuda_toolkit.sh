#!/usr/bin/env bash
# A CUDA 12.4 compiler without a conda channel, for the tests on Debian 12: nvcc and CCCL from Debian trixie's packages,
# headers from PyPI's NVIDIA wheels, put together in NVIDIA's own layout. Nothing is installed on the machine.
#   tests/cuda_toolkit.sh FOLDER PYTHON     makes FOLDER/bin/nvcc; PYTHON is an interpreter with pip
set -euo pipefail

main() {
  local folder=$1 python=$2 work mirror
  [[ -x $folder/bin/nvcc ]] && exit 0
  work=$(mktemp -d)
  # shellcheck disable=SC2064  # the folder's name now: it is a local variable
  trap "rm -rf '$work'" EXIT
  mkdir -p "$work"/{lists/partial,archives/partial,debs} "$folder"/{bin,nvvm,include,lib64}

  # The machine's own mirror and keyring, with another suite and state folders of our own.
  mirror=$(grep -rhE '^(URIs:|deb )' /etc/apt/sources.list /etc/apt/sources.list.d 2>/dev/null |
    grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n 1) || true
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main non-free contrib" >"$work/sources.list"
  local apt=(apt-get -qq -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$work/lists"
    -o Dir::Cache::archives="$work/archives" -o APT::Sandbox::User=root)
  "${apt[@]}" update
  (cd "$work/debs" && "${apt[@]}" download nvidia-cuda-toolkit=12.4.* libcu++-dev libthrust-dev libcub-dev)
  for deb in "$work"/debs/*.deb; do dpkg -x "$deb" "$work/deb"; done

  "$python" -m pip install --quiet --no-deps --target "$work/wheels" \
    nvidia-cuda-nvcc-cu12==12.4.131 nvidia-cuda-runtime-cu12==12.4.127
  for part in cuda_nvcc cuda_runtime; do cp -a "$work/wheels/nvidia/$part/include/." "$folder/include/"; done
  cp -aL "$work"/deb/usr/include/{cuda,nv,thrust,cub} "$folder/include/"
  cp -a "$work"/wheels/nvidia/cuda_runtime/lib/. "$folder/lib64/"
  ln -sf libcudart.so.12 "$folder/lib64/libcudart.so"

  local tools=$work/deb/usr/lib/nvidia-cuda-toolkit
  cp -a "$tools"/bin/. "$folder/bin/"
  rm -f "$folder"/bin/{gcc,g++}  # links to a g++ 13 that bookworm does not have
  for tool in nvcc ptxas fatbinary cudafe++ nvlink bin2c; do
    [[ -e $folder/bin/$tool ]] || cp -aL "$work/deb/usr/bin/$tool" "$folder/bin/$tool"
  done
  mkdir -p "$folder/nvvm/bin" "$folder/nvvm/libdevice"
  find "$work/deb" -name cicc -type f -exec cp {} "$folder/nvvm/bin/" \;
  cp -a "$work"/wheels/nvidia/cuda_nvcc/nvvm/libdevice/. "$folder/nvvm/libdevice/"
  cat >"$folder/bin/nvcc.profile" <<'PROFILE'
TOP              = $(_HERE_)/..
NVVMIR_LIBRARY_DIR = $(TOP)/nvvm/libdevice
PATH            += $(TOP)/nvvm/bin:$(_HERE_):
INCLUDES        += "-I$(TOP)/include" $(_SPACE_)
LIBRARIES        =+ $(_SPACE_) "-L$(TOP)/lib64"
PROFILE
  "$folder/bin/nvcc" --version
}

main "$@"
