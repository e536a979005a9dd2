FROM a
RUN one \
  two \