FROM a
RUN echo # not a comment
RUN echo a \
  b # nor this \
  c
ENV A=#1
