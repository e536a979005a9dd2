FROM scratch AS nothing
COPY a /
FROM nothing
COPY --from=scratch / /x
RUN --mount=from=scratch,target=/y true
