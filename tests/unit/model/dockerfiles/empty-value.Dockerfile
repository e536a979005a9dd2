FROM a
CMD
RUN true
