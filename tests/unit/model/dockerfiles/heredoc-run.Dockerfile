FROM a
RUN <<EOF
FROM evil:1
COPY --from=evil a b
EOF
RUN echo done
