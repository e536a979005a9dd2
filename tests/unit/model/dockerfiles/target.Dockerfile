FROM a AS first
ENTRYPOINT ["x"]
FROM b AS Second
COPY --from=c /x /y
FROM d
COPY --from=e /x /y
