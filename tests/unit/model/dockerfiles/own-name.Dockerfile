FROM tool AS tool
FROM later AS x
FROM debian AS later
FROM x
COPY --from=tool a b
