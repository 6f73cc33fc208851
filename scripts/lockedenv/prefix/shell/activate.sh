# Enters the environment, in bash and zsh; `deactivate` leaves it.
if ! [ -e @PREFIX@/activate ]; then
  echo "this environment was made at "@PREFIX@", and has been moved: move it back" >&2
  return 1
fi
if [ -n "${_maximalcai_active-}" ] && command -v deactivate >/dev/null 2>&1; then deactivate; fi
# Another environment that is active stays below this one.
_maximalcai_outer=$(typeset -f deactivate 2>/dev/null || true)
_maximalcai_active=@PREFIX@ _maximalcai_ps1=${PS1-}
for _maximalcai_name in VIRTUAL_ENV CONDA_PREFIX; do
  eval "_maximalcai_value=\${$_maximalcai_name+set}"
  if [ -n "$_maximalcai_value" ]; then eval "_maximalcai_old_$_maximalcai_name=\$$_maximalcai_name"; fi
done
unset VIRTUAL_ENV
export @VARIABLE@=@PREFIX@ PATH=@PREFIX@/bin:$PATH
# A hardened shell may forbid it to change its prompt.
if (PS1=) 2>/dev/null; then PS1="("@TITLE@") ${PS1-}"; fi
@ENTER@
deactivate() {
  # venv's `activate` calls it so, and then defines its own.
  if [ "${1-}" = nondestructive ] && [ -z "${_maximalcai_active-}" ]; then return 0; fi
@LEAVE@
  for _maximalcai_name in VIRTUAL_ENV CONDA_PREFIX; do
    unset "$_maximalcai_name"
    eval "_maximalcai_value=\${_maximalcai_old_$_maximalcai_name+set}"
    if [ -n "$_maximalcai_value" ]; then
      eval "export $_maximalcai_name=\"\$_maximalcai_old_$_maximalcai_name\""
      unset "_maximalcai_old_$_maximalcai_name"
    fi
  done
  # Only what was put before PATH is taken out: what was added meanwhile stays.
  _maximalcai_value=":$PATH:"
  case $_maximalcai_value in
    *:@PREFIX@/bin:*)
      _maximalcai_value=${_maximalcai_value%%:@PREFIX@/bin:*}:${_maximalcai_value#*:@PREFIX@/bin:}
      _maximalcai_value=${_maximalcai_value#:}
      export PATH="${_maximalcai_value%:}"
      ;;
  esac
  if (PS1=) 2>/dev/null; then PS1=$_maximalcai_ps1; fi
  unset -f deactivate
  if [ -n "$_maximalcai_outer" ]; then eval "$_maximalcai_outer"; fi
  unset _maximalcai_name _maximalcai_value _maximalcai_active _maximalcai_ps1 _maximalcai_outer
  hash -r 2>/dev/null || true
}
hash -r 2>/dev/null || true
