for _maximalcai_name in @NAMES@; do
  unset "$_maximalcai_name"
  eval "_maximalcai_value=\${_maximalcai_old_$_maximalcai_name+set}"
  if [ -n "$_maximalcai_value" ]; then
    eval "export $_maximalcai_name=\"\$_maximalcai_old_$_maximalcai_name\""
    unset "_maximalcai_old_$_maximalcai_name"
  fi
done
unset _maximalcai_name _maximalcai_value
