FROM a
RUN one \
  # two \
RUN three
USER x
