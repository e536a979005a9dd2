FROM a
RUN --mount=type=bind,from=tools:1,target=/t \
  # comment

  <<EOF bash \
  -x
FROM evil

EOF
CMD ["<<EOF"]
