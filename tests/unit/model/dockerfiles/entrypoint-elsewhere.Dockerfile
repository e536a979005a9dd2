FROM a AS one
ENTRYPOINT ["x"]
FROM b
COPY --from=one /x /y
