for _maximalcai_hook in $(command ls @PREFIX@/etc/conda/@HOOKS@ 2>/dev/null); do
  case $_maximalcai_hook in *.sh) . @PREFIX@/etc/conda/@HOOKS@/"$_maximalcai_hook" ;; esac
done
unset _maximalcai_hook
