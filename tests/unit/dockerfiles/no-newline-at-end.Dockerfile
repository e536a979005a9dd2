FROM a
RUN true