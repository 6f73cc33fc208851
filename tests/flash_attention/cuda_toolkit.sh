#!/usr/bin/env bash
# A CUDA 12 compiler without a conda channel, for the tests: nvcc and CCCL from the distribution's packages, headers from
# PyPI's NVIDIA wheels, put together in NVIDIA's own layout. Nothing is installed on the machine.
#   tests/flash_attention/cuda_toolkit.sh FOLDER     makes FOLDER/bin/nvcc, with the uv on PATH; exit status 3: no package fits this distribution
set -euo pipefail

main() {
  local folder=$1 suite nvcc headers runtime work made mirror
  [[ -x $folder/bin/nvcc ]] && exit 0
  # shellcheck source=/dev/null
  source /etc/os-release
  case $ID-$VERSION_ID in
    debian-12 | debian-13) suite="trixie main contrib non-free" nvcc=12.4 headers=12.4.131 runtime=12.4.127 ;;
    ubuntu-24.04) suite="noble main universe multiverse" nvcc=12.0 headers=12.0.140 runtime=12.0.146 ;;
    *)
      echo "no package of $PRETTY_NAME is a CUDA 12 compiler"
      exit 3
      ;;
  esac
  work=$(mktemp -d) made=$work/made
  # shellcheck disable=SC2064  # the folder's name now: it is a local variable
  trap "rm -rf '$work'" EXIT
  mkdir -p "$work"/{lists/partial,archives/partial,debs} "$made"/{bin,nvvm,include,lib64}

  # The machine's own mirror and keyring, with state folders of our own.
  mirror=$(grep -rhE '^(URIs:|deb )' /etc/apt/sources.list /etc/apt/sources.list.d 2>/dev/null |
    grep -oE "https?://[^ ]+/$ID/?( |\$)" | head -n 1) || true
  echo "deb [signed-by=/usr/share/keyrings/$ID-archive-keyring.gpg] $mirror $suite" >"$work/sources.list"
  local apt=(apt-get -qq -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$work/lists"
    -o Dir::Cache::archives="$work/archives" -o APT::Sandbox::User=root)
  "${apt[@]}" update
  (cd "$work/debs" && "${apt[@]}" download "nvidia-cuda-toolkit=$nvcc.*" libcu++-dev libthrust-dev libcub-dev)
  for deb in "$work"/debs/*.deb; do dpkg -x "$deb" "$work/deb"; done

  uv pip install --quiet --no-cache --no-deps --target "$work/wheels" \
    "nvidia-cuda-nvcc-cu12==$headers" "nvidia-cuda-runtime-cu12==$runtime"
  for part in cuda_nvcc cuda_runtime; do cp -a "$work/wheels/nvidia/$part/include/." "$made/include/"; done
  # glibc 2.41 has these four functions, too, and as noexcept; CUDA says so from 12.9 on.
  if grep -qw cospi /usr/include/x86_64-linux-gnu/bits/mathcalls.h; then
    sed -Ei 's/\b((sin|cos)pif?\((double|float) x\));/\1 noexcept(true);/' "$made/include/crt/math_functions.h"
  fi
  cp -aL "$work"/deb/usr/include/{cuda,nv,thrust,cub} "$made/include/"
  cp -a "$work"/wheels/nvidia/cuda_runtime/lib/. "$made/lib64/"
  ln -sf libcudart.so.12 "$made/lib64/libcudart.so"

  local tools=$work/deb/usr/lib/nvidia-cuda-toolkit
  cp -a "$tools"/bin/. "$made/bin/"
  rm -f "$made"/bin/{gcc,g++,nvcc.profile}  # links to a g++ that may not be there, and into the machine's /etc
  for tool in nvcc ptxas fatbinary cudafe++ nvlink bin2c; do
    [[ -e $made/bin/$tool ]] || cp -aL "$work/deb/usr/bin/$tool" "$made/bin/$tool"
  done
  mkdir -p "$made/nvvm/bin" "$made/nvvm/libdevice"
  find "$work/deb" -name cicc -type f -exec cp {} "$made/nvvm/bin/" \;
  cp -a "$work"/wheels/nvidia/cuda_nvcc/nvvm/libdevice/. "$made/nvvm/libdevice/"
  cat >"$made/bin/nvcc.profile" <<'PROFILE'
TOP              = $(_HERE_)/..
NVVMIR_LIBRARY_DIR = $(TOP)/nvvm/libdevice
PATH            += $(TOP)/nvvm/bin:$(_HERE_):
INCLUDES        += "-I$(TOP)/include" $(_SPACE_)
LIBRARIES        =+ $(_SPACE_) "-L$(TOP)/lib64"
PROFILE
  "$made/bin/nvcc" --version
  mkdir -p "$(dirname "$folder")"
  mv -T "$made" "$folder"
}

main "$@"
