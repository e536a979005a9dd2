FROM a
LABEL gruß="日本 🚀"
RUN echo 'naïve' \
  && echo ü
