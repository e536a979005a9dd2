FROM outer AS a
ENTRYPOINT ["a"]
FROM a AS b
FROM b AS c
RUN --mount=type=bind,from=a,target=/a --mount=type=bind,from=other:1,target=/b true
FROM c
CMD ["x"]
