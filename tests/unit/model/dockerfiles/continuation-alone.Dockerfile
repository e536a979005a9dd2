FROM a
\
RUN one
 \
  \
  USER two
