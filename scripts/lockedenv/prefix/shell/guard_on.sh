# What would lead an installation elsewhere is taken out of the way; `deactivate` gives it back.
for _maximalcai_name in @NAMES@; do
  eval "_maximalcai_value=\${$_maximalcai_name+set}"
  if [ -n "$_maximalcai_value" ]; then eval "_maximalcai_old_$_maximalcai_name=\$$_maximalcai_name"; fi
done
unset UV_SYSTEM_PYTHON UV_PYTHON UV_TARGET UV_PREFIX PIP_PYTHON PIP_TARGET PIP_PREFIX PIP_ROOT PYTHONHOME
if [ "${PIP_CONFIG_FILE-}" = /dev/null ]; then unset PIP_CONFIG_FILE; fi
export PIP_USER=0
# The constraints of others, without files that pin another version of a locked package.
_maximalcai_others() {
  printf '%s\n' "$1" | tr ' ' '\n' | while IFS= read -r _maximalcai_file; do
    if [ -z "$_maximalcai_file" ] || [ "$_maximalcai_file" = @CONSTRAINTS@ ]; then continue; fi
    if [ -f "$_maximalcai_file" ] && awk '
      { gsub(/[ \t\r]/, ""); if (split($0, pin, "==") != 2) next; name = tolower(pin[1]); gsub(/[-_.]+/, "-", name) }
      NR == FNR { locked[name] = pin[2]; next }
      name in locked && locked[name] != pin[2] { found = 1 }
      END { exit !found }' @CONSTRAINTS_FILE@ "$_maximalcai_file"; then continue; fi
    printf '%s ' "$_maximalcai_file"
  done
}
if [ -e @PREFIX@/pip.conf ]; then
  UV_CONSTRAINT="$(_maximalcai_others "${UV_CONSTRAINT-}")"@CONSTRAINTS@
  export UV_CONSTRAINT
  if [ -n "${PIP_CONSTRAINT-}${PIP_CONFIG_FILE-}" ]; then
    PIP_CONSTRAINT="$(_maximalcai_others "${PIP_CONSTRAINT-}")"@CONSTRAINTS@
    export PIP_CONSTRAINT
  fi
fi
unset -f _maximalcai_others
# FlashAttention 4 keeps what it has compiled where the set-up has compiled its common kernels.
if [ -z "${FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED-}" ] && [ -w @KERNELS@ ]; then
  export FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED=1 FLASH_ATTENTION_CUTE_DSL_CACHE_DIR=@KERNELS@
fi
# No lock has a hash of the compiled code on the Hugging Face Hub: it replaces no layer unless somebody asks for it.
export USE_HUB_KERNELS="${USE_HUB_KERNELS-NO}" DISABLE_KERNEL_MAPPING="${DISABLE_KERNEL_MAPPING-1}"
