FROM a
RUN set -e; for i in 1 2; do echo "$i"; done; \
  case "$x" in a) ;; esac; echo ${arr[@]} ${#arr[@]} ${x%%/*}
RUN awk '{print $1}' <f >g 2>&1
