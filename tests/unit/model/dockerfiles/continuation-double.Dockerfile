FROM a
RUN one \\
USER two
RUN path\\\
USER x
