FROM a
ENV P=C:\\dir
RUN printf 'a\nb\\'
CMD \
