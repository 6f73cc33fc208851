# What would lead an installation elsewhere is taken out of the way; `deactivate` gives it back.
for _maximalcai_name in @NAMES@; do
  eval "_maximalcai_value=\${$_maximalcai_name+set}"
  if [ -n "$_maximalcai_value" ]; then eval "_maximalcai_old_$_maximalcai_name=\$$_maximalcai_name"; fi
done
unset UV_SYSTEM_PYTHON UV_PYTHON UV_TARGET UV_PREFIX PIP_PYTHON PIP_TARGET PIP_PREFIX PIP_ROOT PYTHONHOME PYTHONPLATLIBDIR
if [ "${PIP_CONFIG_FILE-}" = /dev/null ]; then unset PIP_CONFIG_FILE; fi
export PIP_USER=0
# The constraints and overrides of others, without files that contradict what is locked: with them every install fails.
_maximalcai_fitting='
import re, sys
from urllib.parse import unquote, urlsplit
try:
    from packaging.requirements import Requirement
except ImportError:
    from pip._vendor.packaging.requirements import Requirement

def read(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                yield Requirement(re.sub(r"(^|\s)(#|--).*", "", line.strip()))
            except ValueError:
                continue

def normalize(name):
    return re.sub(r"[-_.]+", "-", name).lower()

def fits(requirement):
    version = locked.get(normalize(requirement.name))
    if version is None or (requirement.marker and not requirement.marker.evaluate()):
        return True
    return not requirement.url and requirement.specifier.contains(version, prereleases=True)

locked = {}
for pin in read(sys.argv[1]):
    for specifier in pin.specifier:
        locked[normalize(pin.name)] = specifier.version
for word in sys.argv[2].split():
    path = word
    if word.startswith("file:"):
        path = unquote(urlsplit(word).path)
    try:
        if all(map(fits, read(path))):
            print(word, end=" ")
    except OSError:
        print(word, end=" ")  # pip and uv say what is wrong with it
'
_maximalcai_others() {
  if [ -n "$1" ]; then
    @PREFIX@/bin/python -I -c "$_maximalcai_fitting" @CONSTRAINTS_FILE@ "$1" 2>/dev/null || true
  fi
}
if [ -e @PREFIX@/pip.conf ]; then
  UV_CONSTRAINT="$(_maximalcai_others "${UV_CONSTRAINT-}")"@CONSTRAINTS@
  export UV_CONSTRAINT
  if [ -n "${UV_OVERRIDE-}" ]; then
    UV_OVERRIDE=$(_maximalcai_others "$UV_OVERRIDE")
    export UV_OVERRIDE
  fi
  if [ -n "${PIP_CONSTRAINT-}${PIP_CONFIG_FILE-}" ]; then
    PIP_CONSTRAINT="$(_maximalcai_others "${PIP_CONSTRAINT-}")"@CONSTRAINTS@
    export PIP_CONSTRAINT
  fi
fi
unset -f _maximalcai_others
unset _maximalcai_fitting
# FlashAttention 4 keeps what it has compiled where the set-up has compiled its common kernels.
if [ -z "${FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED-}" ] && [ -w @KERNELS@ ]; then
  export FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED=1 FLASH_ATTENTION_CUTE_DSL_CACHE_DIR=@KERNELS@
fi
# No lock has a hash of the compiled code on the Hugging Face Hub: it replaces no layer unless somebody asks for it.
export USE_HUB_KERNELS="${USE_HUB_KERNELS-NO}" DISABLE_KERNEL_MAPPING="${DISABLE_KERNEL_MAPPING-1}"
