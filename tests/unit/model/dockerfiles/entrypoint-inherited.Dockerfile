FROM a AS one
ENTRYPOINT ["x"]
FROM one
RUN true
