ARG A=1 B=2 \
    C='3 or 4' D
FROM x:$A-$B-${D:-5}
