FROM a AS b
RUN one \

  # c
  two
RUN <<EOF
FROM evil
EOF
FROM b
COPY --from=c:1 x y
